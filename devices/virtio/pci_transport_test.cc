// Registers and the status state machine. Live queues: pci_live_test.cc.
#include "devices/virtio/pci_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "devices/virtio/fake_pci_test.h"

namespace lethe {
namespace {

using testing::IsEmpty;

constexpr uint64_t kVersion1 = uint64_t{1} << VIRTIO_F_VERSION_1;
constexpr uint8_t kFeaturesOk = VIRTIO_CONFIG_S_FEATURES_OK;
constexpr uint8_t kNeedsReset = VIRTIO_CONFIG_S_NEEDS_RESET;
constexpr uint8_t kDriverOk = VIRTIO_CONFIG_S_DRIVER_OK;

class VirtioPci : public FakePciTest {
 protected:
  [[nodiscard]] uint64_t refused() const { return transport->counters().registers_refused; }
};

TEST_F(VirtioPci, has_the_ids_of_4_1_2) {
  EXPECT_EQ(machine.config_read(1, PCI_VENDOR_ID, 2), 0x1af4U);
  EXPECT_EQ(machine.config_read(1, PCI_DEVICE_ID, 2), 0x1040U + VIRTIO_ID_BLOCK);
  EXPECT_EQ(machine.config_read(1, PCI_REVISION_ID, 1), 1U);
  EXPECT_EQ(machine.config_read(1, PCI_CLASS_DEVICE, 2), 0x0180U);
  EXPECT_GE(machine.config_read(1, PCI_SUBSYSTEM_ID, 2), 0x40U);
}

TEST_F(VirtioPci, has_the_capabilities_of_4_1_4) {
  EXPECT_EQ(driver->common_length, 60U);
  EXPECT_EQ(driver->common % 4, 0U);
  EXPECT_EQ(driver->device_config_length, 24U);
  EXPECT_EQ(driver->device_config % 4, 0U);
  EXPECT_EQ(driver->notify_multiplier, 4U);
  EXPECT_EQ(driver->notify_length, 3U * 4);
  EXPECT_NE(driver->isr_at, 0U);
  EXPECT_NE(driver->pci_cfg_capability, 0);
  EXPECT_EQ(driver->vectors, 4);  // three queues and the configuration
}

TEST(VirtioPciShape, a_device_without_configuration_has_no_such_capability) {
  FakeMachine machine;
  auto made = VirtioPciTransport::create(
      machine.pci->environment(),
      std::make_unique<FakeVirtioDevice>(std::vector<uint16_t>{8}, 0, VIRTIO_ID_RNG));
  ASSERT_TRUE(machine.pci->add_device(std::move(*made)));
  FakePciDriver driver(machine, 1);
  EXPECT_EQ(driver.device_config_length, 0U);
  EXPECT_EQ(machine.read(driver.bar() + VirtioPciTransport::kDeviceOffset, 4), 0U);
  EXPECT_TRUE(driver.bring_up());
}

TEST(VirtioPciShape, fails_when_no_interrupt_route_is_left) {
  FakeMachine machine;
  machine.msi.limit_routes(1);
  EXPECT_FALSE(
      VirtioPciTransport::create(machine.pci->environment(), std::make_unique<FakeVirtioDevice>()));
}

TEST_F(VirtioPci, comes_up_by_the_steps_of_3_1_1) {
  ASSERT_TRUE(driver->bring_up());
  EXPECT_EQ(driver->status(), kLive);
  EXPECT_EQ(device->queues.size(), 3U);
  EXPECT_EQ(device->queues[0]->size(), 256);
  EXPECT_EQ(device->queues[2]->size(), 16);
  EXPECT_EQ(device->features, device->features_offered | kVersion1 | 1ULL << VIRTIO_F_RING_RESET |
                                  1ULL << VIRTIO_RING_F_INDIRECT_DESC |
                                  1ULL << VIRTIO_RING_F_EVENT_IDX);
  EXPECT_EQ(refused(), 0U);
}

TEST_F(VirtioPci, starts_only_enabled_queues) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(kVersion1));
  driver->set_up_queue(1);
  driver->add_status(kDriverOk);
  EXPECT_EQ(device->queues.size(), 1U);
  EXPECT_TRUE(device->queues.contains(1));
}

