// The pages of this program's own code.
#pragma once

namespace lethe {

// Lets go of the mapped pages of this program's code and constants: those that only its start
// needed stay away, what is still used comes back from the page cache with the next touch (64 KiB
// at a time). Does nothing under a debugger, whose breakpoints are written into such pages.
//
// Threading: any thread, whatever the others do.
void unmap_unused_code();

}  // namespace lethe
