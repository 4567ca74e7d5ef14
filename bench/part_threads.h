// For benchmarks of a device with an I/O thread.
#pragma once

namespace lethe {

// Keeps the main thread, with the driver and the host's part, on one processor and all others on
// another (where there are two), as vCPU and I/O thread of a VM would be: on a busy machine the
// scheduler may put both on one, and the figure would be about that. Main thread; ends the process
// if it fails.
void part_threads();

}  // namespace lethe
