// Two CPUs that do not agree about what is free: one reports, inflates and resets, the other writes
// to the same memory and changes the descriptors under the device's hands.
#include "guests/hostile.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/smp.h"
#include "kernel/virtio/balloon.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint64_t k2MiB = uint64_t{2} << 20;
constexpr unsigned kBlocks = 4;
constexpr unsigned kRounds = 80;

uint8_t* area;
uint32_t stop;
uint32_t stopped;
vring_desc* volatile descriptors;

void write_until_stopped(unsigned) {
  for (uint64_t i = 0; __atomic_load_n(&stop, __ATOMIC_SEQ_CST) == 0; ++i) {
    area[i * 0x9e37 * 64 % (kBlocks * k2MiB)] = static_cast<uint8_t>(i);
    vring_desc* const table = descriptors;
    if (table == nullptr || i % 4 != 0) continue;
    // Always of the area, always whole pages, never the same: what was checked is not what is
    // there.
    vring_desc& d = table[i / 4 % kBlocks];
    d.addr = physical(area) + (i % kBlocks) * k2MiB;
    d.len = static_cast<uint32_t>(i % 3 == 0 ? k2MiB : kPageSize);
    d.flags = VRING_DESC_F_WRITE;
  }
  __atomic_store_n(&stopped, 1u, __ATOMIC_SEQ_CST);
}

}  // namespace

void balloon_race() {
  lapic_init();
  static BalloonDriver d;
  CHECK(d.open({}));
  area = static_cast<uint8_t*>(alloc_pages(kBlocks * k2MiB / kPageSize, k2MiB));
  auto* const canary = static_cast<uint8_t*>(alloc_pages(1));
  auto* const pfns = static_cast<uint32_t*>(alloc_pages(1));
  memset(canary, 0x3c, 64);
  CHECK(start_other_cpus(write_until_stopped) == 1);
  CHECK_SOON(other_cpus_running() == 1);
  for (unsigned round = 0; round < kRounds; ++round) {
    d.restart({});
    Virtqueue& queue = d.queue(BalloonQueue::kReport);
    descriptors = queue.desc();
    for (uint16_t i = 0; i < kBlocks; ++i) {
      queue.desc()[i] = {physical(area) + i * k2MiB, k2MiB, VRING_DESC_F_WRITE, 0};
      queue.publish(i);
    }
    queue.kick_always();
    for (uint32_t i = 0; i < 1024; ++i) {
      pfns[i] = static_cast<uint32_t>(physical(area) / kPageSize) + i * 7 % (kBlocks * 512);
    }
    d.inflate(pfns, 1024);
    if (round % 2 == 0) wait_until([&] { return d.device().needs_reset(); }, round % 16);
    descriptors = nullptr;
  }
  __atomic_store_n(&stop, 1u, __ATOMIC_SEQ_CST);
  CHECK_SOON(__atomic_load_n(&stopped, __ATOMIC_SEQ_CST) == 1);
  for (unsigned i = 0; i < 64; ++i) CHECK_EQ(canary[i], 0x3c);
  d.restart({});
  area[0] = 1;
  const Buffer b = writable(area, k2MiB);
  d.queue(BalloonQueue::kReport).submit_and_wait(&b, 1);
  CHECK_EQ(area[0], 0);
}

}  // namespace hostile
