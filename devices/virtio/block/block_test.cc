// Each request type, from the guest's point of view; errors of the host; options.
#include "devices/virtio/block/block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "base/other_user_test_util.h"
#include "devices/virtio/block/block_test_util.h"
#include "devices/virtio/block/disk_file.h"
#include "devices/virtio/block/request.h"
#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

using testing::HasSubstr;
constexpr int kOk = VIRTIO_BLK_S_OK;
constexpr int kIoError = VIRTIO_BLK_S_IOERR;
constexpr int kUnsupported = VIRTIO_BLK_S_UNSUPP;

TEST(BlockTest, reads_what_the_file_holds) {
  const Bytes content = random_bytes(1 << 20, 1);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()});
  Bytes sector(512);
  ASSERT_EQ(guest.read(2047, sector), kOk);
  EXPECT_TRUE(std::equal(sector.begin(), sector.end(), content.end() - 512));
  Bytes whole(1 << 20);
  ASSERT_EQ(guest.read(0, whole, 7), kOk);
  EXPECT_TRUE(whole == content);
  EXPECT_EQ(guest.written(), (1u << 20) + 1);
  EXPECT_EQ(guest.counters().reads, 2u);
}

TEST(BlockTest, writes_reach_the_file) {
  const TempDisk disk(64 * 1024);
  BlockGuest guest({.path = disk.path()});
  const Bytes bytes = random_bytes(12 * 1024, 2);
  ASSERT_EQ(guest.write(3, bytes, 5), kOk);
  EXPECT_EQ(guest.written(), 1u) << "only the status";
  ASSERT_EQ(guest.flush(), kOk);
  Bytes expected(64 * 1024);
  std::copy(bytes.begin(), bytes.end(), expected.begin() + 3 * 512);
  EXPECT_TRUE(disk.content() == expected);
  EXPECT_EQ(guest.counters().flushes, 1u);
  EXPECT_EQ(guest.counters().bytes_written, bytes.size());
}

TEST(BlockTest, takes_every_layout_of_a_request) {
  // Header in pieces, header and data in one buffer, data and status in one buffer (2.7.4: the
  // driver may cut a request as it likes).
  const Bytes content = random_bytes(8192, 3);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()});
  for (const auto table :
       {FakeDriver::Table::kDirect, FakeDriver::Table::kIndirect, FakeDriver::Table::kMixed}) {
    auto request = guest.make(VIRTIO_BLK_T_IN, 2, 1024, true);
    const GuestAddr header = request.buffers[0].address;
    request.status = GuestAddr{request.data.value + 1024};
    request.buffers = {{header, 5, false},
                       {GuestAddr{header.value + 5}, 11, false},
                       {request.data, 100, true},
                       {GuestAddr{request.data.value + 100}, 925, true}};
    ASSERT_EQ(guest.run(request, table), kOk);
    EXPECT_TRUE(
        std::equal(content.begin() + 1024, content.begin() + 2048, guest.data(request).begin()));

    auto write = guest.make(VIRTIO_BLK_T_OUT, 4, 512 + 16, false);
    const virtio_blk_outhdr out{.type = VIRTIO_BLK_T_OUT, .ioprio = 0, .sector = 4};
    ASSERT_TRUE(guest.memory().store(write.data, out));
    const Bytes bytes = random_bytes(512, 4);
    ASSERT_TRUE(guest.memory().write(GuestAddr{write.data.value + 16}, bytes));
    write.buffers = {{write.data, 16 + 512, false}, {write.status, 1, true}};
    ASSERT_EQ(guest.run(write, table), kOk);
    const Bytes now = disk.content();
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), now.begin() + 4 * 512));
  }
}

