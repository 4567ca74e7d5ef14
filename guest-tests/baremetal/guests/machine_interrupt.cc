#include "guests/machine.h"
#include "kernel/acpi.h"
#include "kernel/apic.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/smp.h"
#include "kernel/traps.h"

using namespace kernel;

namespace machine {
namespace {

constexpr uint8_t kVectorInvalidOpcode = 6;
constexpr uint8_t kVectorPageFault = 14;
constexpr uint8_t kVectorTimer = 0x40;
constexpr uint8_t kVectorSerial = 0x41;
constexpr uint8_t kVectorIpi = 0x42;
// 10 ms of the APIC's 16 ns ticks.
constexpr uint32_t kTimerCount = 10'000'000 / 16;

constexpr uint16_t kUartIer = kSerialPort + 1;
constexpr uint16_t kUartIir = kSerialPort + 2;
constexpr uint8_t kIerThre = 0x02;
constexpr uint8_t kIirIdMask = 0x0f;
constexpr uint8_t kIirThre = 0x02;

unsigned timer_ticks;
unsigned serial_interrupts;
uint8_t serial_iir;
unsigned ipis;
unsigned faults;

unsigned load(const unsigned& counter) { return __atomic_load_n(&counter, __ATOMIC_SEQ_CST); }
void count(unsigned& counter) { __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST); }

void on_timer(TrapFrame&) {
  count(timer_ticks);
  lapic_eoi();
}

void on_serial(TrapFrame&) {
  serial_iir = in8(kUartIir) & kIirIdMask;  // reading it takes the transmitter's interrupt back
  out8(kUartIer, 0);
  count(serial_interrupts);
  lapic_eoi();
}

void on_ipi(TrapFrame&) {
  count(ipis);
  lapic_eoi();
}

void check_timer() {
  timer_ticks = 0;
  set_trap_handler(kVectorTimer, on_timer);
  interrupts_on();
  const uint64_t begin = now_us();
  lapic_timer_oneshot(kVectorTimer, kTimerCount);
  CHECK_SOON(load(timer_ticks) == 1);
  print("one-shot of 10000 us took %lu us\n", now_us() - begin);
  lapic_timer_periodic(kVectorTimer, kTimerCount);
  CHECK_SOON(load(timer_ticks) >= 3);
  lapic_timer_stop();
  interrupts_off();
}

}  // namespace

// A fault goes through the IDT, its handler and back: whatever comes by interrupt relies on that.
void exception() {
  set_trap_handler(kVectorInvalidOpcode, [](TrapFrame& frame) {
    CHECK_EQ(frame.cs, 0x08);
    frame.rip += 2;  // past the UD2
    count(faults);
  });
  asm volatile("ud2" ::: "memory");
  CHECK_EQ(faults, 1);
  set_trap_handler(kVectorInvalidOpcode, nullptr);
  set_trap_handler(kVectorPageFault, [](TrapFrame& frame) {
    CHECK_EQ(frame.error, 0);  // a read of a page that is not present
    frame.rip = frame.rcx;
    count(faults);
  });
  asm volatile("lea 1f(%%rip), %%rcx; mov (%0), %%rax; 1:" ::"r"(uint64_t{1} << 40)
               : "rcx", "rax", "memory");
  CHECK_EQ(faults, 2);
  set_trap_handler(kVectorPageFault, nullptr);
}

void lapic_timer() {
  lapic_init();
  check_timer();
}

// HLT with interrupts on sleeps until the timer's.
void halt_wakes() {
  lapic_init();
  timer_ticks = 0;
  set_trap_handler(kVectorTimer, on_timer);
  lapic_timer_oneshot(kVectorTimer, kTimerCount);
  interrupts_on_and_halt();
  interrupts_off();
  CHECK_EQ(load(timer_ticks), 1);
}

void tsc_deadline() {
  if (!tsc_deadline_supported()) {
    print("skipped: this CPU has no TSC deadline timer\n");
    return;
  }
  lapic_init();
  timer_ticks = 0;
  set_trap_handler(kVectorTimer, on_timer);
  interrupts_on();
  const uint64_t due = read_tsc() + tsc_hz() / 100;
  lapic_timer_tsc_deadline(kVectorTimer, due);
  CHECK_SOON(load(timer_ticks) == 1);
  CHECK(read_tsc() >= due);
  interrupts_off();
}

void x2apic() {
  if (!x2apic_supported()) {
    print("skipped: this CPU has no x2APIC\n");
    return;
  }
  lapic_init();
  const uint32_t id = lapic_id();
  lapic_init(true);
  CHECK_EQ(lapic_id(), id);
  check_timer();
}

// The UART's interrupt comes by GSI 4, edge triggered, through the IOAPIC.
void serial_interrupt() {
  lapic_init();
  CHECK_EQ(ioapic_pin_count(), 24);
  set_trap_handler(kVectorSerial, on_serial);
  ioapic_route(kSerialIrq, kVectorSerial, lapic_id());
  interrupts_on();
  for (unsigned i = 1; i <= 3; ++i) {
    out8(kUartIer, kIerThre);  // the transmitter is empty, so this alone raises it
    CHECK_SOON(load(serial_interrupts) == i);
    CHECK_EQ(serial_iir, kIirThre);
  }
  interrupts_off();
  ioapic_mask(kSerialIrq);
}

// Every CPU that the config asked for (cpus=) starts, counts, and takes an interrupt from the
// first.
void smp() {
  lapic_init();
  const auto cpus = static_cast<size_t>(option_number("cpus", 1));
  static unsigned counter;
  static unsigned indices_seen[kCpusMax + 1];
  set_trap_handler(kVectorIpi, on_ipi);
  const size_t started = start_other_cpus([](unsigned index) {
    count(indices_seen[index]);
    count(counter);
    interrupts_on_and_halt();
  });
  CHECK_EQ(started + 1, cpus);
  CHECK_SOON(load(counter) == started);
  for (size_t i = 1; i <= started; ++i) CHECK_EQ(indices_seen[i], 1);
  const Madt madt = read_madt();
  const uint32_t self = lapic_id();
  for (size_t i = 0; i < madt.cpu_count; ++i) {
    if (madt.apic_ids[i] != self) lapic_send_ipi(madt.apic_ids[i], kVectorIpi);
  }
  CHECK_SOON(load(ipis) == started);
  print("%lu CPUs\n", started + 1);
}

// A CPU that halts for good does not end the VM: another one does, later.
void halt_is_no_exit() {
  lapic_init();
  start_other_cpus([](unsigned) {
    wait_until([] { return false; }, 50);
    print("the other CPU goes on\n");
    debug_exit(kExitOk);
  });
  halt_forever();
}

}  // namespace machine
