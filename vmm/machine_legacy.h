// The legacy devices of a machine. For vmm/machine.cc and vmm/machine_snapshot.cc only.
#pragma once

#include <memory>

#include "devices/legacy/acpi_power/acpi_power.h"
#include "devices/legacy/debug_exit/debug_exit.h"
#include "devices/legacy/i8042/i8042.h"
#include "devices/legacy/pvpanic/pvpanic.h"
#include "devices/legacy/rtc/rtc.h"
#include "devices/legacy/serial/serial.h"
#include "vmm/machine.h"
#include "vmm/serial_port.h"

namespace lethe {

struct Machine::Legacy {
  Legacy(MachineControl& control, EventLoop& loop, ByteSink& console, const Bus& ports,
         std::unique_ptr<Interrupt> serial_line, std::unique_ptr<Interrupt> event_line)
      : serial_interrupt(std::move(serial_line)),
        event_interrupt(std::move(event_line)),
        serial(loop, *serial_interrupt, console),
        serial_port(loop, serial, ports),
        power(control, *event_interrupt),
        reset(control),
        i8042(control),
        pvpanic(control),
        debug_exit(control) {}

  // Snapshots: those that have a state.
  void save(StateWriter& to) {
    serial.save(to);
    serial_port.save(to);
    rtc.save(to);
    power.save(to);
  }
  void restore(StateReader& from) {
    serial.restore(from);
    serial_port.restore(from);
    rtc.restore(from);
    power.restore(from);
  }

  std::unique_ptr<Interrupt> serial_interrupt;
  std::unique_ptr<Interrupt> event_interrupt;
  Serial serial;
  SerialPort serial_port;
  AcpiPower power;
  ResetRegister reset;
  Rtc rtc;
  I8042 i8042;
  Pvpanic pvpanic;
  DebugExit debug_exit;
};

}  // namespace lethe
