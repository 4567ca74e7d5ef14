#include "vmm/image/scratch.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>

#include "vmm/config_schema.h"

namespace lethe {

Result<ScratchDirectory> ScratchDirectory::create(const std::string& prefix, unsigned mode) {
  std::string path = prefix + "XXXXXX";
  if (::mkdtemp(path.data()) == nullptr)
    return host_error("cannot make a directory '{}': {}", printable(path), errno_text(errno));
  ScratchDirectory made(path);
  if (::chmod(path.c_str(), mode) != 0)
    return host_error("'{}': {}", printable(path), errno_text(errno));
  return made;
}

ScratchDirectory::~ScratchDirectory() { (void)remove(); }

bool ScratchDirectory::remove() {
  if (x_path.empty()) return true;
  std::error_code error;
  std::filesystem::remove_all(x_path, error);
  if (error) return false;
  x_path.clear();
  return true;
}

}  // namespace lethe
