// One side of the lab's vsock test, the same program in guest and host but for how it connects:
// streams that it opens, on which it sends bytes that say whose they are and compares what comes
// back; and as many that the other side opens, which it echoes. All at once, a thread each.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace lethe::vsock_peer {

inline constexpr unsigned kGuestPort = 5000;
inline constexpr unsigned kHostPort = 6000;
inline constexpr int kPatienceMs = 60'000;
inline constexpr size_t kChunk = 4096;

inline std::atomic<unsigned> failures{0};
inline void failed(const char* what, unsigned stream) {
  std::printf("vsock_peer: FAILED: stream %u: %s: %s\n", stream, what, std::strerror(errno));
  ++failures;
}

inline bool wait_for(int fd, short events) {
  pollfd waiting{.fd = fd, .events = events, .revents = 0};
  errno = 0;
  if (::poll(&waiting, 1, kPatienceMs) == 1) return true;
  if (errno == 0) errno = ETIMEDOUT;
  return false;
}

inline char content(unsigned stream, size_t at) {
  return static_cast<char>(stream * 13 + at * 7 + (at >> 8) * 3);
}

// What comes is sent back until its end.
inline void echo(int fd, unsigned stream) {
  char chunk[kChunk];
  for (;;) {
    if (!wait_for(fd, POLLIN)) return failed("echo: nothing comes", stream);
    const ssize_t got = ::read(fd, chunk, sizeof chunk);
    if (got == 0) break;
    if (got < 0) return failed("echo: read", stream);
    for (ssize_t sent = 0; sent < got;) {
      if (!wait_for(fd, POLLOUT)) return failed("echo: nothing is taken", stream);
      const ssize_t count = ::send(fd, chunk + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
      if (count < 0) return failed("echo: send", stream);
      sent += count;
    }
  }
  (void)::shutdown(fd, SHUT_WR);
  // The other side has had its bytes before this end goes away.
  while (wait_for(fd, POLLIN) && ::read(fd, chunk, sizeof chunk) > 0) continue;
}

// Sends, shuts down, and has the same bytes back.
inline void ask(int fd, unsigned stream, size_t bytes) {
  size_t sent = 0;
  size_t got = 0;
  char chunk[kChunk];
  while (got < bytes || sent < bytes) {
    if (!wait_for(fd, static_cast<short>(POLLIN | (sent < bytes ? POLLOUT : 0))))
      return failed("ask: no answer", stream);
    if (sent < bytes) {
      const size_t size = std::min(kChunk, bytes - sent);
      for (size_t i = 0; i < size; ++i) chunk[i] = content(stream, sent + i);
      const ssize_t count = ::send(fd, chunk, size, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && errno != EAGAIN) return failed("ask: send", stream);
      sent += count > 0 ? static_cast<size_t>(count) : 0;
      if (sent == bytes) (void)::shutdown(fd, SHUT_WR);
    }
    const ssize_t count = ::recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN) continue;
    if (count <= 0) return failed("ask: ended early", stream);
    for (ssize_t i = 0; i < count; ++i)
      if (chunk[i] != content(stream, got + static_cast<size_t>(i)))
        return failed("ask: other bytes", stream);
    got += static_cast<size_t>(count);
  }
  if (!wait_for(fd, POLLIN) || ::read(fd, chunk, 1) != 0) failed("ask: no end", stream);
}

// `listener` echoes `streams` of them; as many are opened by `connect`, once the first one has come
// if `wait_first`. Returns the exit code.
inline int run(int listener, unsigned streams, size_t bytes, bool wait_first,
               const std::function<int(unsigned)>& connect) {
  std::vector<std::thread> threads;
  std::atomic<bool> started{!wait_first};
  threads.emplace_back([&] {
    std::vector<std::thread> echoes;
    for (unsigned i = 0; i < streams; ++i) {
      const int fd = wait_for(listener, POLLIN) ? ::accept(listener, nullptr, nullptr) : -1;
      started = true;
      started.notify_all();
      if (fd < 0) {
        failed("accept", i);
        break;
      }
      echoes.emplace_back([fd, i] {
        echo(fd, i);
        ::close(fd);
      });
    }
    for (std::thread& thread : echoes) thread.join();
  });
  started.wait(false);
  std::vector<int> opened;  // all of them are open before the first one sends
  for (unsigned i = 0; i < streams; ++i) {
    const int fd = connect(i);
    if (fd < 0) {
      failed("connect", i);
      break;
    }
    opened.push_back(fd);
  }
  for (unsigned i = 0; i < opened.size(); ++i)
    threads.emplace_back([&, i] {
      ask(opened[i], i, bytes);
      ::close(opened[i]);
    });
  for (std::thread& thread : threads) thread.join();
  std::printf("vsock_peer: %u streams each way of %zu bytes: %u failures\n", streams, bytes,
              failures.load());
  return failures == 0 ? 0 : 1;
}

}  // namespace lethe::vsock_peer
