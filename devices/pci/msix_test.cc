#include "devices/pci/msix.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "devices/pci/fake_machine.h"

namespace lethe {
namespace {

constexpr MsiMessage kMessage{0x1'fee0'1000, 0x4031};

class MsixTest : public testing::Test {
 protected:
  MsixTest() : msix(std::move(*Msix::create(controller, 70))) {
    for (uint16_t vector = 0; vector < 2; ++vector) {
      put(vector, PCI_MSIX_ENTRY_LOWER_ADDR, static_cast<uint32_t>(kMessage.address));
      put(vector, PCI_MSIX_ENTRY_UPPER_ADDR, kMessage.address >> 32);
      put(vector, PCI_MSIX_ENTRY_DATA, kMessage.data + vector);
      mask(vector, false);
    }
  }
  void put(uint16_t vector, uint64_t field, uint64_t value) {
    std::array<uint8_t, 4> bytes;
    std::memcpy(bytes.data(), &value, 4);
    EXPECT_TRUE(msix->write_table(vector * 16 + field, bytes));
  }
  void mask(uint16_t vector, bool masked) {
    put(vector, PCI_MSIX_ENTRY_VECTOR_CTRL, masked ? 1 : 0);
  }
  [[nodiscard]] uint64_t pending() const {
    std::array<uint8_t, 8> bytes;
    msix->read_pba(0, bytes);
    uint64_t bits = 0;
    std::memcpy(&bits, bytes.data(), 8);
    return bits;
  }
  FakeMsiController controller;
  std::unique_ptr<Msix> msix;
};

TEST_F(MsixTest, sends_nothing_while_off) {
  msix->signal(0);
  EXPECT_EQ(controller.delivered(), 0U);
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  EXPECT_EQ(controller.delivered(), 0U);  // nor afterwards
  msix->signal(0);
  EXPECT_EQ(controller.delivered(kMessage), 1U);
  EXPECT_EQ(controller.delivered(), 1U);
}

TEST_F(MsixTest, keeps_a_masked_vector_pending_and_delivers_it_once_on_unmask) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  mask(1, true);
  msix->signal(1);
  msix->signal(1);
  msix->signal(0);
  EXPECT_EQ(pending(), 2U);
  EXPECT_EQ(controller.delivered(), 1U);
  mask(1, false);
  EXPECT_EQ(pending(), 0U);
  EXPECT_EQ(controller.delivered({kMessage.address, kMessage.data + 1}), 1U);
  mask(1, true);
  mask(1, false);
  EXPECT_EQ(controller.delivered(), 2U);
}

TEST_F(MsixTest, function_mask_holds_every_vector) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  mask(1, true);
  msix->signal(0);
  msix->signal(1);
  EXPECT_EQ(pending(), 3U);
  EXPECT_EQ(controller.delivered(), 0U);
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  EXPECT_EQ(pending(), 2U);  // vector 1 has its own mask as well
  EXPECT_EQ(controller.delivered(kMessage), 1U);
}

TEST_F(MsixTest, delivers_a_pending_vector_to_the_message_it_has_on_unmask) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  mask(0, true);
  msix->signal(0);
  put(0, PCI_MSIX_ENTRY_DATA, 0x99);
  mask(0, false);
  EXPECT_EQ(controller.delivered({kMessage.address, 0x99}), 1U);
  EXPECT_EQ(controller.delivered(), 1U);
}

TEST_F(MsixTest, tells_the_route_only_new_messages) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  EXPECT_EQ(controller.messages_set(), 2U);
  for (int i = 0; i < 5; ++i) {
    mask(0, true);
    mask(0, false);
  }
  EXPECT_EQ(controller.messages_set(), 2U);
}

TEST_F(MsixTest, forgets_what_is_pending_when_switched_off) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  msix->signal(0);
  msix->set_control(0);
  EXPECT_EQ(pending(), 0U);
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  EXPECT_EQ(controller.delivered(), 0U);
}

TEST_F(MsixTest, takes_aligned_dwords_and_qwords_only) {
  std::array<uint8_t, 8> bytes{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  for (uint64_t offset = 0; offset < 33; ++offset) {
    for (size_t size = 1; size <= 8; ++size) {
      if (size == 4 || size == 8)
        if (offset % size == 0) continue;
      EXPECT_FALSE(msix->write_table(offset, std::span(bytes).first(size)))
          << offset << "," << size;
    }
  }
  std::array<uint8_t, 16> entry;
  msix->read_table(0, entry);
  uint64_t address = 0;
  std::memcpy(&address, entry.data(), 8);
  EXPECT_EQ(address, kMessage.address);
  EXPECT_TRUE(msix->write_table(16, bytes));
  msix->read_table(16, entry);
  EXPECT_EQ(entry[0], 0xfc);  // a message is a dword: the low address bits stay 0
  EXPECT_FALSE(msix->write_table(msix->table_bytes(), bytes));
  EXPECT_FALSE(msix->write_table(msix->table_bytes() - 4, bytes));
}

TEST_F(MsixTest, reads_of_any_size_stay_within_the_table) {
  std::array<uint8_t, 8> bytes;
  for (uint64_t offset = 0; offset <= msix->table_bytes() + 4; ++offset)
    for (size_t size = 1; size <= 8; ++size) msix->read_table(offset, std::span(bytes).first(size));
  msix->read_table(msix->table_bytes() - 4, bytes);
  EXPECT_EQ(bytes[0], 1);  // the last vector's mask
  EXPECT_EQ(bytes[4], 0);  // beyond the end
  msix->read_pba(8, bytes);
  EXPECT_EQ(bytes[7], 0);
}

TEST_F(MsixTest, ignores_vectors_that_are_not_there) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  msix->signal(70);
  msix->signal(0xffff);
  EXPECT_EQ(controller.delivered(), 0U);
}

