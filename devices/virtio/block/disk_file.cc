#include "devices/virtio/block/disk_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>

#include "base/log.h"

namespace lethe {
namespace {

constexpr int kLockTries = 20;  // 100 ms in all
constexpr useconds_t kLockPauseUs = 5000;
constexpr uint32_t kDirectAlignmentUnknown = 4096;  // enough for every disk there is

Unexpected open_error(const std::string& path, bool read_only, int error) {
  switch (error) {
    case ENOENT:
      return host_error("disk '{}' does not exist", path);
    case EACCES:
    case EPERM:
    case EROFS:
      return host_error("disk '{}' can't be opened for {}: {}{}", path,
                        read_only ? "reading" : "writing", errno_text(error),
                        read_only ? "" : " (read_only = true opens it for reading only)");
    case EINVAL:
      return host_error("disk '{}': its file system has no O_DIRECT (set direct = false)", path);
    default:
      return host_error("disk '{}' can't be opened: {}", path, errno_text(error));
  }
}

Result<> check_kind(const std::string& path, mode_t mode) {
  if (S_ISDIR(mode)) return host_error("disk '{}' is a directory", path);
  if (!S_ISREG(mode) && !S_ISBLK(mode))
    return host_error("disk '{}' is neither a regular file nor a block device", path);
  return {};
}

bool set_lock(int fd, short type) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;  // from 0, with length 0: all of it
  return ::fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

Result<> lock_file(int fd, const std::string& path, bool read_only) {
  // A VM that was killed a moment ago may still hold it: the kernel lets go of the files of an
  // io_uring some time after its process's end.
  for (int tries = 0; tries < kLockTries; ++tries) {
    if (set_lock(fd, read_only ? F_RDLCK : F_WRLCK)) return {};
    if (errno != EAGAIN && errno != EACCES) break;
    const int error = errno;
    (void)::usleep(kLockPauseUs);
    errno = error;
  }
  if (errno == EAGAIN || errno == EACCES)
    return host_error("disk '{}' is in use by another VM (or twice by this one)", path);
  log_warn(LogModule::kBlock, "disk '{}' can't be locked ({}): do not use it in two VMs", path,
           errno_text(errno));
  return {};
}

// What O_DIRECT asks for: Linux 6.1 tells (statx); a block device's logical block size before that.
void find_direct_alignment(DiskFile& disk, uint32_t device_block_bytes) {
  disk.memory_alignment = disk.offset_alignment =
      device_block_bytes != 0 ? device_block_bytes : kDirectAlignmentUnknown;
#ifdef STATX_DIOALIGN
  struct statx status{};
  if (::statx(disk.fd.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0 && std::has_single_bit(status.stx_dio_mem_align) &&
      std::has_single_bit(status.stx_dio_offset_align)) {
    disk.memory_alignment = status.stx_dio_mem_align;
    disk.offset_alignment = status.stx_dio_offset_align;
  }
#endif
}

Result<> find_size(DiskFile& disk, const std::string& path, bool direct) {
  struct stat status{};
  if (::fstat(disk.fd.get(), &status) != 0) return open_error(path, true, errno);
  LETHE_TRY(check_kind(path, status.st_mode));
  disk.bytes = static_cast<uint64_t>(status.st_size);
  int device_block_bytes = 0;
  if (S_ISBLK(status.st_mode) && (::ioctl(disk.fd.get(), BLKGETSIZE64, &disk.bytes) != 0 ||
                                  ::ioctl(disk.fd.get(), BLKSSZGET, &device_block_bytes) != 0))
    return host_error("disk '{}': can't find its size: {}", path, errno_text(errno));
  if (direct) find_direct_alignment(disk, static_cast<uint32_t>(device_block_bytes));
  disk.block_bytes =
      std::max({kSectorBytes, static_cast<uint32_t>(device_block_bytes), disk.offset_alignment});
  if (disk.bytes == 0) return host_error("disk '{}' is empty", path);
  if (disk.bytes % disk.block_bytes != 0)
    return host_error(
        "disk '{}' is {} bytes, no multiple of {}: cut short? (truncate -s %{} pads it)", path,
        disk.bytes, disk.block_bytes, disk.block_bytes);
  return {};
}

}  // namespace

Result<> DiskFile::take_over_size() {
  DiskFile now;
  // Only the size is taken: blocks and alignments were told to the guest.
  now.fd.reset(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!now.fd.valid()) return host_error("disk '{}': {}", path, errno_text(errno));
  LETHE_TRY(find_size(now, path, false));
  if (now.bytes % block_bytes != 0)
    return host_error("disk '{}' is {} bytes, no multiple of {}", path, now.bytes, block_bytes);
  bytes = now.bytes;
  return {};
}

Result<> DiskFile::grow(uint64_t to_bytes, bool read_only) {
  if (read_only) return host_error("disk '{}' is read-only", path);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return host_error("disk '{}': {}", path, errno_text(errno));
  if (!S_ISREG(status.st_mode))
    return host_error("disk '{}' is a block device: resize that, then have its size taken over",
                      path);
  const auto there = static_cast<uint64_t>(status.st_size);
  if (to_bytes < bytes || to_bytes < there)
    return host_error("disk '{}' has {} bytes: it is not made smaller", path,
                      std::max(bytes, there));
  if (to_bytes % block_bytes != 0)
    return host_error("disk '{}': {} bytes is no multiple of {}", path, to_bytes, block_bytes);
  if (::ftruncate(fd.get(), static_cast<off_t>(to_bytes)) != 0)
    return host_error("disk '{}' can't be made larger: {}", path, errno_text(errno));
  bytes = to_bytes;
  return {};
}

void DiskFile::unlock() const { (void)set_lock(fd.get(), F_UNLCK); }

Result<DiskFile> DiskFile::open(const std::string& path, bool read_only, bool direct) {
  // Looked at first, since opening a FIFO or a tape would block or have effects; a file put in its
  // place afterwards is found out by find_size().
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return open_error(path, read_only, errno);
  LETHE_TRY(check_kind(path, status.st_mode));
  DiskFile disk;
  disk.path = path;
  const int flags = O_CLOEXEC | (read_only ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0);
  // A disk's reads are not its file's reads: no access times (for the file's owner; others can't).
  disk.fd.reset(::open(path.c_str(), flags | O_NOATIME));
  if (!disk.fd.valid() && errno == EPERM) disk.fd.reset(::open(path.c_str(), flags));
  if (!disk.fd.valid()) return open_error(path, read_only, errno);
  LETHE_TRY(find_size(disk, path, direct));
  LETHE_TRY(lock_file(disk.fd.get(), path, read_only));
  return disk;
}

}  // namespace lethe
