// A disk under hostile drivers, resets, rate limits, several queues, and a model to compare with.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "devices/virtio/block/block.h"
#include "devices/virtio/block/block_test_util.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
constexpr int kOk = VIRTIO_BLK_S_OK;
constexpr int kIoError = VIRTIO_BLK_S_IOERR;
constexpr std::chrono::seconds kPatience{10};

std::optional<FakeDriver::Used> wait_used(BlockGuest& guest, uint16_t queue = 0) {
  return guest.driver(queue).wait_used(guest.transport().interrupt(queue), deadline_in(kPatience));
}

TEST(BlockHostileTest, a_short_header_is_an_error) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  auto request = guest.make(VIRTIO_BLK_T_IN, 0, 512, true);
  request.buffers[0].size = 15;
  EXPECT_EQ(guest.run(request), kIoError);
  request.buffers.erase(request.buffers.begin());
  EXPECT_EQ(guest.run(request), kIoError) << "no header at all";
  EXPECT_EQ(guest.counters().malformed, 2u);
}

TEST(BlockHostileTest, without_room_for_a_status_nothing_is_done_or_written) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  auto request = guest.make(VIRTIO_BLK_T_OUT, 0, 512, false);
  ASSERT_TRUE(guest.memory().write(request.data, Bytes(512, 0x55)));
  request.buffers.pop_back();
  EXPECT_EQ(guest.run(request), 0xee) << "the status byte is as it was";
  EXPECT_EQ(guest.written(), 0u);
  EXPECT_EQ(disk.content(), Bytes(4096));
  EXPECT_EQ(guest.counters().malformed, 1u);
}

TEST(BlockHostileTest, data_in_the_wrong_direction_is_an_error) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  auto read = guest.make(VIRTIO_BLK_T_IN, 0, 512, false);
  EXPECT_EQ(guest.run(read), kIoError);
  auto write = guest.make(VIRTIO_BLK_T_OUT, 0, 512, true);
  EXPECT_EQ(guest.run(write), kIoError);
  auto both = guest.make(VIRTIO_BLK_T_OUT, 0, 512, false);
  both.buffers.back().size = 2;  // the status is the last byte
  both.status.value += 1;
  EXPECT_EQ(guest.run(both), kIoError);
  auto id = guest.make(VIRTIO_BLK_T_GET_ID, 0, 20, false);
  EXPECT_EQ(guest.run(id), kIoError);
  EXPECT_EQ(guest.counters().malformed, 4u);
}

TEST(BlockHostileTest, lengths_that_are_no_sectors_are_errors) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  for (const size_t size : {1u, 511u, 513u, 4095u}) {
    EXPECT_EQ(guest.run(guest.make(VIRTIO_BLK_T_IN, 0, size, true)), kIoError) << size;
    EXPECT_EQ(guest.run(guest.make(VIRTIO_BLK_T_OUT, 0, size, false)), kIoError) << size;
  }
  for (const size_t size : {0u, 15u, 17u, 32u})
    EXPECT_EQ(guest.run(guest.make(VIRTIO_BLK_T_DISCARD, 0, size, false)), kIoError) << size;
  EXPECT_EQ(guest.counters().malformed, 12u);
  EXPECT_EQ(guest.transport().needs_reset_count(), 0u);
}

TEST(BlockHostileTest, a_broken_ring_needs_a_reset_and_the_other_queue_goes_on) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path(), .queues = 2});
  guest.driver(0).raw_publish(9999);
  guest.transport().kick(0);
  ASSERT_TRUE(guest.transport().wait_needs_reset());
  EXPECT_EQ(guest.run(guest.make(VIRTIO_BLK_T_FLUSH, 0, 0, false), FakeDriver::Table::kDirect, 1),
            kOk);
  guest.transport().reset();
  guest.transport().start();
  EXPECT_EQ(guest.flush(), kOk);
  EXPECT_EQ(guest.transport().needs_reset_count(), 0u);
}

// A driver that breaks the ring while its requests are under way.
TEST(BlockHostileTest, breaking_the_ring_under_way_leaves_nothing_behind) {
  const TempDisk disk(1 << 20);
  BlockGuest guest({.path = disk.path()});
  for (int round = 0; round < 50; ++round) {
    for (uint64_t i = 0; i < 10; ++i) {
      const auto request = guest.make(VIRTIO_BLK_T_OUT, i * 16, 8192, false);
      ASSERT_TRUE(guest.driver().add(request.buffers, FakeDriver::Table::kIndirect));
      if (i == 5) guest.transport().kick(0);
    }
    guest.driver().raw_publish(static_cast<uint16_t>(64 + round));
    guest.transport().kick(0);
    ASSERT_TRUE(guest.transport().wait_needs_reset());
    guest.transport().reset();
    guest.transport().start();
  }
  EXPECT_EQ(guest.flush(), kOk);
}

