// <linux/kvm.h>, made right for C++: its __DECLARE_FLEX_ARRAY puts an empty struct before the
// array, which has size 0 in C but 1 in C++, so that sizes, offsets and the ioctl numbers made from
// them come out wrong. Include this instead.
#pragma once

#include <linux/stddef.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(type, name) type name[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8 && sizeof(kvm_irq_routing) == 8);
static_assert(sizeof(kvm_coalesced_mmio_ring) == 8);
