// The machine itself: what is told at boot, the interrupt controllers, the CPUs, and the ways to
// end.
#include "guests/machine.h"

#include "kernel/cases.h"
#include "kernel/check.h"

using namespace kernel;

void guest_main() {
  print("lethe machine guest\n");
  static const Case cases[] = {
      {"banner", machine::banner},
      {"memory-map", machine::memory_map},
      {"module", machine::module, true},
      {"acpi", machine::acpi},
      {"legacy-ports", machine::legacy_ports},
      {"pci-scan", machine::pci_scan},
      {"pci-bars", machine::pci_bars},
      {"pci-registers", machine::pci_registers},
      {"exception", machine::exception},
      {"lapic-timer", machine::lapic_timer},
      {"halt-wakes", machine::halt_wakes},
      {"tsc-deadline", machine::tsc_deadline},
      {"serial-interrupt", machine::serial_interrupt},
      {"smp", machine::smp},
      {"x2apic", machine::x2apic, true},
      {"power-button", machine::power_button, true},
      {"ignore-button", machine::ignore_button, true},
      {"echo", machine::echo, true},
      {"halt-is-no-exit", machine::halt_is_no_exit, true},
      {"exit-0", machine::exit_0, true},
      {"exit-5", machine::exit_5, true},
      {"exit-62", machine::exit_62, true},
      {"exit-63", machine::exit_63, true},
      {"exit-wide", machine::exit_wide, true},
      {"panic", machine::panic, true},
      {"triple-fault", machine::triple_fault_now, true},
      {"poweroff", machine::poweroff, true},
      {"reset-register", machine::reset_register, true},
      {"reset-i8042", machine::reset_i8042, true},
  };
  run_cases("machine", cases);
}
