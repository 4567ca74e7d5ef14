// Chains made at random out of values that are likely to matter, from a seed (seed= on the command
// line), so that a run can be repeated. Nothing is said about what the device makes of each; it
// must work after a reset, and never write where no descriptor allowed it to.
#include "guests/hostile.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr unsigned kRounds = 80;
constexpr uint16_t kTableEntries = 8;
constexpr size_t kArenaPages = 8;
constexpr uint64_t kGuardWord = 0x6b6b6b6b6b6b6b6b;
constexpr uint64_t kSettleMs = 1;

uint64_t state;

// xorshift64.
uint64_t random() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

template <typename T, size_t N>
T pick(const T (&values)[N]) {
  return values[random() % N];
}

// A page that nothing points at, the arena, and such a page again.
uint8_t* arena() {
  static auto* pages = static_cast<uint8_t*>(alloc_pages(kArenaPages + 2));
  return pages + kPageSize;
}

void guard(bool check) {
  uint8_t* const guards[] = {arena() - kPageSize, arena() + kArenaPages * kPageSize};
  for (uint8_t* page : guards) {
    for (size_t i = 0; i < kPageSize; i += 512) {
      auto* word = reinterpret_cast<uint64_t*>(page + i);
      if (check) CHECK_EQ(*word, kGuardWord);
      *word = kGuardWord;
    }
  }
}

uint64_t random_address() {
  const uint64_t arena_at = physical(arena());
  const uint64_t places[] = {arena_at,
                             arena_at + kPageSize,
                             arena_at + 2 * kPageSize,
                             arena_at + 24,
                             arena_at + 0x7f,
                             arena_at + 3 * kPageSize,
                             ram_end() - 1,
                             ram_end(),
                             0xc8000000,
                             uint64_t{1} << 63,
                             ~uint64_t{0},
                             0xfee00000};
  return pick(places);
}

// A descriptor that can reach no memory outside the arena: its address is an arena page or no RAM.
vring_desc random_descriptor() {
  static const uint32_t lengths[] = {0,  1,   4,   15,  16,  17,   32,
                                     48, 128, 511, 512, 513, 4096, 0xffffffff};
  vring_desc d = {};
  d.addr = random_address();
  d.len = pick(lengths);
  d.flags = static_cast<uint16_t>(random() % 16 < 14 ? random() % 8 : random());
  d.next = static_cast<uint16_t>(random() % (kTableEntries + 1));
  return d;
}

void fill_table(vring_desc* table) {
  for (uint16_t i = 0; i < kTableEntries; ++i) table[i] = random_descriptor();
}

void one_round(Target& t) {
  t.restart();
  // Block headers and indirect tables are read from the arena: give them something to find.
  auto* header = reinterpret_cast<virtio_blk_outhdr*>(arena());
  *header = {static_cast<uint32_t>(random() % 20), 0,
             random() % 8 == 0 ? random() : random() % 1024};
  if (header->type == VIRTIO_BLK_T_OUT || header->type == VIRTIO_BLK_T_DISCARD ||
      header->type == VIRTIO_BLK_T_WRITE_ZEROES) {
    header->sector |= 1024;  // the lower half stays as it is
  }
  fill_table(reinterpret_cast<vring_desc*>(arena() + 2 * kPageSize));
  fill_table(t.queue().desc());
  const auto heads = static_cast<unsigned>(1 + random() % 4);
  for (unsigned i = 0; i < heads; ++i) {
    t.queue().publish(static_cast<uint16_t>(random() % (kTableEntries + 1)));
  }
  if (random() % 16 == 0) t.queue().avail()->idx = static_cast<uint16_t>(random());
  t.queue().kick_always();
  wait_until([&] { return t.queue().has_used() || t.device().needs_reset(); }, kSettleMs);
}

}  // namespace

void fuzz() {
  const uint64_t seed = option_number("seed", 1);
  state = seed * 0x9e3779b97f4a7c15 + 1;
  print("seed %lu\n", seed);
  // Not the inflate queue: any page could be among the numbers it finds.
  Target* const targets[] = {&blk_target(), &rng_target(), &console_target(), &report_target()};
  guard(false);
  for (unsigned i = 0; i < kRounds; ++i) {
    Target& t = *targets[random() % 4];
    one_round(t);
    t.must_still_work();
    guard(true);
  }
}

}  // namespace hostile
