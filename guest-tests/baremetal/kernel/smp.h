// Starting the other CPUs.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace kernel {

// Each CPU of the MADT but this one is started by INIT and STARTUP, gets a stack, loads the IDT,
// enables its APIC and runs `work(index)`, index from 1 in order of arrival; then it halts with
// interrupts off. Returns how many were told to start. Once per guest.
size_t start_other_cpus(void (*work)(unsigned index));
// How many have come as far as running `work`.
size_t other_cpus_running();

}  // namespace kernel