TEST_F(MsixTest, a_restored_table_keeps_masked_signals_and_sends_open_vectors_once) {
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  mask(1, true);
  msix->signal(1);
  StateWriter writer;
  msix->save(writer);
  const auto state = writer.take();

  FakeMsiController other_controller;
  const auto other = std::move(*Msix::create(other_controller, 70));
  StateReader reader(state);
  other->restore(reader, PCI_MSIX_FLAGS_ENABLE);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(other_controller.delivered(kMessage), 1U);  // a message may have been on its way
  EXPECT_EQ(other_controller.delivered(), 1U);
  std::array<uint8_t, 4> unmask{};
  EXPECT_TRUE(other->write_table(16 + PCI_MSIX_ENTRY_VECTOR_CTRL, unmask));
  EXPECT_EQ(other_controller.delivered({kMessage.address, kMessage.data + 1}), 1U);
}

TEST_F(MsixTest, a_restored_table_of_another_size_is_refused_whole) {
  StateWriter writer;
  msix->save(writer);
  const auto state = writer.take();
  FakeMsiController other_controller;
  const auto other = std::move(*Msix::create(other_controller, 69));
  StateReader reader(state);
  other->restore(reader, PCI_MSIX_FLAGS_ENABLE);
  EXPECT_FALSE(reader.ok());
  EXPECT_FALSE(other->enabled());
  EXPECT_EQ(other_controller.delivered(), 0U);
}

TEST(Msix, fails_when_no_route_is_left) {
  FakeMsiController controller;
  controller.limit_routes(2);
  EXPECT_FALSE(Msix::create(controller, 3));
}

// One signal a round, against a vCPU that masks and unmasks: each must arrive exactly once, and
// what the device wrote before it must be visible to whoever delivers it (TSan watches `written`).
class RoundController : public MsiController {
 public:
  Result<std::unique_ptr<MsiRoute>> make_route() override {
    struct Route final : MsiRoute {
      explicit Route(RoundController& to) : owner(to) {}
      void set_message(const MsiMessage&) override {}
      void signal() override {
        owner.arrived.fetch_add(1);
        owner.seen.store(owner.written);
      }
      RoundController& owner;
    };
    return std::make_unique<Route>(*this);
  }
  std::atomic<int> arrived{0};
  std::atomic<int> seen{0};
  int written = 0;  // by the device thread, before it signals
};

// Two threads meet here, as close in time as two cores allow.
class Meeting {
 public:
  void operator()(uint64_t round) {
    x_arrived.fetch_add(1);
    for (int spins = 0; x_arrived.load() < 2 * round; ++spins)
      if (spins > 1000) std::this_thread::yield();
  }

 private:
  std::atomic<uint64_t> x_arrived{0};
};

void race(void (*toggle)(Msix&, bool masked)) {
  RoundController controller;
  auto msix = std::move(*Msix::create(controller, 1));
  constexpr std::array<uint8_t, 4> kOpen{};
  ASSERT_TRUE(msix->write_table(PCI_MSIX_ENTRY_VECTOR_CTRL, kOpen));
  msix->set_control(PCI_MSIX_FLAGS_ENABLE);
  constexpr int kRounds = 10'000;
  Meeting start;
  Meeting end;
  std::thread device([&] {
    for (int round = 1; round <= kRounds; ++round) {
      start(round);
      // Another moment in each round.
      for (volatile int delay = round % 32; delay > 0;) delay = delay - 1;
      controller.written = round;
      msix->signal(0);
      end(round);
    }
  });
  int lost = 0;
  int doubled = 0;
  int invisible = 0;
  int arrived_before = 0;
  for (int round = 1; round <= kRounds; ++round) {
    toggle(*msix, true);
    start(round);
    for (volatile int delay = round / 32 % 32; delay > 0;) delay = delay - 1;
    toggle(*msix, false);  // one opening, which the signal must not miss; every other round, four
    for (int i = 0; i < 3 && round % 2 == 0; ++i) {
      toggle(*msix, true);
      toggle(*msix, false);
    }
    end(round);
    const int arrived = controller.arrived.load() - arrived_before;
    arrived_before += arrived;
    lost += arrived == 0 ? 1 : 0;
    doubled += arrived > 1 ? 1 : 0;
    invisible += arrived == 1 && controller.seen.load() != round ? 1 : 0;
  }
  device.join();
  EXPECT_EQ(lost, 0);
  EXPECT_EQ(doubled, 0);
  EXPECT_EQ(invisible, 0);
}

TEST(MsixRace, vector_mask_loses_and_doubles_no_signal) {
  race([](Msix& msix, bool masked) {
    const std::array<uint8_t, 4> control{static_cast<uint8_t>(masked ? 1 : 0)};
    ASSERT_TRUE(msix.write_table(PCI_MSIX_ENTRY_VECTOR_CTRL, control));
  });
}

TEST(MsixRace, function_mask_loses_and_doubles_no_signal) {
  race([](Msix& msix, bool masked) {
    msix.set_control(masked ? PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL
                            : PCI_MSIX_FLAGS_ENABLE);
  });
}

}  // namespace
}  // namespace lethe
