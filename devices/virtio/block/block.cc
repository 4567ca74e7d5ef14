#include "devices/virtio/block/block.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint64_t bit(unsigned feature) { return uint64_t{1} << feature; }
constexpr uint64_t kFeatures = bit(VIRTIO_BLK_F_SEG_MAX) | bit(VIRTIO_BLK_F_BLK_SIZE) |
                               bit(VIRTIO_BLK_F_TOPOLOGY) | bit(VIRTIO_BLK_F_FLUSH);
constexpr uint64_t kWriterFeatures = bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
constexpr uint32_t kTopologyBytes = 4096;  // what the page cache and most disks work in
constexpr uint16_t kHeaderAndStatus = 2;   // descriptors of a request that carry no data

std::array<uint8_t, kBlockIdBytes> make_id(const BlockOptions& options) {
  const std::string& path = options.path;
  const std::string text =
      options.serial.empty() ? path.substr(path.find_last_of('/') + 1) : options.serial;
  std::array<uint8_t, kBlockIdBytes> id{};
  std::copy_n(text.begin(), std::min(text.size(), id.size()), id.begin());
  return id;
}

virtio_blk_config make_config(const BlockOptions& options, const DiskFile& disk) {
  virtio_blk_config config{};
  config.capacity = disk.bytes / kSectorBytes;
  // An indirect chain may be as long as the queue, no longer (2.7.5.3.1).
  config.seg_max = options.queue_size - kHeaderAndStatus;
  config.blk_size = disk.block_bytes;
  config.physical_block_exp = static_cast<uint8_t>(
      std::bit_width(std::max(kTopologyBytes, disk.block_bytes) / disk.block_bytes) - 1);
  config.min_io_size =
      static_cast<uint16_t>(std::max(kTopologyBytes, disk.block_bytes) / disk.block_bytes);
  config.num_queues = options.queues;
  config.max_discard_sectors = kDiscardSectorsMax;
  config.max_discard_seg = 1;
  config.discard_sector_alignment = std::max(kTopologyBytes, disk.block_bytes) / kSectorBytes;
  config.max_write_zeroes_sectors = kDiscardSectorsMax;
  config.max_write_zeroes_seg = 1;
  config.write_zeroes_may_unmap = 1;
  return config;
}

}  // namespace

Result<std::unique_ptr<BlockDevice>> BlockDevice::open(const BlockOptions& options) {
  LETHE_ASSERT(options.queues >= 1 && options.queues <= kBlockQueuesMax);
  LETHE_ASSERT(std::has_single_bit(options.queue_size) && options.queue_size >= 4 &&
               options.queue_size <= kQueueSizeMax);
  LETHE_TRY_ASSIGN(DiskFile disk, DiskFile::open(options.path, options.read_only, options.direct));
  std::unique_ptr<BlockDevice> device(new BlockDevice(options, std::move(disk)));
  LETHE_TRY(device->start_io(options));
  return Result<std::unique_ptr<BlockDevice>>(std::move(device));
}

BlockDevice::BlockDevice(const BlockOptions& options, DiskFile disk)
    : x_name(options.name),
      x_read_only(options.read_only),
      x_disk(std::move(disk)),
      x_queue_sizes(options.queues, options.queue_size),
      x_config(make_config(options, x_disk)),
      x_sectors(x_config.capacity),
      x_thread(x_name.c_str()) {}

Result<> BlockDevice::start_io(const BlockOptions& options) {
  Result<> result;
  x_thread.run_and_wait([&] {
    // On the thread that will submit, as the ring's single issuer.
    auto ring = IoRing::create(uint32_t{options.queues} * options.queue_size, x_disk.fd.get());
    if (!ring) {
      result = Unexpected(
          Error{ring.error().kind, fmt::format("disk '{}': {}", options.path, ring.error().text)});
      return;
    }
    x_io = std::make_unique<BlockIo>(
        x_thread.loop(), x_disk,
        BlockGeometry{.sectors = x_config.capacity,
                      .block_bytes = x_config.blk_size,
                      .read_only = x_read_only},
        BlockIoOptions{
            .rates = {.iops_max = options.iops_max, .bandwidth_max = options.bandwidth_max},
            .id = make_id(options),
            .tamper = options.tamper},
        x_counters, std::move(*ring), options.queues);
    result = x_io->watch();
  });
  return result;
}

BlockDevice::~BlockDevice() {
  x_thread.run_and_wait([this] { x_io.reset(); });
  x_disk.unlock();
}

uint64_t BlockDevice::device_features() const {
  return kFeatures | (x_read_only ? bit(VIRTIO_BLK_F_RO) : kWriterFeatures) |
         (x_queue_sizes.size() > 1 ? bit(VIRTIO_BLK_F_MQ) : 0);
}

void BlockDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  virtio_blk_config config = x_config;
  config.capacity = sectors();
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&config) + offset, to.size());
}

BlockRates BlockDevice::rates() {
  BlockRates rates;
  x_thread.run_and_wait([&] { rates = x_io->rates(); });
  return rates;
}

void BlockDevice::set_rates(const BlockRates& rates) {
  x_thread.run_and_wait([&] { x_io->set_rates(rates); });
}

Result<> BlockDevice::resize(std::optional<uint64_t> bytes) {
  Result<> result;
  x_thread.run_and_wait([&] {
    result = bytes ? x_disk.grow(*bytes, x_read_only) : x_disk.take_over_size();
    if (!result) return;
    // Requests beyond the old end are good before the guest hears of the new one.
    x_sectors.store(x_disk.bytes / kSectorBytes, std::memory_order_relaxed);
    x_io->set_sectors(x_disk.bytes / kSectorBytes);
  });
  return result;
}

void BlockDevice::start(uint64_t features, VirtioHost& host) {
  const bool write_through = (features & bit(VIRTIO_BLK_F_FLUSH)) == 0;
  x_thread.run_and_wait([&] { x_io->start(host, write_through); });
}

void BlockDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_thread.run_and_wait([&] { x_io->start_queue(index, std::move(queue), kick); });
}

void BlockDevice::stop_queue(uint16_t index) {
  x_thread.run_and_wait([&] { x_io->stop_queue(index); });
}

void BlockDevice::reset() {
  x_thread.run_and_wait([this] { x_io->stop_all(); });
}

void BlockDevice::save(StateWriter& to) {
  to.number(sectors());
  x_thread.run_and_wait([&] { x_io->save(to); });
}

Result<> BlockDevice::restore(StateReader& from) {
  const auto before = from.number<uint64_t>();
  if (from.ok() && before != sectors())
    from.fail(fmt::format("the disk had {} sectors and has {} now", before, sectors()));
  x_thread.run_and_wait([&] { x_io->restore(from); });
  return from.check();
}

}  // namespace lethe
