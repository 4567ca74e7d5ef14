// What changes about a disk while its guest runs: its size and its rate limits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/test_util.h"
#include "devices/virtio/block/block.h"
#include "devices/virtio/block/block_test_util.h"

namespace lethe {
namespace {

constexpr int kOk = VIRTIO_BLK_S_OK;
constexpr int kIoError = VIRTIO_BLK_S_IOERR;

TEST(BlockResizeTest, a_grown_file_is_told_to_the_guest_and_its_end_can_be_used) {
  const TempDisk disk(8 * 512);
  BlockGuest guest({.path = disk.path()});
  EXPECT_EQ(guest.write(8, random_bytes(512, 1)), kIoError);
  ASSERT_TRUE(guest.device().resize(16 * 512));
  EXPECT_TRUE(guest.transport().wait_config_changes(1));
  EXPECT_EQ(guest.config().capacity, 16u);
  EXPECT_EQ(disk.content().size(), 16u * 512);
  const Bytes bytes = random_bytes(512, 2);
  EXPECT_EQ(guest.write(15, bytes), kOk);
  const Bytes now = disk.content();
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), now.begin() + 15 * 512));
  EXPECT_EQ(guest.write(16, bytes), kIoError);
}

TEST(BlockResizeTest, the_files_own_size_is_taken_over) {
  const TempDisk disk(8 * 512);
  BlockGuest guest({.path = disk.path(), .read_only = true});
  disk.resize(32 * 512);
  EXPECT_EQ(guest.config().capacity, 8u);
  ASSERT_TRUE(guest.device().resize(std::nullopt));
  EXPECT_TRUE(guest.transport().wait_config_changes(1));
  EXPECT_EQ(guest.config().capacity, 32u);
}

TEST(BlockResizeTest, refuses_what_would_lose_data_or_does_not_fit) {
  const TempDisk disk(8 * 512);
  const auto refused = [&](BlockGuest& guest, std::optional<uint64_t> bytes, const char* why) {
    const auto result = guest.device().resize(bytes);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().text, testing::HasSubstr(why));
    EXPECT_EQ(guest.config().capacity, 8u);
    EXPECT_EQ(guest.transport().config_changes(), 0u);
  };
  {
    BlockGuest guest({.path = disk.path()});
    refused(guest, 7 * 512, "it is not made smaller");
    refused(guest, 0, "it is not made smaller");
    refused(guest, 8 * 512 + 1, "no multiple of 512");
    refused(guest, UINT64_MAX & ~511ull, "can't be made larger");
    disk.resize(8 * 512 + 100);
    refused(guest, std::nullopt, "no multiple of 512");
    refused(guest, 8 * 512, "it is not made smaller");  // the file grew meanwhile
    disk.resize(0);
    refused(guest, std::nullopt, "is empty");
    disk.resize(8 * 512);
  }
  BlockGuest reader({.path = disk.path(), .read_only = true});
  refused(reader, 16 * 512, "is read-only");
}

TEST(BlockRatesTest, a_limit_that_is_lifted_lets_a_waiting_request_go) {
  const TempDisk disk(8 * 512);
  BlockGuest guest({.path = disk.path()});
  guest.device().set_rates({.iops_max = 1});
  Bytes sector(512);
  ASSERT_EQ(guest.read(0, sector), kOk);
  EXPECT_EQ(guest.device().rates().iops_max, 1u);
  // The next one would wait for a second, and the one after for another.
  auto request = guest.make(VIRTIO_BLK_T_IN, 0, 512, true);
  const auto start = std::chrono::steady_clock::now();
  std::thread lifter([&] {
    EXPECT_TRUE(eventually([&] { return guest.counters().throttled.load() > 0; }));
    guest.device().set_rates({});
  });
  EXPECT_EQ(guest.run(request), kOk);
  lifter.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(900));
  EXPECT_EQ(guest.device().rates().iops_max, 0u);
}

TEST(BlockRatesTest, changing_size_and_rates_under_load_loses_nothing) {
  const TempDisk disk(64 * 512);
  BlockGuest guest({.path = disk.path()});
  std::atomic<bool> done{false};
  std::thread changer([&] {
    for (uint64_t sectors = 64; !done.load(); ++sectors) {
      EXPECT_TRUE(guest.device().resize(sectors * 512));
      guest.device().set_rates({.iops_max = sectors % 2 * 100'000});
    }
  });
  for (uint32_t i = 0; i < 300; ++i) {
    const Bytes bytes = random_bytes(512, i);
    EXPECT_EQ(guest.write(i % 64, bytes), kOk);
    EXPECT_GE(guest.config().capacity, 64u);
  }
  done = true;
  changer.join();
}

}  // namespace
}  // namespace lethe
