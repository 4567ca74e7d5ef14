// The host as lethe-agent sees it: buffers that the host shows, window commands
// (devices/virtio/gpu/window_protocol.h), and the events that come back. DrmHost is virtio-gpu;
// tests have a fake.
//
// Threading: one thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "devices/virtio/gpu/window_protocol.h"

namespace lethe::agent {

// Memory that a window's pixels are drawn into. Destroying it gives it back to the host, which
// keeps it until every frontend has let it go: what is drawn next goes into another one.
class Buffer {
 public:
  Buffer() = default;
  virtual ~Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] virtual uint32_t resource_id() const = 0;
  [[nodiscard]] virtual uint8_t* data() const = 0;
  [[nodiscard]] virtual uint64_t bytes() const = 0;
  // The same memory for mmap(2) by another process; -1 if there is no such descriptor.
  [[nodiscard]] virtual int fd() const = 0;
};

class Host {
 public:
  using EventHandler = std::function<void(const window::Event&)>;

  Host() = default;
  virtual ~Host() = default;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // `bytes`: rounded up to whole pages. Fails when the host or its limits are exhausted.
  [[nodiscard]] virtual Result<std::unique_ptr<Buffer>> make_buffer(uint64_t bytes) = 0;
  // Whole commands, at most window::kCommandBytesMax. Fails when the device is gone.
  [[nodiscard]] virtual Result<> submit(std::span<const uint8_t> commands) = 0;
  // Readable when take_events() has something to do.
  [[nodiscard]] virtual int event_fd() const = 0;
  // Hands on what has come, and waits for more. Fails when the device is gone.
  [[nodiscard]] virtual Result<> take_events(const EventHandler& handler) = 0;
};

// Commands, gathered until flush().
class Commands {
 public:
  explicit Commands(Host& host) : x_host(host) {}

  // `command`: a struct of window_protocol.h; its header is filled in here.
  template <typename T>
  void add(window::Command code, T command) {
    command.header = {.command = code, .bytes = sizeof(T)};
    const size_t begin = x_ends.empty() ? 0 : x_ends.back();
    const size_t at = x_bytes.size();
    if (at - begin + sizeof(T) > window::kCommandBytesMax) x_ends.push_back(at);
    x_bytes.resize(at + sizeof(T));
    std::memcpy(x_bytes.data() + at, &command, sizeof(T));
  }
  [[nodiscard]] bool empty() const { return x_bytes.empty(); }
  [[nodiscard]] Result<> flush();

 private:
  Host& x_host;
  std::vector<uint8_t> x_bytes;
  std::vector<size_t> x_ends;  // where one submission has to end and the next one begins
};

}  // namespace lethe::agent
