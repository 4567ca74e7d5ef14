#include "kernel/clock.h"

#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint64_t kTscHzGuess = 2'500'000'000;
constexpr uint32_t kKvmFeatures = 0x40000001;
constexpr uint32_t kKvmSignature = 0x4b4d564b;  // "KVMK"
constexpr uint32_t kFeatureClocksource2 = 1u << 3;
constexpr uint32_t kMsrSystemTimeNew = 0x4b564d01;

// Linux's Documentation/virt/kvm/x86/msr.rst.
struct [[gnu::packed]] pvclock_vcpu_time_info {
  uint32_t version;
  uint32_t pad0;
  uint64_t tsc_timestamp;
  uint64_t system_time;
  uint32_t tsc_to_system_mul;
  int8_t tsc_shift;
  uint8_t flags;
  uint8_t pad[2];
};

alignas(64) volatile pvclock_vcpu_time_info clock_page;
uint64_t rate = kTscHzGuess;
uint64_t boot_tsc;

// ns = ((tsc << shift) * mul) >> 32, hence hz = 1e9 * 2^32 / mul, shifted back.
uint64_t rate_from_kvm() {
  if (cpuid(0x40000000).ebx != kKvmSignature) return 0;
  if ((cpuid(kKvmFeatures).eax & kFeatureClocksource2) == 0) return 0;
  write_msr(kMsrSystemTimeNew, physical(&clock_page) | 1);
  const uint32_t mul = clock_page.tsc_to_system_mul;
  const int shift = clock_page.tsc_shift;
  write_msr(kMsrSystemTimeNew, 0);
  if (mul == 0) return 0;
  const uint64_t hz = (uint64_t{1'000'000'000} << 32) / mul;
  return shift < 0 ? hz << -shift : hz >> shift;
}

}  // namespace

void clock_init() {
  boot_tsc = read_tsc();
  if (const uint64_t hz = rate_from_kvm(); hz != 0) rate = hz;
}

uint64_t tsc_hz() { return rate; }
uint64_t now_us() { return (read_tsc() - boot_tsc) / (rate / 1'000'000); }

Deadline::Deadline(uint64_t ms) : end_(read_tsc() + ms * (rate / 1000)) {}

}  // namespace kernel
