// virtio-gpu against a hostile driver: any commands with any fields, any window commands, any
// answers' room, queue and device resets at any time.
//
// The input is a program of such steps. Fields are taken from it as they are, or small, so that
// they often name what is there. Whatever happens, each command is answered or given back, and a
// reset leaves nothing.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "base/log.h"
#include "devices/virtio/gpu/fake_gpu_driver.h"
#include "devices/virtio/gpu/resources.h"

namespace lethe {
namespace {

constexpr uint64_t kMemory = 64 * kMiB;
constexpr size_t kStepsMax = 100;

// Small three times out of four.
uint32_t word(FuzzInput& input) {
  const auto kind = input.take<uint8_t>();
  if (kind < 0x80) return kind % 8;
  if (kind < 0xc0) return (kind % 64) * 64;
  return input.take<uint32_t>();
}

// One guest for the whole run: making one costs more than fuzzing it.
struct Guest {
  Guest() {
    (void)set_log_levels("off");
    const GuestMemory::Range ram{GuestAddr{0}, kMemory};
    memory = GuestMemory::create({&ram, 1}, {.thp = false}).value();
    gui = std::make_unique<Gui>(GuiOptions{.vm_name = "fuzz", .bytes_max = 64 * kMiB});
    device = GpuDevice::create(*memory, *gui, {.screens = 2, .window_memory = 4 * kMiB}, nullptr)
                 .value();
  }
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<Gui> gui;
  std::unique_ptr<GpuDevice> device;
};

constexpr std::array<uint32_t, 24> kTypes = {
    0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10a, 0x10c,
    0x10d, 0x200, 0x201, 0x202, 0x203, 0x204, 0x207, 0x207, 0x207, 0x208, 0x209, 0x300};
constexpr std::array<uint32_t, 9> kCommandBytes = {8,
                                                   sizeof(window::SetEventRing),
                                                   sizeof(window::WindowCreate),
                                                   sizeof(window::WindowTitle),
                                                   sizeof(window::WindowCreate),
                                                   sizeof(window::WindowAttach),
                                                   sizeof(window::WindowDamage),
                                                   sizeof(window::WindowDestroy),
                                                   sizeof(window::Poll)};

class Run {
 public:
  Run(Guest& guest, FuzzInput input)
      : x_guest(guest), x_input(input), x_driver(*guest.memory, *guest.device) {}

  void run() {
    for (size_t step = 0; step < kStepsMax && !x_input.empty(); ++step) one_step();
    x_driver.transport().reset();
    // Nothing of the guest's is left.
    LETHE_ASSERT(x_guest.gui->ledger().counters().live.buffers == 0);
    LETHE_ASSERT(x_guest.device->counters().resources == 0);
    LETHE_ASSERT(x_guest.device->counters().contexts == 0);
    LETHE_ASSERT(x_guest.device->counters().mappings == 0);
  }

 private:
  void one_step() {
    const auto kind = x_input.take<uint8_t>();
    if (kind < 200) return control();
    if (kind < 230) {
      (void)x_driver.cursor(0x300 + kind % 3, word(x_input), word(x_input), word(x_input),
                            word(x_input));
      return;
    }
    if (kind < 240) {
      const uint32_t value = word(x_input);
      x_guest.device->write_config(word(x_input) % sizeof(virtio_gpu_config) & ~3U,
                                   {reinterpret_cast<const uint8_t*>(&value), sizeof value});
      return;
    }
    if (kind < 250) {
      x_driver.transport().stop_queue(kind % 2);
      x_driver.transport().restart_queue(kind % 2);
    }
  }

  // Never a fenced poll on the event ring: those are not answered.
  void control() {
    std::array<uint32_t, 26> request{};
    const uint32_t type = kTypes[x_input.take<uint8_t>() % kTypes.size()];
    request[0] = type;
    request[4] = word(x_input);  // context
    for (size_t i = 6; i < request.size() && !x_input.empty(); ++i) request[i] = word(x_input);
    if (type == VIRTIO_GPU_CMD_RESOURCE_CREATE_2D) {
      const std::array<uint32_t, 4> formats{1, 2, 67, request[7]};
      request[7] = formats[request[7] % 4];
    }
    if (type == VIRTIO_GPU_CMD_CTX_CREATE && request[7] % 4 != 0)
      request[7] = window::kWindowCapset;
    std::vector<uint8_t> more;
    if (type == VIRTIO_GPU_CMD_SUBMIT_3D) more = commands();
    if (type == VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING) more = entries();
    if (type == VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB) more = entries();
    const auto shape = x_input.take<uint8_t>();
    size_t size = 32;  // of most
    if (type == VIRTIO_GPU_CMD_RESOURCE_CREATE_2D || type == VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB)
      size = 40;
    if (type == VIRTIO_GPU_CMD_SET_SCANOUT || type == VIRTIO_GPU_CMD_RESOURCE_FLUSH) size = 48;
    if (type == VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D) size = 56;
    if (type == VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB) size = 56;
    if (type == VIRTIO_GPU_CMD_SET_SCANOUT_BLOB || type == VIRTIO_GPU_CMD_CTX_CREATE) size = 96;
    if (type == VIRTIO_GPU_CMD_SUBMIT_3D && shape > 20)
      request[6] = static_cast<uint32_t>(more.size());
    if (shape < 10) size = shape * 4;
    const uint32_t room = shape < 250 ? FakeGpuDriver::kResponseMax : shape % 8 * 8;
    if (size == 0 && more.empty() && room == 0) return;
    (void)x_driver.raw({reinterpret_cast<const uint8_t*>(request.data()), size}, more, room);
  }

  std::vector<uint8_t> entries() {
    std::vector<uint8_t> bytes;
    const size_t count = x_input.take<uint8_t>() % 8;
    for (size_t i = 0; i < count; ++i) {
      const virtio_gpu_mem_entry entry{uint64_t{word(x_input)} * 1024, word(x_input) * 64, 0};
      bytes.insert(bytes.end(), reinterpret_cast<const uint8_t*>(&entry),
                   reinterpret_cast<const uint8_t*>(&entry) + sizeof entry);
    }
    return bytes;
  }

  std::vector<uint8_t> commands() {
    std::vector<uint8_t> bytes;
    const size_t count = x_input.take<uint8_t>() % 12;
    for (size_t i = 0; i < count; ++i) {
      std::array<uint32_t, 68> words{};
      const auto kind = x_input.take<uint8_t>();
      words[0] = kind % 10;
      words[1] = kind > 250 ? word(x_input) : kCommandBytes[words[0] % kCommandBytes.size()];
      const size_t size = std::min<size_t>(sizeof words, words[1]);
      for (size_t at = 2; at < size / 4; ++at) words[at] = at < 12 ? word(x_input) : 0;
      if (words[0] == window::kWindowAttach && kind < 128) words[7] = 2;  // a format
      bytes.insert(bytes.end(), reinterpret_cast<const uint8_t*>(words.data()),
                   reinterpret_cast<const uint8_t*>(words.data()) + size);
    }
    return bytes;
  }

  Guest& x_guest;
  FuzzInput x_input;
  FakeGpuDriver x_driver;
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static lethe::Guest guest;
  lethe::Run(guest, lethe::FuzzInput(data, size)).run();
  return 0;
}
