// A directory for work under way, removed whole at the end of its life.
#pragma once

#include <string>

#include "base/result.h"

namespace lethe {

class ScratchDirectory {
 public:
  // Makes `prefix`XXXXXX with `mode`. Errors (kHost) name it.
  [[nodiscard]] static Result<ScratchDirectory> create(const std::string& prefix, unsigned mode);
  ScratchDirectory(ScratchDirectory&& other) noexcept : x_path(std::move(other.x_path)) {
    other.x_path.clear();
  }
  ScratchDirectory& operator=(ScratchDirectory&&) = delete;
  ~ScratchDirectory();

  [[nodiscard]] const std::string& path() const { return x_path; }

  // Removes it now. False: something in it is another user's (a user namespace's, that is).
  [[nodiscard]] bool remove();

 private:
  explicit ScratchDirectory(std::string path) : x_path(std::move(path)) {}
  std::string x_path;
};

}  // namespace lethe
