#include "vmm/snapshot/snapshot_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/file_bytes.h"
#include "base/state.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr const char* kStateName = "state";
constexpr const char* kMemoryName = "memory";
// Magic, version, length of the sections.
constexpr char kMagic[8] = {'l', 'e', 't', 'h', 'e', 's', 'n', 'p'};
constexpr size_t kVersionAt = sizeof kMagic;
constexpr size_t kLengthAt = kVersionAt + sizeof(uint32_t);
constexpr size_t kHeaderBytes = kLengthAt + sizeof(uint64_t);
constexpr size_t kSumBytes = sizeof(uint64_t);
static_assert(kHeaderBytes + kSectionsBytesMax + kSumBytes == kStateBytesMax);
constexpr std::string_view kTemporary = ".unfinished-XXXXXX";
constexpr size_t kRandomCharacters = 6;  // the X: mkdtemp(3)

template <typename T>
T load(std::span<const uint8_t> from, size_t at) {
  StateReader reader(from.subspan(at, sizeof(T)));
  return reader.number<T>();
}

std::string parent_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

void remove_temporary(const std::string& path, const UniqueFd& directory) {
  if (directory.valid()) {
    (void)::unlinkat(directory.get(), kStateName, 0);
    (void)::unlinkat(directory.get(), kMemoryName, 0);
  }
  (void)::rmdir(path.c_str());
}

UniqueFd open_temporary(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
}

// Ours, and of a process that was killed: it would hold the lock. One that has made its directory
// this moment and holds no lock yet loses it, and fails: of two that save by one name one has to.
void remove_left_overs(const std::string& dir) {
  const std::string parent = parent_of(dir);
  const std::string start =
      dir.substr(dir.rfind('/') + 1) +
      std::string(kTemporary.substr(0, kTemporary.size() - kRandomCharacters));
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(parent.c_str()), ::closedir);
  if (!entries) return;
  while (const dirent* const entry = ::readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (!name.starts_with(start) || name.size() != start.size() + kRandomCharacters) continue;
    const std::string path = fmt::format("{}/{}", parent, name);
    const UniqueFd directory = open_temporary(path);
    struct stat status{};
    if (directory.valid() && ::fstat(directory.get(), &status) == 0 &&
        status.st_uid == ::geteuid() && ::flock(directory.get(), LOCK_EX | LOCK_NB) == 0)
      remove_temporary(path, directory);
  }
}

Unexpected dir_error(const std::string& dir, const std::string& what) {
  return host_error("snapshot '{}': {}", printable(dir), what);
}

// renameat2(2) with RENAME_NOREPLACE: a plain rename() would replace an empty directory. 0 or an
// errno value.
int rename_to_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL) return errno;
  // A file system that can't: then without the guard against somebody else's new directory.
  struct stat status{};
  if (::lstat(to.c_str(), &status) == 0) return EEXIST;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

}  // namespace

Result<SnapshotWriter> SnapshotWriter::create(const std::string& dir) {
  std::string clean = dir;
  while (clean.size() > 1 && clean.back() == '/') clean.pop_back();
  if (!clean.starts_with('/') || clean.size() < 2)
    return config_error("snapshot '{}': name a directory by its absolute path", printable(dir));
  struct stat status{};
  if (::lstat(clean.c_str(), &status) == 0)
    return config_error("snapshot '{}' is there already: name a new directory, or remove it",
                        printable(clean));
  remove_left_overs(clean);
  SnapshotWriter writer(clean);
  std::string temporary = clean + std::string(kTemporary);
  if (::mkdtemp(temporary.data()) == nullptr)
    return dir_error(clean, fmt::format("can't be made: {}", errno_text(errno)));
  writer.x_temporary = std::move(temporary);
  writer.x_directory = open_temporary(writer.x_temporary);
  if (!writer.x_directory.valid()) return dir_error(clean, errno_text(errno));
  // A file system without locks has none for who removes left-overs either: then they stay.
  (void)::flock(writer.x_directory.get(), LOCK_EX | LOCK_NB);
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
  writer.x_state.reset(::openat(writer.x_directory.get(), kStateName, kFlags, 0600));
  writer.x_memory.reset(::openat(writer.x_directory.get(), kMemoryName, kFlags, 0600));
  if (!writer.x_state.valid() || !writer.x_memory.valid())
    return dir_error(clean, errno_text(errno));
  return writer;
}

SnapshotWriter::SnapshotWriter(SnapshotWriter&& other) noexcept
    : x_dir(std::move(other.x_dir)),
      x_temporary(std::exchange(other.x_temporary, {})),
      x_directory(std::move(other.x_directory)),
      x_state(std::move(other.x_state)),
      x_memory(std::move(other.x_memory)) {}

SnapshotWriter::~SnapshotWriter() {
  if (!x_temporary.empty()) remove_temporary(x_temporary, x_directory);
}

