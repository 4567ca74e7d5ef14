// The VM's end of the GUI channel for the frontends' tests: sends what it is told, well formed or
// not, and receives with a deadline. One thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "devices/gui/protocol.h"

namespace lethe::gui {

// A sealed memfd as a VM shares it, with the VM's own writable mapping.
class FakeBuffer {
 public:
  explicit FakeBuffer(uint64_t bytes);
  FakeBuffer(FakeBuffer&&) noexcept;
  FakeBuffer& operator=(FakeBuffer&&) = delete;
  ~FakeBuffer();

  [[nodiscard]] int fd() const { return x_fd.get(); }
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }
  [[nodiscard]] uint32_t* pixels() const { return static_cast<uint32_t*>(x_start); }
  void revoke() const;  // takes its memory away

 private:
  UniqueFd x_fd;
  uint64_t x_bytes;
  void* x_start;
};

class FakeVm {
 public:
  // Connected to frontend_end().
  FakeVm();
  // Listens at a path; accept() waits for a frontend.
  explicit FakeVm(const std::string& path);

  [[nodiscard]] UniqueFd frontend_end() { return std::move(x_frontend); }
  [[nodiscard]] bool accept(std::chrono::milliseconds patience = kPatience);
  // The frontend sees its end; also without a goodbye.
  void close() { x_socket.reset(); }
  [[nodiscard]] int fd() const { return x_socket.get(); }

  [[nodiscard]] bool send_raw(const void* bytes, size_t size, std::span<const int> fds = {});
  // Fills the header in.
  template <typename T>
  [[nodiscard]] bool send(T message, Type type, std::span<const int> fds = {}) {
    message.header = {static_cast<uint32_t>(type), sizeof message};
    return send_raw(&message, sizeof message, fds);
  }

  // The next message must be of this type, or there is none and a reason in `complaint()`.
  template <typename T>
  [[nodiscard]] std::optional<T> receive(Type type,
                                         std::chrono::milliseconds patience = kPatience) {
    T message;
    const std::vector<std::byte> packet = receive_raw(patience);
    if (!is(packet, type, sizeof message)) return std::nullopt;
    std::memcpy(&message, packet.data(), sizeof message);
    return message;
  }
  // Skips messages of other types; nothing when none comes in time.
  template <typename T>
  [[nodiscard]] std::optional<T> receive_until(Type type,
                                               std::chrono::milliseconds patience = kPatience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (std::chrono::steady_clock::now() < deadline) {
      const std::vector<std::byte> packet =
          receive_raw(std::chrono::duration_cast<std::chrono::milliseconds>(
              deadline - std::chrono::steady_clock::now()));
      if (packet.empty()) return std::nullopt;
      if (!is(packet, type, sizeof(T))) continue;
      T message;
      std::memcpy(&message, packet.data(), sizeof message);
      return message;
    }
    return std::nullopt;
  }
  // Empty: nothing in time, or the end.
  [[nodiscard]] std::vector<std::byte> receive_raw(std::chrono::milliseconds patience = kPatience);
  [[nodiscard]] const std::string& complaint() const { return x_complaint; }

  // --- What a well-behaved VM says ---
  [[nodiscard]] bool welcome(const char* name = "fake");
  [[nodiscard]] bool surface(uint64_t id, SurfaceKind kind, uint32_t width, uint32_t height,
                             const char* title = "", int32_t x = 0, int32_t y = 0,
                             uint32_t flags = kSurfaceVisible, uint64_t parent = 0);
  [[nodiscard]] bool buffer(uint32_t slot, uint64_t generation, const FakeBuffer& memory);
  [[nodiscard]] bool bye(ByeReason reason);
  // A frame of B8G8R8X8, all of it damaged.
  static Frame frame(uint64_t surface, uint64_t number, uint32_t slot, uint64_t generation,
                     uint32_t width, uint32_t height);

  static constexpr std::chrono::milliseconds kPatience{10'000};

 private:
  bool is(const std::vector<std::byte>& packet, Type type, size_t size);
  UniqueFd x_listener;
  UniqueFd x_socket;
  UniqueFd x_frontend;
  std::string x_complaint;
};

}  // namespace lethe::gui
