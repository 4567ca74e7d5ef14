#include "devices/bus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace lethe {
namespace {

// Remembers accesses; reads give the device's own byte.
class Recorder : public BusDevice {
 public:
  explicit Recorder(uint8_t byte = 0x11) : x_byte(byte) {}
  void bus_read(uint64_t offset, std::span<uint8_t> data) override {
    calls.push_back({'r', offset, data.size()});
    std::fill(data.begin(), data.end(), x_byte);
    if (on_access) on_access();
  }
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override {
    calls.push_back({'w', offset, data.size()});
    written.assign(data.begin(), data.end());
    if (on_access) on_access();
  }
  struct Call {
    char kind;
    uint64_t offset;
    size_t size;
    friend bool operator==(const Call&, const Call&) = default;
  };
  std::vector<Call> calls;
  std::vector<uint8_t> written;
  std::function<void()> on_access;

 private:
  uint8_t x_byte;
};

uint32_t read32(const Bus& bus, uint64_t address) {
  std::array<uint8_t, 4> data{};
  bus.read(address, data);
  return static_cast<uint32_t>(data[0]) | data[1] << 8 | data[2] << 16 |
         static_cast<uint32_t>(data[3]) << 24;
}

TEST(Bus, access_reaches_its_device_with_an_offset_from_the_ranges_start) {
  Bus bus("test");
  Recorder low(0x11);
  Recorder high(0x22);
  ASSERT_TRUE(bus.add({0x2000, 0x10}, high).has_value());
  ASSERT_TRUE(bus.add({0x1000, 0x10}, low).has_value());
  EXPECT_EQ(read32(bus, 0x1004), 0x11111111U);
  const std::array<uint8_t, 2> out{7, 8};
  bus.write(0x200e, out);
  EXPECT_EQ(low.calls, std::vector<Recorder::Call>({{'r', 4, 4}}));
  EXPECT_EQ(high.calls, std::vector<Recorder::Call>({{'w', 14, 2}}));
  EXPECT_EQ(high.written, std::vector<uint8_t>({7, 8}));
  EXPECT_EQ(bus.unclaimed(), 0U);
}

TEST(Bus, unclaimed_access_reads_ones_writes_nothing_and_is_counted) {
  Bus bus("test");
  Recorder device;
  ASSERT_TRUE(bus.add({0x1000, 0x10}, device).has_value());
  for (const uint64_t address : {uint64_t{0}, uint64_t{0xfff}, uint64_t{0x1010}, UINT64_MAX}) {
    EXPECT_EQ(read32(bus, address), 0xffffffffU) << address;
    bus.write(address, std::array<uint8_t, 1>{1});
  }
  // 0xfff and 0x1010 are just outside; the read at 0xfff also crosses into the device.
  EXPECT_TRUE(device.calls.empty());
  EXPECT_EQ(bus.unclaimed(), 8U);
}

TEST(Bus, access_that_crosses_a_ranges_end_reaches_nobody) {
  Bus bus("test");
  Recorder device;
  Recorder neighbour;
  ASSERT_TRUE(bus.add({0x1000, 0x10}, device).has_value());
  ASSERT_TRUE(bus.add({0x1010, 0x10}, neighbour).has_value());
  EXPECT_EQ(read32(bus, 0x100e), 0xffffffffU);
  EXPECT_TRUE(device.calls.empty() && neighbour.calls.empty());
  EXPECT_EQ(bus.unclaimed(), 1U);
  EXPECT_EQ(read32(bus, 0x100c), 0x11111111U) << "up to the end is inside";
}

TEST(Bus, overlapping_range_is_refused_and_both_are_named) {
  Bus bus("mmio");
  Recorder device;
  ASSERT_TRUE(bus.add({0x1000, 0x100}, device).has_value());
  for (const BusRange range : {BusRange{0x1000, 0x100}, BusRange{0xfff, 2}, BusRange{0x10ff, 1},
                               BusRange{0x1080, 1}, BusRange{0, 0x10000}}) {
    const auto result = bus.add(range, device);
    ASSERT_FALSE(result.has_value()) << range.start;
    EXPECT_NE(result.error().text.find("mmio"), std::string::npos) << result.error().text;
    EXPECT_NE(result.error().text.find("0x1000-0x10ff"), std::string::npos) << result.error().text;
  }
  EXPECT_TRUE(bus.add({0xfff, 1}, device).has_value());
  EXPECT_TRUE(bus.add({0x1100, 1}, device).has_value());
}

TEST(Bus, empty_and_wrapping_ranges_are_refused) {
  Bus bus("test");
  Recorder device;
  EXPECT_FALSE(bus.add({0x1000, 0}, device).has_value());
  EXPECT_FALSE(bus.add({UINT64_MAX, 2}, device).has_value());
  EXPECT_FALSE(bus.add({0x1000, UINT64_MAX}, device).has_value());
}

TEST(Bus, last_address_of_the_space_works) {
  Bus bus("test");
  Recorder device;
  ASSERT_TRUE(bus.add({UINT64_MAX - 3, 4}, device).has_value());
  EXPECT_FALSE(bus.add({UINT64_MAX, 1}, device).has_value());
  EXPECT_EQ(read32(bus, UINT64_MAX - 3), 0x11111111U);
  EXPECT_EQ(read32(bus, UINT64_MAX), 0xffffffffU) << "wraps past the end";
}

TEST(Bus, removed_range_is_unclaimed_and_can_be_taken_again) {
  Bus bus("test");
  Recorder first(0x11);
  Recorder second(0x22);
  ASSERT_TRUE(bus.add({0x1000, 4}, first).has_value());
  bus.remove(0x1000);
  EXPECT_EQ(read32(bus, 0x1000), 0xffffffffU);
  ASSERT_TRUE(bus.add({0x1000, 4}, second).has_value());
  EXPECT_EQ(read32(bus, 0x1000), 0x22222222U);
}

TEST(Bus, device_may_edit_the_bus_while_it_is_called) {
  // A BAR that a configuration write moves, many more times than the bus keeps old versions.
  Bus bus("test");
  Recorder device;
  uint64_t at = 0x1000;
  ASSERT_TRUE(bus.add({at, 4}, device).has_value());
  device.on_access = [&] {
    bus.remove(at);
    at += 0x1000;
    ASSERT_TRUE(bus.add({at, 4}, device).has_value());
  };
  for (int i = 0; i < 50; ++i) EXPECT_EQ(read32(bus, at), 0x11111111U);
}

// Answers with the byte it was made with, from any thread.
class Constant : public BusDevice {
 public:
  explicit Constant(uint8_t byte) : x_byte(byte) {}
  void bus_read(uint64_t, std::span<uint8_t> data) override {
    std::fill(data.begin(), data.end(), x_byte);
  }
  void bus_write(uint64_t, std::span<const uint8_t>) override {}

 private:
  const uint8_t x_byte;
};

TEST(Bus, dispatch_stays_right_on_many_threads_while_ranges_come_and_go) {
  Bus bus("test");
  Constant fixed(0x11);
  Constant moving(0x22);
  ASSERT_TRUE(bus.add({0x2000, 4}, fixed).has_value());
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> hits{0};
  std::vector<std::thread> vcpus;
  for (int i = 0; i < 2; ++i)
    vcpus.emplace_back([&] {
      while (!stop.load()) {
        if (read32(bus, 0x2000) != 0x11111111U) ++wrong;
        const uint32_t value = read32(bus, 0x1000);
        if (value == 0x22222222U)
          ++hits;
        else if (value != 0xffffffffU)
          ++wrong;
      }
    });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (int round = 0; (round < 100 || hits == 0) && std::chrono::steady_clock::now() < deadline;
       ++round) {
    ASSERT_TRUE(bus.add({0x1000, 4}, moving).has_value());
    std::this_thread::yield();
    bus.remove(0x1000);
  }
  stop = true;
  for (auto& vcpu : vcpus) vcpu.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(hits, 0U);
}

}  // namespace
}  // namespace lethe
