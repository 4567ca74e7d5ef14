#include "devices/virtio/pci_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/virtio/fake_pci_driver.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint8_t kLive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                          VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

class VirtioPci : public testing::Test {
 protected:
  VirtioPci() {
    auto made = std::make_unique<FakeVirtioDevice>();
    device = made.get();
    auto created = VirtioPciTransport::create(machine.pci->environment(), std::move(made));
    EXPECT_TRUE(created);
    transport = created->get();
    EXPECT_EQ(machine.pci->add_device(std::move(*created)).value(), 1);
    driver.emplace(machine, uint8_t{1});
  }
  FakeMachine machine;
  FakeVirtioDevice* device = nullptr;
  VirtioPciTransport* transport = nullptr;
  std::optional<FakePciDriver> driver;
};

TEST_F(VirtioPci, comes_up_by_the_steps_of_3_1_1) {
  ASSERT_TRUE(driver->bring_up());
  EXPECT_EQ(driver->status(), kLive);
  EXPECT_EQ(device->queues.size(), 3U);
  EXPECT_EQ(device->queues[0]->size(), 256);
  EXPECT_EQ(device->features,
            device->features_offered | 1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_RING_RESET |
                1ULL << VIRTIO_RING_F_INDIRECT_DESC | 1ULL << VIRTIO_RING_F_EVENT_IDX);
  EXPECT_EQ(transport->counters().registers_refused, 0U);
}

TEST_F(VirtioPci, binds_doorbells_only_while_queues_are_live) {
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
  ASSERT_TRUE(driver->bring_up());
  const uint64_t notify = driver->bar() + driver->notifications;
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify, notify + 4, notify + 8));
  driver->notify(1);
  EXPECT_EQ(device->kicks[1]->take(), 1U);
  EXPECT_EQ(device->kicks[0]->take(), 0U);
  driver->reset();
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
}

}  // namespace
}  // namespace lethe
