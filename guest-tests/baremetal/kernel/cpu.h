// What C++ has no words for: ports, MSRs, interrupts, fences. Nothing here uses SSE, and fences are
// locked instructions, since KVM's instruction emulator knows no MFENCE.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

inline void out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline void out16(uint16_t port, uint16_t value) {
  asm volatile("outw %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline void out32(uint16_t port, uint32_t value) {
  asm volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}
inline uint8_t in8(uint16_t port) {
  uint8_t value;
  asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint16_t in16(uint16_t port) {
  uint16_t value;
  asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
inline uint32_t in32(uint16_t port) {
  uint32_t value;
  asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}
// One instruction for the whole string: the VMM sees a single exit with a count.
inline void out8_string(uint16_t port, const void* bytes, size_t count) {
  asm volatile("rep outsb" : "+S"(bytes), "+c"(count) : "d"(port) : "memory");
}

// Device memory. The address is physical; everything below 4 GiB is mapped, the rest once
// map_identity() has mapped it. The access has exactly the width of T.
template <typename T>
inline T mmio_read(uint64_t address) {
  T value;
  // A plain mov: compilers may pick instructions for volatile loads that the emulator lacks.
  asm volatile("mov (%1), %0" : "=r"(value) : "r"(address) : "memory");
  return value;
}
template <>
inline uint8_t mmio_read<uint8_t>(uint64_t address) {
  uint8_t value;
  asm volatile("movb (%1), %0" : "=q"(value) : "r"(address) : "memory");
  return value;
}
template <typename T>
inline void mmio_write(uint64_t address, T value) {
  asm volatile("mov %0, (%1)" ::"r"(value), "r"(address) : "memory");
}

inline uint64_t read_msr(uint32_t index) {
  uint32_t low;
  uint32_t high;
  asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index) : "memory");
  return (uint64_t{high} << 32) | low;
}
inline void write_msr(uint32_t index, uint64_t value) {
  asm volatile("wrmsr" ::"c"(index), "a"(static_cast<uint32_t>(value)),
               "d"(static_cast<uint32_t>(value >> 32))
               : "memory");
}
inline uint64_t read_tsc() {
  uint32_t low;
  uint32_t high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
  return (uint64_t{high} << 32) | low;
}

struct Cpuid {
  uint32_t eax, ebx, ecx, edx;
};
inline Cpuid cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Cpuid r;
  asm volatile("cpuid"
               : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
               : "a"(leaf), "c"(subleaf));
  return r;
}

inline void interrupts_on() { asm volatile("sti" ::: "memory"); }
inline void interrupts_off() { asm volatile("cli" ::: "memory"); }
// Sleeps until the next interrupt; none can slip in between, STI holds them for one instruction.
inline void interrupts_on_and_halt() { asm volatile("sti; hlt" ::: "memory"); }
inline void pause() { asm volatile("pause" ::: "memory"); }
inline void compiler_fence() { asm volatile("" ::: "memory"); }
// Orders an earlier store before a later load, which x86 alone does not.
inline void full_fence() { asm volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc"); }

[[noreturn]] inline void halt_forever() {
  for (;;) asm volatile("cli; hlt" ::: "memory");
}

// Loads an empty IDT and faults: nothing can handle that, nor the double fault that follows. (UD2,
// since KVM's instruction emulator knows INT3 in real mode only.)
[[noreturn]] inline void triple_fault() {
  struct [[gnu::packed]] {
    uint16_t limit = 0;
    uint64_t base = 0;
  } none;
  asm volatile("cli; lidt %0; ud2" ::"m"(none) : "memory");
  halt_forever();
}

}  // namespace kernel
