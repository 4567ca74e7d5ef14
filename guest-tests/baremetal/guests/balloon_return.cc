// The whole way: a guest fills its memory, frees some of it, its scanner reports that, and the
// guest uses it again. With wait=1 on the command line it stops at each stage until the host has
// looked and sends a byte to the serial port; meanwhile it serves the balloon as a kernel would.
#include "guests/balloon.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/memory_return.h"

using namespace kernel;

namespace balloon {
namespace {

constexpr size_t kBlocksMax = 512;
constexpr unsigned kRounds = 3;
constexpr uint64_t kWaitMs = 120000;

uint64_t blocks[kBlocksMax];  // 0: not ours now
size_t block_count;
unsigned written_in[kBlocksMax];
uint32_t poison_value;  // 0: none
virtio_balloon_stat statistics_buffer[2];

// Tells no more than the driver of a kernel would: free and total memory.
void serve_statistics(BalloonDriver& d, MemoryReturn& memory) {
  if (!d.has(BalloonQueue::kStats)) return;
  Virtqueue& queue = d.queue(BalloonQueue::kStats);
  static bool sent = false;
  Used used = {};
  if (sent && !queue.pop(used)) return;
  sent = true;
  statistics_buffer[0] = {VIRTIO_BALLOON_S_MEMFREE, memory.free_bytes()};
  statistics_buffer[1] = {VIRTIO_BALLOON_S_MEMTOT, memory.zone(1).end() - memory.zone(0).begin()};
  const Buffer b = readable(statistics_buffer, sizeof(statistics_buffer));
  queue.publish(queue.add(&b, 1));
  queue.kick();
}

bool serial_byte() {
  if ((in8(kSerialPort + 5) & 1) == 0) return false;
  in8(kSerialPort);
  return true;
}

void stage(const char* name, MemoryReturn& memory, uint64_t mib) {
  print("stage %s %lu MiB\n", name, mib);
  if (option_number("wait", 0) == 0) return;
  const Deadline deadline(kWaitMs);
  while (!serial_byte()) {
    CHECK(!deadline.passed());
    serve_statistics(driver(), memory);
    if (memory.hint()) print("hinted, %lu MiB free\n", memory.free_bytes() >> 20);
    while (memory.follow_target()) serve_statistics(driver(), memory);
    wait_until([] { return false; }, 2);
  }
}

uint64_t tag(unsigned round, size_t i) { return 1000 * (round + 1) + i; }

// Takes every block there is. If `returned`, what was free had been reported, and must read so.
void fill(MemoryReturn& memory, unsigned round, bool returned) {
  for (size_t i = 0; i < kBlocksMax; ++i) {
    if (blocks[i] != 0) continue;
    const uint64_t address = memory.allocate(kOrder2MiB);
    if (address == kNoMemory) break;
    blocks[i] = address;
    if (i >= block_count) block_count = i + 1;
    // From the second round on all of it was returned. Under the policy lazy it may have any of its
    // old contents, and nobody remembers whose block it was.
    if (round > 0 && returned && option("old") == nullptr) check_returned(address, 0, poison_value);
    write_block(address, tag(round, i));
    written_in[i] = round;
  }
}

// Frees three of four blocks, others in each round; returns how many bytes. The rest must be
// intact.
uint64_t free_most(MemoryReturn& memory, unsigned round, bool report) {
  uint64_t freed = 0;
  for (size_t i = 0; i < block_count; ++i) {
    if (i % 4 == round % 4) continue;
    check_block(blocks[i], tag(written_in[i], i));
    if (poison_value != 0) poison_block(blocks[i], poison_value);
    memory.free(blocks[i]);
    blocks[i] = 0;
    freed += k2MiB;
    if (report) memory.poll();
  }
  if (report) memory.flush();
  return freed;
}

void check_kept() {
  for (size_t i = 0; i < block_count; ++i) {
    if (blocks[i] != 0) check_block(blocks[i], tag(written_in[i], i));
  }
}

}  // namespace

void memory_return() {
  static MemoryReturn memory;
  BalloonDriver& d = driver();
  poison_value = static_cast<uint32_t>(option_number("poison", 0));
  if (poison_value != 0) {
    d.restart({.required = feature(VIRTIO_BALLOON_F_PAGE_POISON), .poison = poison_value});
  }
  CHECK(d.has(BalloonQueue::kReport));
  ScannerOptions options;
  options.isolated_max = option_number("isolated_mib", 64) << 20;
  options.high_water = option_number("high_water", 16);
  memory.init(d, options);
  const Scanner& scanner = memory.scanner();
  uint64_t freed = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    fill(memory, round, true);
    CHECK(block_count >= 16);
    stage("filled", memory, block_count * 2);
    const uint64_t freed_now = free_most(memory, round, true);
    freed += freed_now;
    CHECK(scanner.reported_bytes() >= freed);
    CHECK(scanner.isolated_most() <= options.isolated_max);
    check_kept();
    stage("returned", memory, freed_now >> 20);
  }
  fill(memory, kRounds, true);
  check_kept();
  stage("refilled", memory, block_count * 2);
  print("reported %lu MiB, at most %lu MiB away\n", scanner.reported_bytes() >> 20,
        scanner.isolated_most() >> 20);
}

// The host's turn: it pulls what is free (hinting) though nothing was reported, and sets the
// balloon's size. What is still in use must stay.
void host_driven() {
  static MemoryReturn memory;
  memory.init(driver(), {});
  fill(memory, 0, true);
  stage("filled", memory, block_count * 2);
  stage("freed", memory, free_most(memory, 0, false) >> 20);
  check_kept();
  fill(memory, 1, false);
  check_kept();
  stage("filled again", memory, block_count * 2);
  stage("room for a balloon", memory, free_most(memory, 1, false) >> 20);
  CHECK_EQ(memory.ballooned_bytes(), 0);
  check_kept();
  fill(memory, 2, false);
  check_kept();
}

// Everything free at once, and a small bound: the scanner never has more away, and an allocation
// that finds nothing waits for what is away instead of failing.
void isolation_bound() {
  static MemoryReturn memory;
  BalloonDriver& d = driver();
  ScannerOptions options;
  options.isolated_max = uint64_t{8} << 20;
  options.high_water = 1;
  memory.init(d, options);
  const uint64_t all = memory.free_bytes();
  for (unsigned round = 0; round < 20; ++round) {
    size_t count = 0;
    for (uint64_t b; count < kBlocksMax && (b = memory.allocate(kOrder2MiB)) != kNoMemory;) {
      *reinterpret_cast<uint64_t*>(b) = b;
      blocks[count++] = b;
      memory.poll();
    }
    if (round == 0) block_count = count;
    CHECK_EQ(count, block_count);  // what is away is never missing
    for (size_t i = 0; i < count; ++i) {
      CHECK_EQ(*reinterpret_cast<uint64_t*>(blocks[i]), blocks[i]);
      memory.free(blocks[i]);
      memory.poll();
      CHECK(memory.scanner().isolated_bytes() <= options.isolated_max);
    }
  }
  memory.flush();
  CHECK_EQ(memory.free_bytes(), all);
  CHECK(memory.scanner().isolated_most() <= options.isolated_max);
}

}  // namespace balloon
