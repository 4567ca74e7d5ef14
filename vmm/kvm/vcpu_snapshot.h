// A vCPU's state for a snapshot: all that KVM keeps of one (api.rst, "vcpu ioctls"). Guests that
// run VMs of their own are refused.
//
// Threading: while no thread runs the vCPU.
#pragma once

#include "vmm/kvm/kvm_api.h"

#include <cstdint>

#include "base/result.h"
#include "base/state.h"
#include "vmm/kvm/kvm.h"

namespace lethe {

// `fd`: the vCPU's descriptor. Nothing of an exit may be left half done (Vcpu::settle()).
[[nodiscard]] Result<> save_vcpu(const Kvm& kvm, int fd, uint32_t index, StateWriter& to);

// Into a vCPU just created with the saved CPUID. What KVM refuses is an error that says so.
[[nodiscard]] Result<> restore_vcpu(const Kvm& kvm, int fd, uint32_t index, StateReader& from);

}  // namespace lethe
