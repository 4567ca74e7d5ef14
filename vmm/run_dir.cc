#include "vmm/run_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/unix_socket.h"
#include "vmm/config.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr const char* kLockName = "lock";
constexpr std::string_view kReadyLine = "ready\n";
constexpr size_t kSocketNameMax = 16;  // "/console.sock" and what may come
constexpr int kTriesMax = 100;         // each lost to another process's end
constexpr std::chrono::milliseconds kLookersPatience{100};
constexpr std::chrono::milliseconds kReadyLook{1};  // a VM is ready a few ms after its lock

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

// What the lock says of who holds it: a line with the process, a line with the config, and
// kReadyLine once it has its sockets.
struct LockText {
  RunningVm vm;
  bool ready = false;
};
LockText read_lock(int lock) {
  std::array<char, 16 + PATH_MAX + kReadyLine.size()> text{};
  const ssize_t got = ::pread(lock, text.data(), text.size(), 0);
  const std::string_view all(text.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
  const size_t digits = std::min(all.find_first_not_of("0123456789"), all.size());
  LockText read;
  RunningVm& vm = read.vm;
  vm.pid = digits == 0 || digits > 10 ? "unknown" : all.substr(0, digits);
  struct stat status{};
  if (digits < all.size() && all[digits] == '\n' && ::fstat(lock, &status) == 0) {
    vm.since = status.st_mtime;
    const size_t end = all.find('\n', digits + 1);
    vm.config = all.substr(digits + 1, end - digits - 1);
    read.ready = end != std::string_view::npos && all.substr(end + 1) == kReadyLine;
  }
  return read;
}

// ", since 2026-11-22 12:14:45, from 'web.toml'", as far as it is known.
std::string history_of(const RunningVm& vm) {
  std::string text;
  if (tm broken{}; vm.since != 0 && ::localtime_r(&vm.since, &broken) != nullptr) {
    char when[32];
    text.append(", since ").append(when, ::strftime(when, sizeof when, "%F %T", &broken));
  }
  if (!vm.config.empty()) text += ", from '" + printable(vm.config) + "'";
  return text;
}

// One line may be kept of it, and it must mean the same to who reads it elsewhere.
std::string config_line(const std::string& file) {
  std::string line = file;
  if (std::array<char, PATH_MAX> here{};
      !line.empty() && line[0] != '/' && ::getcwd(here.data(), here.size()) != nullptr)
    line = std::string(here.data()) + "/" + line;
  return line.size() >= PATH_MAX || line.find('\n') != std::string::npos ? "" : line;
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
                                          const std::string& path, const std::string& config_file) {
  UniqueFd lock(::openat(directory, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid() && errno == ENOENT) return std::nullopt;
  if (!lock.valid()) return refused(path, "cannot open its lock: " + errno_text(errno));
  if (!lock_within(lock.get(), kLookersPatience)) {
    if (errno != EWOULDBLOCK) return refused(path, "cannot lock it: " + errno_text(errno));
    const RunningVm holder = read_lock(lock.get()).vm;
    return host_error(
        "'{0}' is running already, as process {1}{2}: stop that one (lethe stop {0}), "
        "or give another --name",
        name, holder.pid, history_of(holder));
  }
  struct stat status{};
  if (::fstat(lock.get(), &status) != 0) return refused(path, errno_text(errno));
  if (status.st_nlink == 0) return std::nullopt;
  const std::string text = fmt::format("{}\n{}\n", ::getpid(), config_line(config_file));
  // write() and not pwrite(): set_ready() writes behind it.
  if (::ftruncate(lock.get(), 0) != 0 ||
      ::write(lock.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
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

// Removes the sockets that a process left there, or all but the lock. Only plain names.
void remove_files(int directory, bool sockets_only) {
  for (const std::string& name : names_in(directory))
    if (name.ends_with(".sock") || name.starts_with("vsock.sock_") ||
        (!sockets_only && (name == kMessagesName || name == kLastConsoleName)))
      ::unlinkat(directory, name.c_str(), 0);
}

// Who holds the lock of a VM's directory, once it is ready or it is `deadline`; or no one.
std::optional<RunningVm> lock_holder(int directory,
                                     std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    // Opened anew each time: a VM that ends removes it, and another one may come.
    const UniqueFd lock(::openat(directory, kLockName, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!lock.valid()) return std::nullopt;
    if (::flock(lock.get(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) return std::nullopt;
    const LockText read = read_lock(lock.get());
    if (read.ready || std::chrono::steady_clock::now() >= deadline) return read.vm;
    std::this_thread::sleep_for(kReadyLook);
  }
}

// Those that run; the one of that name, or each if it is empty, is waited for until it is ready.
std::vector<RunningVm> find_vms(const RunDirRoots& roots, std::string_view waited_for,
                                std::chrono::milliseconds patience) {
  std::vector<RunningVm> found;
  const std::string root = root_path(roots);
  const UniqueFd fd(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status{};
  // Another user's directory (in /tmp) has nothing of ours.
  if (!fd.valid() || ::fstat(fd.get(), &status) != 0 || status.st_uid != ::geteuid()) return found;
  const auto now = std::chrono::steady_clock::now();
  for (const std::string& name : names_in(fd.get())) {
    if (!valid_vm_name(name)) continue;
    const UniqueFd directory(
        ::openat(fd.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!directory.valid()) continue;
    const bool waits = waited_for.empty() || waited_for == name;
    if (auto vm = lock_holder(directory.get(), waits ? now + patience : now)) {
      vm->name = name;
      vm->path = root + "/" + name;
      found.push_back(std::move(*vm));
    }
  }
  std::sort(found.begin(), found.end(),
            [](const RunningVm& a, const RunningVm& b) { return a.name < b.name; });
  return found;
}

}  // namespace

RunDirRoots RunDirRoots::of_this_process() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  const std::string uid = std::to_string(::geteuid());
  return {xdg == nullptr ? "" : xdg, "/run/user/" + uid, "/tmp/lethe-" + uid};
}

Result<UniqueFd> open_run_root(const RunDirRoots& roots) {
  std::string path;
  return open_root(roots, path);
}

Result<RunDir> RunDir::create(const std::string& name, const RunDirRoots& roots,
                              const std::string& config_file) {
  LETHE_ASSERT(valid_vm_name(name));
  for (int attempt = 0; attempt < kTriesMax; ++attempt) {
    std::string path;
    LETHE_TRY_ASSIGN(const UniqueFd root, open_root(roots, path));
    path += "/" + name;
    if (path.size() + kSocketNameMax > kUnixPathMax)
      return refused(path,
                     "its path is too long for sockets: shorten the VM's name, or set "
                     "XDG_RUNTIME_DIR to a shorter path");
    LETHE_TRY_ASSIGN(UniqueFd directory, open_private(root.get(), name, path));
    LETHE_TRY_ASSIGN(std::optional<UniqueFd> lock,
                     take_lock(directory.get(), name, path, config_file));
    if (!lock) continue;
    remove_files(directory.get(), false);
    return RunDir(std::move(path), std::move(directory), std::move(*lock));
  }
  return host_error("'{}' keeps starting and ending elsewhere: try again", name);
}

// If it fails, clients wait for kReadyPatience and go on.
void RunDir::set_ready() const {
  (void)!::write(x_lock.get(), kReadyLine.data(), kReadyLine.size());
}

std::vector<RunningVm> running_vms(const RunDirRoots& roots) {
  return find_vms(roots, {}, kReadyPatience);
}

std::string run_dir_path(const std::string& name, const RunDirRoots& roots) {
  LETHE_ASSERT(valid_vm_name(name));
  return root_path(roots) + "/" + name;
}

Result<RunningVm> find_running_vm(const std::string& name, const RunDirRoots& roots,
                                  std::chrono::milliseconds patience) {
  const std::vector<RunningVm> all = find_vms(roots, name, patience);
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
  remove_files(x_directory.get(), true);
  // The lock is held until after its name is gone: who opens it before finds it locked or unlinked.
  ::unlinkat(x_directory.get(), kLockName, 0);
  ::rmdir(x_path.c_str());
}

}  // namespace lethe
