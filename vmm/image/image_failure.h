// What a tool that failed has said, in one line that names the way out.
#pragma once

#include <string>
#include <string_view>

namespace lethe {

// `messages`: what mmdebstrap, tar or mke2fs wrote to standard error, its last part at least.
// `what` is the stage, `how` the way it ended ("exit code 25").
[[nodiscard]] std::string explain_failure(std::string_view tool, std::string_view how,
                                          std::string_view messages);

}  // namespace lethe
