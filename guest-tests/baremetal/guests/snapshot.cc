// Counts for as long as it is let, and says where it is: for guest-tests/snapshot_test.cc, which
// saves and restores it meanwhile. Nothing of it may ever be lost or done twice.
//
// Each round: the next state of a recurrence, by every CPU; some pages of memory are checked to
// hold what they did; with disk=1 a sector is written, and that of the round before read back; the
// CPU halts until its timer has fired. Then `round N STATE`. A byte on the serial port ends it.
//
//   pages=N   pages to fill (default 64), a word of each not zero
//   disk=1    uses the first disk's upper half
//   burst=N   each round ends with so many more sectors (at most 80) written at once, and read back
#include "kernel/apic.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/smp.h"
#include "kernel/traps.h"
#include "kernel/virtio/blk.h"

using namespace kernel;

namespace {

constexpr uint8_t kVectorTimer = 0x40;
constexpr uint32_t kTimerCount = 2'000'000 / 16;  // 2 ms of the APIC's 16 ns ticks
constexpr uint64_t kPagesARound = 4;
constexpr uint64_t kWriteSector = 1024;
constexpr uint64_t kSectorsUsed = 512;
constexpr uint64_t kBurstSector = kWriteSector + kSectorsUsed;
constexpr uint64_t kBurstMax = 80;
// The clock may stand still between two rounds while the host is busy, but not leap.
constexpr uint64_t kLeapUs = 3'600'000'000;

unsigned timer_ticks;
uint64_t round_wanted;  // by the other CPU
uint64_t round_done;
uint64_t others_state;
uint8_t* pages;
uint64_t page_count;

template <typename T>
T load(const T& value) {
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}
template <typename T>
void store(T& to, T value) {
  __atomic_store_n(&to, value, __ATOMIC_SEQ_CST);
}

// Knuth's MMIX.
uint64_t next_state(uint64_t state) { return state * 6364136223846793005u + 1442695040888963407u; }

void on_timer(TrapFrame&) {
  __atomic_fetch_add(&timer_ticks, 1u, __ATOMIC_SEQ_CST);
  lapic_eoi();
}

void count_beside(unsigned) {
  for (;;) {
    const uint64_t wanted = load(round_wanted);
    if (wanted == load(round_done)) {
      pause();
      continue;
    }
    store(others_state, next_state(load(others_state)));
    store(round_done, wanted);
  }
}

uint64_t& word_of_page(uint64_t page) {
  return *reinterpret_cast<uint64_t*>(pages + page * kPageSize + page * 8 % kPageSize);
}

void check_pages(uint64_t round) {
  for (uint64_t i = 0; i < kPagesARound; ++i) {
    const uint64_t page = (round * kPagesARound + i) % page_count;
    CHECK_EQ(word_of_page(page), ~page);
  }
}

void use_disk(BlkDevice& disk, uint64_t round, uint64_t state) {
  static auto* buffer = static_cast<uint64_t*>(alloc_pages(1));
  static uint64_t before;
  if (round > 1) {
    buffer[0] = buffer[1] = 0;
    CHECK_EQ(disk.read(kWriteSector + (round - 1) % kSectorsUsed, buffer, kSectorSize),
             VIRTIO_BLK_S_OK);
    CHECK_EQ(buffer[0], round - 1);
    CHECK_EQ(buffer[1], before);
  }
  buffer[0] = round;
  buffer[1] = before = state;
  CHECK_EQ(disk.write(kWriteSector + round % kSectorsUsed, buffer, kSectorSize), VIRTIO_BLK_S_OK);
}

struct Write {
  BlkRequest request;
  uint64_t data[kSectorSize / sizeof(uint64_t)];
};

// All of it is in the ring before the first of it is done.
void write_burst(BlkDevice& disk, uint64_t count, uint64_t round) {
  static auto* const writes =
      static_cast<Write*>(alloc_pages((kBurstMax * sizeof(Write) + kPageSize - 1) / kPageSize));
  Virtqueue& queue = disk.queue();
  for (uint64_t i = 0; i < count; ++i) {
    Write& write = writes[i];
    write.request = {{VIRTIO_BLK_T_OUT, 0, kBurstSector + i}, kStatusUnwritten};
    write.data[0] = round;
    write.data[1] = i;
    const Buffer buffers[] = {readable(&write.request.header, sizeof(write.request.header)),
                              readable(write.data, kSectorSize),
                              writable(&write.request.status, 1)};
    queue.publish(queue.add(buffers, 3));
  }
  queue.kick();
  for (uint64_t i = 0; i < count; ++i) {
    CHECK_SOON(queue.has_used());
    Used used = {};
    CHECK(queue.pop(used));
  }
  for (uint64_t i = 0; i < count; ++i) {
    CHECK_EQ(load(writes[i].request.status), VIRTIO_BLK_S_OK);
    writes[i].data[0] = 0;
    CHECK_EQ(disk.read(kBurstSector + i, writes[i].data, kSectorSize), VIRTIO_BLK_S_OK);
    CHECK_EQ(writes[i].data[0], round);
    CHECK_EQ(writes[i].data[1], i);
  }
}

bool told_to_end() {
  constexpr uint16_t kLineStatus = kSerialPort + 5;
  if ((in8(kLineStatus) & 1) == 0) return false;
  (void)in8(kSerialPort);
  return true;
}

}  // namespace

void guest_main() {
  static BlkDevice disk;
  const bool with_disk = option_number("disk", 0) != 0;
  if (with_disk) disk.open({});
  const uint64_t burst = option_number("burst", 0);
  CHECK(burst <= kBurstMax);
  page_count = option_number("pages", 64);
  pages = static_cast<uint8_t*>(alloc_pages(page_count));
  for (uint64_t page = 0; page < page_count; ++page) word_of_page(page) = ~page;
  lapic_init();
  const bool others = start_other_cpus(count_beside) > 0;
  set_trap_handler(kVectorTimer, on_timer);
  lapic_timer_periodic(kVectorTimer, kTimerCount);
  print("counting\n");
  uint64_t state = 0;
  uint64_t clock = now_us();
  for (uint64_t round = 1; !told_to_end(); ++round) {
    state = next_state(state);
    if (others) {
      store(round_wanted, round);
      CHECK_SOON(load(round_done) == round);
      CHECK_EQ(load(others_state), state);
    }
    check_pages(round);
    if (with_disk) use_disk(disk, round, state);
    if (burst > 0) write_burst(disk, burst, round);
    const unsigned ticks = load(timer_ticks);
    while (load(timer_ticks) == ticks) {
      interrupts_on_and_halt();
      interrupts_off();
    }
    const uint64_t now = now_us();
    CHECK(now >= clock && now - clock < kLeapUs);
    clock = now;
    print("round %lu %lx\n", round, state);
  }
  print("ended\n");
}