Result<> SnapshotWriter::write_state(StateWriter sections) {
  if (sections.too_long())
    return dir_error(
        x_dir, fmt::format("the state of the devices takes more than {} MiB, the most that can be "
                           "saved; what the guest shows is most of it: close some of its windows",
                           kStateBytesMax >> 20));
  const auto written = write_all(x_state.get(), make_state_file(sections.take()));
  if (!written) return dir_error(x_dir, written.error().text);
  return {};
}

Result<> SnapshotWriter::commit() {
  for (const UniqueFd* fd : {&x_memory, &x_state, &x_directory})
    if (::fsync(fd->get()) != 0) return dir_error(x_dir, errno_text(errno));
  if (const int error = rename_to_new(x_temporary, x_dir); error != 0)
    return dir_error(x_dir, errno_text(error));
  x_temporary.clear();
  // The name itself; where a directory can't be synced the rest is as safe as it gets.
  const UniqueFd parent(::open(parent_of(x_dir).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.valid()) (void)::fsync(parent.get());
  return {};
}

uint64_t SnapshotWriter::disk_bytes() const {
  uint64_t bytes = 0;
  for (const UniqueFd* fd : {&x_memory, &x_state}) {
    struct stat status{};
    if (::fstat(fd->get(), &status) == 0) bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

std::vector<uint8_t> make_state_file(std::span<const uint8_t> sections) {
  StateWriter writer;
  for (const char c : kMagic) writer.number(static_cast<uint8_t>(c));
  writer.number(kSnapshotVersion);
  writer.number(uint64_t{sections.size()});
  std::vector<uint8_t> file = writer.take();
  file.insert(file.end(), sections.begin(), sections.end());
  StateWriter sum;
  sum.number(uint64_t{XXH3_64bits(file.data(), file.size())});
  const auto bytes = sum.take();
  file.insert(file.end(), bytes.begin(), bytes.end());
  return file;
}

Result<> check_state_file(std::span<const uint8_t> file) {
  if (file.size() < kHeaderBytes || std::memcmp(file.data(), kMagic, sizeof kMagic) != 0)
    return config_error("its file 'state' is no state of a VM");
  const auto version = load<uint32_t>(file, kVersionAt);
  if (version != kSnapshotVersion)
    return config_error("it has version {}, this lethe reads {}", version, kSnapshotVersion);
  const auto length = load<uint64_t>(file, kLengthAt);
  if (length > kSectionsBytesMax || file.size() != kHeaderBytes + length + kSumBytes)
    return config_error("its file 'state' was truncated or altered: {} bytes, {} are due",
                        file.size(), kHeaderBytes + length + kSumBytes);
  const auto sum = load<uint64_t>(file, file.size() - kSumBytes);
  if (sum != XXH3_64bits(file.data(), file.size() - kSumBytes))
    return config_error("its file 'state' was altered: the checksum is another one");
  return {};
}

std::span<const uint8_t> SnapshotFiles::sections() const {
  return std::span(state).subspan(kHeaderBytes, state.size() - kHeaderBytes - kSumBytes);
}

Result<SnapshotFiles> open_snapshot(const std::string& dir) {
  const std::string shown = printable(dir);
  const UniqueFd directory(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return config_error("snapshot '{}': {}", shown, errno_text(errno));
  // Not blocking: opening a pipe must not wait for a writer.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW;
  SnapshotFiles files;
  struct stat status{};
  const UniqueFd state(::openat(directory.get(), kStateName, kFlags));
  if (!state.valid() || ::fstat(state.get(), &status) != 0)
    return config_error("snapshot '{}': its file 'state': {}", shown, errno_text(errno));
  if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) > kStateBytesMax)
    return config_error("snapshot '{}': its file 'state' is no state of a VM", shown);
  files.state.resize(static_cast<size_t>(status.st_size));
  for (size_t done = 0; done < files.state.size();) {
    const ssize_t got = ::read(state.get(), files.state.data() + done, files.state.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return host_error("snapshot '{}': {}", shown, errno_text(errno));
    if (got == 0) return config_error("snapshot '{}': its file 'state' was truncated", shown);
    done += static_cast<size_t>(got);
  }
  if (const auto good = check_state_file(files.state); !good)
    return config_error("snapshot '{}': {}", shown, good.error().text);
  files.memory.reset(::openat(directory.get(), kMemoryName, kFlags));
  if (!files.memory.valid() || ::fstat(files.memory.get(), &status) != 0)
    return config_error("snapshot '{}': its file 'memory': {}", shown, errno_text(errno));
  if (!S_ISREG(status.st_mode))
    return config_error("snapshot '{}': its file 'memory' is no file", shown);
  files.memory_bytes = static_cast<uint64_t>(status.st_size);
  return files;
}

}  // namespace lethe
