#include "kernel/memory_return.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint64_t kZoneSplit = uint64_t{16} << 20;  // address where the second zone begins
constexpr uint64_t kHintReserve = uint64_t{4} << 20;
constexpr uint32_t kPagesOfBlock = 512;

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

// The larger zone first, as every kernel spares its low memory.
uint64_t MemoryReturn::take(unsigned order) {
  const uint64_t address = zones_[1].allocate(order);
  return address != kNoMemory ? address : zones_[0].allocate(order);
}

uint64_t MemoryReturn::allocate(unsigned order) {
  const Deadline deadline(kSoonMs);
  for (;;) {
    const uint64_t address = take(order);
    if (address != kNoMemory) return address;
    if (scanner_.isolated_bytes() != 0) {
      CHECK(!deadline.passed());
      reap();
    } else if (hinted_count_ != 0) {
      free(hinted_[--hinted_count_]);
    } else {
      return kNoMemory;
    }
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
  if (command == hint_served_ || command == VIRTIO_BALLOON_CMD_ID_STOP) return false;
  hint_served_ = command;
  if (command == VIRTIO_BALLOON_CMD_ID_DONE) {
    while (hinted_count_ != 0) free(hinted_[--hinted_count_]);
    return true;
  }
  balloon_->send_hint_command(command);
  Virtqueue& queue = balloon_->queue(BalloonQueue::kHint);
  while (hinted_count_ < kBlocksMax && free_bytes() > kHintReserve &&
         balloon_->hint_command() == command) {
    const uint64_t block = take(kBlockOrder);
    if (block == kNoMemory) break;
    const Buffer b = writable(reinterpret_cast<void*>(block), block_bytes(kBlockOrder));
    queue.submit_and_wait(&b, 1);
    hinted_[hinted_count_++] = block;
  }
  balloon_->send_hint_command(VIRTIO_BALLOON_CMD_ID_STOP);
  return true;
}

void MemoryReturn::send_pfns(uint64_t address, uint32_t count, bool inflate) {
  static uint32_t pfns[kPagesOfBlock];
  for (uint32_t i = 0; i < count; ++i) {
    pfns[i] = static_cast<uint32_t>(address >> VIRTIO_BALLOON_PFN_SHIFT) + i;
  }
  if (inflate) {
    balloon_->inflate(pfns, count);
  } else {
    balloon_->deflate(pfns, count);
  }
}

bool MemoryReturn::follow_target() {
  const uint32_t target = balloon_->target();
  if (ballooned_pages_ == target) return false;
  const bool inflate = ballooned_pages_ < target;
  // Of the last block, or of the next one: how far it is filled, and what may change at once.
  const uint32_t last = inflate ? ballooned_pages_ : ballooned_pages_ - 1;
  uint64_t& block = ballooned_[last / kPagesOfBlock];
  const uint32_t filled = ballooned_pages_ - last / kPagesOfBlock * kPagesOfBlock;
  if (inflate) {
    if (last / kPagesOfBlock == kBlocksMax) return false;
    if (filled == 0) block = allocate(kBlockOrder);
    if (block == kNoMemory) return false;
    const uint32_t left = kPagesOfBlock - filled;
    const uint32_t count = target - ballooned_pages_ < left ? target - ballooned_pages_ : left;
    send_pfns(block + filled * kPageSize, count, true);
    ballooned_pages_ += count;
  } else {
    const uint32_t count = ballooned_pages_ - target < filled ? ballooned_pages_ - target : filled;
    send_pfns(block + (filled - count) * kPageSize, count, false);
    if (count == filled) free(block);
    ballooned_pages_ -= count;
  }
  balloon_->set_actual(ballooned_pages_);
  return true;
}

}  // namespace kernel
