// The I/O thread's side of a disk: takes requests from the queues, runs them through an io_uring,
// completes them.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "devices/virtio/block/bounce_pool.h"
#include "devices/virtio/block/disk_file.h"
#include "devices/virtio/block/io_ring.h"
#include "devices/virtio/block/request.h"
#include "devices/virtio/block/token_bucket.h"
#include "devices/virtio/device.h"
#include "devices/virtio/spinner.h"

namespace lethe {

struct BlockCounters {  // any thread
  std::atomic<uint64_t> reads{0};
  std::atomic<uint64_t> writes{0};
  std::atomic<uint64_t> flushes{0};
  std::atomic<uint64_t> discards{0};
  std::atomic<uint64_t> write_zeroes{0};
  std::atomic<uint64_t> bytes_read{0};
  std::atomic<uint64_t> bytes_written{0};
  std::atomic<uint64_t> io_errors{0};  // requests that the host failed
  std::atomic<uint64_t> refused{0};    // out of range, read-only, unknown type
  std::atomic<uint64_t> malformed{0};  // rules of 5.2.6 broken by the driver
  std::atomic<uint64_t> throttled{0};  // times the rate limit held requests back
  std::atomic<uint64_t> bounced{0};    // transfers through an aligned buffer (O_DIRECT)
};

struct BlockRates {
  uint64_t iops_max = 0;       // requests per second, 0: no limit
  uint64_t bandwidth_max = 0;  // bytes per second, 0: no limit
};

struct BlockIoOptions {
  BlockRates rates{};
  std::array<uint8_t, kBlockIdBytes> id{};
  // Tests only: sees each result of the host, may replace it.
  std::function<int(const BlockRequest&, int)> tamper = {};
};

// Threading: everything on `loop`'s thread, the constructor too; counters on any.
//
// No allocation per request, once queues are started: a slot for each descriptor, vectors that are
// the queue's own slices. (Chains of odd shapes allocate scratch space the first time.)
class BlockIo {
 public:
  BlockIo(EventLoop& loop, DiskFile& disk, BlockGeometry geometry, BlockIoOptions options,
          BlockCounters& counters, std::unique_ptr<IoRing> ring, size_t queues);
  ~BlockIo();

  // To be called once after construction: watches the ring.
  [[nodiscard]] Result<> watch();

  // `write_through`: the driver has not negotiated VIRTIO_BLK_F_FLUSH, so a write is complete only
  // when it is stable (5.2.5.2, 5.2.6.2).
  void start(VirtioHost& host, bool write_through);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick);
  // Drops what waits, asks the kernel to cancel what it runs, and waits until it has let go of the
  // guest's memory: as long as the host's storage takes for what can't be cancelled. What was
  // cancelled is dropped, not answered: done again later, it does no harm.
  void stop_queue(uint16_t index);
  void stop_all();
  // The rate limits, which may have changed since the config, and their state.
  void save(StateWriter& to) const;
  void restore(StateReader& from);

  [[nodiscard]] const BlockRates& rates() const { return x_rates; }
  void set_rates(const BlockRates& rates);
  // Another size of the disk; tells the guest.
  void set_sectors(uint64_t sectors) {
    x_geometry.sectors = sectors;
    if (x_host != nullptr) x_host->config_changed();
  }

  // Its bounce buffers, for the shrinker; any thread.
  [[nodiscard]] ShrinkableCache& bounce_cache() { return x_bounce.cache(); }

 private:
  struct LiveQueue {
    std::unique_ptr<Queue> queue;
    std::unique_ptr<EventLoop::Watch> watch;
    std::unique_ptr<BlockRequest[]> requests;  // by head
    uint32_t in_flight = 0;                    // started, not finished: the kernel's or waiting
    bool stopping = false;
    bool reported = false;  // its breaking
  };

  void pump();
  bool take_available();
  bool take(uint16_t index);
  void begin(uint16_t index, Chain chain);
  [[nodiscard]] bool limited() const;
  bool found_by_spinning();
  bool held_back(BlockRequest& request);
  void release_held();
  void run_admitted(BlockRequest& request);
  void run(BlockRequest& request);
  void run_transfer(BlockRequest& request);
  void run_bounced(BlockRequest& request);
  void run_fallocate(BlockRequest& request, int mode);
  void run_write_zeroes(BlockRequest& request);
  [[nodiscard]] bool must_write(const BlockRequest& request) const;
  [[nodiscard]] bool aligned(const IoVector& data) const;
  void wait_for_bounce(BlockRequest& request);
  io_uring_sqe* next_entry(BlockRequest& request);
  void hand_over(BlockRequest& request, io_uring_sqe* entry);
  unsigned reap();
  void completed(BlockRequest& request, int result);
  void transferred(BlockRequest& request, int result);
  void fail(BlockRequest& request, int error);
  void abandon(BlockRequest& request);
  void finish(BlockRequest& request, uint8_t status);
  void count(const BlockRequest& request);
  void give_back_bounce(BlockRequest& request);
  void end_round();
  bool want_kicks();

  EventLoop& x_loop;
  DiskFile& x_disk;
  BlockGeometry x_geometry;
  const BlockIoOptions x_options;
  BlockCounters& x_counters;
  std::unique_ptr<IoRing> x_ring;
  std::unique_ptr<EventLoop::Watch> x_ring_watch;
  std::unique_ptr<EventLoop::Timer> x_timer;  // for x_held
  BouncePool x_bounce;
  BlockRequest* x_bounce_first = nullptr;  // requests that wait for a buffer, in order
  BlockRequest* x_bounce_last = nullptr;
  BlockRates x_rates;
  TokenBucket x_requests;
  TokenBucket x_bytes;
  BlockRequest* x_held = nullptr;  // by the rate limit; nothing is taken from the queues meanwhile
  std::vector<LiveQueue> x_queues;
  // Waking up costs the guest an exit and this thread a trip through the scheduler, 5 to 50 us.
  Spinner x_spinner{std::chrono::microseconds{10}};
  size_t x_first_queue = 0;  // takes its turn first
  VirtioHost* x_host = nullptr;
  bool x_write_through = false;
  bool x_zero_range_works = true;
  bool x_punch_hole_works = true;
};

}  // namespace lethe