TEST_F(VirtioPci, refuses_features_not_offered) {
  driver->reset();
  EXPECT_FALSE(driver->negotiate(kVersion1 | 1));
  EXPECT_EQ(driver->status(), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
  EXPECT_TRUE(driver->negotiate(kVersion1));  // it may try again (2.2.2)
}

TEST_F(VirtioPci, refuses_features_without_version_1) {
  driver->reset();
  EXPECT_FALSE(driver->negotiate(0));
}

TEST_F(VirtioPci, features_are_fixed_after_features_ok) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(kVersion1));
  driver->set(VIRTIO_PCI_COMMON_GFSELECT, 0, 4);
  driver->set(VIRTIO_PCI_COMMON_GF, 0x20, 4);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_GF, 4), 0U);
  EXPECT_EQ(refused(), 1U);
}

TEST_F(VirtioPci, feature_words_beyond_64_bits_are_empty) {
  driver->set(VIRTIO_PCI_COMMON_DFSELECT, 2, 4);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_DF, 4), 0U);
  driver->set(VIRTIO_PCI_COMMON_GFSELECT, 0xffff'ffff, 4);
  driver->set(VIRTIO_PCI_COMMON_GF, 1, 4);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_GF, 4), 0U);
  EXPECT_EQ(refused(), 1U);
}

TEST_F(VirtioPci, driver_ok_before_features_ok_needs_reset) {
  driver->reset();
  driver->add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
  driver->add_status(kDriverOk);
  EXPECT_EQ(driver->status(), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | kNeedsReset);
  EXPECT_EQ(device->host, nullptr);
  EXPECT_EQ(transport->counters().needs_resets, 1U);
  ASSERT_TRUE(driver->bring_up());  // and a reset mends it
}

TEST_F(VirtioPci, status_bits_cannot_be_cleared_but_by_0) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(kVersion1));
  driver->set(VIRTIO_PCI_COMMON_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE, 1);
  EXPECT_EQ(driver->status(), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | kFeaturesOk);
  EXPECT_EQ(refused(), 1U);
  driver->set(VIRTIO_PCI_COMMON_STATUS, 0, 1);
  EXPECT_EQ(driver->status(), 0);
}

TEST_F(VirtioPci, the_driver_cannot_set_needs_reset) {
  driver->reset();
  driver->set(VIRTIO_PCI_COMMON_STATUS, kNeedsReset | VIRTIO_CONFIG_S_ACKNOWLEDGE, 1);
  EXPECT_EQ(driver->status(), VIRTIO_CONFIG_S_ACKNOWLEDGE);
}

TEST_F(VirtioPci, reset_returns_every_register_to_its_default) {
  std::array<uint64_t, 64> before{};
  driver->reset();
  for (uint64_t i = 0; i < 60; ++i) before[i] = driver->get(i, 1);
  ASSERT_TRUE(driver->bring_up());
  driver->reset();
  for (uint64_t i = 0; i < 60; ++i) {
    if (i != VIRTIO_PCI_COMMON_CFGGENERATION) {
      EXPECT_EQ(driver->get(i, 1), before[i]) << "byte " << i;
    }
  }
  EXPECT_EQ(device->resets, 1);
  EXPECT_EQ(device->host, nullptr);
}

TEST_F(VirtioPci, reset_before_driver_ok_leaves_the_device_alone) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(kVersion1));
  driver->reset();
  EXPECT_EQ(device->resets, 0);
}

TEST_F(VirtioPci, status_reads_0_only_once_the_reset_is_complete) {
  ASSERT_TRUE(driver->bring_up());
  uint8_t during = 0;
  device->on_reset = [&] { during = transport->status(); };
  driver->set(VIRTIO_PCI_COMMON_STATUS, 0, 1);
  EXPECT_EQ(during, kLive);
  EXPECT_EQ(driver->status(), 0);
}

TEST_F(VirtioPci, queue_size_must_be_a_power_of_two_up_to_the_maximum) {
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 64U);
  for (const uint64_t bad : {0, 3, 63, 65, 128, 0x8000, 0xffff}) {
    driver->set(VIRTIO_PCI_COMMON_Q_SIZE, bad, 2);
    EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 64U) << bad;
  }
  EXPECT_EQ(refused(), 7U);
  driver->set(VIRTIO_PCI_COMMON_Q_SIZE, 1, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 1U);
}

