#include "kernel/smp.h"

#include "kernel/acpi.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/traps.h"

extern "C" {
extern char ap_trampoline[];
extern char ap_trampoline_end[];
// Read by trampoline.S.
uint64_t ap_stacks[kernel::kCpusMax + 1];
uint32_t ap_next_index = 1;
}

namespace kernel {
namespace {

constexpr uint64_t kTrampolineAddress = 0x8000;
constexpr size_t kStackPages = 2;
constexpr uint64_t kInitToStartupUs = 1000;

void (*ap_work)(unsigned);
size_t running;

}  // namespace

extern "C" [[noreturn]] void ap_main(unsigned index) {
  traps_load();
  lapic_init();
  __atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
  ap_work(index);
  halt_forever();
}

size_t other_cpus_running() { return __atomic_load_n(&running, __ATOMIC_SEQ_CST); }

size_t start_other_cpus(void (*work)(unsigned index)) {
  CHECK(ap_work == nullptr);
  ap_work = work;
  memcpy(reinterpret_cast<void*>(kTrampolineAddress), ap_trampoline,
         static_cast<size_t>(ap_trampoline_end - ap_trampoline));
  const Madt madt = read_madt();
  const uint32_t self = lapic_id();
  for (size_t i = 1; i < madt.cpu_count; ++i) {
    ap_stacks[i] = physical(alloc_pages(kStackPages)) + kStackPages * kPageSize;
  }
  size_t started = 0;
  for (size_t i = 0; i < madt.cpu_count; ++i) {
    if (madt.apic_ids[i] != self) lapic_send_init(madt.apic_ids[i]);
  }
  const uint64_t sent = now_us();
  while (now_us() - sent < kInitToStartupUs) pause();
  for (size_t i = 0; i < madt.cpu_count; ++i) {
    if (madt.apic_ids[i] == self) continue;
    lapic_send_startup(madt.apic_ids[i], kTrampolineAddress / kPageSize);
    ++started;
  }
  CHECK_EQ(started + 1, madt.cpu_count);
  return started;
}

}  // namespace kernel
