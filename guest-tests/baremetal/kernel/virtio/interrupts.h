// MSI-X interrupts that are only counted: entry i of a device raises vector kVectorMsix + i here.
#pragma once

#include <stdint.h>

#include "kernel/virtio/transport.h"

namespace kernel {

inline constexpr uint8_t kVectorMsix = 0x60;
inline constexpr unsigned kMsixCounted = 8;

// Enables the device's MSI-X, routes its first `entries` entries to this CPU and turns interrupts
// on.
void count_interrupts(VirtioDevice& device, unsigned entries);
unsigned interrupts_seen(unsigned entry);
// APIC id of the CPU that took the last one.
uint32_t interrupt_taken_by(unsigned entry);
// Waits a little for interrupts that should not come; returns the count after that.
unsigned interrupts_settled(unsigned entry);

}  // namespace kernel
