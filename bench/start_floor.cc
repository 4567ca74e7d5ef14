// The floor of bench_start: the KVM ioctls that `lethe run` issues for a small guest, in the same
// order and nothing around them. Exits with 0 once the guest has written to the debug-exit port.
#include <elf.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "vmm/kvm/kvm_api.h"

namespace {

constexpr size_t kMemory = 16 << 20;
constexpr uint16_t kDebugExitPort = 0xF4;

void need(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::exit(1);
}

// Loads the segments and returns the entry point.
uint64_t load(const char* path, uint8_t* memory) {
  static uint8_t file[1 << 16];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t size = read(fd, file, sizeof file);
  need(size > static_cast<ssize_t>(sizeof(Elf64_Ehdr)), path);
  Elf64_Ehdr header;
  std::memcpy(&header, file, sizeof header);
  for (int i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, file + header.e_phoff + static_cast<size_t>(i) * sizeof segment,
                sizeof segment);
    if (segment.p_type == PT_LOAD)
      std::memcpy(memory + segment.p_paddr, file + segment.p_offset, segment.p_filesz);
  }
  return header.e_entry;
}

template <size_t N>
struct Cpuid {
  kvm_cpuid2 header;
  kvm_cpuid_entry2 entries[N];
};
struct Msrs {
  kvm_msrs header;
  kvm_msr_entry entries[2];
};

int create_vm(int kvm, uint8_t* memory) {
  need(ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "KVM_GET_API_VERSION");
  for (const int capability :
       {KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_USER_MEMORY, KVM_CAP_IRQFD, KVM_CAP_IRQ_ROUTING,
        KVM_CAP_IOEVENTFD, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_EXT_CPUID, KVM_CAP_SET_IDENTITY_MAP_ADDR,
        KVM_CAP_SET_TSS_ADDR})
    need(ioctl(kvm, KVM_CHECK_EXTENSION, capability) > 0, "KVM_CHECK_EXTENSION");
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  need(vm >= 0, "KVM_CREATE_VM");
  uint64_t identity_map = 0xFFFB'C000;
  need(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map) == 0, "KVM_SET_IDENTITY_MAP_ADDR");
  need(ioctl(vm, KVM_SET_TSS_ADDR, 0xFFFB'D000) == 0, "KVM_SET_TSS_ADDR");
  kvm_enable_cap split{};
  split.cap = KVM_CAP_SPLIT_IRQCHIP;
  need(ioctl(vm, KVM_ENABLE_CAP, &split) == 0, "KVM_CAP_SPLIT_IRQCHIP");
  kvm_userspace_memory_region region{};
  region.memory_size = kMemory;
  region.userspace_addr = reinterpret_cast<uint64_t>(memory);
  need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
  return vm;
}

void set_state(int kvm, int vcpu, uint64_t entry) {
  static Cpuid<256> cpuid;
  cpuid.header.nent = 256;
  need(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
  need(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0, "KVM_CHECK_EXTENSION");
  need(ioctl(vcpu, KVM_SET_CPUID2, &cpuid) == 0, "KVM_SET_CPUID2");
  Msrs msrs{};
  msrs.header.nmsrs = 2;
  msrs.entries[0] = {0x2FF, 0, 0xC06};
  msrs.entries[1] = {0x1A0, 0, 1};
  need(ioctl(vcpu, KVM_SET_MSRS, &msrs) == 2, "KVM_SET_MSRS");
  kvm_sregs sregs{};
  need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  kvm_segment segment{};
  segment.limit = 0xFFFF'FFFF;
  segment.selector = 8;
  segment.type = 0xB;
  segment.present = segment.db = segment.s = segment.g = 1;
  sregs.cs = segment;
  segment.selector = 0x10;
  segment.type = 3;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
  sregs.tr.type = 0xB;
  sregs.tr.limit = 0x67;
  sregs.tr.present = 1;
  sregs.tr.s = 0;
  sregs.cr0 = 0x11;
  need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  kvm_regs regs{};
  regs.rip = entry;
  regs.rflags = 2;
  need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

}  // namespace

int main(int argc, char** argv) {
  need(argc == 2, "usage: bench_start_floor GUEST.elf");
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  need(kvm >= 0, "/dev/kvm");
  const int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  auto* memory = static_cast<uint8_t*>(mmap(nullptr, kMemory, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  need(memory != MAP_FAILED, "mmap");
  const uint64_t entry = load(argv[1], memory);
  const int vm = create_vm(kvm, memory);
  const int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  need(vcpu >= 0, "KVM_CREATE_VCPU");
  auto* run = static_cast<kvm_run*>(
      mmap(nullptr, static_cast<size_t>(run_size), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0));
  need(run != MAP_FAILED, "mmap of kvm_run");
  set_state(kvm, vcpu, entry);
  need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
  return run->exit_reason == KVM_EXIT_IO && run->io.port == kDebugExitPort ? 0 : 1;
}
