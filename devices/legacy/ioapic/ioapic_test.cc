#include "devices/legacy/ioapic/ioapic.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace lethe {
namespace {

struct FakeRoute final : MsiRoute {
  void signal() override { ++signals; }
  void set_message(const MsiMessage& to) override { message = to; }
  int signals = 0;
  MsiMessage message;
};

struct FakeController final : MsiController {
  Result<std::unique_ptr<MsiRoute>> make_route() override {
    auto route = std::make_unique<FakeRoute>();
    routes.push_back(route.get());
    return Result<std::unique_ptr<MsiRoute>>(std::move(route));
  }
  std::vector<FakeRoute*> routes;
};

class IoapicTest : public ::testing::Test {
 protected:
  void access(uint64_t offset, uint32_t value) {
    uint8_t bytes[4];
    std::memcpy(bytes, &value, sizeof bytes);
    ioapic.bus_write(offset, bytes);
  }
  void write(uint8_t index, uint32_t value) {
    access(0, index);
    access(0x10, value);
  }
  uint32_t read(uint8_t index) {
    access(0, index);
    uint8_t bytes[4];
    ioapic.bus_read(0x10, bytes);
    uint32_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }

  FakeController controller;
  Ioapic ioapic{controller};
  std::unique_ptr<Interrupt> line = std::move(*ioapic.make_line(4));
};

TEST_F(IoapicTest, says_its_version_and_pins_and_starts_with_every_pin_masked) {
  EXPECT_EQ(read(1), 0x170011U);
  for (uint8_t pin = 0; pin < kIoapicPins; ++pin)
    EXPECT_EQ(read(static_cast<uint8_t>(0x10 + 2 * pin)), 0x10000U);
  EXPECT_EQ(read(0x40), UINT32_MAX) << "past the table";
}

TEST_F(IoapicTest, an_entry_becomes_its_message) {
  write(0x19, 0x0300'0000);  // destination 3
  write(0x18, 0x0931);       // vector 0x31, lowest priority, logical
  EXPECT_EQ(controller.routes[0]->message, (MsiMessage{.address = 0xFEE0'3004, .data = 0x131}));
  line->signal();
  EXPECT_EQ(controller.routes[0]->signals, 1);
}

TEST_F(IoapicTest, keeps_an_edge_while_masked_and_delivers_it_once) {
  line->signal();
  line->signal();
  EXPECT_EQ(controller.routes[0]->signals, 0);
  write(0x18, 0x31);
  EXPECT_EQ(controller.routes[0]->signals, 1);
  write(0x18, 0x10031);
  write(0x18, 0x31);
  EXPECT_EQ(controller.routes[0]->signals, 1) << "nothing new was pending";
}

TEST_F(IoapicTest, read_only_bits_stay_and_reserved_bits_read_zero) {
  write(0x18, 0xFFFF'FFFF);
  EXPECT_EQ(read(0x18), 0x1AFFFU);
  write(0x19, 0xFFFF'FFFF);
  EXPECT_EQ(read(0x19), 0xFF00'0000U);
  write(0, 0xFFFF'FFFF);
  EXPECT_EQ(read(0), 0x0F00'0000U);
}

TEST_F(IoapicTest, pins_without_a_device_keep_their_entry_and_do_nothing_else) {
  write(0x10, 0x20);
  EXPECT_EQ(read(0x10), 0x20U);
  EXPECT_EQ(controller.routes.size(), 1U);
}

TEST_F(IoapicTest, odd_sizes_and_offsets_are_harmless) {
  uint8_t bytes[8] = {0x31, 0, 0, 0, 0x55, 0x55, 0x55, 0x55};
  for (uint64_t offset = 0; offset < kIoapicSize; ++offset)
    for (size_t size = 1; size <= 8; ++size) {
      ioapic.bus_write(offset, {bytes, size});
      ioapic.bus_read(offset, {bytes, size});
    }
  EXPECT_EQ(read(0x18), 0x10000U);
}

}  // namespace
}  // namespace lethe
