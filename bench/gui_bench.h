// What the benchmarks of the GUI share: other processes to measure against, which tell by shared
// memory when they woke up.
//
// All times are CLOCK_MONOTONIC, which is one clock for all processes. The processes are forked
// before the benchmark makes a thread. Every wait has a deadline.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "base/unique_fd.h"

namespace lethe {

inline uint64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

[[noreturn]] inline void give_up(const char* what) {
  std::fprintf(stderr, "bench: %s\n", what);
  std::exit(1);
}

inline void sleep_us(unsigned us) {
  const timespec time{us / 1'000'000, static_cast<long>(us % 1'000'000) * 1000};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

// What a process tells the other ones.
struct Stamps {
  std::atomic<uint64_t> count{0};  // events so far; `last_ns` was stored before
  std::atomic<uint64_t> last_ns{0};
  void mark() {
    last_ns.store(now_ns(), std::memory_order_relaxed);
    count.fetch_add(1, std::memory_order_release);
  }
  // Sleeps until `count` is above `seen`: the time of the last event. Long sleeps: who waits must
  // not be in the way of those who are measured.
  uint64_t wait_above(uint64_t seen) const {
    for (unsigned tries = 0; count.load(std::memory_order_acquire) <= seen; ++tries) {
      if (tries > 10'000) give_up("an event did not arrive within seconds");
      sleep_us(500);
    }
    return last_ns.load(std::memory_order_relaxed);
  }
};

// A process that runs `work`, until it returns or this is destroyed.
class BenchProcess {
 public:
  explicit BenchProcess(const std::function<void(Stamps&)>& work) {
    void* const memory =
        mmap(nullptr, sizeof(Stamps), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) give_up("no shared memory");
    // SAFETY: the mapping is of the right size, aligned to a page, and stays until the process
    // ends.
    x_stamps = new (memory) Stamps;
    x_pid = fork();
    if (x_pid < 0) give_up("fork");
    if (x_pid > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    work(*x_stamps);
    _exit(0);
  }
  ~BenchProcess() {
    kill(x_pid, SIGKILL);
    waitpid(x_pid, nullptr, 0);
  }
  BenchProcess(const BenchProcess&) = delete;
  BenchProcess& operator=(const BenchProcess&) = delete;

  [[nodiscard]] Stamps& stamps() const { return *x_stamps; }
  // CPU time of the whole process so far.
  [[nodiscard]] uint64_t cpu_ns() const {
    clockid_t clock = 0;
    if (clock_getcpuclockid(x_pid, &clock) != 0) give_up("a process is gone");
    return now_ns(clock);
  }

 private:
  Stamps* x_stamps = nullptr;
  pid_t x_pid = -1;
};

struct SocketPair {
  SocketPair() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) give_up("socketpair");
    one = UniqueFd(fds[0]);
    other = UniqueFd(fds[1]);
  }
  UniqueFd one;
  UniqueFd other;
};

inline sockaddr_un socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) give_up("the socket's path is too long");
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

// A listening socket of the GUI channel's kind.
inline UniqueFd listen_at(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un address = socket_address(path);
  // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd.get(), 8) != 0)
    give_up("no socket to listen on");
  return fd;
}

// Connects as soon as somebody listens there.
inline UniqueFd connect_to(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = socket_address(path);
  for (unsigned tries = 0;; ++tries) {
    // SAFETY: as above.
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return fd;
    if (tries > 10'000) give_up("nobody listens");
    sleep_us(1000);
  }
}

}  // namespace lethe
