// Each queue of the balloon by itself (virtio 1.2, section 5.5.6).
#include "guests/balloon.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace balloon {
namespace {

constexpr uint32_t kPagesOfBlock = k2MiB / kPageSize;
constexpr uint32_t kPoison = 0xa5c3f00d;
constexpr uint64_t kSettleMs = 5;
constexpr uint16_t kUnknownTag = 4711;

uint64_t new_block(uint64_t tag) {
  const uint64_t address = physical(alloc_pages(kPagesOfBlock, k2MiB));
  write_block(address, tag);
  return address;
}

Buffer hint_of(uint64_t address, uint64_t bytes) {
  return writable(reinterpret_cast<void*>(address), bytes);
}

uint32_t pfn(uint64_t address) { return static_cast<uint32_t>(address / kPageSize); }

// Page numbers of a whole block.
const uint32_t* pfns_of(uint64_t block) {
  static uint32_t pfns[kPagesOfBlock];
  for (uint32_t i = 0; i < kPagesOfBlock; ++i) pfns[i] = pfn(block) + i;
  return pfns;
}

void report_one(BalloonDriver& d, uint64_t address, uint64_t bytes) {
  const Buffer b = hint_of(address, bytes);
  d.queue(BalloonQueue::kReport).submit_and_wait(&b, 1);
}

}  // namespace

// Whatever of the optional queues is negotiated, the ones that are there have the next indices.
void negotiation() {
  const unsigned optional[] = {VIRTIO_BALLOON_F_STATS_VQ, VIRTIO_BALLOON_F_FREE_PAGE_HINT,
                               VIRTIO_BALLOON_F_REPORTING};
  BalloonDriver& d = driver();
  CHECK(d.device().config_length() >= 16);
  CHECK_EQ(d.target(), 0);
  for (unsigned subset = 0; subset < 8; ++subset) {
    BalloonDriver::Options options;
    options.optional = 0;
    for (unsigned i = 0; i < 3; ++i) {
      if ((subset >> i & 1) != 0) options.required |= feature(optional[i]);
    }
    d.restart(options);
    const uint64_t block = new_block(subset);
    d.inflate(pfns_of(block), kPagesOfBlock);
    d.deflate(pfns_of(block), kPagesOfBlock);
    check_returned(block, subset, 0);
    if (d.has(BalloonQueue::kReport)) {
      write_block(block, subset);
      report_one(d, block, k2MiB);
      check_returned(block, subset, 0);
    }
    CHECK(!d.device().needs_reset());
  }
  d.restart({});
}

void inflate() {
  BalloonDriver& d = driver();
  const uint64_t before = new_block(1);
  const uint64_t block = new_block(2);
  const uint64_t after = new_block(3);
  for (unsigned round = 0; round < 3; ++round) {
    d.inflate(pfns_of(block), kPagesOfBlock);
    d.set_actual(kPagesOfBlock);
    d.deflate(pfns_of(block), kPagesOfBlock);
    d.set_actual(0);
    check_returned(block, 2, 0);
    write_block(block, 2);
  }
  check_block(before, 1);
  check_block(block, 2);
  check_block(after, 3);
}

// Pages here and there, in no order; their neighbours stay.
void inflate_single_pages() {
  BalloonDriver& d = driver();
  const uint64_t block = new_block(7);
  const uint64_t pages[] = {0x1a5000, 0x1000, 0x100000, 0x2000, 0x3000};
  uint32_t pfns[5];
  for (unsigned i = 0; i < 5; ++i) pfns[i] = pfn(block + pages[i]);
  d.inflate(pfns, 5);
  d.deflate(pfns, 5);
  for (const uint64_t page : pages) {
    check_returned_part(block, 7, 0, page, page + kPageSize);
  }
  check_block_part(block, 7, 0, 0x1000);
  check_block_part(block, 7, 0x4000, 0x100000);
  check_block_part(block, 7, 0x101000, 0x1a5000);
  check_block_part(block, 7, 0x1a6000, k2MiB);
}

// The device keeps the buffer until it wants to know again: then it is answered at once, and may be
// never. Known tags, unknown ones, and none at all.
void statistics() {
  BalloonDriver& d = driver();
  Virtqueue& queue = d.queue(BalloonQueue::kStats);
  static virtio_balloon_stat stats[18];
  for (uint16_t i = 0; i < 16; ++i) stats[i] = {i, uint64_t{1000} + i};
  stats[16] = {kUnknownTag, 1};
  stats[17] = {0xffff, ~uint64_t{0}};
  const Buffer b = readable(stats, sizeof(stats));
  queue.publish(queue.add(&b, 1));
  queue.kick();
  wait_until([&] { return queue.has_used(); }, kSettleMs);
  Used used = {};
  if (queue.pop(used)) {
    queue.publish(queue.add(&b, 1));
    queue.kick();
  }
  report_one(d, new_block(1), k2MiB);
  CHECK(!d.device().needs_reset());
  d.restart({});
}

