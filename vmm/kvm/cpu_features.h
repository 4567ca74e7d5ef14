// What CPUID tells a guest (Intel SDM volume 2; AMD APM volume 3, appendix E): whether one that was
// started on one processor can go on on another one, and how much memory it can address.
#pragma once

#include "vmm/kvm/kvm_api.h"

#include <span>
#include <vector>

#include "base/result.h"
#include "base/state.h"

namespace lethe {

// CPUID entries as KVM_GET_SUPPORTED_CPUID gives them.
void save_cpuid(std::span<const kvm_cpuid_entry2> cpuid, StateWriter& to);
[[nodiscard]] Result<std::vector<kvm_cpuid_entry2>> restore_cpuid(StateReader& from);

// Good if every feature bit of `guest` is in `host` as well, the vendor is the same, and physical
// addresses are not shorter. The error (kConfig) is one line that names what is missing.
[[nodiscard]] Result<> check_cpu_features(std::span<const kvm_cpuid_entry2> guest,
                                          std::span<const kvm_cpuid_entry2> host);

// Good if everything that a guest with so much RAM is told of, up to the end of the 64-bit PCI
// window, is within the physical addresses its processor has (CPUID 0x80000008, EAX bits 7-0). The
// error (kConfig) is one line that says how much RAM there is room for.
[[nodiscard]] Result<> check_address_width(uint64_t memory_bytes,
                                           std::span<const kvm_cpuid_entry2> cpuid);

}  // namespace lethe
