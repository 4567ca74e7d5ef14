// The machine: memory, vCPUs, buses and devices put together, from a config. Adding a device is its
// folder below devices/ plus one line in machine.cc.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/event_loop.h"
#include "base/state.h"
#include "devices/bus.h"
#include "devices/byte_stream.h"
#include "devices/legacy/machine_control.h"
#include "devices/pci/pci_bus.h"
#include "memory/shrinker.h"
#include "vmm/config.h"
#include "vmm/kvm/coalesced_writes.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vcpu.h"

namespace lethe {

class BlockDevice;
class ConsoleDevice;
class Gui;
class GpuDevice;
class InputDevice;
class InputDevices;
class Ioapic;
class MachineMemory;
class MemoryLoader;
class MemoryReturn;
class MetricSink;
class PendingMemory;
class Snapshot;
class NetDevice;
class NetHost;
class VirtioDevice;
class VirtioPciTransport;
class VsockDevice;
class VsockSocket;

// Of what Machine::save() writes.
inline constexpr uint32_t kMachineStateVersion = 2;

// How a machine's run came to its end.
enum class Ending : uint8_t {
  kPoweredOff,
  kReset,  // the guest asked for a reset: make a new machine, or end
  kPanicked,
  kDebugExit,
  kTripleFault,
  kHostFailure,  // KVM refused to go on; the reason was logged
  kForced,       // the user or a timeout ended it
};

struct Outcome {
  Ending ending = Ending::kHostFailure;
  uint32_t debug_value = 0;  // kDebugExit only
};

// Where a machine's guest comes from: the config's kernel, or a snapshot made with that config.
struct MachineOrigin {
  Snapshot* snapshot = nullptr;
  // Its memory can't be had: must end the process (MemoryLoaderOptions::on_failure).
  std::function<void(const Error&)> on_memory_failure;
};

// Threading: created, started, stopped and destroyed on the main thread, which runs `loop`.
class Machine final : private MachineControl {
 public:
  // Builds everything and loads the guest; no guest code runs yet. `console` takes the output of
  // the serial port and of the virtio console. `on_end` is called once, on the loop's thread, when
  // the machine has come to its end by itself. Both must outlive the machine, and so must `gui`
  // and `vsock`, which are null without [gui] and [vsock].
  [[nodiscard]] static Result<std::unique_ptr<Machine>> create(const VmConfig& config,
                                                               EventLoop& loop, ByteSink& console,
                                                               Gui* gui, const VsockSocket* vsock,
                                                               std::function<void(Outcome)> on_end,
                                                               MachineOrigin from = {});
  ~Machine() override;

  // Starts the vCPU threads.
  void start();
  // Stops them and waits for them. Harmless if they do not run.
  void stop();
  // The guest's processors stand still from the one to the other; both are harmless twice, and
  // after the machine's end. Devices finish what they were asked for, and take input and requests
  // of the control API meanwhile. Returns when no vCPU runs guest code any more.
  void pause();
  void resume();
  [[nodiscard]] bool paused() const { return x_paused; }

  // Snapshots (vmm/machine_snapshot.cc), of a paused machine: freeze(), then save() and a look at
  // memory(). From then on to resume() nothing changes guest memory or the disks; requests of the
  // control API are still taken, and what is typed. Harmless twice. Errors of freeze(): the guest
  // ended, or has what can't be saved.
  [[nodiscard]] Result<> freeze();
  [[nodiscard]] Result<> save(StateWriter& to);
  [[nodiscard]] const GuestMemory& memory() const { return *x_memory; }

  // Presses the ACPI power button: a guest that listens shuts down.
  void power_button();

  // The console that gets the terminal's keys, as the config says.
  [[nodiscard]] ByteReceiver& console_input();
  [[nodiscard]] ConsoleDevice& virtio_console() { return *x_virtio_console; }

  [[nodiscard]] std::span<BlockDevice* const> disks() const { return x_disks; }

  // Null without a balloon.
  [[nodiscard]] MemoryReturn* memory_return() { return x_return.get(); }
  [[nodiscard]] std::span<NetDevice* const> nets() const { return x_nets; }
  [[nodiscard]] NetHost& net_host() { return *x_net_host; }
  // The loop that governs it; null where that is.
  [[nodiscard]] MachineMemory* memory_policy() { return x_policy.get(); }

