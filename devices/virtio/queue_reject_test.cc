// What the queue refuses: every rule of virtio 1.2, 2.7 that a driver can break in the rings.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue.h"
#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

constexpr uint16_t kSize = 8;
constexpr uint16_t kNext = VRING_DESC_F_NEXT;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
constexpr uint16_t kInd = VRING_DESC_F_INDIRECT;
constexpr uint64_t kGood = QueueRig::kFreeStart.value;  // 8 MiB of memory
constexpr uint64_t kLowEnd = QueueRig::kLowSize;

// --- layout ---

std::string create_error(const std::function<void(QueueLayout&)>& spoil) {
  const auto memory = QueueRig::make_memory();
  FakeInterrupt interrupt;
  QueueCounters counters;
  QueueLayout layout{.size = 8,
                     .desc = GuestAddr{0x1000},
                     .driver = GuestAddr{0x2000},
                     .device = GuestAddr{0x3000}};
  spoil(layout);
  const auto queue = Queue::create(*memory, layout, kRingFeatures, interrupt, counters);
  return queue.has_value() ? "" : queue.error().text;
}

TEST(QueueCreate, takes_rings_that_end_where_memory_ends) {
  EXPECT_EQ(create_error([](QueueLayout&) {}), "");
  EXPECT_EQ(create_error([](QueueLayout& l) { l.desc.value = kLowEnd - 8 * 16; }), "");
  EXPECT_EQ(create_error([](QueueLayout& l) { l.driver.value = kLowEnd - (6 + 8 * 2); }), "");
  EXPECT_EQ(create_error([](QueueLayout& l) { l.device.value = kLowEnd - (8 + 8 * 8); }), "");
}

TEST(QueueCreate, rejects_sizes_that_are_no_power_of_two_up_to_the_maximum) {
  for (const int size : {0, 3, 7, 1023, 2048, 32768, 65535}) {
    const std::string text =
        create_error([&](QueueLayout& l) { l.size = static_cast<uint16_t>(size); });
    EXPECT_NE(text.find("queue size " + std::to_string(size)), std::string::npos) << text;
  }
  EXPECT_EQ(create_error([](QueueLayout& l) { l.size = 1; }), "");
}

TEST(QueueCreate, rejects_misaligned_rings) {
  EXPECT_NE(create_error([](QueueLayout& l) { l.desc.value += 8; }), "");
  EXPECT_NE(create_error([](QueueLayout& l) { l.driver.value += 1; }), "");
  EXPECT_NE(create_error([](QueueLayout& l) { l.device.value += 2; }), "");
}

TEST(QueueCreate, rejects_rings_that_leave_memory) {
  for (const uint64_t at : {kLowEnd - 16, kLowEnd, 4 * kGiB - 16, UINT64_MAX - 15}) {
    EXPECT_NE(create_error([&](QueueLayout& l) { l.desc.value = at; }), "") << at;
    EXPECT_NE(create_error([&](QueueLayout& l) { l.driver.value = at; }), "") << at;
    EXPECT_NE(create_error([&](QueueLayout& l) { l.device.value = at; }), "") << at;
  }
}

TEST(QueueCreate, rejects_rings_whose_last_word_is_outside) {
  EXPECT_NE(create_error([](QueueLayout& l) { l.desc.value = kLowEnd - 7 * 16; }), "");
  // The event words are there with or without EVENT_IDX (2.7).
  EXPECT_NE(create_error([](QueueLayout& l) { l.driver.value = kLowEnd - (4 + 8 * 2); }), "");
  EXPECT_NE(create_error([](QueueLayout& l) { l.device.value = kLowEnd - (4 + 8 * 8); }), "");
}

TEST(QueueCreate, rejects_rings_in_memory_that_can_be_removed) {
  const auto memory = QueueRig::make_memory();
  std::vector<uint8_t> device_memory(8192);
  ASSERT_TRUE(memory->add_region(GuestAddr{16 * kGiB}, 4096, device_memory.data()).has_value());
  FakeInterrupt interrupt;
  QueueCounters counters;
  const QueueLayout layout{.size = 8,
                           .desc = GuestAddr{16 * kGiB},
                           .driver = GuestAddr{0x2000},
                           .device = GuestAddr{0x3000}};
  EXPECT_FALSE(Queue::create(*memory, layout, 0, interrupt, counters).has_value());
}

// --- chains ---

struct Broken {
  const char* name;
  const char* reason;  // a part of broken_reason()
  std::function<void(QueueRig&)> write;
  uint64_t features = kRingFeatures;
};

