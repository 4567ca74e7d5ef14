// The file side of configs: reading them, and looking at the files they name.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include "base/unique_fd.h"
#include "vmm/config.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

const char* kind_words(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISFIFO(mode)) return "a pipe";
  return "a socket";
}

class FileChecker {
 public:
  explicit FileChecker(const std::string& file) : x_file(printable(file)) {}

  void must_open(const std::string& key, const std::string& path, int access_mode,
                 bool (*right_kind)(mode_t), const char* right_words) {
    struct stat status{};
    if (::stat(path.c_str(), &status) != 0)
      return add(key, path,
                 fmt::format("{}: correct the path or make the file", errno_text(errno)));
    if (!right_kind(status.st_mode))
      return add(key, path,
                 fmt::format("is {}: it must be {}", kind_words(status.st_mode), right_words));
    if (::access(path.c_str(), access_mode) == 0) return;
    add(key, path,
        fmt::format("{}: grant {} to this user{}", errno_text(errno),
                    (access_mode & W_OK) != 0 ? "reading and writing" : "reading",
                    (access_mode & W_OK) != 0 ? ", or set read_only = true" : ""));
  }

  void must_create(const std::string& key, const std::string& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0) {
      if (S_ISDIR(status.st_mode)) return add(key, path, "is a directory: name a file");
      if (::access(path.c_str(), W_OK) == 0) return;
      return add(key, path, fmt::format("{}: name a file this user may write", errno_text(errno)));
    }
    const size_t slash = path.rfind('/');
    const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    if (::access(directory.c_str(), W_OK | X_OK) == 0) return;
    add(key, path,
        fmt::format("{}: name a file in a directory that exists and this user may write",
                    errno_text(errno)));
  }

  std::vector<std::string> take() { return std::move(x_lines); }

 private:
  void add(const std::string& key, const std::string& path, const std::string& what) {
    x_lines.push_back(fmt::format("{}: key '{}': '{}': {}", x_file, key, printable(path), what));
  }
  std::string x_file;
  std::vector<std::string> x_lines;
};

bool regular(mode_t mode) { return S_ISREG(mode); }
bool disk_kind(mode_t mode) { return S_ISREG(mode) || S_ISBLK(mode); }
bool not_directory(mode_t mode) { return !S_ISDIR(mode); }

}  // namespace

std::vector<std::string> check_config_files(const VmConfig& config, const std::string& file) {
  FileChecker files(file);
  files.must_open("boot.kernel", config.boot.kernel, R_OK, regular, "a file");
  if (!config.boot.initrd.empty())
    files.must_open("boot.initrd", config.boot.initrd, R_OK, regular, "a file");
  for (size_t i = 0; i < config.disks.size(); ++i)
    files.must_open(fmt::format("disk.{}.path", i), config.disks[i].path,
                    config.disks[i].read_only ? R_OK : R_OK | W_OK, disk_kind,
                    "an image file or a block device");
  if (config.rng.enabled)
    files.must_open("rng.source", config.rng.source, R_OK, not_directory, "a file or device");
  if (!config.console.log.empty()) files.must_create("console.log", config.console.log);
  return files.take();
}

Result<std::string> read_config_file(const std::string& file) {
  const std::string shown = printable(file);
  // Not blocking: opening a pipe must not wait for a writer.
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return config_error("config '{}': {}", shown, errno_text(errno));
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0)
    return config_error("config '{}': {}", shown, errno_text(errno));
  if (!S_ISREG(status.st_mode))
    return config_error("config '{}' is {}: name a TOML file", shown, kind_words(status.st_mode));
  if (static_cast<uint64_t>(status.st_size) > kConfigFileBytesMax)
    return config_error("config '{}' is larger than 1 MiB: is it the right file?", shown);
  std::string text(static_cast<size_t>(status.st_size) + 1, '\0');  // one more, to see the end
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return config_error("config '{}': {}", shown, errno_text(errno));
    if (got == 0) break;
    filled += static_cast<size_t>(got);
  }
  if (filled == text.size()) return config_error("config '{}' grew while it was read", shown);
  text.resize(filled);
  return text;
}

Result<VmConfig> load_config(const std::string& file, std::span<const std::string> overrides) {
  LETHE_TRY_ASSIGN(const std::string text, read_config_file(file));
  std::vector<std::string> errors;
  VmConfig config = parse_config(text, file, overrides, errors);
  if (errors.empty()) return config;
  if (errors.size() > 1)
    errors[0] += fmt::format(" (and {} more: `lethe validate` lists them)", errors.size() - 1);
  return Unexpected(Error{ErrorClass::kConfig, std::move(errors[0])});
}

}  // namespace lethe