  // Counters and gauges of all parts (vmm/machine_metrics.cc). Takes no lock that a vCPU or a
  // device holds for long; looking at the guest's memory takes up to 1 ms a GiB.
  void report_metrics(MetricSink& sink) const;

 private:
  struct Legacy;

  Machine(const VmConfig& config, EventLoop& loop, Gui* gui, const VsockSocket* vsock,
          std::function<void(Outcome)> on_end);
  // `from`: null: a cold start.
  [[nodiscard]] Result<> build(ByteSink& console, Snapshot* from);
  [[nodiscard]] Result<std::optional<BootState>> load_content(Snapshot* from);
  [[nodiscard]] Result<> load_memory(Snapshot& from);
  [[nodiscard]] PendingMemory* pending_memory() const;
  [[nodiscard]] Result<> restore_state(StateReader& from);
  [[nodiscard]] Result<> settle();
  void thaw();  // harmless if it is not frozen
  [[nodiscard]] Result<> build_legacy(ByteSink& console);
  [[nodiscard]] Result<> build_virtio(ByteSink& console);
  [[nodiscard]] Result<> build_vsock();
  [[nodiscard]] Result<> build_gui();
  void follow_focus();
  [[nodiscard]] Result<> add_virtio(std::unique_ptr<VirtioDevice> device);
  [[nodiscard]] Result<> build_vcpus();
  void start_vcpus();
  void stop_vcpus();
  void run_vcpu(Vcpu& vcpu);
  void report_legacy(MetricSink& sink) const;

  // MachineControl, on vCPU threads.
  void guest_power_off() override { end({Ending::kPoweredOff}); }
  void guest_reset() override { end({Ending::kReset}); }
  void guest_panicked() override { end({Ending::kPanicked}); }
  void guest_debug_exit(uint32_t value) override { end({Ending::kDebugExit, value}); }
  // The first one counts. Any thread.
  void end(Outcome outcome);

  const VmConfig& x_config;
  EventLoop& x_loop;
  Gui* const x_gui;                         // null: none
  const VsockSocket* const x_vsock_socket;  // null: none
  std::function<void(Outcome)> x_on_end;
  std::atomic<bool> x_ended{false};
  bool x_paused = false;
  bool x_frozen = false;
  std::function<void(const Error&)> x_on_memory_failure;  // of a restored machine
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);

  // In the order of dependence: destroyed from the bottom up.
  std::unique_ptr<Kvm> x_kvm;
  std::vector<kvm_cpuid_entry2> x_cpuid;  // what every vCPU is made from
  std::unique_ptr<GuestMemory> x_memory;
  // Of a restored machine: answers page faults of guest memory until all of it has come.
  std::unique_ptr<MemoryLoader> x_loader;
  // Its pool answers page faults of guest memory: every thread that touches that ends before it.
  std::unique_ptr<MemoryReturn> x_return;
  std::shared_ptr<MachineMemory> x_policy;  // shared with nobody for longer than a call
  std::unique_ptr<KvmVm> x_vm;
  Bus x_ports{"port I/O"};
  Bus x_mmio{"MMIO"};
  std::unique_ptr<Ioapic> x_ioapic;
  std::unique_ptr<Legacy> x_legacy;
  std::unique_ptr<InputDevices> x_input;  // the GPU calls it
  std::unique_ptr<NetHost> x_net_host;
  std::unique_ptr<PciBus> x_pci;
  // x_pci owns these.
  ConsoleDevice* x_virtio_console = nullptr;
  std::vector<BlockDevice*> x_disks;
  std::vector<NetDevice*> x_nets;
  const VsockDevice* x_vsock = nullptr;
  const GpuDevice* x_gpu = nullptr;
  std::vector<const InputDevice*> x_input_devices;
  std::vector<Shrinker::Registration> x_caches;  // of the devices
  std::vector<const VirtioPciTransport*> x_transports;
  std::vector<std::unique_ptr<Vcpu>> x_vcpus;
  std::unique_ptr<CoalescedWrites> x_coalesced;  // null if this KVM has none
  std::vector<std::thread> x_threads;
};

}  // namespace lethe
