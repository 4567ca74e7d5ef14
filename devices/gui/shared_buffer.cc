#include "devices/gui/shared_buffer.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <utility>

#include "base/assert.h"
#include "devices/gui/protocol.h"

namespace lethe {
namespace {

constexpr uint64_t kPageBytes = 4096;

Result<UniqueFd> make_memfd(uint64_t bytes) {
  UniqueFd fd(::memfd_create("lethe-gui", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return host_error("cannot create a shared buffer: {}", errno_text(errno));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    return host_error("cannot size a shared buffer to {} bytes: {}", bytes, errno_text(errno));
  // Who opens a frontend's descriptor again through /proc finds a file that is not to be written.
  if (::fchmod(fd.get(), S_IRUSR) != 0)
    return host_error("cannot protect a shared buffer: {}", errno_text(errno));
  return fd;
}

}  // namespace

Result<SharedBuffer> SharedBuffer::create(uint64_t bytes) {
  LETHE_ASSERT(bytes > 0 && bytes <= gui::kBufferBytesMax);
  SharedBuffer buffer;
  buffer.x_bytes = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  LETHE_TRY_ASSIGN(buffer.x_fd, make_memfd(buffer.x_bytes));
  const int fd = buffer.x_fd.get();
  void* const data =
      ::mmap(nullptr, buffer.x_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED)
    return host_error("cannot map a shared buffer of {} bytes: {}", buffer.x_bytes,
                      errno_text(errno));
  buffer.x_data = static_cast<uint8_t*>(data);
  (void)::madvise(data, buffer.x_bytes, MADV_DONTDUMP);  // advice
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return host_error("cannot seal a shared buffer: {}", errno_text(errno));
  buffer.x_read_only.reset(
      ::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!buffer.x_read_only.valid())
    return host_error("cannot open a shared buffer for reading: {}", errno_text(errno));
  return buffer;
}

SharedBuffer::SharedBuffer(SharedBuffer&& other) noexcept { *this = std::move(other); }

SharedBuffer& SharedBuffer::operator=(SharedBuffer&& other) noexcept {
  std::swap(x_fd, other.x_fd);
  std::swap(x_read_only, other.x_read_only);
  std::swap(x_data, other.x_data);
  std::swap(x_bytes, other.x_bytes);
  return *this;
}

SharedBuffer::~SharedBuffer() {
  if (x_data != nullptr) ::munmap(x_data, x_bytes);
}

Result<> SharedBuffer::map_at(uint8_t* at) const {
  LETHE_ASSERT(valid() && reinterpret_cast<uintptr_t>(at) % kPageBytes == 0);
  // SAFETY: an old size of 0 leaves the first mapping alone and makes another of the same pages
  // (mremap(2)); the seal lets no new writable one be made in any other way. The caller owns
  // [at, at + x_bytes), which MREMAP_FIXED replaces.
  if (::mremap(x_data, 0, x_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED)
    return host_error("cannot map a shared buffer of {} bytes again: {}", x_bytes,
                      errno_text(errno));
  return {};
}

bool SharedBuffer::revoke(uint64_t keep) {
  return x_fd.valid() && ::ftruncate(x_fd.get(), static_cast<off_t>(keep)) == 0;
}

}  // namespace lethe
