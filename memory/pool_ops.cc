#include "memory/pool_ops.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace lethe {

int PoolOps::open_userfaultfd() {
  const long fd = ::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) return static_cast<int>(fd);
  const int error = errno;
  // Without CAP_SYS_PTRACE and with vm.unprivileged_userfaultfd = 0 the system call is refused; the
  // device may still be open to us (Linux 6.1).
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return -error;
  const int result = ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
  const int device_error = errno;
  ::close(device);
  return result >= 0 ? result : -device_error;
}

int PoolOps::control(int fd, unsigned long request, void* argument) {
  return ::ioctl(fd, request, argument) < 0 ? errno : 0;
}

int PoolOps::remap(uint8_t* from, uint8_t* to, uint64_t size) {
  // SAFETY: both ranges are the caller's; MREMAP_FIXED replaces what is mapped at `to`.
  void* const result =
      ::mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to);
  return result == MAP_FAILED ? errno : 0;
}

int PoolOps::map_if_free(uint8_t* at, uint64_t size) {
  // The bare system call: TSan takes mmap() for a write to memory that other threads wait for.
  // SAFETY: replaces nothing.
  const long result =
      ::syscall(SYS_mmap, at, size, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  return result == -1 ? errno : 0;
}

int PoolOps::advise(uint8_t* at, uint64_t size, int advice) {
  return ::madvise(at, size, advice) != 0 ? errno : 0;
}

int PoolOps::read_at(int fd, void* to, size_t bytes, int64_t offset) {
  const ssize_t got = ::pread(fd, to, bytes, offset);
  if (got < 0) return errno;
  return static_cast<size_t>(got) == bytes ? 0 : EIO;
}

PoolOps& PoolOps::system() {
  static PoolOps ops;
  return ops;
}

}  // namespace lethe
