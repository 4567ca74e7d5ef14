// A machine's state for a snapshot: vmm/snapshot/, docs/snapshot.md.
#include "vmm/snapshot/snapshot.h"

#include <utility>

#include "base/assert.h"
#include "devices/legacy/ioapic/ioapic.h"
#include "vmm/kvm/cpu_features.h"
#include "vmm/kvm/vcpu_snapshot.h"
#include "vmm/machine.h"
#include "vmm/machine_legacy.h"
#include "vmm/machine_memory.h"
#include "vmm/memory_return.h"
#include "vmm/snapshot/memory_loader.h"

namespace lethe {

Result<> Machine::load_memory(Snapshot& from) {
  MemoryLoaderOptions options;
  options.at_once = from.verify();
  options.on_failure = x_on_memory_failure;
  // On the loader's thread; the loop may be gone when it would run, and with it what it calls.
  options.on_complete = [this] {
    x_loop.post([weak = std::weak_ptr(x_alive), this] {
      if (!weak.expired() && x_return) x_return->memory_complete();
    });
  };
  LETHE_TRY_ASSIGN(x_loader, MemoryLoader::create(*x_memory, from.take_memory(), from.take_table(),
                                                  std::move(options)));
  return {};
}

PendingMemory* Machine::pending_memory() const { return x_loader.get(); }

Result<> Machine::freeze() {
  LETHE_ASSERT(x_paused);
  if (!x_frozen) LETHE_TRY(settle());
  x_frozen = true;
  x_pci->freeze();
  return x_pci->can_save();
}

// What the processors had begun is done, and all of memory is there.
Result<> Machine::settle() {
  if (x_loader) x_loader->fetch_all();
  for (const auto& vcpu : x_vcpus) {
    const VcpuExit exit = vcpu->settle(x_ports, x_mmio, x_coalesced.get());
    if (exit == VcpuExit::kTripleFault) end({Ending::kTripleFault});
    if (exit == VcpuExit::kFailed) end({Ending::kHostFailure});
  }
  if (x_coalesced) (void)x_coalesced->drain(x_ports);
  if (x_ended.load()) return host_error("snapshot: the guest has just ended");
  return {};
}

void Machine::thaw() {
  if (std::exchange(x_frozen, false)) x_pci->thaw();
}

Result<> Machine::save(StateWriter& to) {
  LETHE_ASSERT(x_frozen);
  to.begin_section("machine", kMachineStateVersion);
  save_cpuid(x_cpuid, to);
  for (const auto& vcpu : x_vcpus) LETHE_TRY(save_vcpu(*x_kvm, vcpu->fd(), vcpu->index(), to));
  LETHE_TRY_ASSIGN(const uint64_t clock, x_vm->clock_ns());
  to.number(clock);
  x_ioapic->save(to);
  x_legacy->save(to);
  // With the balloon's target: whoever has set it goes on doing so, and nobody else begins to.
  to.boolean(x_policy && x_policy->policy().automatic());
  x_pci->save(to);
  to.end_section();
  return {};
}

// The same in another order: what signals interrupts comes after what takes them.
Result<> Machine::restore_state(StateReader& from) {
  for (const auto& vcpu : x_vcpus) LETHE_TRY(restore_vcpu(*x_kvm, vcpu->fd(), vcpu->index(), from));
  const auto clock = from.number<uint64_t>();
  LETHE_TRY(from.check());
  LETHE_TRY(x_vm->set_clock_ns(clock));
  x_ioapic->restore(from);
  x_legacy->restore(from);
  const bool automatic = from.boolean();
  if (automatic && !x_policy) from.fail("there is no balloon to govern");
  // Before the balloon is restored: it ends what was asked for before.
  if (x_policy && from.ok()) x_policy->policy().set_automatic(automatic);
  LETHE_TRY(x_pci->restore(from));
  from.end_section();  // machine
  return from.check();
}

}  // namespace lethe
