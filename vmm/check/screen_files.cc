#include "vmm/check/screen_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/file_bytes.h"
#include "base/unique_fd.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

Result<> write_file(const std::string& path, const std::string& text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) return host_error("'{}': {}", printable(path), errno_text(errno));
  const auto wrote = write_all(file.get(), text);
  if (!wrote) return host_error("'{}': {}", printable(path), wrote.error().text);
  return {};
}

}  // namespace

Result<ScreenFiles> ScreenFiles::create(const std::string& directory, const std::string& steps) {
  std::string path = directory;
  if (directory.empty()) {
    const char* const temporary = std::getenv("TMPDIR");
    path = std::string(temporary == nullptr ? "/tmp" : temporary) + "/lethe-screen-XXXXXX";
    if (::mkdtemp(path.data()) == nullptr)
      return host_error("'{}': {}", printable(path), errno_text(errno));
  } else if (::mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) {
    return host_error("'{}': {}", printable(path), errno_text(errno));
  }
  ScreenFiles files(path, directory.empty());
  for (const char* picture : {"actual.png", "expected.png", "difference.png"})
    ::unlink((path + "/" + picture).c_str());
  LETHE_TRY(write_file(files.steps_file(), steps));
  return files;
}

ScreenFiles::~ScreenFiles() {
  std::error_code ignored;
  if (x_temporary) std::filesystem::remove_all(x_directory, ignored);
}

}  // namespace lethe
