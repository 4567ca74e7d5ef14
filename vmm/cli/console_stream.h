// A connection to a VM's console.sock (vmm/console_host.h), and what came over it shown.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/cli/wait_signals.h"
#include "vmm/run_dir.h"

namespace lethe {

[[nodiscard]] Result<UniqueFd> connect_console(const RunningVm& vm);

// Writes all of it, however long the descriptor takes; signals are told to `go_on`, which says
// whether to go on. False: it did not, or the descriptor takes no more, ever.
[[nodiscard]] bool write_all(int fd, std::string_view bytes, WaitSignals& signals,
                             const std::function<bool(int)>& go_on);

}  // namespace lethe
