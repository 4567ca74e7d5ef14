// What a snapshot's file says of virtio devices: a good state with bytes of the input's in it, and
// cut where the input says. Whatever is read, it is refused, or the devices go on, and can be
// reset.
//
// The first byte chooses: the transport (with a device that has nothing behind it), or the state of
// virtio-gpu, a keyboard, a balloon or a console.
#include <linux/input-event-codes.h>

#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "base/log.h"
#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/console/console.h"
#include "devices/virtio/fake_pci_driver.h"
#include "devices/virtio/gpu/fake_gpu_driver.h"
#include "devices/virtio/input/input.h"
#include "devices/virtio/pci_transport.h"

namespace lethe {
namespace {

constexpr size_t kPatchesMax = 32;
constexpr uint64_t kMemory = 32 * kMiB;

std::vector<uint8_t> damaged(std::vector<uint8_t> state, FuzzInput& input) {
  if (const auto cut = input.take<uint16_t>(); cut % 8 == 0)
    state.resize(cut / 8 % (state.size() + 1));
  for (size_t i = 0; i < kPatchesMax && !input.empty() && !state.empty(); ++i) {
    const auto at = input.take<uint16_t>();
    state[at % state.size()] = input.take<uint8_t>();
  }
  return state;
}

// A transport on a bus.
class RestoredBus {
 public:
  RestoredBus() {
    auto made = std::make_unique<FakeVirtioDevice>();
    x_device = made.get();
    auto created = VirtioPciTransport::create(x_machine.pci->environment(), std::move(made));
    LETHE_ASSERT(created);
    x_transport = created->get();
    LETHE_ASSERT(x_machine.pci->add_device(std::move(*created)).value() == kSlot);
    x_driver.emplace(x_machine, kSlot);
    LETHE_ASSERT(x_driver->bring_up());
    x_transport->freeze();
    StateWriter to;
    x_machine.pci->save(to);
    x_state = to.take();
    x_transport->thaw();
  }
  void run(FuzzInput& input) {
    x_machine.config_write(kSlot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
    x_machine.config_write(kSlot, PCI_BASE_ADDRESS_0, 0xC000'0000, 4);
    x_driver->reset();
    const auto state = damaged(x_state, input);
    StateReader from(state);
    if (!x_machine.pci->restore(from)) return;
    for (auto& [index, queue] : x_device->queues)
      while (auto chain = queue->pop()) chain->complete(0);
    x_transport->freeze();
    x_transport->thaw();
  }

 private:
  static constexpr uint8_t kSlot = 1;
  FakeMachine x_machine;
  FakeVirtioDevice* x_device = nullptr;
  VirtioPciTransport* x_transport = nullptr;
  std::optional<FakePciDriver> x_driver;
  std::vector<uint8_t> x_state;
};

void restore(FakeTransport& guest, VirtioDevice& device, const std::vector<uint8_t>& state) {
  if (guest.move_to(device, state)) {
    guest.thaw();
    guest.freeze();
    (void)guest.save();
  }
}

class NoSink : public ByteSink {
 public:
  size_t write(std::span<const uint8_t> bytes) override { return bytes.size(); }
  void add_room_listener(std::function<void()>) override {}
};

// Everything else, each on its memory.
class Devices {
 public:
  Devices() {
    make_gpu();
    x_keys_guest.start();
    InputDevices input(x_keyboard.get(), nullptr);
    for (uint32_t code = 1; code < 40; ++code) input.key(code, true);
    input.key(KEY_ESC, false);
    x_states[1] = saved(x_keys_guest);
    x_balloon_guest.start();
    x_states[2] = saved(x_balloon_guest);
    x_thread.run_and_wait(
        [&] { x_console = std::make_unique<ConsoleDevice>(x_thread.loop(), x_sink); });
    x_console_guest = std::make_unique<FakeTransport>(*x_memory, *x_console, GuestAddr{24 * kMiB});
    x_console_guest->start();
    const uint8_t typed[] = {'a', 'b', 'c'};
    x_thread.run_and_wait([&] { (void)x_console->receive(typed); });
    x_states[3] = saved(*x_console_guest);
  }
  void run(uint8_t which, FuzzInput& input) {
    const auto state = damaged(x_states[which], input);
    switch (which) {
      case 0:
        return restore(x_gpu_guest->transport(), *x_gpu, state);
      case 1:
        return restore(x_keys_guest, *x_keyboard, state);
      case 2:
        return restore(x_balloon_guest, *x_balloon, state);
      default:
        return restore(*x_console_guest, *x_console, state);
    }
  }

 private:
  static std::vector<uint8_t> saved(FakeTransport& guest) {
    guest.freeze();
    return guest.save();
  }
  // A bit of everything that a guest can make.
  void make_gpu() {
    constexpr uint32_t kContext = 3;
    FakeGpuDriver& guest = *x_gpu_guest;
    const GuestAddr backing = guest.alloc(4096);
    (void)guest.create_2d(5, 16, 16);
    (void)guest.attach(5, backing, 1024);
    (void)guest.set_scanout(0, 5, {0, 0, 16, 16});
    (void)guest.create_2d(6, 8, 8, VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM);
    (void)guest.cursor(VIRTIO_GPU_CMD_UPDATE_CURSOR, 0, 6, 1, 1);
    (void)guest.create_blob(7, 1024, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{backing.value, 1024, 0}});
    (void)guest.context_create(kContext);
    for (uint32_t id = 1; id <= 2; ++id) {
      (void)guest.create_blob(id, 4096, kContext);
      (void)guest.context_attach(kContext, id);
      (void)guest.map(id, (id - 1) * 4096);
    }
    FakeWindowCommands commands;
    commands.ring(1).create(7, 16, 16).title(7, "w").attach(7, 2, 16, 16).damage(7, 1);
    LETHE_ASSERT(guest.submit(kContext, commands.create(8, 16, 16, 1, 7).bytes()) ==
                 FakeGpuDriver::kOk);
    (void)guest.start_poll(kContext, 1000, 9);
    x_states[0] = saved(guest.transport());
  }

  static constexpr GuestMemory::Range kRam{GuestAddr{0}, kMemory};
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {.thp = false}).value();
  std::unique_ptr<Gui> x_gui =
      std::make_unique<Gui>(GuiOptions{.vm_name = "fuzz", .bytes_max = 64 * kMiB});
  std::unique_ptr<GpuDevice> x_gpu =
      GpuDevice::create(*x_memory, *x_gui, {.window_memory = 4 * kMiB}, nullptr).value();
  std::unique_ptr<FakeGpuDriver> x_gpu_guest = std::make_unique<FakeGpuDriver>(*x_memory, *x_gpu);
  IoThread x_thread{"fuzz"};
  std::unique_ptr<InputDevice> x_keyboard = InputDevice::make_keyboard(x_thread.loop());
  FakeTransport x_keys_guest{*x_memory, *x_keyboard, GuestAddr{20 * kMiB}};
  ReturnPipeline x_pipeline{*x_memory, {}};
  std::unique_ptr<BalloonDevice> x_balloon = BalloonDevice::create(*x_memory, x_pipeline, {});
  FakeTransport x_balloon_guest{*x_memory, *x_balloon, GuestAddr{16 * kMiB}};
  NoSink x_sink;
  std::unique_ptr<ConsoleDevice> x_console;
  std::unique_ptr<FakeTransport> x_console_guest;
  std::array<std::vector<uint8_t>, 4> x_states;
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Made once, and never destroyed: threads of theirs run to the end.
  static auto* bus = [] {
    if (!lethe::set_log_levels("off")) abort();
    return new lethe::RestoredBus;
  }();
  static auto* devices = new lethe::Devices;
  lethe::FuzzInput input(data, size);
  const auto which = input.take<uint8_t>();
  if (which % 5 == 4)
    bus->run(input);
  else
    devices->run(which % 5, input);
  return 0;
}
