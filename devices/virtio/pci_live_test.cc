// Live queues: doorbells, BARs that move under them, queue reset, interrupts, and the device's own
// threads against the guest's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/fake_pci_test.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint8_t kNeedsReset = VIRTIO_CONFIG_S_NEEDS_RESET;
constexpr std::chrono::seconds kPatience{10};

class VirtioPciLive : public FakePciTest {
 protected:
  [[nodiscard]] uint64_t notify_at() const { return driver->bar() + driver->notifications; }
  [[nodiscard]] uint64_t interrupts(uint16_t vector) const {
    return machine.msi.delivered(FakePciDriver::message(vector));
  }
};

TEST_F(VirtioPciLive, binds_doorbells_only_while_queues_are_live) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(driver->device_features()));
  for (uint16_t i = 0; i < 3; ++i) driver->set_up_queue(i);
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());  // not before DRIVER_OK
  driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  const uint64_t notify = notify_at();
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify, notify + 4, notify + 8));
  driver->notify(1);
  EXPECT_EQ(device->kicks[1]->take(), 1U);
  EXPECT_EQ(device->kicks[0]->take(), 0U);
  driver->reset();
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
}

TEST_F(VirtioPciLive, kicks_do_nothing_while_not_driver_ok) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(driver->device_features()));
  for (uint16_t i = 0; i < 3; ++i) driver->set_up_queue(i);
  driver->notify(0);
  EXPECT_EQ(transport->counters().registers_refused, 1U);
  driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  EXPECT_EQ(device->kicks[0]->take(), 0U);
}

TEST_F(VirtioPciLive, kicks_arrive_by_exit_where_no_ioeventfd_could_be_bound) {
  machine.doorbells.fail_next(1);
  ASSERT_TRUE(driver->bring_up());
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify_at() + 4, notify_at() + 8));
  for (size_t size = 1; size <= 8; ++size) {
    machine.write(notify_at(), 0, size);
    EXPECT_EQ(device->kicks[0]->take(), 1U) << size;
  }
  EXPECT_EQ(transport->counters().kicks_by_exit, 8U);
  machine.write(notify_at() + 2, 0, 2);   // between two doorbells
  machine.write(notify_at() + 12, 0, 2);  // beyond the last
  machine.write(notify_at() + 0xff8, 0, 8);
  EXPECT_EQ(transport->counters().kicks_by_exit, 8U);
  EXPECT_EQ(transport->counters().registers_refused, 3U);
}

TEST_F(VirtioPciLive, a_queue_that_serves_its_kicks_has_done_so_when_the_driver_goes_on) {
  device->served_queue = 1;
  std::vector<uint16_t> served;
  device->on_kicked = [&](uint16_t index) { served.push_back(index); };
  ASSERT_TRUE(driver->bring_up());
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify_at(), notify_at() + 8));
  machine.write(notify_at() + 4, 1, 2);
  EXPECT_THAT(served, ElementsAre(1));
  EXPECT_EQ(device->kicks[1]->take(), 0U);
  machine.write(notify_at() + 4, 1, 4);
  EXPECT_THAT(served, ElementsAre(1, 1));
  driver->reset();
  machine.write(notify_at() + 4, 1, 2);  // no longer live
  EXPECT_THAT(served, ElementsAre(1, 1));
}