TEST_F(VirtioPci, a_queue_that_is_not_there_reads_0_and_takes_nothing) {
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 3, 2);
  for (uint64_t i = VIRTIO_PCI_COMMON_Q_SIZE; i < 60; ++i) EXPECT_EQ(driver->get(i, 1), 0U) << i;
  driver->set(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_DESCLO, 0x1000, 4);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0U);
  EXPECT_EQ(refused(), 2U);
}

TEST_F(VirtioPci, ring_addresses_are_fixed_once_the_queue_is_enabled) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(kVersion1));
  driver->set_up_queue(0);
  for (uint64_t at = VIRTIO_PCI_COMMON_Q_DESCLO; at <= VIRTIO_PCI_COMMON_Q_USEDHI; at += 4) {
    const uint64_t before = driver->get(at, 4);
    driver->set(at, 0x1234'5678, 4);
    EXPECT_EQ(driver->get(at, 4), before);
  }
  driver->set(VIRTIO_PCI_COMMON_Q_SIZE, 8, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 256U);
  EXPECT_EQ(refused(), 7U);
}

TEST_F(VirtioPci, queue_enable_cannot_be_taken_back_by_writing_0) {
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_ENABLE, 0, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1U);
  EXPECT_EQ(refused(), 2U);
}

TEST_F(VirtioPci, a_vector_that_is_not_there_reads_back_as_none) {
  driver->set(VIRTIO_PCI_COMMON_MSIX, 3, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_MSIX, 2), 3U);
  driver->set(VIRTIO_PCI_COMMON_MSIX, 4, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_MSIX, 2), uint64_t{VIRTIO_MSI_NO_VECTOR});
  driver->set(VIRTIO_PCI_COMMON_Q_MSIX, 0, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_MSIX, 2), 0U);
  driver->set(VIRTIO_PCI_COMMON_Q_MSIX, 0xfffe, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_MSIX, 2), uint64_t{VIRTIO_MSI_NO_VECTOR});
}

