// The IDT, exceptions and interrupt handlers. One IDT serves all CPUs; handlers run on the CPU that
// took the interrupt, with interrupts off.
#pragma once

#include <stdint.h>

namespace kernel {

struct TrapFrame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
  uint64_t vector;
  uint64_t error;
  uint64_t rip, cs, rflags, rsp, ss;
};

using TrapHandler = void (*)(TrapFrame&);

inline constexpr unsigned kVectorSpurious = 0xff;
// Vectors below are exceptions; guests take theirs from here up.
inline constexpr unsigned kVectorFirst = 0x30;

void traps_init();
// On each AP.
void traps_load();
// `handler` null: back to the default, which prints a line and ends the VM with 40 + vector for an
// exception, and fails a check for an interrupt. The handler of an interrupt must itself call
// lapic_eoi().
void set_trap_handler(unsigned vector, TrapHandler handler);

}  // namespace kernel
