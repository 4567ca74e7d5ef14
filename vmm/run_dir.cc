#include "vmm/run_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "base/assert.h"
#include "vmm/config.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr const char* kLockName = "lock";
constexpr size_t kSocketNameMax = 16;  // "/console.sock" and what may come
constexpr int kTriesMax = 100;         // each lost to another process's end

Unexpected refused(const std::string& path, const std::string& what) {
  return host_error("run-time directory '{}': {}", printable(path), what);
}

// Opens the directory, made if need be, and makes sure it is ours alone. `parent` may be AT_FDCWD.
Result<UniqueFd> open_private(int parent, const std::string& relative, const std::string& path) {
  UniqueFd fd;
  for (int attempt = 0; attempt < kTriesMax; ++attempt) {
    if (::mkdirat(parent, relative.c_str(), 0700) != 0 && errno != EEXIST)
      return refused(path,
                     errno_text(errno) + ": set XDG_RUNTIME_DIR to a directory you may write");
    // Nothing here follows a link at the last step: in /tmp, others make links too.
    fd.reset(::openat(parent, relative.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fd.valid() || errno != ENOENT) break;  // ENOENT: a VM that ended has just removed it
  }
  if (!fd.valid() && (errno == ELOOP || errno == ENOTDIR))
    return refused(path, "is no directory: remove it");
  if (!fd.valid()) return refused(path, errno_text(errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return refused(path, errno_text(errno));
  if (status.st_uid != ::geteuid())
    return refused(path, "belongs to user " + std::to_string(status.st_uid) +
                             ": set XDG_RUNTIME_DIR to a directory of your own");
  if ((status.st_mode & 07777) != 0700 && ::fchmod(fd.get(), 0700) != 0)
    return refused(path, "cannot be made private: " + errno_text(errno));
  return fd;
}

bool is_directory(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

// The directory that has all VMs' directories, and its path.
Result<UniqueFd> open_root(const RunDirRoots& roots, std::string& path) {
  const std::string* base = nullptr;
  if (roots.xdg.starts_with('/')) base = &roots.xdg;  // the XDG specification: else ignore it
  if (base == nullptr && is_directory(roots.run_user)) base = &roots.run_user;
  path = base == nullptr ? roots.temporary : *base + "/lethe";
  if (base != nullptr && !is_directory(*base))
    return refused(*base, "is missing or no directory: make it, or unset XDG_RUNTIME_DIR");
  return open_private(AT_FDCWD, path, path);
}

std::string read_pid(int lock) {
  char text[16] = {};
  const ssize_t got = ::pread(lock, text, sizeof text - 1, 0);
  std::string pid;
  for (ssize_t i = 0; i < got && text[i] >= '0' && text[i] <= '9'; ++i) pid += text[i];
  return pid.empty() ? "unknown" : pid;
}

// Holds the lock, or says who does; no value: the lock file was removed meanwhile, try again.
Result<std::optional<UniqueFd>> take_lock(int directory, const std::string& name,
                                          const std::string& path) {
  UniqueFd lock(::openat(directory, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid() && errno == ENOENT) return std::nullopt;
  if (!lock.valid()) return refused(path, "cannot open its lock: " + errno_text(errno));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return refused(path, "cannot lock it: " + errno_text(errno));
    const std::string pid = read_pid(lock.get());
    return host_error(
        "'{}' is running already, as process {}: stop that one, or give another --name", name, pid);
  }
  struct stat status{};
  if (::fstat(lock.get(), &status) != 0) return refused(path, errno_text(errno));
  if (status.st_nlink == 0) return std::nullopt;
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    return refused(path, "cannot write its lock: " + errno_text(errno));
  return lock;
}

// Removes what a process left there, but for the lock. Only plain names: sockets.
void remove_sockets(int directory) {
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(copy), ::closedir);
  if (!entries) {
    ::close(copy);
    return;
  }
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(entries.get()))
    if (std::string_view(entry->d_name).ends_with(".sock")) names.emplace_back(entry->d_name);
  for (const std::string& name : names) ::unlinkat(directory, name.c_str(), 0);
}

}  // namespace

RunDirRoots RunDirRoots::of_this_process() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  const std::string uid = std::to_string(::geteuid());
  return {xdg == nullptr ? "" : xdg, "/run/user/" + uid, "/tmp/lethe-" + uid};
}

Result<RunDir> RunDir::create(const std::string& name, const RunDirRoots& roots) {
  LETHE_ASSERT(valid_vm_name(name));
  for (int attempt = 0; attempt < kTriesMax; ++attempt) {
    std::string path;
    LETHE_TRY_ASSIGN(const UniqueFd root, open_root(roots, path));
    path += "/" + name;
    if (path.size() + kSocketNameMax >= sizeof sockaddr_un{}.sun_path)
      return refused(path,
                     "its path is too long for sockets: shorten the VM's name, or set "
                     "XDG_RUNTIME_DIR to a shorter path");
    LETHE_TRY_ASSIGN(UniqueFd directory, open_private(root.get(), name, path));
    LETHE_TRY_ASSIGN(std::optional<UniqueFd> lock, take_lock(directory.get(), name, path));
    if (!lock) continue;
    remove_sockets(directory.get());
    return RunDir(std::move(path), std::move(directory), std::move(*lock));
  }
  return host_error("'{}' keeps starting and ending elsewhere: try again", name);
}

RunDir::~RunDir() {
  if (!x_lock.valid()) return;
  remove_sockets(x_directory.get());
  // The lock is held until after its name is gone: who opens it before finds it locked or unlinked.
  ::unlinkat(x_directory.get(), kLockName, 0);
  ::rmdir(x_path.c_str());
}

}  // namespace lethe
