#include "vmm/kvm/kvm.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr uint32_t kMsiRoutesMax = 4096;  // KVM_MAX_IRQ_ROUTES
// Three pages and one page that KVM on Intel without "unrestricted guest" keeps for itself, just
// below the reset vector, where no RAM and no device of ours is (api.rst 4.35, 4.40).
constexpr uint64_t kIdentityMapAddress = 0xFFFB'C000;
constexpr uint64_t kTssAddress = 0xFFFB'D000;

Unexpected kvm_error(std::string text) {
  return Unexpected(Error{ErrorClass::kKvm, std::move(text)});
}

Unexpected ioctl_error(const char* what) {
  return kvm_error(fmt::format("{}: {}", what, errno_text(errno)));
}

struct Needed {
  int capability;
  const char* name;
};
constexpr Needed kNeeded[] = {
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},     {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},         {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"}, {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
};

}  // namespace

Result<Kvm> Kvm::open(const char* path) {
  UniqueFd fd(::open(path, O_RDWR | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT)
      return kvm_error(
          fmt::format("{} is missing: load the kvm_intel or kvm_amd module, or enable "
                      "virtualisation in the firmware",
                      path));
    if (errno == EACCES || errno == EPERM)
      return kvm_error(
          fmt::format("{}: permission denied: add your user to the 'kvm' group", path));
    return kvm_error(fmt::format("{}: {}", path, errno_text(errno)));
  }
  const int version = ::ioctl(fd.get(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION)
    return kvm_error(fmt::format("{} speaks KVM API version {}, Lethe needs {}", path, version,
                                 KVM_API_VERSION));
  const int run_size = ::ioctl(fd.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (run_size < static_cast<int>(sizeof(kvm_run))) return ioctl_error("KVM_GET_VCPU_MMAP_SIZE");
  Kvm kvm(std::move(fd), static_cast<size_t>(run_size));
  for (const Needed& needed : kNeeded)
    if (kvm.capability(needed.capability) <= 0)
      return kvm_error(
          fmt::format("this kernel's KVM lacks {}: use Linux 4.12 or later", needed.name));
  return kvm;
}

int Kvm::capability(int which) const { return ::ioctl(x_fd.get(), KVM_CHECK_EXTENSION, which); }

// One MSI-X vector: an eventfd that KVM turns into the message its GSI is routed to. Made with the
// first message, so that the vectors a guest leaves unused cost nothing.
class KvmVm::Route final : public MsiRoute {
 public:
  Route(KvmVm& vm, uint32_t gsi) : x_vm(vm), x_gsi(gsi) {}
  ~Route() override {
    MutexLock lock(x_vm.x_routes_mutex);
    if (x_attached.load()) (void)control(KVM_IRQFD_FLAG_DEASSIGN);
    *std::find(x_vm.x_routes.begin(), x_vm.x_routes.end(), this) = nullptr;
  }

  // Signals from before there was a message are lost, as promised.
  void signal() override {
    if (x_attached.load(std::memory_order_acquire)) x_event->signal();
  }

  void set_message(const MsiMessage& message) override {
    MutexLock lock(x_vm.x_routes_mutex);
    if (x_routed && message == x_message) return;
    x_message = message;
    x_routed = true;
    Result<> result = x_vm.publish_routes();
    if (result && !x_attached.load()) result = attach();
    if (!result) LETHE_LOG_LIMITED(LogModule::kVmm, "GSI {}: {}", x_gsi, result.error().text);
  }

  [[nodiscard]] bool routed() const { return x_routed; }
  [[nodiscard]] kvm_irq_routing_entry entry() const {
    kvm_irq_routing_entry entry{};
    entry.gsi = x_gsi;
    entry.type = KVM_IRQ_ROUTING_MSI;
    entry.u.msi.address_lo = static_cast<uint32_t>(x_message.address);
    entry.u.msi.address_hi = static_cast<uint32_t>(x_message.address >> 32);
    entry.u.msi.data = x_message.data;
    return entry;
  }

 private:
  Result<> attach() {
    if (!x_event) {
      LETHE_TRY_ASSIGN(x_event, EventFd::create());
    }
    if (control(0) != 0) return ioctl_error("KVM_IRQFD");
    // Release: a thread that sees the route attached sees the eventfd, which stays from here on.
    x_attached.store(true, std::memory_order_release);
    return {};
  }
  int control(uint32_t flags) {
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<uint32_t>(x_event->fd());
    irqfd.gsi = x_gsi;
    irqfd.flags = flags;
    return ::ioctl(x_vm.x_fd.get(), KVM_IRQFD, &irqfd);
  }

  KvmVm& x_vm;
  const uint32_t x_gsi;
  std::atomic<bool> x_attached{false};
  // All guarded by the VM's x_routes_mutex, but that signal() reads the eventfd once attached.
  std::optional<EventFd> x_event;
  MsiMessage x_message;
  bool x_routed = false;
};

Result<std::unique_ptr<KvmVm>> KvmVm::create(const Kvm& kvm) {
  int fd = -1;
  do {  // KVM_CREATE_VM may be interrupted by a signal
    fd = ::ioctl(kvm.fd(), KVM_CREATE_VM, 0);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ioctl_error("KVM_CREATE_VM");
  auto vm = std::unique_ptr<KvmVm>(new KvmVm(UniqueFd(fd)));
  uint64_t identity_map = kIdentityMapAddress;
  if (kvm.capability(KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 &&
      ::ioctl(fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) != 0)
    return ioctl_error("KVM_SET_IDENTITY_MAP_ADDR");
  if (kvm.capability(KVM_CAP_SET_TSS_ADDR) > 0 && ::ioctl(fd, KVM_SET_TSS_ADDR, kTssAddress) != 0)
    return ioctl_error("KVM_SET_TSS_ADDR");
  kvm_enable_cap split{};
  split.cap = KVM_CAP_SPLIT_IRQCHIP;
  split.args[0] = 0;  // no routes of an I/O APIC whose EOIs we would want: all lines are edges
  if (::ioctl(fd, KVM_ENABLE_CAP, &split) != 0) return ioctl_error("KVM_CAP_SPLIT_IRQCHIP");
  return vm;
}

namespace {

// `size` 0 takes the slot away. Waits until no vCPU uses what was there.
Result<> set_slot(int vm, uint32_t slot, uint64_t address, uint64_t size, const uint8_t* host) {
  kvm_userspace_memory_region region{};
  region.slot = slot;
  region.guest_phys_addr = address;
  region.memory_size = size;
  // SAFETY: the API takes the host address as a number.
  region.userspace_addr = reinterpret_cast<uint64_t>(host);
  if (::ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0)
    return kvm_error(fmt::format("KVM_SET_USER_MEMORY_REGION ({} MiB at {:#x}): {}", size / kMiB,
                                 address, errno_text(errno)));
  return {};
}

}  // namespace

Result<> KvmVm::map_memory(std::span<const MemoryRegion> regions) {
  for (const MemoryRegion& region : regions)
    LETHE_TRY(bind_memory(region.start.value, region.size, region.host));
  return {};
}

Result<> KvmVm::bind_memory(uint64_t address, uint64_t size, uint8_t* host) {
  LETHE_ASSERT(size > 0);
  MutexLock lock(x_slots_mutex);
  auto place = std::ranges::find(x_slots, uint64_t{0}, &Slot::size);
  if (place == x_slots.end()) place = x_slots.insert(place, Slot{});
  const auto number = static_cast<uint32_t>(place - x_slots.begin());
  LETHE_TRY(set_slot(x_fd.get(), number, address, size, host));
  *place = {.address = address, .size = size};
  return {};
}

void KvmVm::unbind_memory(uint64_t address) {
  MutexLock lock(x_slots_mutex);
  const auto place = std::ranges::find_if(
      x_slots, [&](const Slot& slot) { return slot.size > 0 && slot.address == address; });
  LETHE_ASSERT(place != x_slots.end());
  const auto number = static_cast<uint32_t>(place - x_slots.begin());
  const auto gone = set_slot(x_fd.get(), number, address, 0, nullptr);
  // KVM refuses no deletion of a slot that is there; if it did, the guest would go on seeing memory
  // that its owner is about to unmap.
  LETHE_ASSERT(gone.has_value());
  *place = {};
}

Result<uint64_t> KvmVm::clock_ns() const {
  kvm_clock_data data{};
  if (::ioctl(x_fd.get(), KVM_GET_CLOCK, &data) != 0) return ioctl_error("KVM_GET_CLOCK");
  return data.clock;
}

Result<> KvmVm::set_clock_ns(uint64_t clock) const {
  kvm_clock_data data{};
  data.clock = clock;
  if (::ioctl(x_fd.get(), KVM_SET_CLOCK, &data) != 0) return ioctl_error("KVM_SET_CLOCK");
  return {};
}

Result<std::unique_ptr<MsiRoute>> KvmVm::make_route() {
  MutexLock lock(x_routes_mutex);
  auto place = std::find(x_routes.begin(), x_routes.end(), nullptr);
  if (place == x_routes.end()) {
    if (x_routes.size() >= kMsiRoutesMax)
      return host_error("the VM has {} interrupt vectors, KVM's limit: use fewer devices or queues",
                        kMsiRoutesMax);
    place = x_routes.insert(place, nullptr);
  }
  const auto gsi = static_cast<uint32_t>(place - x_routes.begin());
  auto route = std::make_unique<Route>(*this, gsi);
  *place = route.get();
  return route;
}

Result<> KvmVm::publish_routes() {
  std::vector<kvm_irq_routing_entry> entries;
  entries.reserve(x_routes.size());
  for (const Route* route : x_routes)
    if (route != nullptr && route->routed()) entries.push_back(route->entry());

  // struct kvm_irq_routing ends in a flexible array.
  std::vector<uint8_t> buffer(sizeof(kvm_irq_routing) +
                              entries.size() * sizeof(kvm_irq_routing_entry));
  kvm_irq_routing header{};
  header.nr = static_cast<uint32_t>(entries.size());
  std::memcpy(buffer.data(), &header, sizeof header);
  std::memcpy(buffer.data() + sizeof header, entries.data(),
              entries.size() * sizeof(kvm_irq_routing_entry));
  if (::ioctl(x_fd.get(), KVM_SET_GSI_ROUTING, buffer.data()) != 0)
    return ioctl_error("KVM_SET_GSI_ROUTING");
  return {};
}

namespace {

kvm_ioeventfd doorbell(uint64_t address, const EventFd& event, uint32_t flags) {
  kvm_ioeventfd ioeventfd{};
  ioeventfd.addr = address;
  ioeventfd.len = 0;  // any length
  ioeventfd.fd = event.fd();
  ioeventfd.flags = flags;
  return ioeventfd;
}

}  // namespace

Result<> KvmVm::bind_doorbell(uint64_t address, const EventFd& event) {
  kvm_ioeventfd ioeventfd = doorbell(address, event, 0);
  if (::ioctl(x_fd.get(), KVM_IOEVENTFD, &ioeventfd) != 0) return ioctl_error("KVM_IOEVENTFD");
  return {};
}

void KvmVm::unbind_doorbell(uint64_t address, const EventFd& event) {
  kvm_ioeventfd ioeventfd = doorbell(address, event, KVM_IOEVENTFD_FLAG_DEASSIGN);
  (void)::ioctl(x_fd.get(), KVM_IOEVENTFD, &ioeventfd);  // ENOENT: it was not bound
}

}  // namespace lethe
