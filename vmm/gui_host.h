// A VM's GUI as its config wants it: made before the machine, kept over reboots.
#pragma once

#include <memory>

#include "base/result.h"
#include "devices/gui/gui.h"
#include "vmm/api/events.h"
#include "vmm/config.h"
#include "vmm/run_dir.h"

namespace lethe {

// Null if gui.enabled is false; then nothing was made. Otherwise gui.sock listens, and the process
// may have as many descriptors as the host lets it (each shared buffer is one), and frontends that
// come and go are told to `events`, which outlives it. Main thread; may be called before any other
// thread runs.
[[nodiscard]] Result<std::unique_ptr<Gui>> make_gui(const VmConfig& config, const RunDir& run_dir,
                                                    Events& events);

}  // namespace lethe