// Writes main[0...] and table[0...] (the indirect table of descriptor 0), and publishes head 0.
std::function<void(QueueRig&)> chain(std::vector<vring_desc> main,
                                     std::vector<vring_desc> table = {}) {
  return [main, table](QueueRig& rig) {
    for (uint16_t i = 0; i < main.size(); ++i) rig.driver.raw_descriptor(i, main[i]);
    GuestAddr at = rig.driver.indirect_table(0);
    for (const vring_desc& entry : table) {
      ASSERT_TRUE(rig.memory->store(at, entry));
      at = *at.plus(sizeof entry);
    }
    rig.driver.raw_publish(0);
  };
}

// The address of indirect_table(0) is the same in every rig of one size.
uint64_t table_address() {
  static const uint64_t address = QueueRig(kSize).driver.indirect_table(0).value;
  return address;
}
vring_desc indirect(uint32_t length, uint16_t flags = kInd) {
  return {table_address(), length, flags, 1};
}

void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

class QueueRejects : public testing::TestWithParam<Broken> {};

TEST_P(QueueRejects, and_is_broken_for_good) {
  QueueRig rig(kSize, GetParam().features);
  // Two chains before the bad one: one completed, one in flight.
  const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 4, true}};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(rig.driver.add(buffer).has_value());
  auto done = rig.queue->pop();
  auto in_flight = rig.queue->pop();
  ASSERT_TRUE(done && in_flight);
  // Those two have heads 0 and 1; give 0 back, so that the bad chain may use it.
  ASSERT_EQ(in_flight->head(), 1U);
  done->complete(0);
  const uint16_t used_before = rig.driver.raw_used_index();

  GetParam().write(rig);

  EXPECT_FALSE(rig.queue->pop().has_value());
  ASSERT_TRUE(rig.queue->broken());
  EXPECT_NE(std::string(rig.queue->broken_reason()).find(GetParam().reason), std::string::npos)
      << rig.queue->broken_reason();
  EXPECT_EQ(rig.counters.rejected, 1U);

  // From here on the driver gets nothing, whatever it does.
  EXPECT_EQ(rig.queue->in_flight(), 1U);
  in_flight->complete(4);
  rig.queue->interrupt_if_needed();
  rig.queue->disable_kicks();
  EXPECT_FALSE(rig.queue->enable_kicks());
  EXPECT_FALSE(rig.queue->pop().has_value());
  EXPECT_EQ(rig.queue->in_flight(), 0U);
  EXPECT_EQ(rig.driver.raw_used_index(), used_before);
  EXPECT_EQ(rig.interrupt.count(), 0U);
  EXPECT_EQ(rig.counters.rejected, 1U);
  EXPECT_EQ(rig.counters.chains, 2U);
}

