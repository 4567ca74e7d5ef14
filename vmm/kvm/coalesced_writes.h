// KVM's coalesced writes (api.rst 4.116): writes to a port that KVM keeps in a ring, shared by all
// vCPUs, instead of leaving the guest for each. They are handed to the bus at the next exit.
#pragma once

#include "vmm/kvm/kvm_api.h"

#include <cstdint>
#include <memory>

#include "base/mutex.h"
#include "base/result.h"
#include "devices/bus.h"
#include "vmm/kvm/kvm.h"

namespace lethe {

class CoalescedWrites {
 public:
  // Nothing if this KVM has no coalesced port writes. Maps the ring through a vCPU's descriptor,
  // which may be closed afterwards; `vm` must outlive this.
  [[nodiscard]] static std::unique_ptr<CoalescedWrites> create(const Kvm& kvm, const KvmVm& vm,
                                                               int vcpu_fd);
  ~CoalescedWrites();
  CoalescedWrites(const CoalescedWrites&) = delete;
  CoalescedWrites& operator=(const CoalescedWrites&) = delete;

  // Starts or ends coalescing of one-byte writes to `port`. False if KVM refuses. Any thread.
  bool set_coalesced(uint16_t port, bool coalesced) const;

  // Hands what is in the ring to `ports`, in the order it was written; true if there was anything.
  // Before any other access to a device whose port is coalesced. Any thread.
  bool drain(const Bus& ports) LETHE_EXCLUDES(x_mutex);

 private:
  CoalescedWrites(int vm_fd, kvm_coalesced_mmio_ring* ring, size_t page_size)
      : x_vm_fd(vm_fd), x_ring(ring), x_page_size(page_size) {}

  const int x_vm_fd;
  kvm_coalesced_mmio_ring* const x_ring;  // shared with the kernel
  const size_t x_page_size;
  Mutex x_mutex;  // one drains at a time
};

}  // namespace lethe
