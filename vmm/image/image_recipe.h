// What goes into an image: packages, files, and a script that puts them together.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/image/image_options.h"

namespace lethe {

// The file system's label, by which the kernel's command line and fstab name it.
inline constexpr std::string_view kRootLabel = "root";

struct RecipeFile {
  std::string path;  // in the image, relative
  std::string text;
  bool executable = false;
};

// Each is needed once the whole is known; nothing is read or written here.
[[nodiscard]] std::vector<std::string> image_packages(const ImageOptions& options);
// Files that no package has: they are there before packages other than the essential ones are
// configured, so that the initramfs is built once, and as we want it.
[[nodiscard]] std::vector<RecipeFile> image_files(const ImageOptions& options);

// Shell scripts that mmdebstrap runs with the image's directory as $1 (and root's rights within
// it). What varies reaches them as variables, LETHE_IMAGE_*: no word of a user's is shell text.
[[nodiscard]] std::string_view essential_hook();
[[nodiscard]] std::string_view customize_hook();
// NAME=VALUE, for the second one.
[[nodiscard]] std::vector<std::string> hook_environment(const ImageOptions& options,
                                                        const std::string& public_keys);

// The config that boots the image: OUT.toml. Its paths are relative to OUT's directory.
[[nodiscard]] std::string image_config(const ImageOptions& options);

}  // namespace lethe
