// virtio-blk over a raw file or a block device (virtio 1.2, 5.2).
#pragma once

#include <linux/virtio_blk.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "devices/virtio/block/block_io.h"
#include "devices/virtio/block/disk_file.h"
#include "devices/virtio/device.h"

namespace lethe {

inline constexpr uint16_t kBlockQueuesMax = 16;

struct BlockOptions {
  std::string name = "block0";  // for logs and the I/O thread: at most 15 characters
  std::string path = {};
  bool read_only = false;
  bool direct = false;         // O_DIRECT
  uint16_t queues = 1;         // 1 to kBlockQueuesMax
  uint16_t queue_size = 256;   // a power of two, 4 to kQueueSizeMax
  uint64_t iops_max = 0;       // requests per second, 0: no limit
  uint64_t bandwidth_max = 0;  // bytes per second, 0: no limit
  std::string serial = {};     // GET_ID, cut at 20 bytes; empty: the file's name
  std::function<int(const BlockRequest&, int)> tamper = {};  // tests only: see BlockIoOptions
};

// Threading: owns one I/O thread, on which all queues, their kicks and the io_uring live. Transport
// calls, on vCPU threads, wait for that thread, which never waits for a vCPU. Needs no other loop.
// Create and destroy on any one thread.
//
// Each request's bytes go straight between the guest's memory and the file. A flush is fdatasync().
// Errors are the request's status, never the VM's end.
class BlockDevice : public VirtioDevice {
 public:
  // Fails as DiskFile::open() and IoRing::create() do; options out of range are a programmer error.
  [[nodiscard]] static Result<std::unique_ptr<BlockDevice>> open(const BlockOptions& options);
  ~BlockDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_BLOCK; }
  [[nodiscard]] const char* name() const override { return x_name.c_str(); }
  [[nodiscard]] uint64_t device_features() const override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override { return x_queue_sizes; }
  [[nodiscard]] uint32_t config_size() const override { return sizeof x_config; }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t, std::span<const uint8_t>) override {}  // nothing in it is writable
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  // The disk's content is no part of it: the file is as it is.
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  [[nodiscard]] uint64_t sectors() const { return x_sectors.load(std::memory_order_relaxed); }
  [[nodiscard]] bool read_only() const { return x_read_only; }

  // While the guest runs; on any thread but the disk's, for which they wait.
  [[nodiscard]] BlockRates rates();
  // Holds from the next request on; one that waits is looked at again.
  void set_rates(const BlockRates& rates);
  // Grows the file to `bytes`, or, without, takes over the size that the file or block device has
  // by now; then tells the guest (5.2.5, VIRTIO_BLK capacity and a configuration change). Fails, in
  // one line, when `bytes` is less than there is or no whole number of blocks, on a read-only disk
  // or a block device (both can only be taken over), or when the host refuses.
  [[nodiscard]] Result<> resize(std::optional<uint64_t> bytes);

  [[nodiscard]] const BlockCounters& counters() const { return x_counters; }
  // For the shrinker, whose registration must end before the device does.
  [[nodiscard]] ShrinkableCache& bounce_cache() { return x_io->bounce_cache(); }

 private:
  BlockDevice(const BlockOptions& options, DiskFile disk);
  Result<> start_io(const BlockOptions& options);

  const std::string x_name;
  const bool x_read_only;
  DiskFile x_disk;
  std::vector<uint16_t> x_queue_sizes;
  virtio_blk_config x_config{};  // fixed after open(), but for the capacity, which is x_sectors
  std::atomic<uint64_t> x_sectors;
  BlockCounters x_counters;
  std::unique_ptr<BlockIo> x_io;  // the thread's
  IoThread x_thread;
};

}  // namespace lethe
