#include "kernel/memory_return.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint64_t kZoneSplit = uint64_t{16} << 20;  // address where the second zone begins
constexpr uint64_t kHintReserve = uint64_t{4} << 20;
constexpr uint32_t kPfnsOfBlock = 512;

}  // namespace

void MemoryReturn::init(BalloonDriver& balloon, const ScannerOptions& options, uint64_t keep) {
  balloon_ = &balloon;
  uint64_t begin = 0;
  uint64_t end = 0;
  // The page records come out of what is kept; they are zeroes, as all memory at boot.
  take_memory(keep, &begin, &end);
  CHECK(begin < kZoneSplit && kZoneSplit < end);
  const uint64_t edges[] = {begin, kZoneSplit, end};
  for (size_t z = 0; z < 2; ++z) {
    const size_t bytes = Zone::records_for(edges[z], edges[z + 1]) * sizeof(PageRecord);
    auto* pages = static_cast<PageRecord*>(alloc_pages((bytes + kPageSize - 1) / kPageSize));
    zones_[z].init(edges[z], edges[z + 1], pages, kOrderMax, options.order_min);
    zones_[z].add(edges[z], edges[z + 1], true);
  }
  scanner_.init(zones_, 2, options);
}

uint64_t MemoryReturn::allocate(unsigned order) {
  const Deadline deadline(kSoonMs);
  for (;;) {
    // The larger zone first, as every kernel spares its low memory.
    for (size_t z = 2; z-- > 0;) {
      const uint64_t address = zones_[z].allocate(order);
      if (address != kNoMemory) return address;
    }
    if (scanner_.isolated_bytes() == 0) return kNoMemory;
    CHECK(!deadline.passed());
    reap();
  }
}

void MemoryReturn::free(uint64_t address) {
  (zones_[0].contains(address) ? zones_[0] : zones_[1]).free(address);
}

void MemoryReturn::poll() {
  reap();
  if (scanner_.due()) scanner_.wake();
  feed();
}

void MemoryReturn::flush() {
  scanner_.wake();
  const Deadline deadline(kSoonMs);
  while (scanner_.awake() || scanner_.isolated_bytes() != 0) {
    CHECK(!deadline.passed());
    reap();
    feed();
  }
}

void MemoryReturn::reap() {
  if (!balloon_->has(BalloonQueue::kReport)) return;
  Virtqueue& queue = balloon_->queue(BalloonQueue::kReport);
  for (Used used = {}; queue.pop(used);) scanner_.done(queue.desc()[used.head].addr, true);
}

// One descriptor a block, written from what the scanner says; one kick for all of them.
void MemoryReturn::feed() {
  if (!scanner_.awake() || !balloon_->has(BalloonQueue::kReport)) return;
  Virtqueue& queue = balloon_->queue(BalloonQueue::kReport);
  FreeBlock block;
  bool any = false;
  while (queue.room() > 0 && scanner_.next(block)) {
    const Buffer b = writable(reinterpret_cast<void*>(block.address), block.bytes);
    queue.publish(queue.add(&b, 1));
    any = true;
  }
  if (any) queue.kick();
}

bool MemoryReturn::hint() {
  if (!balloon_->has(BalloonQueue::kHint)) return false;
  const uint32_t command = balloon_->hint_command();
  if (command <= VIRTIO_BALLOON_CMD_ID_DONE || command == hint_served_) return false;
  hint_served_ = command;
  balloon_->send_hint_command(command);
  Virtqueue& queue = balloon_->queue(BalloonQueue::kHint);
  static uint64_t blocks[kBlocksMax];
  size_t count = 0;
  Used used = {};
  // The host may change its mind at any time: then its command is another.
  while (count < kBlocksMax && free_bytes() > kHintReserve && balloon_->hint_command() == command) {
    const uint64_t block = allocate(kBlockOrder);
    if (block == kNoMemory) break;
    blocks[count++] = block;
    CHECK_SOON((queue.pop(used), queue.room() > 0));
    const Buffer b = writable(reinterpret_cast<void*>(block), block_bytes(kBlockOrder));
    queue.publish(queue.add(&b, 1));
    queue.kick();
  }
  CHECK_SOON((queue.pop(used), queue.room() == queue.size()));
  balloon_->send_hint_command(VIRTIO_BALLOON_CMD_ID_STOP);
  CHECK_SOON(balloon_->hint_command() != command);
  for (size_t i = 0; i < count; ++i) free(blocks[i]);
  return true;
}

void MemoryReturn::send_pfns(uint64_t block, bool inflate) {
  static uint32_t pfns[kPfnsOfBlock];
  for (uint32_t i = 0; i < kPfnsOfBlock; ++i) {
    pfns[i] = static_cast<uint32_t>(block >> VIRTIO_BALLOON_PFN_SHIFT) + i;
  }
  if (inflate) {
    balloon_->inflate(pfns, kPfnsOfBlock);
  } else {
    balloon_->deflate(pfns, kPfnsOfBlock);
  }
}

bool MemoryReturn::follow_target() {
  const uint64_t target = balloon_->target() / kPfnsOfBlock;
  const size_t before = ballooned_;
  if (ballooned_ < target && ballooned_ < kBlocksMax) {
    const uint64_t block = allocate(kBlockOrder);
    if (block == kNoMemory) return false;
    send_pfns(block, true);
    balloon_blocks_[ballooned_++] = block;
  } else if (ballooned_ > target) {
    const uint64_t block = balloon_blocks_[--ballooned_];
    send_pfns(block, false);
    free(block);
  }
  if (ballooned_ == before) return false;
  balloon_->set_actual(static_cast<uint32_t>(ballooned_ * kPfnsOfBlock));
  return true;
}

}  // namespace kernel
