#include "vmm/kvm/vcpu.h"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cstring>

#include "base/assert.h"
#include "base/log.h"
#include "vmm/kvm/coalesced_writes.h"

namespace lethe {
namespace {

// The signal that makes KVM_RUN return. Its handler does nothing: the interruption is the message.
int kick_signal() { return SIGRTMIN; }

void install_kick_handler() {
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_handler = [](int) {};
    return sigaction(kick_signal(), &action, nullptr) == 0;
  }();
  LETHE_ASSERT(installed);
}

Unexpected vcpu_error(uint32_t index, const char* what) {
  return Unexpected(
      Error{ErrorClass::kKvm, fmt::format("vCPU {}: {}: {}", index, what, errno_text(errno))});
}

// struct kvm_cpuid2 ends in a flexible array; KVM's own limit is 256 entries.
constexpr size_t kCpuidEntriesMax = 256;
struct CpuidBuffer {
  kvm_cpuid2 header;
  kvm_cpuid_entry2 entries[kCpuidEntriesMax];
};

// The processor's place among the others: Intel SDM volume 2, CPUID leaves 1, 4, 0xB and 0x1F; AMD
// APM volume 3, 0x80000008 and 0x8000001E. One package, one thread a core.
void set_topology(std::vector<kvm_cpuid_entry2>& cpuid, uint32_t index, uint32_t count) {
  const auto core_bits = static_cast<uint32_t>(std::bit_width(count - 1));
  std::erase_if(cpuid, [](const auto& e) { return e.function == 0xB || e.function == 0x1F; });
  uint32_t highest = 0;
  for (kvm_cpuid_entry2& e : cpuid) {
    switch (e.function) {
      case 0:
        highest = e.eax;
        break;
      case 1:
        e.ebx = (e.ebx & 0x0000'FFFF) | (count << 16) | (index << 24);
        e.edx = count > 1 ? e.edx | (1U << 28) : e.edx & ~(1U << 28);  // HTT
        e.ecx |= 1U << 31;                                             // hypervisor
        break;
      case 4:
        e.eax = (e.eax & 0x0000'3FFF) | ((count - 1) << 26);
        break;
      case 0x8000'0008:
        e.ecx = (e.ecx & ~0xF0FFU) | (core_bits << 12) | (count - 1);
        break;
      case 0x8000'001E:
        e.eax = index;
        e.ebx = index & 0xFF;
        e.ecx = 0;
        break;
      default:
        break;
    }
  }
  if (highest < 0xB) return;
  for (const uint32_t leaf : {0xBU, 0x1FU}) {
    if (leaf > highest) continue;
    kvm_cpuid_entry2 level{};
    level.function = leaf;
    level.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    level.edx = index;
    level.index = 0;  // threads of a core
    level.eax = 0;
    level.ebx = 1;
    level.ecx = 1U << 8;
    cpuid.push_back(level);
    level.index = 1;  // cores of the package
    level.eax = core_bits;
    level.ebx = count;
    level.ecx = (2U << 8) | 1;
    cpuid.push_back(level);
    level.index = 2;  // the end of the list
    level.eax = level.ebx = 0;
    level.ecx = 2;
    cpuid.push_back(level);
  }
}

void set_timer_features(std::vector<kvm_cpuid_entry2>& cpuid, const Kvm& kvm) {
  for (kvm_cpuid_entry2& e : cpuid) {
    if (e.function != 1) continue;
    e.ecx |= 1U << 21;  // x2APIC: the in-kernel LAPIC has it
    if (kvm.capability(KVM_CAP_TSC_DEADLINE_TIMER) > 0) e.ecx |= 1U << 24;
  }
}

struct MsrBuffer {
  kvm_msrs header;
  kvm_msr_entry entries[2];
};

// What firmware leaves behind: write-back as the default memory type, fast string instructions.
Result<> set_msrs(int fd, uint32_t index) {
  MsrBuffer msrs{};
  msrs.header.nmsrs = 2;
  msrs.entries[0].index = 0x2FF;  // IA32_MTRR_DEF_TYPE
  msrs.entries[0].data = 0xC00 | 6;
  msrs.entries[1].index = 0x1A0;  // IA32_MISC_ENABLE
  msrs.entries[1].data = 1;
  if (::ioctl(fd, KVM_SET_MSRS, &msrs) != 2) return vcpu_error(index, "KVM_SET_MSRS");
  return {};
}

}  // namespace

Result<std::vector<kvm_cpuid_entry2>> supported_cpuid(const Kvm& kvm) {
  auto buffer = std::make_unique_for_overwrite<CpuidBuffer>();
  buffer->header.nent = kCpuidEntriesMax;
  if (::ioctl(kvm.fd(), KVM_GET_SUPPORTED_CPUID, buffer.get()) != 0)
    return Unexpected(
        Error{ErrorClass::kKvm, fmt::format("KVM_GET_SUPPORTED_CPUID: {}", errno_text(errno))});
  std::vector<kvm_cpuid_entry2> entries(buffer->entries, buffer->entries + buffer->header.nent);
  set_timer_features(entries, kvm);
  return entries;
}

Vcpu::Vcpu(UniqueFd fd, kvm_run* run, size_t run_size, uint32_t index)
    : x_fd(std::move(fd)), x_run(run), x_run_size(run_size), x_index(index) {}

Vcpu::~Vcpu() { ::munmap(x_run, x_run_size); }

Result<std::unique_ptr<Vcpu>> Vcpu::create(const Kvm& kvm, const KvmVm& vm,
                                           std::vector<kvm_cpuid_entry2> cpuid, uint32_t index,
                                           uint32_t count) {
  install_kick_handler();
  UniqueFd fd(::ioctl(vm.fd(), KVM_CREATE_VCPU, index));
  if (!fd.valid()) return vcpu_error(index, "KVM_CREATE_VCPU");
  void* run = ::mmap(nullptr, kvm.run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) return vcpu_error(index, "mapping kvm_run");
  const int raw = fd.get();
  auto vcpu = std::unique_ptr<Vcpu>(
      new Vcpu(std::move(fd), static_cast<kvm_run*>(run), kvm.run_size(), index));

  set_topology(cpuid, index, count);
  LETHE_ASSERT(cpuid.size() <= kCpuidEntriesMax);
  auto buffer = std::make_unique_for_overwrite<CpuidBuffer>();
  buffer->header.nent = static_cast<uint32_t>(cpuid.size());
  std::memcpy(buffer->entries, cpuid.data(), cpuid.size() * sizeof(kvm_cpuid_entry2));
  if (::ioctl(raw, KVM_SET_CPUID2, buffer.get()) != 0) return vcpu_error(index, "KVM_SET_CPUID2");
  LETHE_TRY(set_msrs(raw, index));
  return vcpu;
}

Result<> Vcpu::set_boot_state(const BootState& state) {
  const bool long_mode = state.mode == BootState::Mode::kLong64;
  kvm_sregs sregs{};
  if (::ioctl(x_fd.get(), KVM_GET_SREGS, &sregs) != 0) return vcpu_error(x_index, "KVM_GET_SREGS");
  kvm_segment code{};
  code.limit = 0xFFFF'FFFF;
  code.selector = long_mode ? 0x18 : 0x08;
  code.type = 0xB;  // execute, read, accessed
  code.present = 1;
  code.s = 1;
  code.g = 1;
  code.db = long_mode ? 0 : 1;
  code.l = long_mode ? 1 : 0;
  kvm_segment data = code;
  data.selector = 0x10;
  data.type = 0x3;  // read, write, accessed
  data.db = 1;
  data.l = 0;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr.type = 0xB;  // a busy 32-bit (or 64-bit) TSS: what VM entry demands
  sregs.tr.limit = 0x67;
  sregs.tr.present = 1;
  sregs.tr.s = 0;
  sregs.gdt.base = state.gdt;
  sregs.gdt.limit = sizeof kBootGdt - 1;
  sregs.cr0 = 0x11;  // PE, ET
  if (long_mode) {
    sregs.cr3 = state.cr3;
    sregs.cr4 |= 1U << 5;   // PAE
    sregs.cr0 |= 1U << 31;  // PG
    sregs.efer |= 0x500;    // LME, LMA
  }
  if (::ioctl(x_fd.get(), KVM_SET_SREGS, &sregs) != 0) return vcpu_error(x_index, "KVM_SET_SREGS");
  kvm_regs regs{};
  regs.rip = state.entry;
  regs.rbx = state.rbx;
  regs.rsi = state.rsi;
  regs.rflags = 2;
  if (::ioctl(x_fd.get(), KVM_SET_REGS, &regs) != 0) return vcpu_error(x_index, "KVM_SET_REGS");
  return {};
}

void Vcpu::request_stop() {
  x_stop.store(true, std::memory_order_relaxed);
  // SAFETY: immediate_exit is shared with the kernel, which reads it on each KVM_RUN. It makes a
  // KVM_RUN return at once even if the signal below arrives just before it, so none is lost
  // (api.rst, kvm_run.immediate_exit).
  std::atomic_ref<uint8_t>(x_run->immediate_exit).store(1, std::memory_order_seq_cst);
  const int thread = x_thread_id.load(std::memory_order_seq_cst);
  if (thread != 0 && thread != ::gettid())
    (void)::syscall(SYS_tgkill, ::getpid(), thread, kick_signal());
}

void Vcpu::allow_run() {
  LETHE_ASSERT(x_thread_id.load() == 0);
  // Fails where the guest does not use the paravirtual clock: then there is nobody to tell.
  (void)::ioctl(x_fd.get(), KVM_KVMCLOCK_CTRL, 0);
  x_stop.store(false);
  // SAFETY: as in request_stop().
  std::atomic_ref<uint8_t>(x_run->immediate_exit).store(0);
}

VcpuExit Vcpu::run(const Bus& port_io, const Bus& mmio, CoalescedWrites* coalesced) {
  x_thread_id.store(::gettid(), std::memory_order_seq_cst);
  struct Leave {
    std::atomic<int>& id;
    ~Leave() { id.store(0); }
  } leave{x_thread_id};
  while (!x_stop.load(std::memory_order_relaxed)) {
    if (::ioctl(x_fd.get(), KVM_RUN, 0) != 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      report_failure(fmt::format("KVM_RUN: {}", errno_text(errno)).c_str());
      return VcpuExit::kFailed;
    }
    x_exits.store(x_exits.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    if (coalesced != nullptr) (void)coalesced->drain(port_io);
    if (const auto end = take_exit(port_io, mmio)) return *end;
  }
  return VcpuExit::kStopped;
}

std::optional<VcpuExit> Vcpu::take_exit(const Bus& port_io, const Bus& mmio) {
  switch (x_run->exit_reason) {
    case KVM_EXIT_IO:
      handle_port_io(port_io);
      return std::nullopt;
    case KVM_EXIT_MMIO:
      handle_mmio(mmio);
      return std::nullopt;
    case KVM_EXIT_SHUTDOWN:
      return VcpuExit::kTripleFault;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return std::nullopt;
    case KVM_EXIT_SYSTEM_EVENT:
      if (x_run->system_event.type == KVM_SYSTEM_EVENT_CRASH) return VcpuExit::kTripleFault;
      return std::nullopt;
    case KVM_EXIT_FAIL_ENTRY:
      report_failure(fmt::format("the processor refused to enter the guest, reason {:#x}",
                                 x_run->fail_entry.hardware_entry_failure_reason)
                         .c_str());
      return VcpuExit::kFailed;
    case KVM_EXIT_INTERNAL_ERROR:
      report_failure(fmt::format("KVM internal error {}{}", x_run->internal.suberror,
                                 x_run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION
                                     ? " (an instruction that KVM can't emulate)"
                                     : "")
                         .c_str());
      return VcpuExit::kFailed;
    default:
      report_failure(fmt::format("unexpected KVM exit {}", x_run->exit_reason).c_str());
      return VcpuExit::kFailed;
  }
}

// KVM finishes an access, whose data the exit's handler has left in kvm_run, when it is entered the
// next time; with immediate_exit it does that and no more (api.rst, KVM_EXIT_MMIO). A long access
// may come out in several pieces.
VcpuExit Vcpu::settle(const Bus& port_io, const Bus& mmio, CoalescedWrites* coalesced) {
  LETHE_ASSERT(x_thread_id.load() == 0);
  // SAFETY: as in request_stop().
  std::atomic_ref<uint8_t>(x_run->immediate_exit).store(1);
  for (;;) {
    if (::ioctl(x_fd.get(), KVM_RUN, 0) == 0) {
      if (coalesced != nullptr) (void)coalesced->drain(port_io);
      if (const auto end = take_exit(port_io, mmio)) return *end;
    } else if (errno == EINTR || errno == EAGAIN) {
      return VcpuExit::kStopped;
    } else {
      report_failure(fmt::format("KVM_RUN: {}", errno_text(errno)).c_str());
      return VcpuExit::kFailed;
    }
  }
}

void Vcpu::handle_port_io(const Bus& port_io) {
  // SAFETY: KVM places the data inside the kvm_run mapping; `string` instructions give count > 1,
  // and size * count fits by KVM's contract.
  uint8_t* data = reinterpret_cast<uint8_t*>(x_run) + x_run->io.data_offset;
  const size_t size = x_run->io.size;
  for (uint32_t i = 0; i < x_run->io.count; ++i, data += size) {
    if (x_run->io.direction == KVM_EXIT_IO_IN)
      port_io.read(x_run->io.port, {data, size});
    else
      port_io.write(x_run->io.port, {data, size});
  }
}

void Vcpu::handle_mmio(const Bus& mmio) {
  auto& access = x_run->mmio;
  const size_t size = std::min<size_t>(access.len, sizeof access.data);
  if (access.is_write)
    mmio.write(access.phys_addr, {access.data, size});
  else
    mmio.read(access.phys_addr, {access.data, size});
}

void Vcpu::report_failure(const char* what) const {
  kvm_regs regs{};
  kvm_sregs sregs{};
  if (::ioctl(x_fd.get(), KVM_GET_REGS, &regs) == 0 &&
      ::ioctl(x_fd.get(), KVM_GET_SREGS, &sregs) == 0)
    log_error(LogModule::kVmm, "vCPU {}: {}; rip {:#x} rsp {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x}",
              x_index, what, regs.rip, regs.rsp, sregs.cr0, sregs.cr2, sregs.cr3);
  else
    log_error(LogModule::kVmm, "vCPU {}: {}", x_index, what);
}

}  // namespace lethe
