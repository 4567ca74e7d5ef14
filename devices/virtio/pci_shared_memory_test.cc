// Shared memory regions: the capability that names them, and their BAR's life.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/virtio/fake_pci_test.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

constexpr uint64_t kRegion = 8 * kGiB;  // more than 32 bits hold
constexpr uint64_t kHigh = FakeMachine::kHighWindow.start;

class VirtioSharedMemoryTest : public testing::Test {
 protected:
  VirtioSharedMemoryTest() {
    const GuestMemory::Range range{GuestAddr{0}, kRegion};
    backing = GuestMemory::create({&range, 1}, {.thp = false}).value();
    host = backing->slice(GuestAddr{0}, kRegion)->data;
  }
  void add(int failures = 0) {
    auto made = std::make_unique<FakeVirtioDevice>();
    made->region = VirtioSharedMemory{.id = 1, .bytes = kRegion, .host = host};
    auto created = VirtioPciTransport::create(machine.pci->environment(), std::move(made));
    machine.device_memory.fail_next(failures);
    EXPECT_EQ(machine.pci->add_device(std::move(*created)).value(), 1);
  }
  [[nodiscard]] uint8_t capability() const {
    uint8_t at = 0;
    while ((at = machine.find_capability(1, PCI_CAP_ID_VNDR, at)) != 0)
      if (machine.config_read(1, at + VIRTIO_PCI_CAP_CFG_TYPE, 1) ==
          VIRTIO_PCI_CAP_SHARED_MEMORY_CFG)
        return at;
    return 0;
  }
  void move_to(uint64_t address) {
    machine.config_write(1, PCI_BASE_ADDRESS_2, address & 0xffff'ffff, 4);
    machine.config_write(1, PCI_BASE_ADDRESS_3, address >> 32, 4);
  }

  std::unique_ptr<GuestMemory> backing;
  uint8_t* host = nullptr;
  FakeMachine machine;
};

TEST_F(VirtioSharedMemoryTest, a_capability_names_bar_id_and_64_bit_length) {
  add();
  const uint8_t at = capability();
  ASSERT_NE(at, 0);
  EXPECT_EQ(machine.config_read(1, at + 2, 1), sizeof(virtio_pci_cap64));
  EXPECT_EQ(machine.config_read(1, at + VIRTIO_PCI_CAP_BAR, 1),
            VirtioPciTransport::kSharedMemoryBar);
  EXPECT_EQ(machine.config_read(1, at + offsetof(virtio_pci_cap, id), 1), 1U);
  EXPECT_EQ(machine.config_read(1, at + VIRTIO_PCI_CAP_OFFSET, 4), 0U);
  EXPECT_EQ(machine.config_read(1, at + VIRTIO_PCI_CAP_LENGTH, 4), kRegion & 0xffff'ffff);
  EXPECT_EQ(machine.config_read(1, at + offsetof(virtio_pci_cap64, offset_hi), 4), 0U);
  EXPECT_EQ(machine.config_read(1, at + offsetof(virtio_pci_cap64, length_hi), 4), kRegion >> 32);
}

TEST_F(VirtioSharedMemoryTest, devices_without_a_region_have_no_such_capability_nor_bar) {
  auto created =
      VirtioPciTransport::create(machine.pci->environment(), std::make_unique<FakeVirtioDevice>());
  ASSERT_TRUE(machine.pci->add_device(std::move(*created)));
  EXPECT_EQ(capability(), 0);
  EXPECT_EQ(machine.pci->function(1)->bar_size(VirtioPciTransport::kSharedMemoryBar), 0U);
  EXPECT_THAT(machine.device_memory.bound(), IsEmpty());
}

TEST_F(VirtioSharedMemoryTest, the_guest_reaches_the_region_at_its_bar) {
  add();
  EXPECT_THAT(machine.device_memory.bound(),
              ElementsAre(Pair(kHigh, FakeDeviceMemory::Slot{kRegion, host})));
  machine.write(kHigh + 4096, 0x1234, 2);
  EXPECT_EQ(host[4096], 0x34);
  host[4098] = 7;
  EXPECT_EQ(machine.read(kHigh + 4096, 4), 0x0007'1234U);
}

TEST_F(VirtioSharedMemoryTest, memory_follows_a_bar_that_moves) {
  add();
  move_to(kHigh + kRegion);
  EXPECT_THAT(machine.device_memory.bound(),
              ElementsAre(Pair(kHigh + kRegion, FakeDeviceMemory::Slot{kRegion, host})));
  machine.config_write(1, PCI_COMMAND, 0, 2);
  EXPECT_THAT(machine.device_memory.bound(), IsEmpty());
  machine.config_write(1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  EXPECT_EQ(machine.device_memory.bound().size(), 1U);
  move_to(0);  // over RAM
  EXPECT_THAT(machine.device_memory.bound(), IsEmpty());
  move_to(kHigh);
  machine.write(kHigh, 9, 1);
  EXPECT_EQ(host[0], 9);
}

TEST_F(VirtioSharedMemoryTest, accesses_exit_and_are_done_where_no_memory_could_be_bound) {
  add(2);  // once for each half of the address that is set
  machine.config_write(1, PCI_COMMAND, 0, 2);
  machine.device_memory.fail_next(1);
  machine.config_write(1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  EXPECT_THAT(machine.device_memory.bound(), IsEmpty());
  machine.write(kHigh + kRegion - 8, 0x1122'3344'5566'7788, 8);
  EXPECT_EQ(host[kRegion - 8], 0x88);
  EXPECT_EQ(machine.read(kHigh + kRegion - 4, 4), 0x1122'3344U);
  move_to(kHigh + kRegion);  // there is a slot again
  EXPECT_EQ(machine.device_memory.bound().size(), 1U);
}

TEST_F(VirtioSharedMemoryTest, nothing_stays_bound_when_the_function_goes) {
  add();
  machine.pci.reset();
  EXPECT_THAT(machine.device_memory.bound(), IsEmpty());
}

}  // namespace
}  // namespace lethe
