#include "vmm/kvm/coalesced_writes.h"

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

namespace lethe {

std::unique_ptr<CoalescedWrites> CoalescedWrites::create(const Kvm& kvm, const KvmVm& vm,
                                                         int vcpu_fd) {
  const int page = kvm.capability(KVM_CAP_COALESCED_MMIO);  // of the vCPU's mapping
  if (page <= 0 || kvm.capability(KVM_CAP_COALESCED_PIO) <= 0) return nullptr;
  const auto page_size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* ring = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
                      static_cast<off_t>(page_size * static_cast<size_t>(page)));
  if (ring == MAP_FAILED) return nullptr;
  return std::unique_ptr<CoalescedWrites>(
      new CoalescedWrites(vm.fd(), static_cast<kvm_coalesced_mmio_ring*>(ring), page_size));
}

CoalescedWrites::~CoalescedWrites() { ::munmap(x_ring, x_page_size); }

bool CoalescedWrites::set_coalesced(uint16_t port, bool coalesced) const {
  kvm_coalesced_mmio_zone zone{};
  zone.addr = port;
  zone.size = 1;
  zone.pio = 1;
  const auto request = coalesced ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO;
  return ::ioctl(x_vm_fd, request, &zone) == 0;
}

bool CoalescedWrites::drain(const Bus& ports) {
  // SAFETY: `last` is the kernel's, which publishes an entry before it moves it (acquire here);
  // `first` is ours, and moving it gives the entry back (release). Both are bounded by the modulus.
  std::atomic_ref<uint32_t> first(x_ring->first);
  const std::atomic_ref<uint32_t> last(x_ring->last);
  if (first.load(std::memory_order_relaxed) == last.load(std::memory_order_acquire)) return false;
  const auto entries = static_cast<uint32_t>((x_page_size - sizeof(kvm_coalesced_mmio_ring)) /
                                             sizeof(kvm_coalesced_mmio));
  MutexLock lock(x_mutex);
  uint32_t at = first.load(std::memory_order_relaxed) % entries;
  while (at != last.load(std::memory_order_acquire) % entries) {
    const kvm_coalesced_mmio& entry = x_ring->coalesced_mmio[at];
    ports.write(entry.phys_addr, {entry.data, std::min<size_t>(entry.len, sizeof entry.data)});
    at = (at + 1) % entries;
    first.store(at, std::memory_order_release);
  }
  return true;
}

}  // namespace lethe