TEST_F(VirtioPci, writes_of_another_size_than_the_field_change_nothing) {
  driver->reset();
  std::array<uint64_t, 60> before{};
  for (uint64_t i = 0; i < 60; ++i) before[i] = driver->get(i, 1);
  // Every field's size at every offset where no field of that size starts.
  const auto is_field = [](uint64_t at, size_t size) {
    if (at < 16) return size == 4 && at % 4 == 0;
    if (at == 20) return size == 1;
    if (at == 21) return false;
    if (at < 32 || at >= 56) return size == 2 && at % 2 == 0 && at < 60;
    return size == 4 && at % 4 == 0;
  };
  for (size_t size = 1; size <= 8; ++size)
    for (uint64_t at = 0; at < 72; ++at)
      if (!is_field(at, size)) driver->set(at, 0x0101'0101'0101'0101, size);
  for (uint64_t i = 0; i < 60; ++i) EXPECT_EQ(driver->get(i, 1), before[i]) << "byte " << i;
  EXPECT_GT(refused(), 400U);
}

TEST_F(VirtioPci, reads_of_any_size_see_the_same_bytes) {
  ASSERT_TRUE(driver->bring_up());
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  std::array<uint8_t, 80> bytes{};
  for (uint64_t i = 0; i < 72; ++i) bytes[i] = static_cast<uint8_t>(driver->get(i, 1));
  for (size_t size = 1; size <= 8; ++size) {
    for (uint64_t at = 0; at + size <= 72; ++at) {
      uint64_t expected = 0;
      std::memcpy(&expected, &bytes[at], size);
      EXPECT_EQ(driver->get(at, size), expected) << at << "," << size;
    }
  }
  EXPECT_EQ(driver->get(60, 8), 0U);  // beyond the structure
}

TEST_F(VirtioPci, device_configuration_takes_aligned_fields_within_its_size) {
  const uint64_t at = driver->bar() + driver->device_config;
  machine.write(at + 4, 0x1122'3344, 4);
  EXPECT_EQ(driver->config(4, 4), 0x1122'3344U);
  EXPECT_EQ(driver->config(5, 2), 0x2233U);
  EXPECT_EQ(refused(), 0U);
  machine.write(at + 22, 0xffff'ffff, 4);  // across the end
  machine.write(at + 24, 0xff, 1);
  machine.write(at + 8, ~0ULL, 8);
  machine.write(at + 1, 0xffff, 2);
  machine.write(at + 4, 0xff'ffff, 3);
  EXPECT_EQ(refused(), 5U);
  EXPECT_EQ(driver->config(16, 8), 0U);
  EXPECT_EQ(driver->config(20, 8), 0U);  // reads beyond the end are 0
}

TEST_F(VirtioPci, generation_changes_with_what_the_driver_sees) {
  ASSERT_TRUE(driver->bring_up());
  const auto generation = [&] { return driver->get(VIRTIO_PCI_COMMON_CFGGENERATION, 1); };
  const uint64_t first = generation();
  EXPECT_EQ(generation(), first);
  const std::array<uint8_t, 8> value{1, 2, 3, 4, 5, 6, 7, 8};
  device->set_config(0, value);
  // The device has not said so yet: the driver still sees the old state, and whole.
  EXPECT_EQ(driver->config(0, 8), 0U);
  EXPECT_EQ(generation(), first);
  device->host->config_changed();
  EXPECT_EQ(driver->config(0, 4), 0x0403'0201U);
  EXPECT_NE(generation(), first);
}

TEST_F(VirtioPci, isr_is_cleared_by_reading) {
  ASSERT_TRUE(driver->bring_up());
  device->host->config_changed();
  EXPECT_EQ(driver->isr(), VIRTIO_PCI_ISR_CONFIG);
  EXPECT_EQ(driver->isr(), 0);
}

TEST_F(VirtioPci, pci_cfg_reaches_every_register) {
  driver->reset();
  const uint8_t cap = driver->pci_cfg_capability;
  const auto aim = [&](uint64_t offset, uint64_t length) {
    machine.config_write(1, cap + 4, 0, 1);
    machine.config_write(1, cap + 8, offset, 4);
    machine.config_write(1, cap + 12, length, 4);
  };
  aim(VIRTIO_PCI_COMMON_STATUS, 1);
  machine.config_write(1, cap + 16, VIRTIO_CONFIG_S_ACKNOWLEDGE, 1);
  EXPECT_EQ(driver->status(), VIRTIO_CONFIG_S_ACKNOWLEDGE);
  EXPECT_EQ(machine.config_read(1, cap + 16, 1), VIRTIO_CONFIG_S_ACKNOWLEDGE);
  aim(VIRTIO_PCI_COMMON_NUMQ, 2);
  EXPECT_EQ(machine.config_read(1, cap + 16, 2), 3U);
  aim(VirtioPciTransport::kMsixTableOffset + PCI_MSIX_ENTRY_DATA, 4);
  machine.config_write(1, cap + 16, 0xabcd, 4);
  EXPECT_EQ(machine.read(driver->vector_entry(0) + PCI_MSIX_ENTRY_DATA, 4), 0xabcdU);
}

TEST_F(VirtioPci, pci_cfg_ignores_accesses_that_are_not_valid) {
  driver->reset();
  const uint8_t cap = driver->pci_cfg_capability;
  struct Aim {
    uint64_t bar, offset, length;
  };
  const uint64_t status = VIRTIO_PCI_COMMON_STATUS;
  for (const Aim& aim : {Aim{0, status, 0}, Aim{0, status, 3}, Aim{0, status, 8},
                         Aim{0, status + 1, 2}, Aim{1, status, 1}, Aim{255, status, 1},
                         Aim{0, VirtioPciTransport::kBarSize, 1}, Aim{0, 0xffff'fffc, 4}}) {
    machine.config_write(1, cap + 4, aim.bar, 1);
    machine.config_write(1, cap + 8, aim.offset, 4);
    machine.config_write(1, cap + 12, aim.length, 4);
    const uint64_t before = transport->pci_counters().accesses_refused;
    machine.config_write(1, cap + 16, VIRTIO_CONFIG_S_ACKNOWLEDGE, 4);
    (void)machine.config_read(1, cap + 16, 4);
    EXPECT_EQ(transport->pci_counters().accesses_refused, before + 1);
  }
  EXPECT_EQ(driver->status(), 0);
}

}  // namespace
}  // namespace lethe
