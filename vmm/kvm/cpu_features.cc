#include "vmm/kvm/cpu_features.h"

#include <algorithm>
#include <array>

#include "vmm/boot/layout.h"

namespace lethe {
namespace {

constexpr uint32_t kEntriesMax = 256;  // KVM's own limit

enum Register : uint8_t { kEax, kEbx, kEcx, kEdx };
constexpr std::array kRegisterNames = {"eax", "ebx", "ecx", "edx"};

// Where the feature bits are. `without`: bits that say something else.
struct FeatureWord {
  uint32_t function;
  uint32_t index;
  Register word;
  uint32_t without = 0;
};
constexpr FeatureWord kFeatures[] = {
    // OSXSAVE follows CR4; "hypervisor" and HTT are ours.
    {0x1, 0, kEcx, 1U << 27 | 1U << 31},
    {0x1, 0, kEdx, 1U << 28},
    {0x6, 0, kEax},
    // FDP_EXCPTN_ONLY and zeroed FPU selectors are what is missing, not features.
    {0x7, 0, kEbx, 1U << 6 | 1U << 13},
    {0x7, 0, kEcx, 1U << 4 | 0x1FU << 17},  // OSPKE follows CR4; a number
    {0x7, 0, kEdx},
    {0x7, 1, kEax},
    {0x7, 1, kEdx},
    {0x7, 2, kEdx},
    {0xD, 0, kEax},  // the parts of the extended state
    {0xD, 0, kEdx},
    {0xD, 1, kEax},
    {0xD, 1, kEcx},
    {0x4000'0001, 0, kEax},  // KVM's paravirtual features
    {0x8000'0001, 0, kEcx},
    {0x8000'0001, 0, kEdx},
    {0x8000'0007, 0, kEdx},
    {0x8000'0008, 0, kEbx},
    {0x8000'0021, 0, kEax},
};

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> cpuid, uint32_t function,
                             uint32_t index) {
  const auto found = std::ranges::find_if(cpuid, [&](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  return found == cpuid.end() ? nullptr : &*found;
}

uint32_t word_of(const kvm_cpuid_entry2* entry, Register word) {
  if (entry == nullptr) return 0;
  const std::array words = {entry->eax, entry->ebx, entry->ecx, entry->edx};
  return words[word];
}

std::string vendor(std::span<const kvm_cpuid_entry2> cpuid) {
  const auto* const entry = find(cpuid, 0, 0);
  std::string text;
  for (const Register word : {kEbx, kEdx, kEcx})
    for (int shift = 0; shift < 32; shift += 8) {
      const auto byte = static_cast<char>(word_of(entry, word) >> shift);
      text += byte >= ' ' && byte <= '~' ? byte : '?';
    }
  return text;
}

}  // namespace

void save_cpuid(std::span<const kvm_cpuid_entry2> cpuid, StateWriter& to) {
  to.begin_section("cpuid", 1);
  to.number(static_cast<uint32_t>(cpuid.size()));
  for (const kvm_cpuid_entry2& entry : cpuid)
    for (const uint32_t field :
         {entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx})
      to.number(field);
  to.end_section();
}

Result<std::vector<kvm_cpuid_entry2>> restore_cpuid(StateReader& from) {
  from.begin_section("cpuid", 1);
  const auto count = from.number<uint32_t>();
  if (count > kEntriesMax) from.fail(fmt::format("{} entries, at most {} are", count, kEntriesMax));
  std::vector<kvm_cpuid_entry2> cpuid;
  for (uint32_t i = 0; i < count && from.ok(); ++i) {
    kvm_cpuid_entry2 entry{};
    for (__u32* const field : {&entry.function, &entry.index, &entry.flags, &entry.eax, &entry.ebx,
                               &entry.ecx, &entry.edx})
      *field = from.number<uint32_t>();
    cpuid.push_back(entry);
  }
  from.end_section();
  LETHE_TRY(from.check());
  return cpuid;
}

Result<> check_cpu_features(std::span<const kvm_cpuid_entry2> guest,
                            std::span<const kvm_cpuid_entry2> host) {
  if (vendor(guest) != vendor(host))
    return config_error("snapshot: the guest was started on a processor of '{}', this one is '{}'",
                        vendor(guest), vendor(host));
  for (const FeatureWord& at : kFeatures) {
    const uint32_t wanted = word_of(find(guest, at.function, at.index), at.word) & ~at.without;
    const uint32_t missing = wanted & ~word_of(find(host, at.function, at.index), at.word);
    if (missing != 0)
      return config_error(
          "snapshot: this processor lacks features that the guest uses: CPUID {:#x}.{} {} bits "
          "{:#x}",
          at.function, at.index, kRegisterNames[at.word], missing);
  }
  constexpr uint32_t kAddressBits = 0xFF;
  const uint32_t guest_bits = word_of(find(guest, 0x8000'0008, 0), kEax) & kAddressBits;
  const uint32_t host_bits = word_of(find(host, 0x8000'0008, 0), kEax) & kAddressBits;
  if (guest_bits > host_bits)
    return config_error("snapshot: the guest has {} address bits, this processor has {}",
                        guest_bits, host_bits);
  return {};
}

Result<> check_address_width(uint64_t memory_bytes, std::span<const kvm_cpuid_entry2> cpuid) {
  const auto* const entry = find(cpuid, 0x8000'0008, 0);
  // 36: what a processor without the leaf has.
  const uint32_t bits = entry == nullptr ? 36 : entry->eax & 0xFF;
  const uint64_t end = layout::pci64_start(memory_bytes) + layout::kPci64Size;
  if (bits >= 64 || end <= uint64_t{1} << bits) return {};
  return config_error(
      "memory.size = {} MiB does not fit: guests have {} address bits here, which leave room for "
      "{} MiB",
      memory_bytes / kMiB, bits,
      ((uint64_t{1} << bits) - layout::kPci64Size - (layout::kAboveHole - layout::kMmioHole)) /
          kMiB);
}

}  // namespace lethe
