#include "kernel/traps.h"

#include "kernel/check.h"
#include "kernel/cpu.h"

extern "C" char trap_stubs[];

namespace kernel {
namespace {

constexpr unsigned kVectors = 256;
constexpr unsigned kExceptions = 32;
constexpr uint16_t kCodeSegment = 0x08;
constexpr uint8_t kInterruptGate = 0x8e;  // present, ring 0, 64-bit interrupt gate

// Intel SDM vol. 3, figure 6-8.
struct Gate {
  uint16_t offset_low;
  uint16_t segment;
  uint8_t ist;
  uint8_t type;
  uint16_t offset_middle;
  uint32_t offset_high;
  uint32_t reserved;
};
static_assert(sizeof(Gate) == 16);

alignas(16) Gate idt[kVectors];
TrapHandler handlers[kVectors];

}  // namespace

void traps_load() {
  struct [[gnu::packed]] {
    uint16_t limit = sizeof(idt) - 1;
    Gate* base = idt;
  } pointer;
  asm volatile("lidt %0" ::"m"(pointer) : "memory");
}

void traps_init() {
  for (unsigned i = 0; i < kVectors; ++i) {
    const auto stub = reinterpret_cast<uint64_t>(trap_stubs) + i * 16;
    idt[i] = Gate{static_cast<uint16_t>(stub),
                  kCodeSegment,
                  0,
                  kInterruptGate,
                  static_cast<uint16_t>(stub >> 16),
                  0,
                  0};
  }
  traps_load();
}

void set_trap_handler(unsigned vector, TrapHandler handler) { handlers[vector] = handler; }

extern "C" void trap_dispatch(TrapFrame* frame) {
  const auto vector = static_cast<unsigned>(frame->vector);
  if (handlers[vector] != nullptr) {
    handlers[vector](*frame);
    return;
  }
  if (vector == kVectorSpurious) return;
  uint64_t cr2;
  asm volatile("mov %%cr2, %0" : "=r"(cr2));
  print("FAILED unexpected %s %u: rip 0x%lx error 0x%lx cr2 0x%lx rsp 0x%lx\n",
        vector < kExceptions ? "exception" : "interrupt", vector, frame->rip, frame->error, cr2,
        frame->rsp);
  debug_exit(vector < 22 ? static_cast<uint8_t>(kExitException + vector) : kExitCheckFailed);
}

}  // namespace kernel
