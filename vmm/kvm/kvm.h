// The KVM API (Documentation/virt/kvm/api.rst), thin: descriptors that close themselves, ioctls
// that return Results. Policy (what a machine looks like) is elsewhere.
#pragma once

#include "vmm/kvm/kvm_api.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/event_fd.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bus.h"
#include "devices/interrupt.h"
#include "memory/guest_memory.h"

namespace lethe {

// /dev/kvm, checked: API version 12 and the capabilities Lethe stands on.
class Kvm {
 public:
  // Errors are of class kKvm and say what to do: no such device, no permission, a capability
  // missing.
  [[nodiscard]] static Result<Kvm> open(const char* path = "/dev/kvm");

  [[nodiscard]] int fd() const { return x_fd.get(); }
  // KVM_CHECK_EXTENSION: 0 if absent.
  [[nodiscard]] int capability(int which) const;
  // Bytes of a vCPU's kvm_run mapping.
  [[nodiscard]] size_t run_size() const { return x_run_size; }

 private:
  Kvm(UniqueFd fd, size_t run_size) : x_fd(std::move(fd)), x_run_size(run_size) {}
  UniqueFd x_fd;
  size_t x_run_size;
};

// One VM: memory slots, the in-kernel local APICs, irqfd and ioeventfd. The I/O APIC is a device of
// Lethe's own (KVM_CAP_SPLIT_IRQCHIP); there are no PICs.
class KvmVm final : public MsiController, public DoorbellBinder, public DeviceMemoryBinder {
 public:
  [[nodiscard]] static Result<std::unique_ptr<KvmVm>> create(const Kvm& kvm);

  // One memory slot a region, once, before anything else is bound. The mappings must outlive the
  // VM.
  [[nodiscard]] Result<> map_memory(std::span<const MemoryRegion> regions)
      LETHE_EXCLUDES(x_slots_mutex);

  // MsiController: a route is an irqfd whose GSI is routed to an MSI message. Any thread.
  [[nodiscard]] Result<std::unique_ptr<MsiRoute>> make_route() override;
  // DoorbellBinder, over KVM_IOEVENTFD: any access size (KVM_CAP_IOEVENTFD_ANY_LENGTH).
  [[nodiscard]] Result<> bind_doorbell(uint64_t address, const EventFd& event) override;
  void unbind_doorbell(uint64_t address, const EventFd& event) override;

  // DeviceMemoryBinder: a slot each, behind those of RAM.
  [[nodiscard]] Result<> bind_memory(uint64_t address, uint64_t size, uint8_t* host) override
      LETHE_EXCLUDES(x_slots_mutex);
  void unbind_memory(uint64_t address) override LETHE_EXCLUDES(x_slots_mutex);

  // The paravirtual clock, for snapshots: what guests take for the time since they booted.
  [[nodiscard]] Result<uint64_t> clock_ns() const;
  [[nodiscard]] Result<> set_clock_ns(uint64_t clock) const;

  [[nodiscard]] int fd() const { return x_fd.get(); }

 private:
  class Route;
  explicit KvmVm(UniqueFd fd) : x_fd(std::move(fd)) {}
  // Hands the whole routing table to KVM: it knows no smaller change.
  [[nodiscard]] Result<> publish_routes() LETHE_REQUIRES(x_routes_mutex);

  UniqueFd x_fd;
  Mutex x_slots_mutex;
  struct Slot {
    uint64_t address = 0;
    uint64_t size = 0;  // 0: free
  };
  std::vector<Slot> x_slots LETHE_GUARDED_BY(x_slots_mutex);  // by KVM's number
  Mutex x_routes_mutex;
  std::vector<Route*> x_routes LETHE_GUARDED_BY(x_routes_mutex);
};

}  // namespace lethe
