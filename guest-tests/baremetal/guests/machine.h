// The cases of machine.elf, by theme.
#pragma once

namespace machine {

// machine_boot.cc: what the VMM tells at entry.
void banner();
void memory_map();
void module();

// machine_acpi.cc
void acpi();
void legacy_ports();

// machine_pci.cc
void pci_scan();
void pci_bars();
void pci_registers();

// machine_interrupt.cc
void exception();
void lapic_timer();
void halt_wakes();
void tsc_deadline();
void x2apic();
void serial_interrupt();
void smp();
void halt_is_no_exit();

// machine_button.cc: for test-signals, which presses it.
void power_button();
void ignore_button();

// machine_echo.cc: for ../../lifecycle_test.cc, which types.
void echo();

// machine_end.cc: each ends the VM.
void exit_0();
void exit_5();
void exit_62();
void exit_63();
void exit_wide();
void panic();
void triple_fault_now();
void poweroff();
void reset_register();
void reset_i8042();

}  // namespace machine
