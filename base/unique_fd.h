// An owned file descriptor, closed once.
#pragma once

#include <unistd.h>

#include <utility>

namespace lethe {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : x_fd(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : x_fd(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const { return x_fd; }
  [[nodiscard]] bool valid() const { return x_fd >= 0; }
  [[nodiscard]] int release() { return std::exchange(x_fd, -1); }
  void reset(int fd = -1) {
    if (x_fd >= 0) ::close(x_fd);
    x_fd = fd;
  }

 private:
  int x_fd = -1;
};

}  // namespace lethe
