// What `lethe image debian` is asked to make, and the check of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace lethe {

inline constexpr uint64_t kImageBytesMin = 256ULL << 20;
inline constexpr uint64_t kImageBytesMax = 16ULL << 40;  // what ext4 with 4 KiB blocks holds
inline constexpr size_t kPasswordBytesMax = 512;

struct ImageOptions {
  std::string out;  // the image; OUT.vmlinuz, OUT.initrd and OUT.toml go beside it
  std::string suite = "bookworm";
  std::vector<std::string> packages{};  // besides those that every image has
  std::string kernel = "linux-image-amd64";
  uint64_t size_bytes = 4ULL << 30;       // of the file system, a multiple of 4 KiB
  std::string mirror{};                   // empty: mmdebstrap's default
  std::string hostname{};                 // empty: the VM's name, see vm_name_of()
  std::optional<std::string> password{};  // root's; none: the console logs root in
  std::string ssh_key_file{};             // public keys that may log in as root; empty: no ssh
  bool desktop = false;
  bool force = false;    // replace OUT and the files beside it
  bool verbose = false;  // show what the tools say
  // Programs that go into the image; empty: found beside `lethe` or in PATH.
  std::string agent_program{};
  std::string exec_program{};
};

// The name of the VM that boots the image, made from OUT's: "/tmp/My disk.img" -> "my-disk".
[[nodiscard]] std::string vm_name_of(const std::string& out);

// Errors (kConfig) name the option and what would be right. Looks at no file but --ssh-key's.
[[nodiscard]] Result<> check_image_options(const ImageOptions& options);

// The keys in --ssh-key's file, a line each. Errors (kConfig): it can't be read, or holds a private
// key, or none.
[[nodiscard]] Result<std::string> read_public_keys(const std::string& file);

}  // namespace lethe
