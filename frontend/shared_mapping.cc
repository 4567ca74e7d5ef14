#include "frontend/shared_mapping.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

namespace lethe::gui {
namespace {

// What the handler looks through: it may not lock or allocate. A slot without a mapping has size 0.
struct Slot {
  std::atomic<uintptr_t> start{0};
  std::atomic<size_t> size{0};
  std::atomic<bool> lost{false};
};

struct Table {
  std::array<Slot, kMappingsMax> slots;
  std::atomic<size_t> used{0};  // slots above were never taken
};
constinit Table table;

std::mutex free_mutex;
std::vector<size_t>& free_slots() {
  static std::vector<size_t> slots;
  return slots;
}

struct sigaction previous_action;

// The slot whose mapping has the address, or null. Runs in the signal handler.
//
// The mapping that faulted is being read by this thread, so its slot is published to it and does
// not change now. Other slots may: release() takes `size` away before publish() stores another
// `start`, so a size that belongs to another start is seen by looking at `start` again.
Slot* find_slot(uintptr_t address) {
  const size_t used = table.used.load(std::memory_order_acquire);
  for (size_t i = 0; i < used; ++i) {
    Slot& slot = table.slots[i];
    const uintptr_t start = slot.start.load(std::memory_order_acquire);
    const size_t size = slot.size.load(std::memory_order_acquire);
    if (slot.start.load(std::memory_order_acquire) != start) continue;
    if (address >= start && address - start < size) return &slot;
  }
  return nullptr;
}

void on_sigbus(int signal, siginfo_t* info, void*) {
  const int saved_errno = errno;
  Slot* slot = find_slot(reinterpret_cast<uintptr_t>(info->si_addr));
  // SAFETY: mmap is a plain system call here; the range is a mapping of ours, which its owner reads
  // right now, so nothing else can have taken its place.
  if (slot != nullptr &&
      ::mmap(reinterpret_cast<void*>(slot->start.load(std::memory_order_relaxed)),
             slot->size.load(std::memory_order_relaxed), PROT_READ,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED) {
    slot->lost.store(true, std::memory_order_release);
    errno = saved_errno;
    return;
  }
  // Not ours: the access faults again, and is handled as if this handler were not there.
  ::sigaction(signal, &previous_action, nullptr);
  errno = saved_errno;
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_action);
  });
}

// kMappingsMax if none is free.
size_t publish(const void* start, size_t size) {
  const std::lock_guard lock(free_mutex);
  size_t index = table.used.load(std::memory_order_relaxed);
  if (!free_slots().empty()) {
    index = free_slots().back();
    free_slots().pop_back();
  } else if (index == kMappingsMax) {
    return kMappingsMax;
  }
  Slot& slot = table.slots[index];
  slot.lost.store(false, std::memory_order_relaxed);
  slot.start.store(reinterpret_cast<uintptr_t>(start), std::memory_order_release);
  slot.size.store(size, std::memory_order_release);
  if (index == table.used.load(std::memory_order_relaxed))
    table.used.store(index + 1, std::memory_order_release);
  return index;
}

void release(size_t index) {
  const std::lock_guard lock(free_mutex);
  table.slots[index].size.store(0, std::memory_order_release);
  free_slots().push_back(index);
}

}  // namespace

Result<SharedMapping> SharedMapping::map(UniqueFd file, uint64_t bytes) {
  struct stat status{};
  if (::fstat(file.get(), &status) != 0)
    return host_error("cannot look at a buffer: {}", errno_text(errno));
  // Only files of tmpfs and hugetlbfs have seals: nothing that could make a reader wait.
  if (!S_ISREG(status.st_mode) || ::fcntl(file.get(), F_GET_SEALS) < 0)
    return host_error("a buffer is no memfd");
  // Size 0: revoked while the descriptor was on its way. It is mapped, and read as zeros.
  if (status.st_size != 0 && static_cast<uint64_t>(status.st_size) != bytes)
    return host_error("a buffer has {} bytes, not {} as was said", status.st_size, bytes);
  install_handler();
  void* start = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  SharedMapping mapping;
  if (start == MAP_FAILED && (errno == ENOMEM || errno == EAGAIN)) return mapping;
  if (start == MAP_FAILED) return host_error("cannot map a buffer: {}", errno_text(errno));
  mapping.x_slot = publish(start, bytes);
  if (mapping.x_slot == kMappingsMax) {
    ::munmap(start, bytes);
    return mapping;
  }
  mapping.x_start = static_cast<const std::byte*>(start);
  mapping.x_size = bytes;
  return mapping;
}

SharedMapping::SharedMapping(SharedMapping&& other) noexcept
    : x_start(std::exchange(other.x_start, nullptr)),
      x_size(std::exchange(other.x_size, 0)),
      x_slot(other.x_slot) {}

SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept {
  if (this != &other) {
    reset();
    x_start = std::exchange(other.x_start, nullptr);
    x_size = std::exchange(other.x_size, 0);
    x_slot = other.x_slot;
  }
  return *this;
}

bool SharedMapping::lost() const {
  return x_start != nullptr && table.slots[x_slot].lost.load(std::memory_order_acquire);
}

void SharedMapping::reset() {
  if (x_start == nullptr) return;
  // The slot first: its range may be another mapping's as soon as it is unmapped.
  release(x_slot);
  // SAFETY: mapped by map(), and x_start is cleared: unmapped once.
  ::munmap(const_cast<std::byte*>(x_start), x_size);
  x_start = nullptr;
  x_size = 0;
}

}  // namespace lethe::gui
