#include "vmm/image/image_files.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/file_bytes.h"
#include "base/unique_fd.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

namespace fs = std::filesystem;

// Not every file system knows RENAME_NOREPLACE.
bool rename_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno != EINVAL && errno != ENOSYS) return false;
  if (::link(from.c_str(), to.c_str()) != 0) return false;
  return ::unlink(from.c_str()) == 0;
}

bool regular(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == fs::file_type::regular;
}

}  // namespace

Result<> refuse_existing(const std::string& out, bool force) {
  for (const std::string_view suffix : kImageSuffixes) {
    const std::string path = out + std::string(suffix);
    struct stat status{};
    if (::lstat(path.c_str(), &status) != 0) {
      if (errno == ENOENT) continue;
      return host_error("'{}': {}", printable(path), errno_text(errno));
    }
    if (!S_ISREG(status.st_mode))
      return config_error("'{}' is no regular file: OUT names a file to be made", printable(path));
    if (!force) return config_error("'{}' exists: --force replaces it", printable(path));
  }
  return {};
}

Result<> put_in_place(const fs::path& from, const std::string& out, bool force) {
  std::vector<std::string> placed;
  for (const std::string_view suffix : kImageSuffixes) {
    const fs::path source = from / ("disk" + std::string(suffix));
    const std::string target = out + std::string(suffix);
    const bool done =
        force ? ::rename(source.c_str(), target.c_str()) == 0 : rename_new(source, target);
    if (done) {
      placed.push_back(target);
      continue;
    }
    const int error = errno;
    if (!force)
      for (const std::string& path : placed) ::unlink(path.c_str());
    return host_error("cannot put '{}' in place: {}", printable(target), errno_text(error));
  }
  return {};
}

Result<> write_file(const fs::path& path, std::string_view text, unsigned mode) {
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode));
  if (!file.valid()) return host_error("'{}': {}", printable(path.string()), errno_text(errno));
  const auto wrote = write_all(file.get(), text);
  if (!wrote) return host_error("'{}': {}", printable(path.string()), wrote.error().text);
  return {};
}

Result<> copy_whole(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_directories(to.parent_path(), error);
  if (fs::copy_file(from, to, fs::copy_options::overwrite_existing, error)) return {};
  return host_error("cannot copy '{}' to '{}': {}", printable(from.string()),
                    printable(to.string()), error.message());
}

Result<BootFiles> find_boot_files(const fs::path& tree) {
  constexpr std::string_view kPrefix = "vmlinuz-";
  std::error_code error;
  std::string name = fs::read_symlink(tree / "vmlinuz", error).filename().string();
  if (!name.starts_with(kPrefix)) {
    name.clear();
    for (const auto& entry : fs::directory_iterator(tree / "boot", error)) {
      const std::string candidate = entry.path().filename().string();
      if (candidate.starts_with(kPrefix)) name = std::max(name, candidate);
    }
  }
  if (name.empty() || !regular(tree / "boot" / name))
    return host_error("the packages brought no kernel (/boot/vmlinuz-*): see --kernel");
  BootFiles files{.kernel = tree / "boot" / name,
                  .initrd = tree / "boot" / ("initrd.img-" + name.substr(kPrefix.size()))};
  if (!regular(files.initrd))
    return host_error("the kernel's package made no initrd (/boot/{}): see --verbose",
                      printable(files.initrd.filename().string()));
  return files;
}

std::string program_path() {
  const char* const path = std::getenv("PATH");
  return std::string(path == nullptr || *path == '\0' ? "/usr/bin:/bin" : path) +
         ":/usr/sbin:/sbin";
}

}  // namespace lethe
