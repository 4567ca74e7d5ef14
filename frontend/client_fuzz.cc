// Any packets from a VM: no crash, no descriptor kept, no read outside of a buffer (each frame's
// and cursor's pixels are read). Input: packets, each a byte of what to do (the type, whether the
// header is made right, which descriptors go with it), a length, and bytes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "frontend/client.h"
#include "frontend/fake_vm.h"
#include "frontend/picture.h"

namespace lethe::gui {
namespace {

class Reader final : public Listener {
 public:
  void on_surface(const SurfaceState& surface) override { LETHE_ASSERT(surface.id != 0); }
  void on_surface_gone(uint64_t) override {}
  void on_frame(uint64_t, const FrameView& frame) override {
    if (frame.pixels == nullptr) return;
    LETHE_ASSERT(known_format(frame.format) && frame.damage.x + frame.damage.width <= frame.width);
    if (uint64_t{frame.width} * frame.height <= 1 << 16) (void)picture_.update(frame);
  }
  void on_cursor(uint64_t, const CursorView& cursor) override {
    if (cursor.pixels == nullptr) return;
    std::vector<std::byte> copy(size_t{cursor.width} * cursor.height * kPixelBytes);
    std::memcpy(copy.data(), cursor.pixels, copy.size());
  }

 private:
  Picture picture_;
};

struct Sizes {
  uint32_t type, size;
};
constexpr Sizes kSizes[] = {{1, sizeof(Welcome)}, {2, sizeof(Surface)},    {3, sizeof(SurfaceGone)},
                            {4, sizeof(Buffer)},  {5, sizeof(BufferGone)}, {6, sizeof(Frame)},
                            {7, sizeof(Cursor)},  {8, sizeof(Bye)}};

void run(const uint8_t* data, size_t size) {
  static const FakeBuffer memory(1 << 16);
  static const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  FakeVm vm;
  auto client = Client::connect(vm.frontend_end(), {.name = "fuzz"});
  LETHE_ASSERT(client && vm.welcome());
  Reader reader;
  while (size >= 2) {
    const uint8_t what = data[0];
    const size_t length = std::min<size_t>(size_t{data[1]} * 3, size - 2);
    std::vector<uint8_t> packet(data + 2, data + 2 + length);
    if ((what & 0x08) != 0) {
      const Sizes& right = kSizes[what & 7];
      packet.insert(packet.begin(), sizeof(MessageHeader), 0);
      packet.resize(right.size);
      std::memcpy(packet.data(), &right, sizeof right);
    }
    const int fds[] = {(what & 0x40) != 0 ? null.get() : memory.fd(), memory.fd()};
    const size_t count = (what & 0x80) != 0 ? 2 : (what & 0x10) != 0 ? 1 : 0;
    if (packet.empty() || !vm.send_raw(packet.data(), packet.size(), {fds, count})) break;
    if (!client->process(reader)) break;
    client->send_motion(what, static_cast<int32_t>(length), 0);
    data += 2 + length;
    size -= 2 + length;
    while (!vm.receive_raw(std::chrono::milliseconds(0)).empty()) {
    }
  }
}

}  // namespace
}  // namespace lethe::gui

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lethe::gui::run(data, size);
  return 0;
}
