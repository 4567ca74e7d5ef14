// The steps of [[check.screen]] as lethe-shot's JSON (docs/gui.md).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "vmm/config.h"

namespace lethe {

// Paths of golden images become absolute; deadlines are multiplied by `timeout_scale`.
[[nodiscard]] std::string steps_json(std::span<const ScreenStep> steps, double timeout_scale);

// What can't be read of the golden images, a line each that names `file` and the image.
[[nodiscard]] std::vector<std::string> missing_images(std::span<const ScreenStep> steps,
                                                      const std::string& file);

}  // namespace lethe
