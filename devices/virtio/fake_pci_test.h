// For tests: a machine with one FakeVirtioDevice on PCI, in slot 1.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "devices/virtio/fake_pci_driver.h"
#include "devices/virtio/pci_transport.h"

namespace lethe {

inline constexpr uint8_t kLive = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                                 VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

class FakePciTest : public testing::Test {
 protected:
  FakePciTest() {
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

}  // namespace lethe