TEST_F(VirtioPciLive, doorbells_follow_a_bar_that_moves) {
  ASSERT_TRUE(driver->bring_up());
  machine.config_write(1, PCI_BASE_ADDRESS_0, 0xD000'0000, 4);
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(0xD000'3000, 0xD000'3004, 0xD000'3008));
  driver->notify(2);
  EXPECT_EQ(device->kicks[2]->take(), 1U);
  machine.config_write(1, PCI_COMMAND, 0, 2);
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
  machine.config_write(1, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  EXPECT_EQ(machine.doorbells.bound().size(), 3U);
  machine.config_write(1, PCI_BASE_ADDRESS_0, 0x0010'0000, 4);  // over RAM
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
  EXPECT_TRUE(transport->queue_live(0));
  machine.config_write(1, PCI_BASE_ADDRESS_0, 0xC000'0000, 4);
  EXPECT_EQ(machine.doorbells.bound().size(), 3U);
  EXPECT_EQ(driver->status(), kLive);
}

TEST_F(VirtioPciLive, a_ring_outside_memory_needs_reset_and_nothing_starts) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(driver->device_features()));
  driver->enable_msix();
  driver->set_up_queue(0);
  QueueLayout bad = driver->default_layout(1);
  bad.desc.value = FakeMachine::kMemory - 16;
  driver->set_up_queue(1, bad);
  driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  EXPECT_EQ(driver->status(), kLive | kNeedsReset);
  EXPECT_EQ(interrupts(0), 1U);  // the driver is told (2.1.2)
  EXPECT_EQ(device->host, nullptr);
  EXPECT_FALSE(transport->queue_live(0));
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
  EXPECT_TRUE(driver->bring_up());
  EXPECT_EQ(driver->status(), kLive);
}

TEST_F(VirtioPciLive, queue_reset_stops_one_queue_and_it_comes_back) {
  ASSERT_TRUE(driver->bring_up());
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_RESET, 2), 0U);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0U);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_SIZE, 2), 64U);
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_DESCLO, 4), 0U);
  EXPECT_FALSE(transport->queue_live(1));
  EXPECT_FALSE(device->queues.contains(1));
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify_at(), notify_at() + 8));
  driver->notify(1);  // to no one
  QueueLayout layout = driver->default_layout(1);
  layout.size = 8;
  driver->set_up_queue(1, layout);
  EXPECT_EQ(device->queues[1]->size(), 8);
  EXPECT_EQ(machine.doorbells.bound().size(), 3U);
  EXPECT_EQ(device->kicks[1]->take(), 0U);
  EXPECT_EQ(driver->status(), kLive);
}

TEST_F(VirtioPciLive, a_bad_ring_at_reenable_needs_reset) {
  ASSERT_TRUE(driver->bring_up());
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
  QueueLayout bad = driver->default_layout(1);
  bad.device.value += 2;  // misaligned
  driver->set_up_queue(1, bad);
  EXPECT_EQ(driver->status(), kLive | kNeedsReset);
  EXPECT_FALSE(transport->queue_live(1));
  EXPECT_TRUE(transport->queue_live(0));
  EXPECT_EQ(interrupts(0), 1U);
}

