#include "vmm/kvm/kvm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/other_user_test_util.h"

namespace lethe {
namespace {

using ::testing::HasSubstr;

TEST(Kvm, says_what_to_do_when_the_device_is_missing) {
  const auto kvm = Kvm::open("/nonexistent/kvm");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().kind, ErrorClass::kKvm);
  EXPECT_THAT(kvm.error().text, HasSubstr("/nonexistent/kvm is missing: load the kvm_intel"));
}

TEST(Kvm, refuses_a_device_that_does_not_speak_its_api) {
  const auto kvm = Kvm::open("/dev/null");
  ASSERT_FALSE(kvm);
  EXPECT_EQ(kvm.error().kind, ErrorClass::kKvm);
  EXPECT_THAT(kvm.error().text, HasSubstr("KVM API version"));
}

TEST(Kvm, names_the_group_when_permission_is_denied) {
  char path[] = "/tmp/lethe-kvm-XXXXXX";
  const UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(::fchmod(file.get(), 0), 0);
  EXPECT_THAT(said_to_another_user([&] {
                const auto kvm = Kvm::open(path);
                return kvm                                    ? "opened"
                       : kvm.error().kind != ErrorClass::kKvm ? "another class"
                                                              : kvm.error().text;
              }),
              HasSubstr("add your user to the 'kvm' group"));
  ::unlink(path);
}

// A vCPU in real mode, and one page of code for it at address 0.
class KvmDeviceMemory : public testing::Test {
 protected:
  static constexpr uint64_t kPlace = 0x8'0000;  // where device memory is bound

  void SetUp() override {
    auto opened = Kvm::open();
    if (!opened) GTEST_SKIP() << opened.error().text;
    kvm.emplace(std::move(*opened));
    vm = KvmVm::create(*kvm).value();
    ram = map(kPageBytes);
    device = map(kPageBytes);
    const std::array<MemoryRegion, 1> regions{
        MemoryRegion{.start = GuestAddr{0}, .size = kPageBytes, .host = ram}};
    ASSERT_TRUE(vm->map_memory(regions));
    vcpu.reset(::ioctl(vm->fd(), KVM_CREATE_VCPU, 0));
    ASSERT_TRUE(vcpu.valid());
    void* const mapped =
        ::mmap(nullptr, kvm->run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    // SAFETY: KVM's mapping starts with a kvm_run (api.rst, 5).
    run = static_cast<kvm_run*>(mapped);
  }
  void TearDown() override {
    vcpu.reset();
    vm.reset();
    if (run != nullptr) ::munmap(run, kvm->run_size());
    if (ram != nullptr) ::munmap(ram, kPageBytes);
    if (device != nullptr) ::munmap(device, kPageBytes);
  }
  static uint8_t* map(uint64_t bytes) {
    void* const at =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return static_cast<uint8_t*>(at);
  }
  // Adds one to the byte at `segment`:0 and writes to a port. Returns KVM's exit reason:
  // KVM_EXIT_IO if nothing held it up (a halt does not leave KVM, which has the local APIC).
  uint32_t increment_at(uint16_t segment) {
    const std::array<uint8_t, 4> code{0xfe, 0x06, 0x00, 0x00};  // inc byte [0]
    std::ranges::copy(code, ram + 0x100);
    ram[0x104] = 0xe6;  // out 0xf4, al
    ram[0x105] = 0xf4;
    kvm_sregs sregs{};
    EXPECT_EQ(::ioctl(vcpu.get(), KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.selector = segment;
    sregs.ds.base = uint64_t{segment} << 4;
    EXPECT_EQ(::ioctl(vcpu.get(), KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = 0x100;
    regs.rflags = 2;
    EXPECT_EQ(::ioctl(vcpu.get(), KVM_SET_REGS, &regs), 0);
    ::alarm(10);  // the deadline: ends the program
    EXPECT_EQ(::ioctl(vcpu.get(), KVM_RUN, 0), 0);
    ::alarm(0);
    return run->exit_reason;
  }
  std::optional<Kvm> kvm;
  std::unique_ptr<KvmVm> vm;
  UniqueFd vcpu;
  kvm_run* run = nullptr;
  uint8_t* ram = nullptr;
  uint8_t* device = nullptr;
};

TEST_F(KvmDeviceMemory, a_guest_reaches_bound_memory_without_an_exit) {
  ASSERT_TRUE(vm->bind_memory(kPlace, kPageBytes, device));
  EXPECT_EQ(increment_at(kPlace >> 4), uint32_t{KVM_EXIT_IO});
  EXPECT_EQ(device[0], 1);
}

TEST_F(KvmDeviceMemory, unbound_memory_is_out_of_the_guests_reach_and_can_be_bound_elsewhere) {
  ASSERT_TRUE(vm->bind_memory(kPlace, kPageBytes, device));
  EXPECT_EQ(increment_at(kPlace >> 4), uint32_t{KVM_EXIT_IO});
  vm->unbind_memory(kPlace);
  EXPECT_EQ(increment_at(kPlace >> 4), uint32_t{KVM_EXIT_MMIO});
  EXPECT_EQ(device[0], 1);
}

TEST_F(KvmDeviceMemory, memory_moves_and_its_slot_is_used_again) {
  constexpr int kTimes = 600;  // more often than KVM has slots on old kernels (509)
  for (int i = 0; i < kTimes; ++i) {
    const uint64_t at = kPlace + (i % 2) * kPageBytes;
    ASSERT_TRUE(vm->bind_memory(at, kPageBytes, device)) << i;
    if (i >= kTimes - 2) {
      EXPECT_EQ(increment_at(static_cast<uint16_t>(at >> 4)), uint32_t{KVM_EXIT_IO});
    }
    vm->unbind_memory(at);
  }
  EXPECT_EQ(device[0], 2);
}

TEST_F(KvmDeviceMemory, refuses_memory_over_memory) {
  ASSERT_TRUE(vm->bind_memory(kPlace, kPageBytes, device));
  const auto again = vm->bind_memory(kPlace, kPageBytes, device);
  ASSERT_FALSE(again);
  EXPECT_THAT(again.error().text, HasSubstr("KVM_SET_USER_MEMORY_REGION"));
  EXPECT_FALSE(vm->bind_memory(0, kPageBytes, device));  // RAM
  vm->unbind_memory(kPlace);
  EXPECT_TRUE(vm->bind_memory(kPlace, kPageBytes, device));
}

}  // namespace
}  // namespace lethe
