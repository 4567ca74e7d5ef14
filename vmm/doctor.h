// `lethe doctor`: can this host run VMs, and at hardware speed?
#pragma once

#include "base/result.h"

namespace lethe {

struct DoctorOptions {
  bool quiet = false;  // print nothing: only the exit code tells (for scripts)
  bool json = false;   // one object instead of the table: each finding, and "exit_code"
};

// Exit codes of `lethe doctor`, beside kExitNoKvm (vmm/run.h): /dev/kvm missing or not permitted.
inline constexpr int kDoctorGood = 0;
inline constexpr int kDoctorSlow = 10;  // KVM works, but guest code runs by emulation

// Whether KVM runs guest code on the processor, rather than by emulation, which is too slow for
// Linux: what `lethe doctor` measures, in 30 ms. Errors: there is no KVM, or it runs nothing.
[[nodiscard]] Result<bool> kvm_is_fast();

// Measures, prints what it found and what to do, and returns the exit code.
[[nodiscard]] int run_doctor(const DoctorOptions& options);

}  // namespace lethe
