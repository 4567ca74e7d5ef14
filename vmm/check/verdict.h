// What an attempt means: passed, or why not.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vmm/check/attempt.h"
#include "vmm/check/guest.h"

namespace lethe {

// How a `lethe run` ended, in words: "the guest powered off", "debug-exit 5".
[[nodiscard]] std::string describe_end(int wait_status);

// Why the attempt failed, the most telling reason first; empty if it passed.
[[nodiscard]] std::vector<std::string> judge_attempt(const Guest& guest,
                                                     const AttemptRecord& record);

// The last lines of a text, at most `lines_max` and 4 KiB, with a newline after each.
[[nodiscard]] std::string tail_of(std::string_view text, size_t lines_max);

}  // namespace lethe