TEST(BlockStressTest, every_queue_works_at_once) {
  constexpr uint16_t kQueues = 16;
  constexpr uint64_t kPerQueue = 20;
  const Bytes content = random_bytes(kQueues * kPerQueue * 512, 20);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path(), .queues = kQueues});
  std::vector<BlockGuest::Request> requests;
  for (uint64_t i = 0; i < kPerQueue; ++i) {
    for (uint16_t queue = 0; queue < kQueues; ++queue) {
      requests.push_back(guest.make(VIRTIO_BLK_T_IN, requests.size(), 512, true));
      ASSERT_TRUE(guest.driver(queue).add(requests.back().buffers, FakeDriver::Table::kIndirect));
      guest.transport().kick_if_wanted(queue);
    }
  }
  for (uint16_t queue = 0; queue < kQueues; ++queue) {
    for (uint64_t i = 0; i < kPerQueue; ++i) ASSERT_TRUE(wait_used(guest, queue)) << queue;
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_EQ(guest.status(requests[i]), kOk);
    ASSERT_TRUE(std::equal(content.begin() + static_cast<ptrdiff_t>(i * 512),
                           content.begin() + static_cast<ptrdiff_t>((i + 1) * 512),
                           guest.data(requests[i]).begin()));
  }
}

// More requests than the ring has submission entries, published at once.
TEST(BlockStressTest, a_full_submission_queue_loses_nothing) {
  const TempDisk disk(1 << 20);
  BlockGuest guest({.path = disk.path(), .queue_size = 1024}, 1024);
  const auto request = guest.make(VIRTIO_BLK_T_OUT, 0, 512, false);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 1000; ++i)
      ASSERT_TRUE(guest.driver().prepare(request.buffers, FakeDriver::Table::kIndirect));
    guest.driver().publish();
    guest.transport().kick_if_wanted(0);
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(wait_used(guest));
  }
  EXPECT_EQ(guest.counters().writes, 3000u);
}