TEST_F(VirtioPciLive, queue_reset_needs_its_feature) {
  ASSERT_TRUE(driver->bring_up(~(uint64_t{1} << VIRTIO_F_RING_RESET)));
  driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 1, 2);
  driver->set(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
  EXPECT_TRUE(transport->queue_live(1));
  EXPECT_EQ(driver->get(VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1U);
  EXPECT_EQ(transport->counters().registers_refused, 1U);
}

TEST_F(VirtioPciLive, a_queue_enabled_late_starts_at_once) {
  driver->reset();
  ASSERT_TRUE(driver->negotiate(driver->device_features()));
  driver->set_up_queue(0);
  driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
  EXPECT_FALSE(transport->queue_live(2));
  driver->set_up_queue(2);
  EXPECT_TRUE(transport->queue_live(2));
  EXPECT_THAT(machine.doorbells.bound(), ElementsAre(notify_at(), notify_at() + 8));
}

TEST_F(VirtioPciLive, needs_reset_interrupts_a_live_driver_once) {
  ASSERT_TRUE(driver->bring_up());
  device->host->needs_reset("test");
  device->host->needs_reset("test");
  EXPECT_EQ(driver->status(), kLive | kNeedsReset);
  EXPECT_EQ(interrupts(0), 1U);
  EXPECT_EQ(driver->isr(), VIRTIO_PCI_ISR_CONFIG);
  EXPECT_EQ(transport->counters().needs_resets, 1U);
}

TEST_F(VirtioPciLive, a_device_may_need_reset_while_it_starts) {
  device->on_start = [](VirtioHost& host) { host.needs_reset("nothing behind it"); };
  ASSERT_TRUE(driver->bring_up());
  EXPECT_EQ(driver->status(), kLive | kNeedsReset);
  EXPECT_EQ(interrupts(0), 1U);
}

TEST_F(VirtioPciLive, configuration_changes_interrupt_by_their_vector) {
  ASSERT_TRUE(driver->bring_up());
  device->host->config_changed();
  EXPECT_EQ(interrupts(0), 1U);
  driver->set(VIRTIO_PCI_COMMON_MSIX, VIRTIO_MSI_NO_VECTOR, 2);
  device->host->config_changed();
  EXPECT_EQ(machine.msi.delivered(), 1U);
}

TEST_F(VirtioPciLive, destruction_resets_a_running_device_and_frees_its_doorbells) {
  ASSERT_TRUE(driver->bring_up());
  bool reset = false;
  device->on_reset = [&] { reset = true; };
  machine.pci.reset();
  EXPECT_TRUE(reset);
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
}

// A whole request: rings by FakeDriver, one descriptor, used, interrupt on the queue's vector.
class VirtioPciRequest : public VirtioPciLive {
 protected:
  VirtioPciRequest() : heap(*machine.memory, GuestAddr{8 * kMiB}, 8 * kMiB), ring(heap, 64, 0) {
    driver->reset();
    EXPECT_TRUE(driver->negotiate(uint64_t{1} << VIRTIO_F_VERSION_1));
    driver->enable_msix();
    driver->set_up_queue(1, ring.layout());
    driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    EXPECT_EQ(driver->status(), kLive);
  }
  void make_available() {
    const FakeBuffer buffer{.address = heap.alloc(16), .size = 16, .writable = true};
    EXPECT_TRUE(ring.add({&buffer, 1}));
  }
  // The device's side; on its thread if it has one.
  void complete_one() {
    Queue& queue = *device->queues[1];
    if (auto chain = queue.pop()) chain->complete(4);
    queue.interrupt_if_needed();
  }
  GuestHeap heap;
  FakeDriver ring;
};

TEST_F(VirtioPciRequest, a_completed_chain_interrupts_on_its_queues_vector) {
  make_available();
  driver->notify(1);
  EXPECT_EQ(device->kicks[1]->take(), 1U);
  complete_one();
  EXPECT_EQ(interrupts(2), 1U);  // vector 1 + queue 1
  EXPECT_EQ(machine.msi.delivered(), 1U);
  const auto used = ring.poll_used();
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 4U);
  EXPECT_EQ(driver->isr(), 0);  // with MSI-X, queues do not show in the ISR (4.1.4.5.1)
}

TEST_F(VirtioPciRequest, without_msix_a_completed_chain_shows_in_the_isr) {
  driver->set_msix_control(0);
  make_available();
  complete_one();
  EXPECT_EQ(driver->isr(), 1);
  EXPECT_EQ(machine.msi.delivered(), 0U);
}

TEST_F(VirtioPciRequest, a_masked_vector_stays_pending_in_the_pba) {
  driver->mask_vector(2, true);
  make_available();
  complete_one();
  EXPECT_EQ(machine.read(driver->bar() + driver->msix_pba, 8), 1U << 2);
  EXPECT_EQ(interrupts(2), 0U);
  driver->mask_vector(2, false);
  EXPECT_EQ(machine.read(driver->bar() + driver->msix_pba, 8), 0U);
  EXPECT_EQ(interrupts(2), 1U);
}

// Runs `guest` as a vCPU would, and fails the test, loudly, if it does not come back in time.
void run_with_deadline(const std::function<void()>& guest) {
  auto done = std::async(std::launch::async, guest);
  if (done.wait_for(kPatience) == std::future_status::ready) return;
  fprintf(stderr, "deadlock: the guest's access did not end within 10 s\n");
  abort();  // the thread can't be joined, so neither can the test end
}

