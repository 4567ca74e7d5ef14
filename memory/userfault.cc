#include "memory/userfault.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace lethe {
namespace {

// Linux 6.8's UAPI; Debian 12's headers are older. include/uapi/linux/userfaultfd.h
struct UffdioMove {
  __u64 dst;
  __u64 src;
  __u64 len;
  __u64 mode;  // 1 << 0: do not wake; 1 << 1: source holes allowed
  __s64 move;  // out: bytes moved, or a negative errno
};
constexpr unsigned long kUffdioMove = _IOWR(UFFDIO, 0x05, UffdioMove);
constexpr uint64_t kMoveDontWake = 1;
constexpr uint64_t kFeatureMove = uint64_t{1} << 16;

constexpr int kRetries = 64;

uint64_t address(const uint8_t* at) { return reinterpret_cast<uintptr_t>(at); }

}  // namespace

std::unique_ptr<Userfault> Userfault::open(PoolOps& ops, bool move, int& error) {
  const int fd = ops.open_userfaultfd();
  if (fd < 0) {
    error = -fd;
    return nullptr;
  }
  std::unique_ptr<Userfault> result(new Userfault(ops, fd));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_THREAD_ID;  // Linux 4.14
  if (move) api.features |= kFeatureMove | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  error = ops.control(fd, UFFDIO_API, &api);
  return error == 0 ? std::move(result) : nullptr;
}

int Userfault::watch_missing(uint8_t* at, uint64_t size) const {
  uffdio_register arg{};
  arg.range = {.start = address(at), .len = size};
  arg.mode = UFFDIO_REGISTER_MODE_MISSING;
  return x_ops->control(fd(), UFFDIO_REGISTER, &arg);
}

int Userfault::watch_nothing(uint8_t* at, uint64_t size) const {
  uffdio_register arg{};
  arg.range = {.start = address(at), .len = size};
  arg.mode = UFFDIO_REGISTER_MODE_WP;  // and nothing in it is ever write-protected
  return x_ops->control(fd(), UFFDIO_REGISTER, &arg);
}

void Userfault::unwatch(uint8_t* at, uint64_t size) const {
  uffdio_range range{.start = address(at), .len = size};
  (void)x_ops->control(fd(), UFFDIO_UNREGISTER, &range);
  // It wakes who waits before it is done, and since faults take the lock of their mapping only
  // (Linux 6.7) one can begin to wait in between: nobody would ever wake that.
  wake(at, size);
}

void Userfault::wake(uint8_t* at, uint64_t size) const {
  uffdio_range range{.start = address(at), .len = size};
  (void)x_ops->control(fd(), UFFDIO_WAKE, &range);
}

int Userfault::fill_zero(uint8_t* at, uint64_t size, uint64_t& done) const {
  done = 0;
  for (int attempt = 0;; ++attempt) {
    uffdio_zeropage arg{};
    arg.range = {.start = address(at) + done, .len = size - done};
    const int error = x_ops->control(fd(), UFFDIO_ZEROPAGE, &arg);
    if (arg.zeropage > 0) done += static_cast<uint64_t>(arg.zeropage);
    if (error == 0 || done >= size) return 0;
    // EAGAIN: it stopped half-way, or the address space is changing. The next try tells which.
    if (error != EAGAIN || attempt == kRetries) return error;
  }
}

int Userfault::fill_copy(uint8_t* at, const uint8_t* from, uint64_t size, uint64_t& done) const {
  done = 0;
  for (int attempt = 0;; ++attempt) {
    uffdio_copy arg{};
    arg.dst = address(at) + done;
    arg.src = address(from) + done;
    arg.len = size - done;
    const int error = x_ops->control(fd(), UFFDIO_COPY, &arg);
    if (arg.copy > 0) done += static_cast<uint64_t>(arg.copy);
    if (error == 0 || done >= size) return 0;
    if (error != EAGAIN || attempt == kRetries) return error;
  }
}

MoveOutcome Userfault::move(uint8_t* to, uint8_t* from, uint64_t size) const {
  MoveOutcome outcome;
  for (int attempt = 0;; ++attempt) {
    UffdioMove arg{.dst = address(to) + outcome.moved,
                   .src = address(from) + outcome.moved,
                   .len = size - outcome.moved,
                   .mode = kMoveDontWake,
                   .move = 0};
    outcome.error = x_ops->control(fd(), kUffdioMove, &arg);
    if (arg.move > 0) outcome.moved += static_cast<uint64_t>(arg.move);
    if (outcome.moved >= size) outcome.error = 0;
    if (outcome.error != EAGAIN || attempt == kRetries) return outcome;
  }
}

size_t Userfault::read_faults(std::span<Fault> faults) const {
  std::array<uffd_msg, 16> messages;
  const size_t wanted = std::min(messages.size(), faults.size());
  const ssize_t bytes = ::read(fd(), messages.data(), wanted * sizeof(uffd_msg));
  if (bytes <= 0) return 0;
  size_t count = 0;
  for (size_t i = 0; i < static_cast<size_t>(bytes) / sizeof(uffd_msg); ++i) {
    const uffd_msg& message = messages[i];
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    // SAFETY: the address is one of ours: only our own ranges are registered.
    faults[count++] = {
        .page = reinterpret_cast<uint8_t*>(message.arg.pagefault.address & ~uint64_t{4095}),
        .write = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
        .thread = static_cast<pid_t>(message.arg.pagefault.feat.ptid)};
  }
  return count;
}

}  // namespace lethe