TEST(BlockRequestTest, a_long_copy_of_the_slices_ends_with_the_request) {
  QueueRig rig(256);
  // Held by a write of so many pieces, and kept after it. The header shares a buffer with the first
  // piece, so that the slices are not the data's.
  const auto run = [&](uint16_t pieces) {
    std::vector<FakeBuffer> buffers(pieces, {QueueRig::kFreeStart, 512, false});
    buffers[0].size += kBlockHeaderBytes;
    const virtio_blk_outhdr header{.type = VIRTIO_BLK_T_OUT, .ioprio = 0, .sector = 0};
    EXPECT_TRUE(rig.memory->store(QueueRig::kFreeStart, header));
    buffers.push_back({rig.heap.alloc(1), 1, true});
    rig.driver.add(buffers, FakeDriver::Table::kIndirect);
    BlockRequest request;
    uint8_t status = 0;
    EXPECT_EQ(request.begin(rig.queue->pop().value(), {.sectors = 1024}, status),
              BlockRequest::Verdict::kStart);
    EXPECT_EQ(request.data_left(kGiB).count, pieces);
    const size_t held = request.scratch_bytes();
    request.finish(VIRTIO_BLK_S_OK);
    return std::pair(held, request.scratch_bytes());
  };
  constexpr size_t kKept = Queue::kKeptSlices * sizeof(iovec);
  EXPECT_EQ(run(Queue::kKeptSlices), std::pair(kKept, kKept));
  EXPECT_EQ(run(255), std::pair(255 * sizeof(iovec), size_t{0}));
}

TEST(BlockTest, tells_its_geometry_and_features) {
  const TempDisk disk(10 * 512);
  BlockGuest guest({.path = disk.path(), .queues = 4, .queue_size = 128});
  EXPECT_EQ(guest.config().capacity, 10u);
  EXPECT_EQ(guest.config().blk_size, 512u);
  EXPECT_EQ(guest.config().seg_max, 126u);
  EXPECT_EQ(guest.config().num_queues, 4u);
  EXPECT_EQ(guest.config().physical_block_exp, 3);
  EXPECT_EQ(guest.device().queue_sizes_max().size(), 4u);
  const uint64_t features = guest.device().device_features();
  for (const unsigned offered : {VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD,
                                 VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_SEG_MAX})
    EXPECT_NE(features >> offered & 1, 0u) << offered;
  EXPECT_EQ(features >> VIRTIO_BLK_F_RO & 1, 0u);
}

TEST(BlockTest, discard_frees_the_hosts_blocks) {
  const Bytes content = random_bytes(1 << 20, 5);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()});
  ASSERT_EQ(guest.flush(), kOk);
  struct stat before{};
  ASSERT_EQ(::stat(disk.path().c_str(), &before), 0);
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 256, 1024), kOk);
  struct stat after{};
  ASSERT_EQ(::stat(disk.path().c_str(), &after), 0);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_LT(after.st_blocks, before.st_blocks);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 0, 8, 1), kUnsupported) << "unmap is not for this";
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 2048, 1), kIoError);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 0, 0), kOk);
}

TEST(BlockTest, write_zeroes_reads_as_zeroes) {
  Bytes content = random_bytes(1 << 20, 6);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()});
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 3, 1000), kOk);
  std::fill_n(content.begin() + 3 * 512, 1000 * 512, 0);
  EXPECT_TRUE(disk.content() == content);
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 1500, 100, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
            kOk);
  std::fill_n(content.begin() + 1500 * 512, 100 * 512, 0);
  EXPECT_TRUE(disk.content() == content);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), kUnsupported);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 2040, 9), kIoError);
  EXPECT_EQ(guest.counters().write_zeroes, 2u);
}

TEST(BlockTest, writes_zeroes_itself_where_the_host_has_no_better_way) {
  Bytes content = random_bytes(1 << 20, 7);
  const TempDisk disk(content);
  std::atomic<int> asked{0};
  BlockGuest guest({.path = disk.path(), .tamper = [&](const BlockRequest& request, int result) {
                      if (request.zeroes_written) return result;
                      ++asked;
                      return -EOPNOTSUPP;
                    }});
  // The host does the work and the answer is replaced: fill again what it had zeroed.
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1), kOk);
  EXPECT_EQ(asked, 1);
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 9, 1025), kOk);
  EXPECT_EQ(asked, 1) << "it does not ask again";
  std::fill_n(content.begin(), 512, 0);
  std::fill_n(content.begin() + 9 * 512, 1025 * 512, 0);
  EXPECT_TRUE(disk.content() == content);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 0, 8), kOk) << "a hint: nothing happens";
}