// A chain of several ranges, some next to each other; then the block beside them is intact.
void reporting() {
  BalloonDriver& d = driver();
  const uint64_t three = physical(alloc_pages(3 * kPagesOfBlock, k2MiB));
  const uint64_t beside = new_block(14);
  const uint64_t alone = new_block(15);
  for (unsigned round = 0; round < 2; ++round) {
    for (unsigned i = 0; i < 3; ++i) write_block(three + i * k2MiB, 11 + i);
    write_block(alone, 15);
    const Buffer chain[] = {hint_of(three + k2MiB, 2 * k2MiB), hint_of(alone, k2MiB),
                            hint_of(three, k2MiB)};
    d.queue(BalloonQueue::kReport).submit_and_wait(chain, 3);
    for (unsigned i = 0; i < 3; ++i) check_returned(three + i * k2MiB, 11 + i, 0);
    check_returned(alone, 15, 0);
    check_block(beside, 14);
  }
}

// Linux reports 2 MiB and more, but nothing says that a guest must.
void reporting_parts() {
  BalloonDriver& d = driver();
  const uint64_t block = new_block(21);
  report_one(d, block + 0x1000, 0x40000);
  check_returned_part(block, 21, 0, 0x1000, 0x41000);
  check_block_part(block, 21, 0, 0x1000);
  check_block_part(block, 21, 0x41000, k2MiB);
  report_one(d, block + 0x1ff000, kPageSize);
  check_returned_part(block, 21, 0, 0x1ff000, k2MiB);
  check_block_part(block, 21, 0x41000, 0x1ff000);
}

// Hints that the host did not ask for: it answers, and leaves the memory alone, since nobody says
// that it is free now (section 5.5.6.5).
void hinting() {
  BalloonDriver& d = driver();
  CHECK(d.hint_command() <= VIRTIO_BALLOON_CMD_ID_DONE);
  const uint64_t block = new_block(31);
  const Buffer b = hint_of(block, k2MiB);
  Virtqueue& queue = d.queue(BalloonQueue::kHint);
  queue.submit_and_wait(&b, 1);
  d.send_hint_command(77);
  queue.submit_and_wait(&b, 1);
  d.send_hint_command(VIRTIO_BALLOON_CMD_ID_STOP);
  queue.submit_and_wait(&b, 1);
  check_block(block, 31);
  CHECK(!d.device().needs_reset());
}

// A guest that fills what it frees with a value of its own finds that value in what it returned.
void poison() {
  BalloonDriver& d = driver();
  BalloonDriver::Options options;
  options.required = feature(VIRTIO_BALLOON_F_PAGE_POISON) | feature(VIRTIO_BALLOON_F_REPORTING);
  options.poison = kPoison;
  d.restart(options);
  const uint64_t block = new_block(41);
  const uint64_t beside = new_block(42);
  for (unsigned round = 0; round < 2; ++round) {
    auto* words = reinterpret_cast<uint32_t*>(block);
    const void* from = words;
    size_t count = k2MiB / 4;
    asm volatile("rep stosl" : "+D"(from), "+c"(count) : "a"(kPoison) : "memory");
    report_one(d, block, k2MiB);
    check_returned(block, 41, kPoison);
    for (uint64_t i = 0; i < k2MiB / 4; i += 1021) CHECK_EQ(words[i], kPoison);
    write_block(block, 41);
  }
  check_block(block, 41);
  check_block(beside, 42);
  d.restart({});
}

// The driver goes away while the host is at work, as often as it likes.
void reset_with_reports() {
  BalloonDriver& d = driver();
  const uint64_t block = new_block(51);
  const uint64_t beside = new_block(52);
  for (unsigned i = 0; i < 20; ++i) {
    Virtqueue& queue = d.queue(BalloonQueue::kReport);
    for (unsigned k = 0; k < 8; ++k) {
      const Buffer b = hint_of(block + k * 0x40000, 0x40000);
      queue.publish(queue.add(&b, 1));
    }
    queue.kick();
    d.restart({});
    write_block(block, 51);  // after the reset it is the guest's again, for good
    wait_until([] { return false; }, 1);
    check_block(block, 51);
  }
  check_block(beside, 52);
  report_one(d, block, k2MiB);
  check_returned(block, 51, 0);
}

}  // namespace balloon
