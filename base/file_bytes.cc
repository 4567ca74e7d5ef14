#include "base/file_bytes.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/unique_fd.h"

namespace lethe {

Result<> write_all(int fd, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return host_error("{}", errno_text(wrote < 0 ? errno : ENOSPC));
    bytes = bytes.subspan(static_cast<size_t>(wrote));
  }
  return {};
}

Result<> write_all(int fd, std::string_view text) {
  // SAFETY: the characters of the text, as bytes.
  return write_all(fd, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Result<size_t> cut_file(int fd, size_t bytes_max) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) return host_error("{}", errno_text(errno));
  if (!S_ISREG(status.st_mode)) return 0;
  const auto size = static_cast<size_t>(status.st_size);
  if (size <= bytes_max) return size;
  // `fd` itself need not be readable.
  const UniqueFd file(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return host_error("{}", errno_text(errno));
  std::string last(bytes_max / 2 - std::min(bytes_max / 2, kCutMark.size()), '\0');
  const ssize_t got =
      ::pread(file.get(), last.data(), last.size(), static_cast<off_t>(size - last.size()));
  if (got < 0) return host_error("{}", errno_text(errno));
  last.resize(static_cast<size_t>(got));
  if (const size_t newline = last.find('\n'); newline != std::string::npos)
    last.erase(0, newline + 1);
  last.insert(0, kCutMark);
  if (::ftruncate(fd, 0) != 0) return host_error("{}", errno_text(errno));
  LETHE_TRY(write_all(fd, last));
  return last.size();
}

}  // namespace lethe
