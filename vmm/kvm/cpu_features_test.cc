#include "vmm/kvm/cpu_features.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memory/guest_memory.h"

namespace lethe {
namespace {

using ::testing::HasSubstr;

std::vector<kvm_cpuid_entry2> example() {
  std::vector<kvm_cpuid_entry2> cpuid(4);
  cpuid[0].eax = 0xD;
  cpuid[0].ebx = 0x756e6547;  // GenuineIntel
  cpuid[0].edx = 0x49656e69;
  cpuid[0].ecx = 0x6c65746e;
  cpuid[1].function = 1;
  cpuid[1].ecx = 0x8000'0001;
  cpuid[2].function = 7;
  cpuid[2].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  cpuid[2].ebx = 1 << 5;  // AVX2
  cpuid[3].function = 0x8000'0008;
  cpuid[3].eax = 46;
  return cpuid;
}

std::vector<uint8_t> saved(const std::vector<kvm_cpuid_entry2>& cpuid) {
  StateWriter writer;
  save_cpuid(cpuid, writer);
  return writer.take();
}

TEST(CpuFeatures, read_back_as_written) {
  const auto bytes = saved(example());
  StateReader reader(bytes);
  const auto cpuid = restore_cpuid(reader);
  ASSERT_TRUE(cpuid.has_value());
  EXPECT_EQ(saved(*cpuid), bytes);
}

TEST(CpuFeatures, more_entries_than_kvm_takes_are_refused) {
  const auto bytes = saved(std::vector<kvm_cpuid_entry2>(257));
  StateReader reader(bytes);
  EXPECT_FALSE(restore_cpuid(reader).has_value());
}

TEST(CpuFeatures, the_same_processor_and_one_that_has_more_are_good) {
  auto host = example();
  EXPECT_TRUE(check_cpu_features(example(), host).has_value());
  host[1].ecx |= 2;
  host[3].eax = 52;
  EXPECT_TRUE(check_cpu_features(example(), host).has_value());
}

TEST(CpuFeatures, refuses_a_processor_without_the_features) {
  auto host = example();
  host[2].ebx = 0;
  const auto result = check_cpu_features(example(), host);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind, ErrorClass::kConfig);
  EXPECT_THAT(result.error().text, HasSubstr("CPUID 0x7.0 ebx bits 0x20"));
  host.erase(host.begin() + 2);  // the whole leaf
  EXPECT_FALSE(check_cpu_features(example(), host).has_value());
}

TEST(CpuFeatures, what_the_vmm_or_the_guest_sets_is_no_feature) {
  auto host = example();
  host[1].ecx &= 0x7fff'ffff;  // "hypervisor"
  auto guest = example();
  guest[1].edx |= 1 << 28;  // HTT
  EXPECT_TRUE(check_cpu_features(guest, host).has_value());
}

TEST(CpuFeatures, refuses_another_vendor_and_shorter_addresses) {
  auto host = example();
  host[0].ebx = 0x68747541;
  EXPECT_THAT(check_cpu_features(example(), host).error().text, HasSubstr("GenuineIntel"));
  host = example();
  host[3].eax = 39;
  EXPECT_THAT(check_cpu_features(example(), host).error().text, HasSubstr("46 address bits"));
}

TEST(AddressWidth, memory_ends_17_gib_below_what_the_processor_can_address) {
  // 16 GiB of PCI window above it, 1 GiB of hole below 4 GiB.
  for (const auto& [bits, fits] : std::initializer_list<std::pair<uint32_t, uint64_t>>{
           {36, 47 * kGiB}, {39, 495 * kGiB}, {40, 1007 * kGiB}}) {
    auto cpuid = example();
    cpuid[3].eax = 48 << 8 | bits;  // virtual addresses' bits above
    EXPECT_TRUE(check_address_width(16 * kMiB, cpuid)) << bits;
    EXPECT_TRUE(check_address_width(fits, cpuid)) << bits;
    for (const uint64_t more : {fits + kMiB, kTiB}) {
      const auto refused = check_address_width(more, cpuid);
      ASSERT_FALSE(refused) << bits;
      EXPECT_EQ(refused.error().kind, ErrorClass::kConfig);
      EXPECT_EQ(refused.error().text,
                fmt::format("memory.size = {} MiB does not fit: guests have {} address bits here, "
                            "which leave room for {} MiB",
                            more / kMiB, bits, fits / kMiB));
    }
  }
  auto cpuid = example();
  for (const uint32_t bits : {41U, 46U, 52U, 64U, 255U}) {
    cpuid[3].eax = bits;
    EXPECT_TRUE(check_address_width(kTiB, cpuid)) << bits;
  }
  cpuid.pop_back();
  EXPECT_TRUE(check_address_width(47 * kGiB, cpuid)) << "36 bits without the leaf";
  EXPECT_FALSE(check_address_width(47 * kGiB + kMiB, cpuid));
}

}  // namespace
}  // namespace lethe
