// A disk that is frozen with requests under way, and goes on: in the same device, and in another.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "devices/virtio/block/block_test_util.h"

namespace lethe {
namespace {

constexpr int kOk = VIRTIO_BLK_S_OK;
constexpr std::chrono::seconds kPatience{20};
constexpr size_t kSlots = 16;
constexpr size_t kSlotBytes = 8192;

// A driver that keeps a queue full: each slot of the disk is written with something new and read
// back, for ever, on a thread of its own.
class BusyDriver {
 public:
  BusyDriver(BlockGuest& guest, uint16_t queue)
      : x_guest(guest), x_queue(queue), x_random(queue), x_slots(kSlots) {
    for (size_t i = 0; i < kSlots; ++i) {
      const uint64_t sector = (queue * kSlots + i) * kSlotBytes / 512;
      x_slots[i].write = guest.make(VIRTIO_BLK_T_OUT, sector, kSlotBytes, false, 1 + i % 3);
      x_slots[i].read = guest.make(VIRTIO_BLK_T_IN, sector, kSlotBytes, true, 1 + i % 3);
    }
  }
  // False once something was lost, answered wrongly, or read back as something else.
  bool run(const std::atomic<bool>& stop) {
    for (size_t i = 0; i < kSlots; ++i)
      if (!send(i)) return false;
    while (x_by_head_count > 0) {
      const auto used =
          driver().wait_used(x_guest.transport().interrupt(x_queue), deadline_in(kPatience));
      if (!used) return false;
      const size_t slot = x_by_head.at(used->head);
      --x_by_head_count;
      if (!check(slot)) return false;
      ++answered;
      if (stop) continue;
      if (!send(slot)) return false;
    }
    return true;
  }
  uint64_t answered = 0;

 private:
  struct Slot {
    BlockGuest::Request write;
    BlockGuest::Request read;
    uint32_t content = 0;
    bool reading = true;
  };
  FakeDriver& driver() { return x_guest.driver(x_queue); }
  // What comes next for the slot: a write of something new, or the way back.
  bool send(size_t index) {
    Slot& slot = x_slots[index];
    slot.reading = !slot.reading;
    const auto& request = slot.reading ? slot.read : slot.write;
    if (!slot.reading) {
      slot.content = static_cast<uint32_t>(x_random());
      if (!x_guest.memory().write(request.data, random_bytes(kSlotBytes, slot.content)))
        return false;
    }
    if (!x_guest.memory().store(request.status, uint8_t{0xee})) return false;
    const auto head = driver().add(request.buffers, FakeDriver::Table::kIndirect);
    if (!head) return false;
    x_by_head[*head] = index;
    ++x_by_head_count;
    x_guest.transport().kick_if_wanted(x_queue);
    return true;
  }
  bool check(size_t index) {
    const Slot& slot = x_slots[index];
    const auto& request = slot.reading ? slot.read : slot.write;
    if (x_guest.status(request) != kOk) return false;
    return !slot.reading || x_guest.data(request) == random_bytes(kSlotBytes, slot.content);
  }

