// The power button: GSI 5, edge triggered, with the events in a register that reading clears.
#include "guests/machine.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/traps.h"

using namespace kernel;

namespace machine {
namespace {

constexpr unsigned kEventGsi = 5;
constexpr uint16_t kEventPort = 0x604;
constexpr uint8_t kEventPowerButton = 0x01;
constexpr uint8_t kVectorEvent = 0x43;
constexpr uint64_t kIgnoreMs = 60000;

unsigned events_taken;
uint8_t events;

void on_event(TrapFrame&) {
  events = in8(kEventPort);
  ++events_taken;
  lapic_eoi();
}

}  // namespace

void power_button() {
  lapic_init();
  set_trap_handler(kVectorEvent, on_event);
  ioapic_route(kEventGsi, kVectorEvent, lapic_id());
  CHECK_EQ(in8(kEventPort), 0);
  interrupts_on();
  print("waiting for the power button\n");
  CHECK_SOON(__atomic_load_n(&events_taken, __ATOMIC_SEQ_CST) > 0);
  interrupts_off();
  CHECK_EQ(events, kEventPowerButton);
  CHECK_EQ(in8(kEventPort), 0);
  CHECK_EQ(events_taken, 1);
  print("power button pressed\n");
  poweroff();
}

// Never looks; the host has to end it.
void ignore_button() {
  print("waiting for the power button\n");
  wait_until([] { return false; }, kIgnoreMs);
}

}  // namespace machine