TEST(BlockTest, without_flush_negotiated_all_requests_still_work) {
  Bytes content = random_bytes(256 * 1024, 8);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()}, 64, ~(uint64_t{1} << VIRTIO_BLK_F_FLUSH));
  const Bytes bytes = random_bytes(8192, 9);
  ASSERT_EQ(guest.write(16, bytes, 2), kOk);
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 100, 200), kOk);
  std::copy(bytes.begin(), bytes.end(), content.begin() + 16 * 512);
  std::fill_n(content.begin() + 100 * 512, 200 * 512, 0);
  EXPECT_TRUE(disk.content() == content);
}

TEST(BlockTest, answers_its_id) {
  const TempDisk disk(512);
  const std::string file_name = disk.path().substr(disk.path().rfind('/') + 1);
  for (const std::string serial : {"a-serial-longer-than-twenty-bytes", "short", ""}) {
    BlockGuest guest({.path = disk.path(), .serial = serial});
    const auto request = guest.make(VIRTIO_BLK_T_GET_ID, 0, VIRTIO_BLK_ID_BYTES, true);
    ASSERT_EQ(guest.run(request), kOk);
    EXPECT_EQ(guest.written(), 21u);
    std::string expected = serial.empty() ? file_name : serial;
    expected.resize(VIRTIO_BLK_ID_BYTES);
    const Bytes id = guest.data(request);
    EXPECT_EQ(std::string(id.begin(), id.end()), expected);
  }
}

TEST(BlockTest, unknown_types_are_unsupported) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  for (const uint32_t type : {2u, 3u, 9u, 10u, 14u, 77u, 0x80000000u, ~0u})
    EXPECT_EQ(guest.run(guest.make(type, 0, 512, true)), kUnsupported) << type;
  EXPECT_EQ(guest.counters().refused, 8u);
}

TEST(BlockTest, refuses_what_lies_beyond_the_end) {
  const TempDisk disk(4096);
  BlockGuest guest({.path = disk.path()});
  Bytes two(1024, 0x77);
  EXPECT_EQ(guest.read(7, two), kIoError);
  EXPECT_EQ(two, Bytes(1024)) << "not even a part of it";
  EXPECT_EQ(guest.write(7, two), kIoError);
  for (const uint64_t sector : {uint64_t{8}, uint64_t{9}, ~uint64_t{0}, ~uint64_t{0} / 512 + 1}) {
    Bytes one(512);
    EXPECT_EQ(guest.read(sector, one), kIoError) << sector;
    EXPECT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, sector, 1), kIoError);
  }
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 1, UINT32_MAX), kIoError);
  Bytes none;
  EXPECT_EQ(guest.read(8, none), kOk) << "nothing, at the end";
  EXPECT_EQ(disk.content(), Bytes(4096));
}

TEST(BlockTest, read_only_disks_are_never_written) {
  const Bytes content = random_bytes(8192, 10);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path(), .read_only = true});
  EXPECT_NE(guest.transport().features() >> VIRTIO_BLK_F_RO & 1, 0u);
  EXPECT_EQ(guest.write(0, Bytes(512)), kIoError);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 0, 8), kIoError);
  EXPECT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8), kIoError);
  EXPECT_EQ(guest.counters().refused, 3u) << "refused here, not by the host";
  EXPECT_EQ(guest.flush(), kOk);
  Bytes bytes(8192);
  EXPECT_EQ(guest.read(0, bytes), kOk);
  EXPECT_TRUE(bytes == content);
  EXPECT_TRUE(disk.content() == content);
}

TEST(BlockTest, a_file_that_shrank_gives_an_error_and_keeps_running) {
  const Bytes content = random_bytes(64 * 1024, 11);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path()});
  disk.resize(6000);
  Bytes across(8192);
  EXPECT_EQ(guest.read(0, across), kIoError);
  EXPECT_EQ(guest.written(), 6000u) << "what was read counts, the status behind it can't";
  Bytes beyond(512);
  EXPECT_EQ(guest.read(100, beyond), kIoError);
  Bytes there(4096);
  EXPECT_EQ(guest.read(0, there), kOk);
  EXPECT_TRUE(std::equal(there.begin(), there.end(), content.begin()));
  EXPECT_EQ(guest.counters().io_errors, 2u);
}

