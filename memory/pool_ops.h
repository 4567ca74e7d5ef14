// The system calls of the scrub pool; tests make them fail or forbid them.
//
// Threading: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lethe {

class PoolOps {
 public:
  virtual ~PoolOps() = default;
  // A userfaultfd that also handles faults of the kernel's own accesses (KVM, io_uring), closed on
  // exec, not blocking; negative errno if it is forbidden. userfaultfd(2)
  [[nodiscard]] virtual int open_userfaultfd();
  // ioctl on it; 0 or an errno value. ioctl_userfaultfd(2)
  [[nodiscard]] virtual int control(int fd, unsigned long request, void* argument);
  // mremap(2) of `size` bytes with MREMAP_FIXED and MREMAP_DONTUNMAP: the pages move, both ranges
  // stay mapped. 0 or an errno value.
  [[nodiscard]] virtual int remap(uint8_t* from, uint8_t* to, uint64_t size);
  // Maps private anonymous memory there, unless something is mapped there: EEXIST. 0 or an errno
  // value. mmap(2), MAP_FIXED_NOREPLACE
  [[nodiscard]] virtual int map_if_free(uint8_t* at, uint64_t size);
  // madvise(2); 0 or an errno value.
  [[nodiscard]] virtual int advise(uint8_t* at, uint64_t size, int advice);
  // pread(2) of exactly `bytes`; 0 or an errno value, EIO if there is less.
  [[nodiscard]] virtual int read_at(int fd, void* to, size_t bytes, int64_t offset);
  static PoolOps& system();
};

}  // namespace lethe