  BlockGuest& x_guest;
  const uint16_t x_queue;
  std::mt19937 x_random;
  std::vector<Slot> x_slots;
  std::map<uint16_t, size_t> x_by_head;
  size_t x_by_head_count = 0;
};

// Freezes the disk `times` times under two busy queues; the chains that were kept meanwhile.
size_t freeze_under_load(const BlockOptions& options, int times) {
  BlockGuest guest(options);
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<BusyDriver>> drivers;
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (uint16_t i = 0; i < options.queues; ++i) {
    drivers.push_back(std::make_unique<BusyDriver>(guest, i));
    threads.emplace_back([&, driver = drivers.back().get()] {
      if (!driver->run(stop)) ++failures;
    });
  }
  size_t kept = 0;
  for (int i = 0; i < times && failures == 0; ++i) {
    guest.transport().freeze();
    for (uint16_t queue = 0; queue < options.queues; ++queue)
      kept += guest.transport().position(queue).unfinished.size();
    guest.transport().thaw();
    if (i % 4 == 0) std::this_thread::yield();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(guest.transport().needs_reset_count(), 0u);
  EXPECT_EQ(guest.counters().io_errors, 0u);
  for (const auto& driver : drivers) EXPECT_GE(driver->answered, kSlots);
  return kept;
}

TEST(BlockFreezeTest, a_thousand_freezes_lose_no_request_and_answer_none_twice) {
  const TempDisk disk(2 * kSlots * kSlotBytes);
  (void)freeze_under_load({.path = disk.path(), .queues = 2}, 1000);
}

TEST(BlockFreezeTest, the_same_with_requests_that_the_kernel_has_still_to_do) {
  const TempDisk disk(2 * kSlots * kSlotBytes);
  (void)freeze_under_load({.path = disk.path(), .direct = true, .queues = 2}, 100);
}

TEST(BlockFreezeTest, the_same_with_requests_that_the_rate_limit_holds_back) {
  const TempDisk disk(2 * kSlots * kSlotBytes);
  const size_t kept =
      freeze_under_load({.path = disk.path(), .queues = 2, .bandwidth_max = 2 * kMiB}, 200);
  EXPECT_GT(kept, 0u) << "none was ever kept: the test tests nothing";
}

// A disk with its rings in `memory`, and another one that takes over.
struct MovingDisk {
  explicit MovingDisk(const BlockOptions& with) : options(with) {
    device = BlockDevice::open(options).value();
    guest = std::make_unique<FakeTransport>(*memory, *device);
    guest->start();
  }
  ~MovingDisk() { guest.reset(); }
  Result<> move(std::span<const uint8_t> state) {
    guest->leave();
    device.reset();  // its lock on the file, too
    device = BlockDevice::open(options).value();
    return guest->move_to(*device, state);
  }
  BlockOptions options;
  std::unique_ptr<GuestMemory> memory = GuestMemory::create({&BlockGuest::kRam, 1}, {}).value();
  std::unique_ptr<BlockDevice> device;
  std::unique_ptr<FakeTransport> guest;
};

TEST(BlockFreezeTest, another_device_answers_what_the_first_one_held_back) {
  constexpr uint32_t kBytes = 64 * 1024;
  const Bytes content = random_bytes(kBytes, 4);
  const TempDisk disk(content);
  // Ten of them are a second's worth: the first goes, the second waits for a fifth of a second.
  MovingDisk moving({.path = disk.path(), .bandwidth_max = uint64_t{10} * kBytes});
  struct Read {
    GuestAddr data;
    GuestAddr status;
  };
  std::vector<Read> reads;
  GuestHeap& heap = moving.guest->heap();
  for (int i = 0; i < 4; ++i) {
    const virtio_blk_outhdr header{.type = VIRTIO_BLK_T_IN, .ioprio = 0, .sector = 0};
    reads.push_back({heap.alloc(kBytes, 4096), heap.alloc(1)});
    // SAFETY: the structure's bytes.
    const GuestAddr at = heap.put({reinterpret_cast<const uint8_t*>(&header), sizeof header});
    const FakeBuffer buffers[] = {
        {at, sizeof header, false}, {reads[i].data, kBytes, true}, {reads[i].status, 1, true}};
    ASSERT_TRUE(moving.guest->driver(0).add(buffers));
  }
  moving.guest->kick(0);
  ASSERT_TRUE(
      moving.guest->driver(0).wait_used(moving.guest->interrupt(0), deadline_in(kPatience)));
  moving.guest->freeze();
  const auto state = moving.guest->save();
  const auto used_before = moving.guest->driver(0).raw_used_index();
  ASSERT_TRUE(moving.move(state));
  moving.guest->thaw();
  for (int i = 1; i < 4; ++i)
    ASSERT_TRUE(
        moving.guest->driver(0).wait_used(moving.guest->interrupt(0), deadline_in(kPatience)));
  EXPECT_LT(used_before, 4) << "the rate limit held nothing back";
  for (const Read& read : reads) {
    Bytes got(kBytes);
    ASSERT_TRUE(moving.memory->read(read.data, got));
    EXPECT_TRUE(got == content);
    EXPECT_EQ(moving.memory->load<uint8_t>(read.status), uint8_t{kOk});
  }
}

TEST(BlockFreezeTest, a_disk_of_another_size_is_refused) {
  const TempDisk disk(8192);
  MovingDisk moving({.path = disk.path()});
  moving.guest->freeze();
  const auto state = moving.guest->save();
  disk.resize(4096);
  const auto moved = moving.move(state);
  ASSERT_FALSE(moved);
  EXPECT_NE(moved.error().text.find("16 sectors and has 8 now"), std::string::npos)
      << moved.error().text;
}

TEST(BlockFreezeTest, rate_limits_and_a_size_that_have_changed_go_on) {
  const TempDisk disk(8192);
  MovingDisk moving({.path = disk.path(), .iops_max = 7});
  moving.device->set_rates({.iops_max = 0, .bandwidth_max = 12345678});
  ASSERT_TRUE(moving.device->resize(16384));
  moving.guest->freeze();
  ASSERT_TRUE(moving.move(moving.guest->save()));
  EXPECT_EQ(moving.device->rates().iops_max, 0u);
  EXPECT_EQ(moving.device->rates().bandwidth_max, 12345678u);
  EXPECT_EQ(moving.device->sectors(), 32u);
}

TEST(BlockFreezeTest, a_debt_from_a_file_is_bounded) {
  TokenBucket bucket(100);
  bucket.set_debt(10);
  const auto now = std::chrono::steady_clock::now();
  EXPECT_NEAR(std::chrono::duration<double>(bucket.wait(now)).count(), 0.11, 0.001);
  EXPECT_EQ(bucket.debt(), 10u);
  const TempDisk disk(4096);
  MovingDisk moving({.path = disk.path(), .iops_max = 1000, .bandwidth_max = kChainBytesMax});
  moving.guest->freeze();
  StateWriter hostile;
  hostile.number(uint64_t{8});
  hostile.number(uint64_t{1000});
  hostile.number(kChainBytesMax);
  hostile.number(UINT64_MAX);
  hostile.number(UINT64_MAX);
  ASSERT_TRUE(moving.move(hostile.take()));
  moving.guest->thaw();
  const GuestAddr status = moving.guest->heap().alloc(1);
  const virtio_blk_outhdr header{.type = VIRTIO_BLK_T_FLUSH, .ioprio = 0, .sector = 0};
  // SAFETY: the structure's bytes.
  const GuestAddr at =
      moving.guest->heap().put({reinterpret_cast<const uint8_t*>(&header), sizeof header});
  const FakeBuffer buffers[] = {{at, sizeof header, false}, {status, 1, true}};
  EXPECT_TRUE(moving.guest->request(0, buffers)) << "it waits for more than a second or two";
}

}  // namespace
}  // namespace lethe
