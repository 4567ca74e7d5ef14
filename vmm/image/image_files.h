// The files of an image on the host: OUT and those beside it.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/result.h"

namespace lethe {

// What stands behind OUT's name, in the order in which they are put in place: OUT is last.
inline constexpr std::array<std::string_view, 4> kImageSuffixes = {".vmlinuz", ".initrd", ".toml",
                                                                   ""};

// Errors: one of the files exists (kConfig) and `force` is not set, or is no regular file.
[[nodiscard]] Result<> refuse_existing(const std::string& out, bool force);

// Moves `from`/disk.vmlinuz, disk.initrd, disk.toml and disk to OUT and beside it. Without `force`
// nothing that exists is replaced, and on an error none of the files is left there.
[[nodiscard]] Result<> put_in_place(const std::filesystem::path& from, const std::string& out,
                                    bool force);

[[nodiscard]] Result<> write_file(const std::filesystem::path& path, std::string_view text,
                                  unsigned mode);
[[nodiscard]] Result<> copy_whole(const std::filesystem::path& from,
                                  const std::filesystem::path& to);

struct BootFiles {
  std::filesystem::path kernel;
  std::filesystem::path initrd;
};
// The kernel that an unpacked system's /vmlinuz names, else the last one in its /boot, and that
// kernel's initrd. Regular files only: a link of the guest's must not lead to one of the host's.
[[nodiscard]] Result<BootFiles> find_boot_files(const std::filesystem::path& tree);

// PATH, /usr/sbin and /sbin: for find_program(), and for what the programs start.
[[nodiscard]] std::string program_path();

}  // namespace lethe
