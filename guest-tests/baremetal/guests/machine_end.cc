// Every way a guest can end. The config's [check] table says what the VMM must make of it.
#include "guests/machine.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"

using namespace kernel;

namespace machine {
namespace {

// Ports of the hardware-reduced ACPI registers, which acpi cases check against the FADT.
constexpr uint16_t kSleepControl = 0x600;
constexpr uint8_t kSleepS5 = (5 << 2) | 0x20;
constexpr uint16_t kResetRegister = 0xcf9;
constexpr uint8_t kResetValue = 0x06;
constexpr uint16_t kI8042Command = 0x64;
constexpr uint8_t kI8042PulseReset = 0xfe;
constexpr uint16_t kPvpanicPort = 0x505;
constexpr uint8_t kPvpanicPanicked = 0x01;

// The VM must end by what was just done, and soon.
[[noreturn]] void must_have_ended() {
  const Deadline deadline(kSoonMs);
  while (!deadline.passed()) pause();
  check_failed(__FILE_NAME__, __LINE__, "the VM ended");
}

}  // namespace

void exit_0() { debug_exit(0); }
void exit_5() { debug_exit(5); }
void exit_62() { debug_exit(62); }
void exit_63() { debug_exit(63); }

void exit_wide() {
  out32(kDebugExitPort, 7);
  must_have_ended();
}

void panic() {
  CHECK((in8(kPvpanicPort) & kPvpanicPanicked) != 0);  // the events that the device supports
  out8(kPvpanicPort, kPvpanicPanicked);
  must_have_ended();
}

void triple_fault_now() { triple_fault(); }

void poweroff() {
  out8(kSleepControl, kSleepS5);
  must_have_ended();
}

void reset_register() {
  out8(kResetRegister, kResetValue);
  must_have_ended();
}

void reset_i8042() {
  out8(kI8042Command, kI8042PulseReset);
  must_have_ended();
}

}  // namespace machine
