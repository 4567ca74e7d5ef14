// `lethe image debian`: makes a bootable root disk out of Debian's packages, with mmdebstrap, tar
// and mke2fs as child processes. Rootless where it has to be: ownership is then fakeroot's.
//
// The stages: mmdebstrap makes a tar of the system (in a user namespace, with fakechroot, or as
// root, as it finds); tar unpacks it into a scratch directory; mke2fs makes the disk of that, its
// unused blocks holes; then kernel, initrd and config are put beside it. What is under way has
// names of its own (a directory beside OUT, and one in $TMPDIR, else /var/tmp), which are removed
// at any end but SIGKILL; the files appear under their own names all at once, OUT last.
#pragma once

#include "vmm/image/image_options.h"

namespace lethe {

// The whole command: returns its exit code (0, kExitHostError, kExitUsage, kExitInterrupted).
// Writes progress and one line an error to stderr, and what to do next to stdout. SIGINT, SIGTERM
// and SIGHUP end it cleanly. Main thread; called once a process.
[[nodiscard]] int build_image(const ImageOptions& options);

}  // namespace lethe
