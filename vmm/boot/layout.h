// Where things are in guest-physical address space. docs/architecture.md draws it.
#pragma once

#include <cstdint>

#include "memory/guest_memory.h"

namespace lethe::layout {

// Low memory: what the boot code writes before the guest runs.
inline constexpr uint64_t kGdt = 0x500;
inline constexpr uint64_t kPvhStartInfo = 0x6000;  // hvm_start_info, module list, memory map
inline constexpr uint64_t kBootParams = 0x7000;    // Linux's "zero page", 4 KiB
inline constexpr uint64_t kPageTables = 0x9000;    // 6 pages: identity map of the first 4 GiB
inline constexpr uint64_t kCommandLine = 0x2'0000;
inline constexpr uint64_t kCommandLineMax = 4096;     // with its final zero byte
inline constexpr uint64_t kLowRamEnd = 0xA'0000;      // RAM as the PC's memory map has it
inline constexpr uint64_t kAcpiTables = 0xE'0000;     // RSDP first; to kHighRamStart, reserved
inline constexpr uint64_t kResetVector = 0xF'FFF0;    // F000:FFF0, where a PC's BIOS is entered
inline constexpr uint64_t kHighRamStart = 0x10'0000;  // 1 MiB: kernels are loaded from here up

// The hole below 4 GiB.
inline constexpr uint64_t kMmioHole = 3 * kGiB;
inline constexpr uint64_t kPci32Start = 0xC000'0000;
inline constexpr uint64_t kPci32End = 0xE000'0000;
inline constexpr uint64_t kEcam = 0xE000'0000;  // 1 MiB: bus 0
inline constexpr uint64_t kLapic = 0xFEE0'0000;
inline constexpr uint64_t kAboveHole = 4 * kGiB;
inline constexpr uint64_t kPci64Size = 16 * kGiB;  // the window above RAM

// Where the 64-bit PCI window starts for so much RAM: above it, 1 GiB aligned.
inline constexpr uint64_t pci64_start(uint64_t memory_bytes) {
  const uint64_t above = memory_bytes > kMmioHole ? memory_bytes - kMmioHole : 0;
  return kAboveHole + (above + kGiB - 1) / kGiB * kGiB;
}

// Interrupt lines; the ports stand in the devices' headers.
inline constexpr uint32_t kEventGsi = 5;  // the generic event device (dsdt.asl)

}  // namespace lethe::layout
