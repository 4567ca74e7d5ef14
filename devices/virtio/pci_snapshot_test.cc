// A transport that freezes, and one that goes on in another machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/fake_pci_test.h"

namespace lethe {
namespace {

using testing::HasSubstr;
constexpr uint8_t kSlot = 1;

std::vector<uint8_t> saved(PciBus& bus) {
  StateWriter to;
  bus.save(to);
  return to.take();
}

// The machine that a snapshot is restored in: as the first one was built, with its memory.
struct Restored {
  explicit Restored(const FakeMachine* memory_of = nullptr) {
    auto made = std::make_unique<FakeVirtioDevice>();
    device = made.get();
    auto created = VirtioPciTransport::create(machine.pci->environment(), std::move(made));
    EXPECT_TRUE(created);
    transport = created->get();
    EXPECT_EQ(machine.pci->add_device(std::move(*created)).value(), kSlot);
    if (memory_of == nullptr) return;
    const auto from = memory_of->memory->slice(GuestAddr{0}, FakeMachine::kMemory);
    EXPECT_TRUE(machine.memory->write(GuestAddr{0}, {from->data, from->size}));
  }
  Result<> restore(std::span<const uint8_t> state) {
    StateReader from(state);
    auto restored = machine.pci->restore(from);
    if (restored) driver.emplace(machine, kSlot);
    return restored;
  }
  FakeMachine machine;
  FakeVirtioDevice* device = nullptr;
  VirtioPciTransport* transport = nullptr;
  std::optional<FakePciDriver> driver;
};

class PciSnapshotTest : public FakePciTest {
 protected:
  // A chain of queue 0 that the driver has made available, by hand.
  void make_available(uint16_t count) {
    const QueueLayout layout = driver->default_layout(0);
    for (uint16_t i = 0; i < count; ++i, ++available) {
      const vring_desc desc{.addr = 0x8000, .len = 16, .flags = VRING_DESC_F_WRITE, .next = 0};
      EXPECT_TRUE(machine.memory->store(GuestAddr{layout.desc.value + available * 16}, desc));
      EXPECT_TRUE(
          machine.memory->store(GuestAddr{layout.driver.value + 4 + available * 2}, available));
    }
    EXPECT_TRUE(machine.memory->store(GuestAddr{layout.driver.value + 2}, available));
  }
  static uint16_t used_index(const FakeMachine& in, const QueueLayout& layout) {
    return *in.memory->load<uint16_t>(GuestAddr{layout.device.value + 2});
  }
  std::vector<uint8_t> freeze_and_save() {
    transport->freeze();
    return saved(*machine.pci);
  }
  uint16_t available = 0;
};

TEST_F(PciSnapshotTest, a_frozen_device_has_no_queues_and_gets_them_back_where_they_were) {
  ASSERT_TRUE(driver->bring_up());
  make_available(3);
  auto chain = device->queues[0]->pop();
  chain->complete(16);
  // The device outlives this test, and lets go of it in its last reset.
  const auto held = std::make_shared<std::optional<Chain>>(device->queues[0]->pop());
  device->on_reset = [held] { held->reset(); };
  const auto bound = machine.doorbells.bound();
  const uint64_t sent = machine.msi.delivered(FakePciDriver::message(1));

  transport->freeze();
  EXPECT_TRUE(device->queues.empty());
  EXPECT_NE(device->host, nullptr) << "not a reset";
  EXPECT_EQ(device->resets, 0);
  EXPECT_EQ(driver->status(), kLive);
  driver->notify(0);  // is not lost
  transport->thaw();
  EXPECT_EQ(device->queues.size(), 3U);
  EXPECT_EQ(machine.doorbells.bound(), bound);
  EXPECT_EQ(device->kicks[0]->take(), 1U);
  EXPECT_GT(machine.msi.delivered(FakePciDriver::message(1)), sent) << "none may be lost";
  EXPECT_EQ(used_index(machine, driver->default_layout(0)), 1);
  for (const int head : {1, 2}) {
    auto next = device->queues[0]->pop();
    ASSERT_TRUE(next.has_value());
    EXPECT_EQ(next->head(), head);
    next->complete(0);
  }
  EXPECT_FALSE(device->queues[0]->pop().has_value());
}

TEST_F(PciSnapshotTest, a_frozen_device_can_be_frozen_and_saved_once_more) {
  ASSERT_TRUE(driver->bring_up());
  make_available(2);
  const auto state = freeze_and_save();
  EXPECT_EQ(freeze_and_save(), state);
  EXPECT_TRUE(device->queues.empty());
  transport->thaw();
  EXPECT_EQ(device->queues.size(), 3U);
  for (const int head : {0, 1}) {
    auto next = device->queues[0]->pop();
    ASSERT_TRUE(next.has_value());
    EXPECT_EQ(next->head(), head);
    next->complete(0);
  }
}

TEST_F(PciSnapshotTest, a_device_without_a_driver_freezes_and_is_restored) {
  const auto state = freeze_and_save();
  Restored other;
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.device->host, nullptr);
  EXPECT_TRUE(other.driver->bring_up());
  transport->thaw();
  EXPECT_TRUE(driver->bring_up());
}

TEST_F(PciSnapshotTest, every_register_reads_as_before_in_the_restored_machine) {
  ASSERT_TRUE(driver->bring_up());
  driver->set(VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
  driver->set(VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
  machine.config_write(kSlot, PCI_BASE_ADDRESS_0, 0xD000'0000, 4);
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  std::vector<uint64_t> before;
  const auto read_all = [](FakePciDriver& by, std::vector<uint64_t>& into) {
    for (uint16_t queue = 0; queue < 4; ++queue) {
      by.set(VIRTIO_PCI_COMMON_Q_SELECT, queue, 2);
      for (uint64_t at = 0; at < VirtioPciTransport::kCommonSize; ++at)
        if (at != VIRTIO_PCI_COMMON_CFGGENERATION) into.push_back(by.get(at, 1));
    }
    for (uint16_t i = 0; i < by.vectors; ++i)
      for (uint64_t at = 0; at < 16; ++at) into.push_back(by.vector_entry(i) + at);
  };
  const auto state = freeze_and_save();
  read_all(*driver, before);
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.driver->get(VIRTIO_PCI_COMMON_Q_SELECT, 2), 1U);
  std::vector<uint64_t> after;
  read_all(*other.driver, after);
  EXPECT_EQ(before, after);
  EXPECT_EQ(other.device->features, device->features);
  EXPECT_EQ(other.device->queues.size(), 3U);
  EXPECT_EQ(other.machine.doorbells.bound(), machine.doorbells.bound());
  EXPECT_EQ(other.driver->bar(), 0xD000'0000U);
}

TEST_F(PciSnapshotTest, a_driver_that_compares_generations_reads_again) {
  ASSERT_TRUE(driver->bring_up());
  const uint64_t generation = driver->get(VIRTIO_PCI_COMMON_CFGGENERATION, 1);
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_NE(other.driver->get(VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
}

TEST_F(PciSnapshotTest, the_queues_of_another_machine_go_on_where_they_stopped) {
  ASSERT_TRUE(driver->bring_up());
  make_available(4);
  device->queues[0]->pop()->complete(16);
  const auto held = std::make_shared<std::optional<Chain>>(device->queues[0]->pop());
  device->queues[0]->pop()->complete(16);  // out of order
  device->on_reset = [held] { held->reset(); };
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  Queue& queue = *other.device->queues[0];
  const QueueLayout layout = driver->default_layout(0);
  EXPECT_EQ(used_index(other.machine, layout), 2);
  for (const int head : {1, 3}) {
    auto chain = queue.pop();
    ASSERT_TRUE(chain.has_value()) << queue.broken_reason();
    EXPECT_EQ(chain->head(), head);
    chain->complete(16);
  }
  EXPECT_FALSE(queue.pop().has_value());
  EXPECT_EQ(used_index(other.machine, layout), 4);
}

TEST_F(PciSnapshotTest, every_queue_and_the_configuration_interrupt_once_after_a_restore) {
  ASSERT_TRUE(driver->bring_up());
  driver->mask_vector(2, true);
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  for (const uint16_t vector : {uint16_t{0}, uint16_t{1}, uint16_t{3}})
    EXPECT_GE(other.machine.msi.delivered(FakePciDriver::message(vector)), 1U) << vector;
  EXPECT_EQ(other.machine.msi.delivered(FakePciDriver::message(2)), 0U) << "it is masked";
  other.driver->mask_vector(2, false);
  EXPECT_EQ(other.machine.msi.delivered(FakePciDriver::message(2)), 1U) << "it was pending";
  EXPECT_EQ(other.driver->isr() & VIRTIO_PCI_ISR_CONFIG, VIRTIO_PCI_ISR_CONFIG);
}

TEST_F(PciSnapshotTest, a_device_that_needs_a_reset_still_does) {
  ASSERT_TRUE(driver->bring_up());
  make_available(1);
  EXPECT_TRUE(
      machine.memory->store(GuestAddr{driver->default_layout(0).driver.value + 4}, uint16_t{9999}));
  EXPECT_FALSE(device->queues[0]->pop().has_value());
  device->host->needs_reset("a test");
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.driver->status(), kLive | VIRTIO_CONFIG_S_NEEDS_RESET);
  EXPECT_TRUE(other.device->queues[0]->broken());
  EXPECT_TRUE(other.driver->bring_up());
  EXPECT_FALSE(other.device->queues[0]->broken());
  transport->thaw();
  EXPECT_TRUE(device->queues[0]->broken());
}

TEST_F(PciSnapshotTest, a_queue_that_was_reset_is_not_there_afterwards_and_can_come_back) {
  ASSERT_TRUE(driver->bring_up());
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.device->queues.size(), 2U);
  EXPECT_FALSE(other.transport->queue_live(1));
  other.driver->set_up_queue(1);
  EXPECT_TRUE(other.transport->queue_live(1));
}

TEST_F(PciSnapshotTest, a_driver_half_way_through_its_steps_goes_on) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(driver->device_features()));
  driver->enable_msix();
  driver->set_up_queue(0);
  const auto state = freeze_and_save();
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.device->host, nullptr);
  EXPECT_FALSE(other.transport->queue_live(0));
  other.driver->set_up_queue(1);
  other.driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  EXPECT_TRUE(other.transport->queue_live(0));
  EXPECT_TRUE(other.transport->queue_live(1));
  EXPECT_FALSE(other.transport->queue_live(2));
}

TEST_F(PciSnapshotTest, a_device_that_can_not_be_saved_says_why_and_goes_on) {
  ASSERT_TRUE(driver->bring_up());
  device->cannot_save = "it is not the time";
  machine.pci->freeze();
  const auto possible = machine.pci->can_save();
  ASSERT_FALSE(possible);
  EXPECT_EQ(possible.error().text, "it is not the time");
  device->cannot_save = nullptr;
  EXPECT_TRUE(machine.pci->can_save());
  machine.pci->thaw();
  EXPECT_EQ(device->queues.size(), 3U);
}

TEST_F(PciSnapshotTest, features_that_are_not_on_offer_are_refused) {
  ASSERT_TRUE(driver->bring_up());
  const auto state = freeze_and_save();
  Restored other(&machine);
  other.device->features_offered = 0b010'0000;
  const auto restored = other.restore(state);
  ASSERT_FALSE(restored);
  EXPECT_THAT(restored.error().text, HasSubstr("not on offer"));
  EXPECT_EQ(other.device->host, nullptr);
}

TEST_F(PciSnapshotTest, rings_outside_memory_need_a_reset) {
  ASSERT_TRUE(driver->bring_up());
  auto state = freeze_and_save();
  const uint64_t place = driver->default_layout(1).desc.value;
  // SAFETY: an integer's bytes.
  const auto* const raw = reinterpret_cast<const uint8_t*>(&place);
  const auto at = std::search(state.begin(), state.end(), raw, raw + sizeof place);
  ASSERT_NE(at, state.end());
  at[5] = 0x40;
  Restored other(&machine);
  ASSERT_TRUE(other.restore(state));
  EXPECT_EQ(other.driver->status(), kLive | VIRTIO_CONFIG_S_NEEDS_RESET);
  EXPECT_EQ(other.device->queues.size(), 2U);
  EXPECT_TRUE(other.driver->bring_up());
}

TEST_F(PciSnapshotTest, every_truncation_is_refused) {
  ASSERT_TRUE(driver->bring_up());
  make_available(2);
  const auto held = std::make_shared<std::optional<Chain>>(device->queues[0]->pop());
  device->on_reset = [held] { held->reset(); };
  const auto state = freeze_and_save();
  for (size_t size = 0; size < state.size(); ++size) {
    Restored other;
    EXPECT_FALSE(other.restore(std::span(state).first(size))) << size;
  }
}

// Whatever the file says: an error, or a device that can be reset and brought up again.
TEST_F(PciSnapshotTest, any_flipped_bytes_are_an_error_or_do_no_harm) {
  ASSERT_TRUE(driver->bring_up());
  make_available(2);
  const auto held = std::make_shared<std::optional<Chain>>(device->queues[0]->pop());
  device->on_reset = [held] { held->reset(); };
  const auto state = freeze_and_save();
  std::mt19937 random(5);
  int restored = 0;
  for (int i = 0; i < 1500; ++i) {
    auto bytes = state;
    for (unsigned flips = 1 + random() % 3; flips > 0; --flips)
      bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1U << random() % 8);
    Restored other;
    if (!other.restore(bytes)) continue;
    ++restored;
    for (auto& [index, queue] : other.device->queues)
      while (auto chain = queue->pop()) chain->complete(0);
    other.machine.config_write(kSlot, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
    other.machine.config_write(kSlot, PCI_BASE_ADDRESS_0, 0xC000'0000, 4);
    ASSERT_TRUE(other.driver->bring_up());
  }
  EXPECT_GT(restored, 100) << "hardly anything got past the first check";
}

}  // namespace
}  // namespace lethe
