#include "devices/virtio/rng/rng.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <map>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/loop_test_util.h"

namespace lethe {
namespace {

constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 16 * kMiB};

struct RngTest : testing::Test {
  void open(const std::string& source = "") {
    device = std::make_unique<OnLoop<RngDevice>>(
        [&](EventLoop& loop) { return RngDevice::open(loop, source).value(); });
    guest = std::make_unique<FakeTransport>(*memory, **device);
    guest->start();
  }
  std::vector<uint8_t> content(GuestAddr address, size_t size) const {
    std::vector<uint8_t> bytes(size);
    EXPECT_TRUE(memory->read(address, bytes));
    return bytes;
  }
  std::unique_ptr<GuestMemory> memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<OnLoop<RngDevice>> device;
  std::unique_ptr<FakeTransport> guest;
};

// Not a test of randomness: that no byte was left alone, and that two fills differ.
TEST_F(RngTest, fills_the_whole_buffer_with_bytes_that_differ) {
  open();
  const FakeBuffer buffer{guest->heap().alloc(4096), 4096, true};
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 4096u);
  const auto first = content(buffer.address, 4096);
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 4096u);
  EXPECT_NE(content(buffer.address, 4096), first);
  std::map<uint8_t, int> seen;
  for (const uint8_t byte : first) ++seen[byte];
  EXPECT_GT(seen.size(), 200u);
  EXPECT_LT(seen[0], 100);
  EXPECT_EQ((*device)->counters().bytes, 8192u);
}

TEST_F(RngTest, bounds_a_request_and_leaves_the_rest_alone) {
  open();
  const uint32_t size = RngDevice::kRequestBytesMax + 4096;
  const FakeBuffer buffers[] = {{guest->heap().alloc(100), 100, true},
                                {guest->heap().alloc(size), size, true}};
  EXPECT_EQ(guest->request(0, buffers), RngDevice::kRequestBytesMax);
  const auto bytes = content(buffers[1].address, size);
  EXPECT_TRUE(std::all_of(bytes.begin() + RngDevice::kRequestBytesMax - 100, bytes.end(),
                          [](uint8_t byte) { return byte == 0; }));
}

TEST_F(RngTest, serves_more_than_one_wake_ups_budget) {
  open();
  const uint32_t size = RngDevice::kRequestBytesMax;
  const FakeBuffer buffer{guest->heap().alloc(size), size, true};
  constexpr int kRequests = 40;  // 2.5 MiB: ten budgets
  for (int i = 0; i < kRequests; ++i) ASSERT_TRUE(guest->driver(0).add({&buffer, 1}));
  guest->kick_if_wanted(0);
  for (int i = 0; i < kRequests; ++i) {
    const auto used =
        guest->driver(0).wait_used(guest->interrupt(0), deadline_in(FakeTransport::kPatience));
    ASSERT_TRUE(used);
    EXPECT_EQ(used->written, size);
  }
}

TEST_F(RngTest, refuses_a_request_without_a_writable_buffer) {
  open();
  const FakeBuffer buffer{guest->heap().alloc(64), 64, false};
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 0u);
  EXPECT_EQ((*device)->counters().refused, 1u);
  EXPECT_EQ(guest->needs_reset_count(), 0u);
}

TEST_F(RngTest, a_broken_ring_needs_a_reset_and_works_after_it) {
  open();
  guest->driver(0).raw_publish(9999);
  guest->kick(0);
  EXPECT_TRUE(guest->wait_needs_reset());
  guest->kick(0);
  guest->reset();
  guest->start();
  const FakeBuffer buffer{guest->heap().alloc(64), 64, true};
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 64u);
  EXPECT_EQ(guest->needs_reset_count(), 0u);
}

TEST_F(RngTest, reads_the_configured_source_and_helps_out_when_it_ends) {
  char path[] = "/tmp/lethe-rng-XXXXXX";
  const UniqueFd file(::mkstemp(path));
  ASSERT_TRUE(file.valid());
  const std::vector<uint8_t> source(100, 0xab);
  ASSERT_EQ(::write(file.get(), source.data(), source.size()), 100);
  open(path);
  ::unlink(path);
  const FakeBuffer buffer{guest->heap().alloc(164), 164, true};
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 164u);
  auto bytes = content(buffer.address, 164);
  EXPECT_TRUE(std::equal(source.begin(), source.end(), bytes.begin()));
  bytes.erase(bytes.begin(), bytes.begin() + 100);
  EXPECT_LT(std::ranges::count(bytes, 0), 20);
  EXPECT_EQ((*device)->counters().source_short, 1u);
}

TEST_F(RngTest, a_missing_source_is_named) {
  EventLoop loop;
  const auto result = RngDevice::open(loop, "/nonexistent/rng");
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().text.find("/nonexistent/rng"), std::string::npos);
}

TEST_F(RngTest, survives_resets_while_it_fills_buffers) {
  open();
  const uint32_t size = 16384;
  const FakeBuffer buffer{guest->heap().alloc(size), size, true};
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 8; ++i) ASSERT_TRUE(guest->driver(0).add({&buffer, 1}));
    guest->kick(0);
    if (round % 3 == 0) std::this_thread::yield();
    if (round % 2 == 0) {
      guest->reset();
      guest->start(~uint64_t{0}, 8);
    } else {
      guest->stop_queue(0);
      guest->restart_queue(0);
    }
  }
  EXPECT_EQ(guest->request(0, {&buffer, 1}), size);
}

TEST_F(RngTest, every_request_is_answered_once_over_freezes_and_in_another_device) {
  open();
  const FakeBuffer buffer{guest->heap().alloc(64), 64, true};
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(guest->driver(0).add({&buffer, 1}));
    guest->kick_if_wanted(0);
    guest->freeze();
    guest->thaw();
    const auto used =
        guest->driver(0).wait_used(guest->interrupt(0), deadline_in(FakeTransport::kPatience));
    ASSERT_TRUE(used) << i;
    EXPECT_EQ(used->written, 64u);
  }
  ASSERT_TRUE(guest->driver(0).add({&buffer, 1}));
  guest->freeze();
  const auto state = guest->save();
  OnLoop<RngDevice> other{[&](EventLoop& loop) { return RngDevice::open(loop, "").value(); }};
  ASSERT_TRUE(guest->move_to(*other, state));
  guest->thaw();
  ASSERT_TRUE(
      guest->driver(0).wait_used(guest->interrupt(0), deadline_in(FakeTransport::kPatience)));
  EXPECT_EQ(guest->request(0, {&buffer, 1}), 64u);
  guest->reset();
}

}  // namespace
}  // namespace lethe