TEST(BlockTest, short_transfers_are_continued) {
  const Bytes content = random_bytes(256 * 1024, 12);
  const TempDisk disk(content);
  // Says that less was done than was, down to odd bytes, and now and then asks to try again.
  std::atomic<unsigned> calls{0};
  BlockGuest guest({.path = disk.path(), .tamper = [&](const BlockRequest&, int result) {
                      const unsigned call = ++calls;
                      if (call % 5 == 0) return call % 2 == 0 ? -EINTR : -EAGAIN;
                      return result > 7000 ? 7000 - static_cast<int>(call % 13) : result;
                    }});
  Bytes bytes(256 * 1024);
  ASSERT_EQ(guest.read(0, bytes, 9), kOk);
  EXPECT_TRUE(bytes == content);
  EXPECT_GT(calls, 36u);
  const Bytes other = random_bytes(100 * 512, 13);
  ASSERT_EQ(guest.write(50, other, 3), kOk);
  const Bytes now = disk.content();
  EXPECT_TRUE(std::equal(other.begin(), other.end(), now.begin() + 50 * 512));
  ASSERT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 500), kOk);
}

TEST(BlockTest, failing_io_is_an_error_status) {
  const TempDisk disk(64 * 1024);
  std::atomic<int> error{EIO};
  BlockGuest guest({.path = disk.path(), .tamper = [&](const BlockRequest&, int result) {
                      return error != 0 ? -error : result;
                    }});
  for (const int code : {EIO, ENOSPC, EAGAIN, EINTR, EFBIG}) {
    error = code;
    Bytes bytes(4096);
    EXPECT_EQ(guest.read(0, bytes), kIoError) << code;
    EXPECT_EQ(guest.write(0, bytes), kIoError) << code;
    EXPECT_EQ(guest.flush(), kIoError) << code;
    EXPECT_EQ(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 1), kIoError) << code;
    EXPECT_EQ(guest.range(VIRTIO_BLK_T_DISCARD, 0, 1), kIoError) << code;
  }
  EXPECT_EQ(guest.counters().io_errors, 25u);
  error = 0;
  EXPECT_EQ(guest.flush(), kOk);
}

TEST(BlockTest, direct_io_takes_aligned_and_bounces_misaligned_buffers) {
  Bytes content = random_bytes(4 << 20, 14);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path(), .direct = true});
  const size_t block = guest.config().blk_size;
  Bytes bytes(1 << 20);
  ASSERT_EQ(guest.read(0, bytes), kOk);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), content.begin()));
  EXPECT_EQ(guest.counters().bounced, 0u);
  // At an odd address, in odd pieces: 3 MiB go through 256 KiB buffers.
  Bytes odd(3 << 20);
  ASSERT_EQ(guest.read(2048, odd, 5, 3), kOk);
  EXPECT_TRUE(std::equal(odd.begin(), odd.end(), content.begin() + (1 << 20)));
  EXPECT_GE(guest.counters().bounced, 12u);
  const Bytes other = random_bytes(block * 77, 15);
  ASSERT_EQ(guest.write(8, other, 3, 1), kOk);
  std::copy(other.begin(), other.end(), content.begin() + 8 * 512);
  ASSERT_EQ(guest.flush(), kOk);
  EXPECT_TRUE(disk.content() == content);
}

TEST(BlockTest, more_bounced_requests_than_buffers_wait_their_turn) {
  const Bytes content = random_bytes(1 << 20, 16);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path(), .direct = true});
  std::vector<BlockGuest::Request> requests;
  for (uint64_t i = 0; i < 20; ++i) {
    requests.push_back(guest.make(VIRTIO_BLK_T_IN, i * 64, 32768, true, 1, 7));
    ASSERT_TRUE(guest.driver().add(requests.back().buffers, FakeDriver::Table::kIndirect));
  }
  guest.transport().kick_if_wanted(0);
  for (size_t i = 0; i < requests.size(); ++i)
    ASSERT_TRUE(guest.driver().wait_used(guest.transport().interrupt(0),
                                         deadline_in(FakeTransport::kPatience)));
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(guest.status(requests[i]), kOk);
    EXPECT_TRUE(std::equal(content.begin() + static_cast<ptrdiff_t>(i * 32768),
                           content.begin() + static_cast<ptrdiff_t>((i + 1) * 32768),
                           guest.data(requests[i]).begin()));
  }
}