TEST(BlockStressTest, survives_resets_with_requests_under_way) {
  for (const bool direct : {false, true}) {
    const TempDisk disk(8 << 20);
    BlockGuest guest({.path = disk.path(), .direct = direct, .queues = 2});
    std::mt19937 random(21);
    for (int round = 0; round < 100; ++round) {
      for (uint16_t queue = 0; queue < 2; ++queue) {
        for (int i = 0; i < 20; ++i) {
          const bool write = random() % 2 == 0;
          const auto request =
              guest.make(write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, random() % 1000 * 8, 32768,
                         !write, 1 + random() % 3, direct && i % 3 == 0 ? 5 : 4096);
          ASSERT_TRUE(guest.driver(queue).add(request.buffers, FakeDriver::Table::kIndirect));
        }
        guest.transport().kick(queue);
      }
      if (round % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
      const auto start = steady_clock::now();
      if (round % 3 == 0) {
        guest.transport().stop_queue(1);
        guest.transport().restart_queue(1);
      }
      guest.transport().reset();
      ASSERT_LT(steady_clock::now() - start, kPatience);
      guest.transport().start();
    }
    EXPECT_EQ(guest.flush(), kOk);
  }
}

// With 40 requests a second, 24 take the burst of 4 and then half a second.
TEST(BlockRateTest, requests_a_second_are_limited_and_none_is_lost) {
  const TempDisk disk(1 << 20);
  BlockGuest guest({.path = disk.path(), .iops_max = 40});
  const auto start = steady_clock::now();
  const auto request = guest.make(VIRTIO_BLK_T_IN, 0, 512, true);
  for (int i = 0; i < 24; ++i)
    ASSERT_TRUE(guest.driver().add(request.buffers, FakeDriver::Table::kIndirect));
  guest.transport().kick_if_wanted(0);
  for (int i = 0; i < 24; ++i) ASSERT_TRUE(wait_used(guest));
  const auto took = steady_clock::now() - start;
  EXPECT_GE(took, milliseconds(450));
  EXPECT_LT(took, milliseconds(5000));
  EXPECT_GT(guest.counters().throttled, 10u);
}

TEST(BlockRateTest, bytes_a_second_are_limited_and_a_large_request_pays_afterwards) {
  const TempDisk disk(4 << 20);
  BlockGuest guest({.path = disk.path(), .bandwidth_max = 1 << 20});
  const auto start = steady_clock::now();
  Bytes bytes(512 * 1024);  // five times the bucket
  ASSERT_EQ(guest.read(0, bytes), kOk);
  EXPECT_LT(steady_clock::now() - start, milliseconds(350)) << "the first one goes at once";
  Bytes small(512);
  ASSERT_EQ(guest.read(0, small), kOk);
  EXPECT_GE(steady_clock::now() - start, milliseconds(350)) << "the next one waits for its debt";
  EXPECT_EQ(guest.flush(), kOk);
}

TEST(BlockRateTest, waiting_costs_no_processor_time) {
  const TempDisk disk(1 << 20);
  BlockGuest guest({.path = disk.path(), .iops_max = 2});
  EXPECT_EQ(guest.flush(), kOk);
  timespec before{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  EXPECT_EQ(guest.flush(), kOk);
  timespec after{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      static_cast<double>(after.tv_nsec - before.tv_nsec) / 1e9;
  EXPECT_LT(used, 0.1) << "of half a second";
}

TEST(BlockRateTest, a_reset_does_not_wait_for_what_is_held_back) {
  const TempDisk disk(1 << 20);
  BlockGuest guest({.path = disk.path(), .iops_max = 1});
  for (int round = 0; round < 5; ++round) {
    const auto request = guest.make(VIRTIO_BLK_T_FLUSH, 0, 0, false);
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(guest.driver().add(request.buffers));
    guest.transport().kick(0);
    std::this_thread::sleep_for(milliseconds(2));
    const auto start = steady_clock::now();
    guest.transport().reset();
    EXPECT_LT(steady_clock::now() - start, milliseconds(900));
    guest.transport().start();
  }
}

// Any sequence of requests leaves the disk as a plain vector of bytes would be.
RC_GTEST_PROP(BlockProperty, acts_like_a_vector_of_bytes, ()) {
  constexpr uint64_t kSectors = 256;
  const bool direct = *rc::gen::arbitrary<bool>();
  Bytes model = random_bytes(kSectors * 512, 30);
  const TempDisk disk(model);
  BlockGuest guest({.path = disk.path(), .direct = direct});
  const uint32_t unit = guest.config().blk_size / 512;
  const int steps = *rc::gen::inRange(1, 40);
  for (int step = 0; step < steps; ++step) {
    const uint64_t sector = *rc::gen::inRange<uint64_t>(0, kSectors / unit) * unit;
    const uint64_t sectors = *rc::gen::inRange<uint64_t>(0, (kSectors - sector) / unit + 1) * unit;
    const auto pieces = *rc::gen::inRange<size_t>(1, 6);
    const uint64_t alignment = *rc::gen::element<uint64_t>(4096, 512, 1, 3);
    const auto from = model.begin() + static_cast<ptrdiff_t>(sector * 512);
    const auto to = from + static_cast<ptrdiff_t>(sectors * 512);
    switch (*rc::gen::inRange(0, 4)) {
      case 0: {
        Bytes bytes(sectors * 512);
        RC_ASSERT(guest.read(sector, bytes, pieces, alignment) == kOk);
        RC_ASSERT(std::equal(from, to, bytes.begin()));
        break;
      }
      case 1: {
        const Bytes bytes = random_bytes(sectors * 512, static_cast<uint32_t>(step));
        RC_ASSERT(guest.write(sector, bytes, pieces, alignment) == kOk);
        std::copy(bytes.begin(), bytes.end(), from);
        break;
      }
      case 2: {
        const uint32_t unmap = *rc::gen::element<uint32_t>(0, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
        RC_ASSERT(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, sector, static_cast<uint32_t>(sectors),
                              unmap) == kOk);
        std::fill(from, to, 0);
        break;
      }
      default:
        // What discarded sectors read is up to the device: ours are punched, so zero.
        RC_ASSERT(guest.range(VIRTIO_BLK_T_DISCARD, sector, static_cast<uint32_t>(sectors)) == kOk);
        std::fill(from, to, 0);
    }
  }
  RC_ASSERT(guest.flush() == kOk);
  RC_ASSERT(disk.content() == model);
}

}  // namespace
}  // namespace lethe