const std::vector<Broken>& cases() {
  static const std::vector<Broken> cases = {
      // the available ring
      {"avail_index_ahead_by_more_than_the_size", "ahead",
       [](QueueRig& rig) { rig.driver.raw_avail_index(2 + kSize + 1); }},
      {"avail_index_going_backwards", "ahead",
       [](QueueRig& rig) { rig.driver.raw_avail_index(1); }},
      {"head_at_the_size", "head", [](QueueRig& rig) { rig.driver.raw_publish(kSize); }},
      {"head_of_65535", "head", [](QueueRig& rig) { rig.driver.raw_publish(65'535); }},
      {"head_in_flight", "again", [](QueueRig& rig) { rig.driver.raw_publish(1); }},
      // links
      {"chain_longer_than_queue_by_pointing_at_itself", "longer than the queue",
       chain({{kGood, 4, kNext, 0}})},
      {"chain_longer_than_queue_by_a_loop_of_two", "longer than the queue",
       chain({{kGood, 4, kNext, 2}, {}, {kGood, 4, kNext, 0}})},
      {"loop_of_empty_buffers", "longer than the queue", chain({{kGood, 0, kNext, 0}})},
      {"loop_in_an_indirect_table", "longer than the queue",
       chain({indirect(32)}, {{kGood, 4, kNext, 1}, {kGood, 4, kNext, 0}})},
      {"next_at_the_size", "next", chain({{kGood, 4, kNext, kSize}})},
      {"next_of_65535", "next", chain({{kGood, 4, kNext, 65'535}})},
      {"next_outside_the_indirect_table", "next", chain({indirect(16)}, {{kGood, 4, kNext, 1}})},
      {"chain_longer_than_queue_by_direct_and_indirect_parts", "longer than the queue",
       chain({{kGood, 4, kNext, 2}, {}, indirect(16 * kSize)},
             std::vector<vring_desc>{{kGood, 4, kNext, 1},
                                     {kGood, 4, kNext, 2},
                                     {kGood, 4, kNext, 3},
                                     {kGood, 4, kNext, 4},
                                     {kGood, 4, kNext, 5},
                                     {kGood, 4, kNext, 6},
                                     {kGood, 4, kNext, 7},
                                     {kGood, 4, 0, 0}})},
      // buffers
      {"buffer_outside_memory", "outside", chain({{3 * kGiB, 4, 0, 0}})},
      {"buffer_across_a_regions_end", "outside", chain({{kLowEnd - 3, 4, 0, 0}})},
      {"buffer_into_the_next_region", "outside", chain({{4 * kGiB - 4, 8, 0, 0}})},
      {"buffer_at_the_end_of_the_address_space", "outside", chain({{UINT64_MAX, 4, 0, 0}})},
      {"buffer_that_wraps", "outside", chain({{UINT64_MAX - 1, 4096, kWrite, 0}})},
      {"buffer_of_4_gib_less_1", "outside", chain({{kGood, UINT32_MAX, kWrite, 0}})},
      {"buffer_outside_memory_in_an_indirect_table", "outside",
       chain({indirect(16)}, {{kLowEnd, 1, 0, 0}})},
      {"more_than_4_gib_in_total", "4 GiB",
       chain({{4 * kGiB, 1U << 31, kNext | kWrite, 2},
              {},
              {4 * kGiB, 1U << 31, kNext | kWrite, 3},
              {kGood, 1, kWrite, 0}})},
      {"readable_after_writable", "readable",
       chain({{kGood, 4, kNext | kWrite, 2}, {}, {kGood, 4, 0, 0}})},
      {"readable_after_writable_in_an_indirect_table", "readable",
       chain({indirect(32)}, {{kGood, 4, kNext | kWrite, 1}, {kGood, 4, 0, 0}})},
      {"readable_in_an_indirect_table_after_writable_outside", "readable",
       chain({{kGood, 4, kNext | kWrite, 2}, {}, indirect(16)}, {{kGood, 4, 0, 0}})},
      // indirect tables
      {"indirect_without_the_feature", "feature", chain({indirect(16)}, {{kGood, 4, 0, 0}}),
       kEventIdx},
      {"indirect_inside_indirect", "inside", chain({indirect(16)}, {indirect(16)})},
      {"indirect_with_next", "with a next",
       chain({indirect(16, kInd | kNext), {kGood, 4, 0, 0}}, {{kGood, 4, 0, 0}})},
      {"indirect_table_of_length_0", "16", chain({indirect(0)}, {{kGood, 4, 0, 0}})},
      {"indirect_table_of_length_8", "16", chain({indirect(8)}, {{kGood, 4, 0, 0}})},
      {"indirect_table_of_length_17", "16", chain({indirect(17)}, {{kGood, 4, 0, 0}})},
      {"indirect_table_larger_than_the_queue", "larger",
       chain({indirect(16 * (kSize + 1))}, {{kGood, 4, 0, 0}})},
      {"indirect_table_of_almost_4_gib", "larger",
       chain({indirect(0xfffffff0)}, {{kGood, 4, 0, 0}})},
      {"indirect_table_outside_memory", "table lies outside", chain({{3 * kGiB, 16, kInd, 0}})},
      {"indirect_table_across_a_regions_end", "table lies outside",
       chain({{kLowEnd - 16, 32, kInd, 0}})},
      {"indirect_table_that_wraps", "table lies outside", chain({{UINT64_MAX - 15, 32, kInd, 0}})},
  };
  return cases;
}

INSTANTIATE_TEST_SUITE_P(, QueueRejects, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

TEST(QueueRejectsAtEnableKicks, a_bad_available_index_is_found_and_reported_as_work) {
  QueueRig rig(kSize);
  rig.driver.raw_avail_index(kSize + 1);
  EXPECT_TRUE(rig.queue->enable_kicks()) << "so that the caller pops, and sees that it is broken";
  EXPECT_FALSE(rig.queue->pop().has_value());
  EXPECT_TRUE(rig.queue->broken());
}

TEST(QueueBroken, chain_dropped_after_the_break_is_not_completed) {
  QueueRig rig(kSize);
  rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 4, true}});
  {
    const auto in_flight = rig.queue->pop();
    ASSERT_TRUE(in_flight.has_value());
    rig.driver.raw_publish(kSize);
    EXPECT_FALSE(rig.queue->pop().has_value());
  }
  EXPECT_EQ(rig.driver.raw_used_index(), 0U);
  EXPECT_EQ(rig.queue->in_flight(), 0U);
}

}  // namespace
}  // namespace lethe
