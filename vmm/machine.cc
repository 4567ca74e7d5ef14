#include "vmm/machine.h"

#include <pthread.h>
#include <sys/mman.h>

#include <string>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "base/metrics.h"
#include "devices/gui/gui.h"
#include "devices/legacy/ioapic/ioapic.h"
#include "devices/virtio/block/block.h"
#include "devices/virtio/console/console.h"
#include "devices/virtio/gpu/gpu.h"
#include "devices/virtio/input/input.h"
#include "devices/virtio/pci_transport.h"
#include "devices/virtio/rng/rng.h"
#include "devices/virtio/vsock/vsock.h"
#include "vmm/acpi/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/boot/layout.h"
#include "vmm/kvm/cpu_features.h"
#include "vmm/machine_legacy.h"
#include "vmm/machine_memory.h"
#include "vmm/memory_return.h"
#include "vmm/net_host.h"
#include "vmm/snapshot/memory_loader.h"
#include "vmm/snapshot/snapshot.h"
#include "vmm/vsock_socket.h"

namespace lethe {
namespace {

std::vector<GuestMemory::Range> memory_ranges(uint64_t bytes) {
  if (bytes <= layout::kMmioHole) return {{GuestAddr{0}, bytes}};
  return {{GuestAddr{0}, layout::kMmioHole},
          {GuestAddr{layout::kAboveHole}, bytes - layout::kMmioHole}};
}

// The boot structures and small test kernels touch a few pages of the first 2 MiB: clearing a huge
// page for them would be the largest part of a small VM's start (0.5 ms).
void keep_first_pages_small(const GuestMemory& memory) {
  const auto low = memory.slice(GuestAddr{0}, 2 * kMiB);
  LETHE_ASSERT(low.has_value());
  (void)::madvise(low->data, low->size, MADV_NOHUGEPAGE);  // a hint: failing it costs only time
}

BlockOptions block_options(const DiskConfig& disk, size_t index) {
  return {.name = fmt::format("block{}", index),
          .path = disk.path,
          .read_only = disk.read_only,
          .direct = disk.direct,
          .queues = static_cast<uint16_t>(disk.queues),
          .queue_size = static_cast<uint16_t>(disk.queue_size),
          .iops_max = disk.iops_max,
          .bandwidth_max = disk.bandwidth_bytes_max};
}

}  // namespace

Machine::Machine(const VmConfig& config, EventLoop& loop, Gui* gui, const VsockSocket* vsock,
                 std::function<void(Outcome)> on_end)
    : x_config(config),
      x_loop(loop),
      x_gui(gui),
      x_vsock_socket(vsock),
      x_on_end(std::move(on_end)) {}

Machine::~Machine() {
  stop();
  if (x_gui != nullptr) x_gui->set_focus_listener(nullptr);
}

Result<std::unique_ptr<Machine>> Machine::create(const VmConfig& config, EventLoop& loop,
                                                 ByteSink& console, Gui* gui,
                                                 const VsockSocket* vsock,
                                                 std::function<void(Outcome)> on_end,
                                                 MachineOrigin from) {
  auto machine = std::unique_ptr<Machine>(new Machine(config, loop, gui, vsock, std::move(on_end)));
  machine->x_on_memory_failure = std::move(from.on_memory_failure);
  LETHE_TRY(machine->build(console, from.snapshot));
  return machine;
}

Result<> Machine::build(ByteSink& console, Snapshot* from) {
  LETHE_TRY_ASSIGN(Kvm kvm, Kvm::open());
  x_kvm = std::make_unique<Kvm>(std::move(kvm));
  // First of all: a passt gets ready meanwhile.
  LETHE_TRY_ASSIGN(x_net_host, NetHost::create(x_config, x_loop));
  LETHE_TRY_ASSIGN(x_cpuid, supported_cpuid(*x_kvm));
  if (from != nullptr) {
    from->machine().begin_section("machine", kMachineStateVersion);
    LETHE_TRY_ASSIGN(auto saved, restore_cpuid(from->machine()));
    LETHE_TRY(check_cpu_features(saved, x_cpuid));
    x_cpuid = std::move(saved);
  }
  LETHE_TRY(check_address_width(x_config.memory.size_bytes, x_cpuid));
  const auto ranges = memory_ranges(x_config.memory.size_bytes);
  LETHE_TRY_ASSIGN(x_memory, GuestMemory::create(ranges, {.backing = x_config.memory.backing,
                                                          .thp = x_config.memory.thp}));
  if (x_config.memory.backing == MemoryBacking::kAnonymous) keep_first_pages_small(*x_memory);
  LETHE_TRY_ASSIGN(const auto boot, load_content(from));
  LETHE_TRY_ASSIGN(x_vm, KvmVm::create(*x_kvm));
  LETHE_TRY(x_vm->map_memory(x_memory->regions()));
  LETHE_TRY(build_legacy(console));
  LETHE_TRY(build_virtio(console));
  LETHE_TRY(build_vcpus());
  if (boot) return x_vcpus[0]->set_boot_state(*boot);
  return restore_state(from->machine());
}

// Memory's content, and where the boot processor starts; nothing if its state is the snapshot's.
Result<std::optional<BootState>> Machine::load_content(Snapshot* from) {
  if (from != nullptr) {
    LETHE_TRY(load_memory(*from));
    return std::nullopt;
  }
  const uint64_t rsdp = write_acpi_tables(*x_memory, x_config.cpus);
  LETHE_TRY_ASSIGN(const BootState boot, load_guest({.kernel = x_config.boot.kernel,
                                                     .initrd = x_config.boot.initrd,
                                                     .cmdline = x_config.boot.cmdline,
                                                     .unpack = x_config.boot.unpack},
                                                    *x_memory, rsdp));
  return boot;
}

Result<> Machine::build_legacy(ByteSink& console) {
  x_ioapic = std::make_unique<Ioapic>(*x_vm);
  LETHE_TRY(x_mmio.add({kIoapicAddress, kIoapicSize}, *x_ioapic));
  LETHE_TRY_ASSIGN(auto serial_line, x_ioapic->make_line(kSerialIrq));
  LETHE_TRY_ASSIGN(auto event_line, x_ioapic->make_line(layout::kEventGsi));
  MachineControl& control = *this;
  x_legacy = std::make_unique<Legacy>(control, x_loop, console, x_ports, std::move(serial_line),
                                      std::move(event_line));
  LETHE_TRY(x_ports.add({kSerialPort, kSerialPorts}, x_legacy->serial_port));
  LETHE_TRY(x_ports.add({kAcpiPowerPort, kAcpiPowerPorts}, x_legacy->power));
  LETHE_TRY(x_ports.add({kRtcPort, kRtcPorts}, x_legacy->rtc));
  LETHE_TRY(x_ports.add({kI8042Port, kI8042Ports}, x_legacy->i8042));
  LETHE_TRY(x_ports.add({kPvpanicPort, 1}, x_legacy->pvpanic));
  LETHE_TRY(x_ports.add({kDebugExitPort, kDebugExitPorts}, x_legacy->debug_exit));
  return {};
}

Result<> Machine::build_virtio(ByteSink& console) {
  const PciWindows windows{
      .low = {layout::kPci32Start, layout::kPci32End - layout::kPci32Start},
      .high = {layout::pci64_start(x_config.memory.size_bytes), layout::kPci64Size}};
  x_pci = std::make_unique<PciBus>(x_ports, PciEnvironment{.mmio = x_mmio,
                                                           .msi = *x_vm,
                                                           .doorbells = *x_vm,
                                                           .device_memory = *x_vm,
                                                           .memory = *x_memory,
                                                           .windows = windows});
  x_pci->set_reset_control(x_legacy->reset);
  LETHE_TRY(x_pci->attach());

  auto virtio_console = std::make_unique<ConsoleDevice>(x_loop, console);
  x_virtio_console = virtio_console.get();
  LETHE_TRY(add_virtio(std::move(virtio_console)));
  if (x_config.rng.enabled) {
    LETHE_TRY_ASSIGN(auto rng, RngDevice::open(x_loop, x_config.rng.source));
    LETHE_TRY(add_virtio(std::move(rng)));
  }
  for (size_t i = 0; i < x_config.disks.size(); ++i) {
    LETHE_TRY_ASSIGN(auto disk, BlockDevice::open(block_options(x_config.disks[i], i)));
    x_disks.push_back(disk.get());
    LETHE_TRY(add_virtio(std::move(disk)));
  }
  for (size_t i = 0; i < x_net_host->count(); ++i) {
    LETHE_TRY_ASSIGN(auto net, x_net_host->make_device(i));
    x_nets.push_back(net.get());
    LETHE_TRY(add_virtio(std::move(net)));
  }
  if (x_vsock_socket != nullptr) LETHE_TRY(build_vsock());
  if (x_gui != nullptr) LETHE_TRY(build_gui());
  if (x_config.balloon.enabled) {
    x_return = std::make_unique<MemoryReturn>(x_config, *x_memory, pending_memory());
    LETHE_TRY(add_virtio(x_return->take_device()));
    x_policy = std::make_shared<MachineMemory>(x_config, x_loop, *x_return);
    for (BlockDevice* disk : x_disks)
      x_caches.push_back(x_policy->shrinker().add(disk->bounce_cache()));
  }
  if (x_gui != nullptr && x_policy) follow_focus();
  return {};
}

// A VM that the user looks at is spared by the governor.
void Machine::follow_focus() {
  x_gui->set_focus_listener([this, policy = std::weak_ptr(x_policy)](bool focused) {
    x_loop.post([policy, focused] {
      if (const auto alive = policy.lock()) alive->policy().set_focus(focused);
    });
  });
}

Result<> Machine::build_vsock() {
  LETHE_TRY_ASSIGN(auto vsock, VsockDevice::create({.cid = x_config.vsock.cid,
                                                    .path = x_vsock_socket->path(),
                                                    .listener = x_vsock_socket->fd()}));
  x_vsock = vsock.get();
  return add_virtio(std::move(vsock));
}

Result<> Machine::build_gui() {
  auto keyboard = x_config.gui.keyboard ? InputDevice::make_keyboard(x_gui->loop()) : nullptr;
  auto tablet = x_config.gui.pointer ? InputDevice::make_tablet(x_gui->loop()) : nullptr;
  x_input = std::make_unique<InputDevices>(keyboard.get(), tablet.get());
  LETHE_TRY_ASSIGN(auto gpu, GpuDevice::create(*x_memory, *x_gui,
                                               {.screens = x_config.gui.screens,
                                                .width = x_config.gui.width,
                                                .height = x_config.gui.height,
                                                .window_memory = x_config.gui.window_memory},
                                               x_input.get()));
  x_gpu = gpu.get();
  LETHE_TRY(add_virtio(std::move(gpu)));
  for (auto* device : {&keyboard, &tablet}) {
    if (!*device) continue;
    x_input_devices.push_back(device->get());
    LETHE_TRY(add_virtio(std::move(*device)));
  }
  return {};
}

Result<> Machine::add_virtio(std::unique_ptr<VirtioDevice> device) {
  LETHE_TRY_ASSIGN(auto transport,
                   VirtioPciTransport::create(x_pci->environment(), std::move(device)));
  x_transports.push_back(transport.get());
  LETHE_TRY(x_pci->add_device(std::move(transport)));
  return {};
}

Result<> Machine::build_vcpus() {
  for (uint32_t i = 0; i < x_config.cpus; ++i) {
    LETHE_TRY_ASSIGN(auto vcpu, Vcpu::create(*x_kvm, *x_vm, x_cpuid, i, x_config.cpus));
    x_vcpus.push_back(std::move(vcpu));
  }
  x_coalesced = CoalescedWrites::create(*x_kvm, *x_vm, x_vcpus[0]->fd());
  x_legacy->serial_port.set_coalesced_writes(x_coalesced.get());
  return {};
}

void Machine::start() {
  start_vcpus();
  if (x_policy) x_policy->policy().start();  // reads files: the guest runs meanwhile
}

void Machine::start_vcpus() {
  LETHE_ASSERT(x_threads.empty());
  for (size_t i = 0; i < x_vcpus.size(); ++i)
    x_threads.emplace_back([this, i] {
      pthread_setname_np(pthread_self(), fmt::format("vcpu{}", i).c_str());
      run_vcpu(*x_vcpus[i]);
    });
}

void Machine::run_vcpu(Vcpu& vcpu) {
  switch (vcpu.run(x_ports, x_mmio, x_coalesced.get())) {
    case VcpuExit::kStopped:
      break;
    case VcpuExit::kTripleFault:
      end({Ending::kTripleFault});
      break;
    case VcpuExit::kFailed:
      end({Ending::kHostFailure});
      break;
  }
}

void Machine::end(Outcome outcome) {
  if (x_ended.exchange(true)) return;
  for (const auto& vcpu : x_vcpus) vcpu->request_stop();
  // A copy: the callback may destroy this machine.
  x_loop.post([on_end = x_on_end, outcome] { on_end(outcome); });
}

void Machine::stop() {
  x_ended.store(true);  // what the guest still asks for no longer counts
  stop_vcpus();
}

void Machine::stop_vcpus() {
  for (const auto& vcpu : x_vcpus) vcpu->request_stop();
  for (std::thread& thread : x_threads) thread.join();
  x_threads.clear();
  if (x_coalesced) (void)x_coalesced->drain(x_ports);
}

void Machine::pause() {
  if (x_paused) return;
  stop_vcpus();
  x_paused = true;
}

void Machine::resume() {
  if (!std::exchange(x_paused, false) || x_ended.load()) return;
  thaw();
  for (const auto& vcpu : x_vcpus) vcpu->allow_run();
  start_vcpus();
}

void Machine::report_legacy(MetricSink& sink) const {
  const SerialCounters& serial = x_legacy->serial.counters();
  const auto bytes = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  sink.counter("lethe_console_out_bytes_total", "Bytes the guest wrote.", bytes(serial.bytes_out),
               {{"console", "serial"}});
  sink.counter("lethe_console_in_bytes_total", "Bytes the guest was given.", bytes(serial.bytes_in),
               {{"console", "serial"}});
  sink.counter("lethe_console_dropped_bytes_total", "Bytes lost in a full transmitter.",
               bytes(serial.bytes_dropped), {{"console", "serial"}});
  sink.counter("lethe_bus_unclaimed_total", "Accesses that no device claims.", x_ports.unclaimed(),
               {{"bus", "ports"}});
  sink.counter("lethe_bus_unclaimed_total", "Accesses that no device claims.", x_mmio.unclaimed(),
               {{"bus", "mmio"}});
}

void Machine::power_button() { x_legacy->power.power_button(); }

ByteReceiver& Machine::console_input() {
  if (x_config.console.input == ConsoleInput::kVirtio) return *x_virtio_console;
  return x_legacy->serial;
}

}  // namespace lethe
