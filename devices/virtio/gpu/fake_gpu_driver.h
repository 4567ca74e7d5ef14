// For tests and benches: a driver of virtio-gpu over FakeTransport; commands one at a time, each
// returning the type of the device's answer.
#pragma once

#include <linux/virtio_gpu.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/gpu/gpu.h"
#include "devices/virtio/gpu/window_protocol.h"

namespace lethe {

class FakeGpuDriver {
 public:
  static constexpr uint32_t kOk = VIRTIO_GPU_RESP_OK_NODATA;
  static constexpr size_t kRequestMax = 4096;
  static constexpr size_t kMoreMax = 4 << 20;
  static constexpr size_t kResponseMax = 4096;

  // Starts the device. Buffers come out of the transport's heap.
  FakeGpuDriver(const GuestMemory& memory, VirtioDevice& device, GuestAddr heap = GuestAddr{0});

  [[nodiscard]] FakeTransport& transport() { return x_transport; }
  [[nodiscard]] const GuestMemory& memory() const { return x_memory; }
  // Reset and start, with `wanted` features.
  void restart(uint64_t wanted = ~uint64_t{0});
  [[nodiscard]] GuestAddr alloc(uint64_t bytes) { return x_transport.heap().alloc(bytes, 4096); }

  // A request of raw bytes, `more` in a descriptor of its own, and `room` for the answer. What the
  // device wrote is in answer(). Returns its type; 0 if it wrote none.
  uint32_t raw(std::span<const uint8_t> request, std::span<const uint8_t> more = {},
               uint32_t room = kResponseMax);
  template <typename T>
  uint32_t send(uint32_t type, T command, std::span<const uint8_t> more = {}) {
    command.hdr.type = type;
    return raw({reinterpret_cast<const uint8_t*>(&command), sizeof command}, more);
  }
  [[nodiscard]] uint32_t written() const { return x_written; }
  template <typename T>
  [[nodiscard]] T answer() const {
    return x_memory.load<T>(x_response).value();
  }

  uint32_t create_2d(uint32_t id, uint32_t width, uint32_t height,
                     uint32_t format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM);
  uint32_t unref(uint32_t id);
  uint32_t attach(uint32_t id, const std::vector<virtio_gpu_mem_entry>& entries);
  uint32_t attach(uint32_t id, GuestAddr address, uint32_t bytes) {
    return attach(id, {{address.value, bytes, 0}});
  }
  uint32_t detach(uint32_t id);
  uint32_t transfer(uint32_t id, const virtio_gpu_rect& r, uint64_t offset);
  uint32_t set_scanout(uint32_t scanout, uint32_t id, const virtio_gpu_rect& r);
  uint32_t flush(uint32_t id, const virtio_gpu_rect& r);
  uint32_t create_blob(uint32_t id, uint64_t size, uint32_t context = 0,
                       uint32_t memory = VIRTIO_GPU_BLOB_MEM_HOST3D,
                       const std::vector<virtio_gpu_mem_entry>& entries = {});
  uint32_t map(uint32_t id, uint64_t offset);
  uint32_t unmap(uint32_t id);
  uint32_t context_create(uint32_t context, uint32_t capset = window::kWindowCapset);
  uint32_t context_destroy(uint32_t context);
  uint32_t context_attach(uint32_t context, uint32_t id);
  uint32_t context_detach(uint32_t context, uint32_t id);
  uint32_t submit(uint32_t context, std::span<const uint8_t> commands);
  uint32_t cursor(uint32_t type, uint32_t scanout, uint32_t id, uint32_t hot_x = 0,
                  uint32_t hot_y = 0);

  // `pairs` times creates blob 2, of a page, and gives it up; many a kick. Answers are not looked
  // at.
  void flood(uint32_t pairs);

  // A fenced kPoll on `ring`, not waited for. done() says whether it was answered, and takes it.
  uint16_t start_poll(uint32_t context, uint32_t tail, uint64_t fence,
                      uint8_t ring = window::kEventRing);
  std::optional<virtio_gpu_ctrl_hdr> poll_answer(
      uint16_t head, std::chrono::milliseconds patience = FakeTransport::kPatience);

 private:
  uint32_t resource(uint32_t type, uint32_t id);
  uint32_t in_context(uint32_t type, uint32_t context, uint32_t id);

  const GuestMemory& x_memory;
  FakeTransport x_transport;
  GuestAddr x_request;
  GuestAddr x_more;
  GuestAddr x_response;
  GuestAddr x_poll_request;  // two of them, in turn
  GuestAddr x_poll_response;
  unsigned x_polls = 0;
  std::map<uint16_t, GuestAddr> x_poll_answers;  // by head
  std::map<uint16_t, uint32_t> x_done;           // used chains that were not asked for yet
  uint32_t x_written = 0;
  std::optional<uint32_t> wait_for(uint16_t head, std::chrono::milliseconds patience);
};

// A batch of window commands.
class FakeWindowCommands {
 public:
  template <typename T>
  FakeWindowCommands& add(uint32_t command, T value) {
    value.header = {command, sizeof value};
    return add_raw({reinterpret_cast<const uint8_t*>(&value), sizeof value});
  }
  FakeWindowCommands& add_raw(std::span<const uint8_t> bytes) {
    x_bytes.insert(x_bytes.end(), bytes.begin(), bytes.end());
    return *this;
  }
  FakeWindowCommands& ring(uint32_t id) {
    return add(window::kSetEventRing, window::SetEventRing{{}, id, 0});
  }
  FakeWindowCommands& create(uint32_t window, uint32_t width = 32, uint32_t height = 32,
                             uint32_t flags = window::kWindowVisible, uint32_t parent = 0) {
    return add(window::kWindowCreate,
               window::WindowCreate{{}, window, parent, flags, 0, 0, width, height, 0});
  }
  FakeWindowCommands& geometry(uint32_t window, int32_t x, int32_t y, uint32_t width,
                               uint32_t height, uint32_t flags) {
    return add(window::kWindowGeometry,
               window::WindowCreate{{}, window, 0, flags, x, y, width, height, 0});
  }
  FakeWindowCommands& title(uint32_t window, const char* text) {
    window::WindowTitle command{{}, window, 0, {}};
    std::strncpy(command.title, text, sizeof command.title - 1);
    return add(window::kWindowTitle, command);
  }
  FakeWindowCommands& attach(uint32_t window, uint32_t id, uint32_t width = 32,
                             uint32_t height = 32, uint64_t offset = 0) {
    return add(
        window::kWindowAttach,
        window::WindowAttach{
            {}, window, id, offset, width * 4, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, width, height});
  }
  FakeWindowCommands& damage(uint32_t window, uint32_t serial, uint32_t x = 0, uint32_t y = 0,
                             uint32_t width = 32, uint32_t height = 32) {
    return add(window::kWindowDamage,
               window::WindowDamage{{}, window, x, y, width, height, serial});
  }
  FakeWindowCommands& destroy(uint32_t window) {
    return add(window::kWindowDestroy, window::WindowDestroy{{}, window, 0});
  }
  FakeWindowCommands& poll(uint32_t tail) { return add(window::kPoll, window::Poll{{}, tail, 0}); }
  [[nodiscard]] std::span<const uint8_t> bytes() const { return x_bytes; }

 private:
  std::vector<uint8_t> x_bytes;
};

}  // namespace lethe