TEST(BlockTest, bounce_buffers_are_purged_and_come_back_while_requests_run) {
  const Bytes content = random_bytes(1 << 20, 17);
  const TempDisk disk(content);
  BlockGuest guest({.path = disk.path(), .direct = true});
  ShrinkableCache& cache = guest.device().bounce_cache();
  Shrinker shrinker;
  const auto registration = shrinker.add(cache);
  EXPECT_EQ(cache.count(), 0u);
  std::atomic<bool> stop{false};
  uint64_t asked = 0;
  std::thread purging([&] {
    while (!stop) asked += shrinker.purge(1).asked_bytes;
  });
  for (int i = 0; i < 200; ++i) {
    Bytes bytes(300 * 1024);
    ASSERT_EQ(guest.read(0, bytes, 1, 3), kOk);
    ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), content.begin()));
  }
  stop = true;
  purging.join();
  EXPECT_GT(asked, 0u);
  EXPECT_GE(guest.counters().bounced, 400u);
  // Idle now: everything goes, and its thread does it by itself.
  (void)shrinker.purge(UINT64_MAX);
  const auto deadline = deadline_in(FakeTransport::kPatience);
  while (cache.count() > 0 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(cache.count(), 0u);
  EXPECT_GT(cache.purged_bytes(), 0u);
}

std::string open_error(const BlockOptions& options) {
  const auto device = BlockDevice::open(options);
  return device ? "opened" : device.error().text;
}

TEST(BlockOpenTest, says_what_is_wrong_and_what_to_do) {
  EXPECT_THAT(open_error({.path = "/nonexistent.img"}),
              HasSubstr("'/nonexistent.img' does not exist"));
  EXPECT_THAT(open_error({.path = "/tmp"}), HasSubstr("'/tmp' is a directory"));
  EXPECT_THAT(open_error({.path = "/dev/full"}), HasSubstr("neither a regular file nor"));
  const TempDisk empty(size_t{0});
  EXPECT_THAT(open_error({.path = empty.path()}), HasSubstr("is empty"));
  const TempDisk odd(1000);
  EXPECT_THAT(open_error({.path = odd.path()}), HasSubstr("1000 bytes, no multiple of 512"));
  EXPECT_THAT(open_error({.path = "/proc/version", .direct = true}), HasSubstr("/proc/version"));
}

TEST(BlockOpenTest, a_file_that_is_read_only_is_refused_with_the_way_out) {
  const TempDisk disk(4096);
  ASSERT_EQ(::chmod(disk.path().c_str(), 0444), 0);
  const auto said = [&](bool read_only) {
    return said_to_another_user([&] {
      const auto file = DiskFile::open(disk.path(), read_only, false);
      return file ? "opened" : file.error().text;
    });
  };
  EXPECT_EQ(said(false), "disk '" + disk.path() +
                             "' can't be opened for writing: Permission denied (read_only = true "
                             "opens it for reading only)");
  EXPECT_EQ(said(true), "opened");
  ASSERT_EQ(::chmod(disk.path().c_str(), 0), 0);
  EXPECT_EQ(said(true),
            "disk '" + disk.path() + "' can't be opened for reading: Permission denied");
}

TEST(BlockOpenTest, a_disk_of_another_vm_is_refused) {
  const TempDisk disk(4096);
  {
    const auto writer = BlockDevice::open({.path = disk.path()});
    ASSERT_TRUE(writer);
    EXPECT_THAT(open_error({.path = disk.path()}), HasSubstr("in use by another VM"));
    EXPECT_THAT(open_error({.path = disk.path(), .read_only = true}),
                HasSubstr(disk.path() + "' is in use"));
  }
  const auto reader = BlockDevice::open({.path = disk.path(), .read_only = true});
  ASSERT_TRUE(reader);
  EXPECT_EQ(open_error({.path = disk.path(), .read_only = true}), "opened") << "readers share it";
  EXPECT_THAT(open_error({.path = disk.path()}), HasSubstr("in use by another VM"));
}

}  // namespace
}  // namespace lethe
