// Local APIC (xAPIC through memory, or x2APIC through MSRs) and IOAPIC.
// Source: Intel SDM vol. 3, chapter 11; Intel 82093AA data sheet.
#pragma once

#include <stdint.h>

namespace kernel {

inline constexpr uint64_t kLapicAddress = 0xfee00000;
inline constexpr uint64_t kIoapicAddress = 0xfec00000;

// Enables this CPU's APIC; masks the two PICs. With `x2apic` the whole machine must use it: there
// is no way back but INIT.
void lapic_init(bool x2apic = false);
bool x2apic_supported();
uint32_t lapic_id();
void lapic_eoi();

void lapic_send_ipi(uint32_t apic_id, uint8_t vector);
void lapic_send_init(uint32_t apic_id);
// The CPU starts in real mode at page * 4096.
void lapic_send_startup(uint32_t apic_id, uint8_t page);

// In units of the APIC's bus clock divided by 16 (KVM and QEMU: 16 ns).
void lapic_timer_oneshot(uint8_t vector, uint32_t count);
void lapic_timer_periodic(uint8_t vector, uint32_t count);
bool tsc_deadline_supported();
void lapic_timer_tsc_deadline(uint8_t vector, uint64_t tsc);
void lapic_timer_stop();

unsigned ioapic_pin_count();
// Edge triggered, active high, fixed delivery.
void ioapic_route(unsigned gsi, uint8_t vector, uint32_t apic_id);
void ioapic_mask(unsigned gsi);

}  // namespace kernel
