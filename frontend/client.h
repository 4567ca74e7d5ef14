// A frontend's end of the GUI channel: says hello, receives and checks everything, keeps what
// surfaces and buffers there are, tells a Listener, and answers.
//
//   auto client = Client::connect(std::move(socket), {.name = "lethe-shot"});
//   while (poll client->fd() for client->events()) { if (!client->process(listener)) break; }
//
// A Frame's pixels are the guest's memory, mapped: the listener copies or draws them before it
// returns; then the VM is told that they have been read. Pixels may change while they are read (the
// guest may be hostile) and turn to zeros (the VM may revoke them); nothing else can happen.
//
// One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/gui/protocol.h"
#include "frontend/check.h"
#include "frontend/shared_mapping.h"

namespace lethe::gui {

struct Rect {
  uint32_t x = 0, y = 0, width = 0, height = 0;
  [[nodiscard]] bool empty() const { return width == 0 || height == 0; }
  friend bool operator==(const Rect&, const Rect&) = default;
};

struct SurfaceState {
  uint64_t id = 0;
  uint64_t parent = 0;  // may be gone, or not there yet
  SurfaceKind kind = SurfaceKind::kScreen;
  uint32_t flags = 0;  // kSurface...
  int32_t x = 0, y = 0;
  uint32_t width = 0, height = 0;
  uint32_t output = 0;
  std::string title;  // can be shown: shown_text()
};

// Pixels of a surface, valid until the callback returns.
struct FrameView {
  const std::byte* pixels = nullptr;  // the first one; null: there is nothing to show
  uint32_t format = 0;                // VIRTIO_GPU_FORMAT_*
  uint32_t stride = 0;                // bytes
  uint32_t width = 0, height = 0;     // pixels
  Rect damage;                        // since the last on_frame of this surface; may be empty
};

// B8G8R8A8, lines of width * 4 bytes, valid until the callback returns. The hot spot, which guests
// choose freely, is moved into the picture.
struct CursorView {
  const std::byte* pixels = nullptr;  // null: no cursor is shown
  uint32_t width = 0, height = 0, hot_x = 0, hot_y = 0;
};

class Listener {
 public:
  virtual ~Listener() = default;
  // New or changed.
  virtual void on_surface(const SurfaceState& surface) = 0;
  virtual void on_surface_gone(uint64_t surface) = 0;
  virtual void on_frame(uint64_t surface, const FrameView& frame) = 0;
  virtual void on_cursor(uint64_t surface, const CursorView& cursor) = 0;
};

struct ClientOptions {
  std::string name;  // of the program, 31 bytes at most
  bool view_only = false;
};

class Client {
 public:
  // Says Hello. `socket` is a connected SOCK_SEQPACKET.
  [[nodiscard]] static Result<Client> connect(UniqueFd socket, const ClientOptions& options);
  Client(Client&&) = default;
  Client& operator=(Client&&) = default;

  [[nodiscard]] int fd() const { return x_socket.get(); }
  // What to poll fd() for: POLLIN, and POLLOUT while something waits to be sent.
  [[nodiscard]] short events() const;

  // Sends what waits, receives all there is (at most kPacketsPerProcess packets) and answers it.
  // Does not block. An error ends the connection; its text says why, in words: the VM's Bye, the
  // socket's end, or a bad message.
  [[nodiscard]] Result<> process(Listener& listener);
  static constexpr int kPacketsPerProcess = 256;

  // The VM's name, once Welcome has come.
  [[nodiscard]] bool welcomed() const { return x_welcomed; }
  [[nodiscard]] const std::string& vm_name() const { return x_vm_name; }
  [[nodiscard]] const std::map<uint64_t, SurfaceState>& surfaces() const { return x_surfaces; }

  // The user's input. What can't be sent at once waits; motion that waits is replaced by newer
  // motion, and when kInputsMax messages wait (the VM hangs) further ones are dropped.
  void send_key(uint64_t surface, uint32_t code, bool down);
  void send_motion(uint64_t surface, int32_t x, int32_t y);
  void send_button(uint64_t surface, uint32_t code, bool down);
  void send_wheel(uint64_t surface, int32_t vertical, int32_t horizontal);
  void send_focus(uint64_t surface, bool focused);
  void send_configure(uint64_t surface, int32_t x, int32_t y, uint32_t width, uint32_t height);
  void send_close(uint64_t surface);
  static constexpr size_t kInputsMax = 4096;

  struct Counters {
    uint64_t frames = 0;
    uint64_t unmapped = 0;         // buffers given back
    uint64_t lost = 0;             // buffers that could not be mapped or had no descriptor
    uint64_t inputs_dropped = 0;   // the VM did not read them
    uint64_t inputs_replaced = 0;  // motion
  };
  [[nodiscard]] const Counters& counters() const { return x_counters; }
  [[nodiscard]] size_t buffers() const { return x_buffers.size(); }

 private:
  struct HeldBuffer {
    uint64_t generation = 0;
    uint64_t bytes = 0;
    SharedMapping mapping;  // not valid: it could not be mapped; the VM was told Unmapped
  };
  struct Packet {
    std::vector<std::byte> bytes;
    bool input = false;
  };

  explicit Client(UniqueFd socket) : x_socket(std::move(socket)) {}
  struct Received {
    size_t size = 0;
    std::vector<UniqueFd> descriptors;
    bool descriptors_lost = false;
  };
  // No value: nothing is there now.
  [[nodiscard]] Result<std::optional<Received>> receive(std::span<std::byte> into);
  [[nodiscard]] Result<> flush();
  [[nodiscard]] Result<> handle(const FromVm& message, Received& received, Listener& listener);
  [[nodiscard]] Result<> take(const Welcome& welcome, Received&, Listener&);
  [[nodiscard]] Result<> take(const Surface& surface, Received&, Listener&);
  [[nodiscard]] Result<> take(const SurfaceGone& gone, Received&, Listener&);
  [[nodiscard]] Result<> take(const Buffer& buffer, Received&, Listener&);
  [[nodiscard]] Result<> take(const BufferGone& gone, Received&, Listener&);
  [[nodiscard]] Result<> take(const Frame& frame, Received&, Listener&);
  [[nodiscard]] Result<> take(const Cursor& cursor, Received&, Listener&);
  [[nodiscard]] Result<> take(const Bye& bye, Received&, Listener&);
  [[nodiscard]] Result<const HeldBuffer*> buffer_of(uint32_t index, uint64_t generation,
                                                    uint64_t offset, uint64_t bytes,
                                                    Type type) const;
  [[nodiscard]] Result<> show(const Frame& frame, const HeldBuffer& buffer, Listener& listener);

  template <typename T>
  void send(T message, Type type, bool input);

  UniqueFd x_socket;
  std::deque<Packet> x_waiting;
  size_t x_inputs_waiting = 0;
  bool x_welcomed = false;
  std::string x_vm_name;
  std::map<uint64_t, SurfaceState> x_surfaces;
  struct Shown {
    std::optional<uint64_t> frame;  // the last one
    bool stale = false;             // a Frame could not be shown: the next one is shown whole
  };
  std::unordered_map<uint64_t, Shown> x_shown;
  std::unordered_map<uint32_t, HeldBuffer> x_buffers;  // by slot
  Counters x_counters;
};

}  // namespace lethe::gui
