#include "vmm/run_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "vmm/config.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr const char* kLockName = "lock";
constexpr size_t kSocketNameMax = 16;  // "/console.sock" and what may come
constexpr int kTriesMax = 100;         // each lost to another process's end
constexpr std::chrono::milliseconds kLookersPatience{100};

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

// What XDG_RUNTIME_DIR or the system gives, or null.
const std::string* base_of(const RunDirRoots& roots) {
  if (roots.xdg.starts_with('/')) return &roots.xdg;  // the XDG specification: else ignore it
  return is_directory(roots.run_user) ? &roots.run_user : nullptr;
}

std::string root_path(const RunDirRoots& roots) {
  const std::string* base = base_of(roots);
  return base == nullptr ? roots.temporary : *base + "/lethe";
}

// The directory that has all VMs' directories, and its path.
Result<UniqueFd> open_root(const RunDirRoots& roots, std::string& path) {
  const std::string* base = base_of(roots);
  path = root_path(roots);
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

// running_vms() holds locks of the dead for a moment: that is no running VM.
bool lock_within(int lock, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// Holds the lock, or says who does; no value: the lock file was removed meanwhile, try again.
Result<std::optional<UniqueFd>> take_lock(int directory, const std::string& name,
                                          const std::string& path) {
  UniqueFd lock(::openat(directory, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid() && errno == ENOENT) return std::nullopt;
  if (!lock.valid()) return refused(path, "cannot open its lock: " + errno_text(errno));
  if (!lock_within(lock.get(), kLookersPatience)) {
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

// The names in a directory, in no order.
std::vector<std::string> names_in(int directory) {
  std::vector<std::string> names;
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return names;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(copy), ::closedir);
  if (!entries) {
    ::close(copy);
    return names;
  }
  while (const dirent* entry = ::readdir(entries.get())) names.emplace_back(entry->d_name);
  return names;
}

// Removes what a process left there, but for the lock. Only plain names: sockets.
void remove_sockets(int directory) {
  for (const std::string& name : names_in(directory))
    if (name.ends_with(".sock") || name.starts_with("vsock.sock_"))
      ::unlinkat(directory, name.c_str(), 0);
}

// Who holds the lock of a VM's directory, or no one.
std::optional<std::string> lock_holder(int directory) {
  const UniqueFd lock(::openat(directory, kLockName, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!lock.valid()) return std::nullopt;
  if (::flock(lock.get(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) return std::nullopt;
  return read_pid(lock.get());
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

std::vector<RunningVm> running_vms(const RunDirRoots& roots) {
  std::vector<RunningVm> found;
  const std::string root = root_path(roots);
  const UniqueFd fd(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status{};
  // Another user's directory (in /tmp) has nothing of ours.
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0 || status.st_uid != ::geteuid()) return found;
  for (const std::string& name : names_in(fd.get())) {
    if (!valid_vm_name(name)) continue;
    const UniqueFd directory(
        ::openat(fd.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!directory.valid()) continue;
    if (const auto pid = lock_holder(directory.get()))
      found.push_back({name, root + "/" + name, *pid});
  }
  std::sort(found.begin(), found.end(),
            [](const RunningVm& a, const RunningVm& b) { return a.name < b.name; });
  return found;
}

Result<RunningVm> find_running_vm(const std::string& name, const RunDirRoots& roots) {
  const std::vector<RunningVm> all = running_vms(roots);
  std::string names;
  for (const RunningVm& vm : all) {
    if (vm.name == name) return vm;
    names += (names.empty() ? "" : ", ") + vm.name;
  }
  if (names.empty()) return host_error("'{}' does not run, nor does any other VM", printable(name));
  return host_error("'{}' does not run; running: {}", printable(name), names);
}

RunDir::~RunDir() {
  if (!x_lock.valid()) return;
  remove_sockets(x_directory.get());
  // The lock is held until after its name is gone: who opens it before finds it locked or unlinked.
  ::unlinkat(x_directory.get(), kLockName, 0);
  ::rmdir(x_path.c_str());
}

}  // namespace lethe
