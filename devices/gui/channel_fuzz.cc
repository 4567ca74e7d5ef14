// The channel's server against arbitrary packets of a frontend.
//
// The input is a list of packets: a byte of length, a byte of type (0: the packet is what follows,
// else a header is made for it), then the bytes. Whatever comes, the VM serves the next frontend,
// the ledger's numbers add up, and what the creator hears is within the protocol's limits.
#include <linux/input-event-codes.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "devices/gui/channel_message.h"
#include "devices/gui/fake_frontend.h"

namespace lethe {
namespace {

constexpr uint32_t kSide = 16;
constexpr size_t kPacketsMax = 64;

class StrictCreator : public SurfaceListener {
 public:
  void key(SurfaceId, uint32_t code, bool) override { LETHE_ASSERT(code >= 1 && code <= 0x2FF); }
  void motion(SurfaceId, uint32_t x, uint32_t y) override { LETHE_ASSERT(x < kSide && y < kSide); }
  void button(SurfaceId, uint32_t code, bool) override {
    LETHE_ASSERT(code >= BTN_LEFT && code <= BTN_TASK);
  }
  void wheel(SurfaceId, int32_t v, int32_t h) override {
    LETHE_ASSERT(v >= -100 && v <= 100 && h >= -100 && h <= 100);
  }
  void focus(SurfaceId, bool) override {}
  void configure(SurfaceId, int32_t, int32_t, uint32_t width, uint32_t height) override {
    LETHE_ASSERT(width >= 1 && width <= gui::kSidePixelsMax);
    LETHE_ASSERT(height >= 1 && height <= gui::kSidePixelsMax);
  }
  void close(SurfaceId) override {}
  void done_reading(SurfaceId, uint64_t frame) override { LETHE_ASSERT(frame <= presented); }
  void released(BufferId) override {}
  uint64_t presented = 0;
};

// One VM for the whole run: what one input leaves must not hurt the next.
struct Vm {
  Vm() {
    LETHE_ASSERT(gui.listen(socket.take()));
    gui.run_and_wait([this] {
      surface = gui.add_surface({.width = kSide, .height = kSide}, creator).value();
      buffer = gui.create_buffer(kSide * kSide * 4, creator).value();
    });
  }
  FakeGuiSocket socket;
  StrictCreator creator;
  Gui gui{{.vm_name = "fuzz", .buffers_max = 64, .ledger = {.orphans_max = 8}}};
  SurfaceId surface = 0;
  BufferId buffer;

  // The guest's side of an input: a frame, and now and then another buffer.
  void present(bool replace) {
    gui.run_and_wait([&] {
      if (replace) {
        gui.release_buffer(buffer);
        buffer = gui.create_buffer(kSide * kSide * 4, creator).value();
      }
      const SurfaceContent content{
          .buffer = buffer, .stride = kSide * 4, .format = 1, .width = kSide, .height = kSide};
      ++creator.presented;
      if (replace) ++creator.presented;  // the release has hidden the old one
      (void)gui.present(surface, content, {0, 0, 1, 1});
      const LedgerCounters& c = gui.ledger().counters();
      LETHE_ASSERT(c.live.buffers == 1 && c.orphan.buffers <= 8 && c.leaked.buffers == 0);
    });
  }
};

// Puts the numbers of things that are there where a packet has them, so that the fuzzer need not
// guess 64 bits.
std::vector<uint8_t> packet_of(const Vm& vm, uint8_t type, const uint8_t* data, size_t size) {
  if (type == 0) return {data, data + size};
  std::vector<uint8_t> packet(sizeof(gui::MessageHeader) + size);
  if (size > 0) std::memcpy(packet.data() + sizeof(gui::MessageHeader), data, size);
  const gui::MessageHeader header{type, static_cast<uint32_t>(packet.size())};
  std::memcpy(packet.data(), &header, sizeof header);
  const bool real = size >= 8 && data[7] == 0xFF;
  if (!real) return packet;
  if (static_cast<gui::Type>(type) == gui::Type::kUnmapped && size == 16) {
    const gui::Unmapped message{header, vm.buffer.slot, 0, vm.buffer.generation};
    std::memcpy(packet.data(), &message, sizeof message);
  } else {
    std::memcpy(packet.data() + sizeof header, &vm.surface, sizeof vm.surface);
  }
  return packet;
}

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lethe;
  static auto* const vm = new Vm;  // its thread runs to the process's end
  FakeFrontend frontend(vm->socket.path());
  if (size > 0 && data[0] % 8 != 0) frontend.hello(gui::kVersion, data[0] & 1);
  size_t at = 1;
  for (size_t i = 0; i < kPacketsMax && at + 2 <= size; ++i) {
    const size_t length = std::min<size_t>(data[at], size - at - 2);
    const auto packet = packet_of(*vm, data[at + 1], data + at + 2, length);
    at += 2 + length;
    (void)parse_message(packet);
    if (!frontend.send_raw(packet)) break;
    if (data[at - 1] % 4 == 0) vm->present(data[at - 1] % 8 == 0);
  }
  vm->present(false);
  while (frontend.receive_raw(std::chrono::milliseconds(0))) continue;
  return 0;
}
