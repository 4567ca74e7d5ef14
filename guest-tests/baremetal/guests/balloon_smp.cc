// Two CPUs: one returns memory and takes it back, the other works on blocks in between all the
// time.
#include "guests/balloon.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/smp.h"

using namespace kernel;

namespace balloon {
namespace {

constexpr unsigned kBlocks = 8;  // of each CPU
constexpr unsigned kRounds = 40;
constexpr uint64_t kOthersTag = 1 << 20;

uint64_t area;
uint32_t stop;
uint32_t stopped;
uint32_t rounds_beside;

uint64_t mine(unsigned i) { return area + 2 * i * k2MiB; }
uint64_t others(unsigned i) { return area + (2 * i + 1) * k2MiB; }

void work_beside(unsigned) {
  for (uint64_t n = kOthersTag; __atomic_load_n(&stop, __ATOMIC_SEQ_CST) == 0; ++n) {
    for (unsigned i = 0; i < kBlocks; ++i) write_block(others(i), n + i);
    for (unsigned i = 0; i < kBlocks; ++i) check_block(others(i), n + i);
    __atomic_fetch_add(&rounds_beside, 1, __ATOMIC_SEQ_CST);
  }
  __atomic_store_n(&stopped, 1u, __ATOMIC_SEQ_CST);
}

}  // namespace

void return_beside_a_busy_cpu() {
  lapic_init();
  BalloonDriver& d = driver();
  area = physical(alloc_pages(2 * kBlocks * k2MiB / kPageSize, k2MiB));
  CHECK(start_other_cpus(work_beside) == 1);
  CHECK_SOON(__atomic_load_n(&rounds_beside, __ATOMIC_SEQ_CST) > 0);
  for (unsigned round = 0; round < kRounds; ++round) {
    Buffer chain[kBlocks];
    for (unsigned i = 0; i < kBlocks; ++i) {
      write_block(mine(i), round + i);
      chain[i] = writable(reinterpret_cast<void*>(mine(i)), k2MiB);
    }
    d.queue(BalloonQueue::kReport).submit_and_wait(chain, kBlocks);
    // Some at once, some later: they may be back before they are touched.
    for (unsigned i = round % 3; i < kBlocks; ++i) check_returned(mine(i), round + i, 0);
  }
  const uint32_t seen = __atomic_load_n(&rounds_beside, __ATOMIC_SEQ_CST);
  CHECK_SOON(__atomic_load_n(&rounds_beside, __ATOMIC_SEQ_CST) > seen);
  __atomic_store_n(&stop, 1u, __ATOMIC_SEQ_CST);
  CHECK_SOON(__atomic_load_n(&stopped, __ATOMIC_SEQ_CST) == 1);
}

}  // namespace balloon
