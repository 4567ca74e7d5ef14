// What a vCPU is, written down and read back. Order: api.rst asks for CPUID before everything else
// (Vcpu::create), and for what KVM derives from something else after that: the local APIC after its
// base address (sregs), the deadline timer after the time stamp counter and the APIC, events last.
#include "vmm/kvm/vcpu_snapshot.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "base/log.h"

namespace lethe {
namespace {

constexpr uint32_t kMsrsMax = 4096;
constexpr size_t kXsaveBytesMax = 64 * 1024;
constexpr uint32_t kTsc = 0x10;
constexpr uint32_t kTscDeadline = 0x6E0;

// What KVM_GET_MSR_INDEX_LIST leaves out, though guests set it: the memory types of ranges (Intel
// SDM volume 4, 2.1), kept by KVM for the guest to read.
constexpr uint32_t kMemoryTypeMsrs[] = {0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
                                        0x208, 0x209, 0x20A, 0x20B, 0x20C, 0x20D, 0x20E, 0x20F,
                                        0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C,
                                        0x26D, 0x26E, 0x26F, 0x277, 0x2FF};

class VcpuIo {
 public:
  VcpuIo(int fd, uint32_t index) : x_fd(fd), x_index(index) {}

  Unexpected error(const char* what) const {
    return Unexpected(
        Error{ErrorClass::kKvm, fmt::format("vCPU {}: {}: {}", x_index, what, errno_text(errno))});
  }
  template <typename T>
  Result<> call(unsigned long request, T* argument, const char* what) const {
    if (::ioctl(x_fd, request, argument) < 0) return error(what);
    return {};
  }
  [[nodiscard]] int fd() const { return x_fd; }
  [[nodiscard]] uint32_t index() const { return x_index; }