// The argument at the top of pci_transport.h, tried: while a vCPU waits in the device's reset with
// the transport's lock held, the device's thread says all it can say.
TEST_F(VirtioPciRequest, the_devices_thread_gets_on_while_a_vcpu_waits_in_reset) {
  make_available();
  int calls = 0;
  device->on_reset = [&] {
    std::thread io([&] {
      complete_one();
      device->host->config_changed();
      device->host->needs_reset("in reset");
      ++calls;
    });
    io.join();
  };
  run_with_deadline([&] { driver->set(VIRTIO_PCI_COMMON_STATUS, 0, 1); });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(interrupts(2), 1U);
  EXPECT_EQ(driver->status(), 0);  // NEEDS_RESET did not survive the reset
}

TEST_F(VirtioPciRequest, the_devices_thread_gets_on_while_a_vcpu_waits_in_queue_reset) {
  run_with_deadline([&] {
    driver->reset();
    EXPECT_TRUE(driver->negotiate(driver->device_features()));
    driver->set_up_queue(0);
    driver->add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    device->on_reset = [&] { std::thread([&] { device->host->needs_reset("x"); }).join(); };
    driver->set(VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
    driver->set(VIRTIO_PCI_COMMON_Q_RESET, 1, 2);
  });
  EXPECT_EQ(driver->status(), kLive | kNeedsReset);
  device->on_reset = nullptr;
}

// Configuration reads against a device that changes it: two halves of one state, by the generation.
TEST_F(VirtioPciLive, generation_guards_reads_in_parts_against_changes) {
  ASSERT_TRUE(driver->bring_up());
  std::atomic<bool> stop{false};
  std::thread changes([&] {
    for (uint32_t n = 1; !stop.load(); ++n) {
      std::array<uint8_t, 16> state;
      for (size_t i = 0; i < state.size(); i += 4) std::memcpy(&state[i], &n, 4);
      device->set_config(0, state);
      device->host->config_changed();
    }
  });
  int torn = 0;
  int read_whole = 0;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (read_whole < 300 && std::chrono::steady_clock::now() < deadline) {
    const uint64_t before = driver->get(VIRTIO_PCI_COMMON_CFGGENERATION, 1);
    const uint64_t first = driver->config(0, 4);
    const uint64_t second = driver->config(12, 4);
    if (driver->get(VIRTIO_PCI_COMMON_CFGGENERATION, 1) != before) continue;
    ++read_whole;
    torn += first != second ? 1 : 0;
  }
  stop = true;
  changes.join();
  EXPECT_GT(read_whole, 0);
  EXPECT_EQ(torn, 0);
}

// Several vCPUs at the registers, one moving the BAR, while the device's thread interrupts.
TEST_F(VirtioPciLive, survives_vcpus_and_the_devices_thread_at_once) {
  ASSERT_TRUE(driver->bring_up());
  VirtioHost& host = *device->host;
  std::atomic<bool> stop{false};
  std::thread io([&] {
    while (!stop.load()) {
      host.config_changed();
      std::this_thread::yield();
    }
  });
  std::thread mover([&] {
    for (uint64_t i = 0; i < 100; ++i)
      machine.config_write(1, PCI_BASE_ADDRESS_0, i % 2 == 0 ? 0xD000'0000 : 0xC000'0000, 4);
  });
  std::thread masker([&] {
    for (int i = 0; i < 300; ++i) {
      driver->mask_vector(0, i % 2 == 0);
      (void)driver->isr();
      driver->notify(1);
    }
  });
  for (int i = 0; i < 300; ++i) (void)driver->get(0, 8);
  mover.join();
  masker.join();
  stop = true;
  io.join();
  EXPECT_EQ(driver->bar(), 0xC000'0000U);
  EXPECT_THAT(machine.doorbells.bound(),
              ElementsAre(notify_at(), notify_at() + 4, notify_at() + 8));
  driver->reset();
  EXPECT_THAT(machine.doorbells.bound(), IsEmpty());
}

}  // namespace
}  // namespace lethe
