#include "vmm/boot/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace lethe {
namespace {

Unexpected too_short(const ByteSource& source, uint64_t offset, size_t length) {
  return config_error("{} is truncated: it should have bytes {} to {}, but ends at {}",
                      source.name(), offset, offset + length, source.size());
}

bool covers(uint64_t size, uint64_t offset, size_t length) {
  return offset <= size && length <= size - offset;
}

}  // namespace

Result<FileSource> FileSource::open(const std::string& path, const char* what) {
  std::string name = fmt::format("{} '{}'", what, path);
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return config_error("{}: {}", name, errno_text(errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return config_error("{}: {}", name, errno_text(errno));
  if (!S_ISREG(status.st_mode)) return config_error("{} is not a regular file", name);
  return FileSource(std::move(fd), static_cast<uint64_t>(status.st_size), std::move(name));
}

Result<> FileSource::read(uint64_t offset, std::span<uint8_t> to) const {
  if (!covers(x_size, offset, to.size())) return too_short(*this, offset, to.size());
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t got =
        ::pread(x_fd.get(), to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return config_error("{}: {}", x_name, errno_text(errno));
    if (got == 0) return too_short(*this, offset, to.size());  // it shrank meanwhile
    done += static_cast<size_t>(got);
  }
  return {};
}

Result<> BufferSource::read(uint64_t offset, std::span<uint8_t> to) const {
  if (!covers(x_bytes.size(), offset, to.size())) return too_short(*this, offset, to.size());
  std::memcpy(to.data(), x_bytes.data() + offset, to.size());
  return {};
}

}  // namespace lethe