 private:
  int x_fd;
  uint32_t x_index;
};

// SAFETY: structs of the KVM API: plain data without padding that matters, of one layout for good.
template <typename T>
std::span<uint8_t> bytes_of(T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return {reinterpret_cast<uint8_t*>(&value), sizeof value};
}

template <typename T>
Result<> save_struct(const VcpuIo& io, unsigned long request, const char* what, StateWriter& to) {
  T value{};
  LETHE_TRY(io.call(request, &value, what));
  to.bytes(bytes_of(value));
  return {};
}

template <typename T>
Result<> restore_struct(const VcpuIo& io, unsigned long request, const char* what,
                        StateReader& from) {
  T value{};
  from.bytes_into(bytes_of(value));
  LETHE_TRY(from.check());
  return io.call(request, &value, what);
}

// A part that not every KVM has: whether it was saved comes first.
template <typename T>
Result<> save_optional(const VcpuIo& io, bool there, unsigned long request, const char* what,
                       StateWriter& to) {
  to.boolean(there);
  if (!there) return {};
  return save_struct<T>(io, request, what, to);
}

template <typename T>
Result<> restore_optional(const VcpuIo& io, bool supported, unsigned long request, const char* what,
                          StateReader& from) {
  if (!from.boolean()) return from.check();
  if (!supported) {
    from.fail(fmt::format("this host's KVM lacks {}", what));
    return from.check();
  }
  return restore_struct<T>(io, request, what, from);
}

// --- vector registers

Result<> save_xsave(const Kvm& kvm, const VcpuIo& io, StateWriter& to) {
  const int larger = kvm.capability(KVM_CAP_XSAVE2);  // bytes, where there is more than 4096
  std::vector<uint8_t> area(std::max<size_t>(sizeof(kvm_xsave), larger > 0 ? larger : 0));
  LETHE_TRY(io.call(larger > 0 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area.data(), "KVM_GET_XSAVE"));
  to.bytes(area);
  return {};
}

Result<> restore_xsave(const Kvm& kvm, const VcpuIo& io, StateReader& from) {
  const auto raw = from.bytes(kXsaveBytesMax);
  LETHE_TRY(from.check());
  const int larger = kvm.capability(KVM_CAP_XSAVE2);
  const size_t here = std::max<size_t>(sizeof(kvm_xsave), larger > 0 ? larger : 0);
  // What is missing at the end is state of features that this guest has not.
  const bool rest_empty =
      raw.size() <= here || std::ranges::all_of(raw.subspan(here), [](auto b) { return b == 0; });
  if (raw.size() < sizeof(kvm_xsave) || !rest_empty) {
    from.fail(fmt::format("{} bytes of vector registers, this host has {}", raw.size(), here));
    return from.check();
  }
  std::vector<uint8_t> area(here);
  std::copy_n(raw.begin(), std::min(raw.size(), here), area.begin());
  return io.call(KVM_SET_XSAVE, area.data(), "KVM_SET_XSAVE");
}

// --- model specific registers

struct OneMsr {
  kvm_msrs header;
  kvm_msr_entry entry;
};

bool get_msr(int fd, uint32_t index, uint64_t& value) {
  OneMsr msr{};
  msr.header.nmsrs = 1;
  msr.entry.index = index;
  if (::ioctl(fd, KVM_GET_MSRS, &msr) != 1) return false;
  value = msr.entry.data;
  return true;
}

bool set_msr(int fd, uint32_t index, uint64_t value) {
  OneMsr msr{};
  msr.header.nmsrs = 1;
  msr.entry.index = index;
  msr.entry.data = value;
  return ::ioctl(fd, KVM_SET_MSRS, &msr) == 1;
}

Result<std::vector<uint32_t>> msr_indices(const Kvm& kvm) {
  // struct kvm_msr_list ends in a flexible array; too small a one is answered with the right size.
  std::vector<uint32_t> buffer(1 + kMsrsMax);
  buffer[0] = kMsrsMax;
  if (::ioctl(kvm.fd(), KVM_GET_MSR_INDEX_LIST, buffer.data()) != 0)
    return Unexpected(
        Error{ErrorClass::kKvm, fmt::format("KVM_GET_MSR_INDEX_LIST: {}", errno_text(errno))});
  std::vector<uint32_t> list(buffer.begin() + 1, buffer.begin() + 1 + buffer[0]);
  list.insert(list.end(), std::begin(kMemoryTypeMsrs), std::end(kMemoryTypeMsrs));
  std::ranges::sort(list);
  list.erase(std::ranges::unique(list).begin(), list.end());
  // The counter comes first and its deadline last.
  std::ranges::sort(list, {}, [](uint32_t index) {
    return std::pair(index == kTsc ? 0 : index == kTscDeadline ? 2 : 1, index);
  });
  return list;
}

// Of the list, those that this processor has: KVM lists what it knows, and refuses the rest.
Result<> save_msrs(const Kvm& kvm, const VcpuIo& io, StateWriter& to) {
  LETHE_TRY_ASSIGN(const auto indices, msr_indices(kvm));
  std::vector<kvm_msr_entry> found;
  for (const uint32_t index : indices) {
    uint64_t value = 0;
    if (get_msr(io.fd(), index, value))
      found.push_back({.index = index, .reserved = 0, .data = value});
  }
  to.number(static_cast<uint32_t>(found.size()));
  for (const kvm_msr_entry& entry : found) {
    to.number(entry.index);
    to.number(uint64_t{entry.data});
  }
  return {};
}

Result<> restore_msrs(const VcpuIo& io, StateReader& from) {
  const auto count = from.number<uint32_t>();
  if (count > kMsrsMax) from.fail(fmt::format("{} registers, at most {} are", count, kMsrsMax));
  for (uint32_t i = 0; i < count && from.ok(); ++i) {
    const auto index = from.number<uint32_t>();
    const auto value = from.number<uint64_t>();
    if (!from.ok() || set_msr(io.fd(), index, value)) continue;
    // One that can't be written is as good if it has the value already, or reads as zero was
    // wanted.
    uint64_t now = 0;
    const bool there = get_msr(io.fd(), index, now);
    if (value != (there ? now : 0))
      from.fail(fmt::format("this host's KVM refuses {:#x} for the register {:#x}", value, index));
  }
  return from.check();
}

// A guest that runs guests has state inside KVM that Lethe does not save.
Result<> check_not_nested(const Kvm& kvm, const VcpuIo& io) {
  const int size = kvm.capability(KVM_CAP_NESTED_STATE);
  if (size <= 0) return {};
  std::vector<uint8_t> buffer(std::max<size_t>(size, sizeof(kvm_nested_state)));
  kvm_nested_state header{};
  header.size = static_cast<uint32_t>(buffer.size());
  std::memcpy(buffer.data(), &header, sizeof header);
  LETHE_TRY(io.call(KVM_GET_NESTED_STATE, buffer.data(), "KVM_GET_NESTED_STATE"));
  std::memcpy(&header, buffer.data(), sizeof header);
  const bool vmx_on =
      header.format == KVM_STATE_NESTED_FORMAT_VMX && header.hdr.vmx.vmxon_pa != UINT64_MAX;
  if ((header.flags & KVM_STATE_NESTED_GUEST_MODE) == 0 && !vmx_on) return {};
  return host_error("vCPU {}: the guest runs VMs of its own: it can't be saved", io.index());
}

// --- the time stamp counter's frequency

// What counts as the same: what guests put down to the drift of clocks (NTP's limit is 500 ppm).
bool same_frequency(uint32_t a, uint32_t b) {
  const uint64_t difference = a > b ? a - b : b - a;
  return difference * 1'000'000 <= uint64_t{a} * 250;
}

Result<> restore_frequency(const Kvm& kvm, const VcpuIo& io, StateReader& from) {
  const auto khz = from.number<uint32_t>();
  LETHE_TRY(from.check());
  const int here = ::ioctl(io.fd(), KVM_GET_TSC_KHZ, 0);
  if (khz == 0 || here <= 0 || same_frequency(static_cast<uint32_t>(here), khz)) return {};
  if (kvm.capability(KVM_CAP_TSC_CONTROL) > 0 &&
      ::ioctl(io.fd(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(khz)) == 0)
    return {};
  from.fail(fmt::format(
      "the guest's clock counts at {} kHz, this processor's at {}, and it can't scale it", khz,
      here));
  return from.check();
}

}  // namespace

Result<> save_vcpu(const Kvm& kvm, int fd, uint32_t index, StateWriter& to) {
  const VcpuIo io(fd, index);
  LETHE_TRY(check_not_nested(kvm, io));
  to.begin_section("vcpu", 1);
  to.number(index);
  const int khz = ::ioctl(fd, KVM_GET_TSC_KHZ, 0);
  to.number(static_cast<uint32_t>(std::max(khz, 0)));
  // First: reading it makes KVM act on INIT and SIPI that came in, which changes what follows.
  LETHE_TRY(save_struct<kvm_mp_state>(io, KVM_GET_MP_STATE, "KVM_GET_MP_STATE", to));
  LETHE_TRY(save_struct<kvm_regs>(io, KVM_GET_REGS, "KVM_GET_REGS", to));
  LETHE_TRY(save_struct<kvm_sregs>(io, KVM_GET_SREGS, "KVM_GET_SREGS", to));
  LETHE_TRY(save_xsave(kvm, io, to));
  LETHE_TRY(save_optional<kvm_xcrs>(io, kvm.capability(KVM_CAP_XCRS) > 0, KVM_GET_XCRS,
                                    "KVM_GET_XCRS", to));
  LETHE_TRY(save_optional<kvm_debugregs>(io, kvm.capability(KVM_CAP_DEBUGREGS) > 0,
                                         KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS", to));
  LETHE_TRY(save_struct<kvm_lapic_state>(io, KVM_GET_LAPIC, "KVM_GET_LAPIC", to));
  LETHE_TRY(save_msrs(kvm, io, to));
  LETHE_TRY(save_struct<kvm_vcpu_events>(io, KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", to));
  to.end_section();
  return {};
}

Result<> restore_vcpu(const Kvm& kvm, int fd, uint32_t index, StateReader& from) {
  const VcpuIo io(fd, index);
  from.begin_section("vcpu", 1);
  if (from.number<uint32_t>() != index) from.fail("another processor's number");
  LETHE_TRY(restore_frequency(kvm, io, from));
  LETHE_TRY(restore_struct<kvm_mp_state>(io, KVM_SET_MP_STATE, "KVM_SET_MP_STATE", from));
  LETHE_TRY(restore_struct<kvm_regs>(io, KVM_SET_REGS, "KVM_SET_REGS", from));
  LETHE_TRY(restore_struct<kvm_sregs>(io, KVM_SET_SREGS, "KVM_SET_SREGS", from));
  LETHE_TRY(restore_xsave(kvm, io, from));
  LETHE_TRY(restore_optional<kvm_xcrs>(io, kvm.capability(KVM_CAP_XCRS) > 0, KVM_SET_XCRS,
                                       "KVM_SET_XCRS", from));
  LETHE_TRY(restore_optional<kvm_debugregs>(io, kvm.capability(KVM_CAP_DEBUGREGS) > 0,
                                            KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", from));
  LETHE_TRY(restore_struct<kvm_lapic_state>(io, KVM_SET_LAPIC, "KVM_SET_LAPIC", from));
  LETHE_TRY(restore_msrs(io, from));
  LETHE_TRY(restore_struct<kvm_vcpu_events>(io, KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", from));
  from.end_section();
  return from.check();
}

}  // namespace lethe
