// Properties of the queue, over random chains, orders and garbage.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue.h"
#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

using Table = FakeDriver::Table;

constexpr uint64_t kPageSize = 4096;

// Splits [0, total) into pieces at random places; empty pieces occur too.
std::vector<uint32_t> random_split(uint32_t total, size_t pieces) {
  std::vector<uint32_t> cuts{0, total};
  for (size_t i = 1; i < pieces; ++i) cuts.push_back(*rc::gen::inRange<uint32_t>(0, total + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<uint32_t> sizes;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) sizes.push_back(cuts[i + 1] - cuts[i]);
  return sizes;
}

Table random_table() { return *rc::gen::element(Table::kDirect, Table::kIndirect, Table::kMixed); }

RC_GTEST_PROP(QueueProperty, content_survives_any_split_into_descriptors, ()) {
  constexpr uint16_t kSize = 64;
  QueueRig rig(kSize);
  const auto out = *rc::gen::container<std::vector<uint8_t>>(rc::gen::arbitrary<uint8_t>());
  const auto answer = *rc::gen::container<std::vector<uint8_t>>(rc::gen::arbitrary<uint8_t>());
  std::vector<FakeBuffer> buffers;
  std::vector<std::pair<GuestAddr, uint32_t>> writable;
  size_t offset = 0;
  for (const uint32_t size :
       random_split(static_cast<uint32_t>(out.size()), *rc::gen::inRange(1, 30))) {
    const GuestAddr at = rig.heap.put({out.data() + offset, size}, 1);
    buffers.push_back({at, size, false});
    offset += size;
  }
  for (const uint32_t size :
       random_split(static_cast<uint32_t>(answer.size()), *rc::gen::inRange(1, 30))) {
    const GuestAddr at = rig.heap.alloc(size, 1);
    buffers.push_back({at, size, true});
    writable.emplace_back(at, size);
  }
  RC_ASSERT(rig.driver.add(buffers, random_table()).has_value());
  auto chain = rig.queue->pop();
  RC_ASSERT(chain.has_value());
  RC_ASSERT(chain->readable_bytes() == out.size());
  RC_ASSERT(chain->writable_bytes() == answer.size());

  // Read and write in pieces as random as the descriptors.
  std::vector<uint8_t> got(out.size());
  offset = 0;
  for (const uint32_t size : random_split(static_cast<uint32_t>(out.size()), 5)) {
    RC_ASSERT(chain->copy_from_readable(offset, {got.data() + offset, size}) == size);
    offset += size;
  }
  RC_ASSERT(got == out);
  offset = 0;
  for (const uint32_t size : random_split(static_cast<uint32_t>(answer.size()), 5)) {
    RC_ASSERT(chain->copy_to_writable(offset, {answer.data() + offset, size}) == size);
    offset += size;
  }
  chain->complete(static_cast<uint32_t>(answer.size()));
  const auto used = rig.driver.poll_used();
  RC_ASSERT(used.has_value() && used->written == answer.size());
  std::vector<uint8_t> received;
  for (const auto& [at, size] : writable) {
    std::vector<uint8_t> piece(size);
    RC_ASSERT(rig.memory->read(at, piece));
    received.insert(received.end(), piece.begin(), piece.end());
  }
  RC_ASSERT(received == answer);
}

// A run of adds, pops, completions in any order and drops. In some runs the rings' indices start
// just below 2^16, by a prelude that is not part of the counts.
RC_GTEST_PROP(QueueProperty, every_chain_is_completed_exactly_once_in_any_order, ()) {
  const uint16_t size = static_cast<uint16_t>(1 << *rc::gen::inRange(0, 6));
  const uint64_t features = *rc::gen::element(uint64_t{0}, kIndirect, kEventIdx, kRingFeatures);
  QueueRig rig(size, features);
  const std::vector<FakeBuffer> one{{QueueRig::kFreeStart, 100'000, true}};
  const int prelude = *rc::gen::inRange(0, 8) == 0 ? 65'536 - 40 : 0;
  for (int i = 0; i < prelude; ++i) {
    (void)rig.driver.add(one);
    rig.queue->pop()->complete(0);
    (void)rig.driver.poll_used();
  }
  std::vector<Chain> held;
  std::map<uint16_t, uint32_t> expected;  // head -> the length its used entry will have
  std::map<uint16_t, bool> outstanding;
  for (const int step : *rc::gen::container<std::vector<int>>(200, rc::gen::inRange(0, 4))) {
    if (step <= 1) {
      const size_t length = *rc::gen::inRange<size_t>(1, std::min<size_t>(size, 12) + 1);
      const std::vector<FakeBuffer> buffers(length, one[0]);
      const Table table = (features & kIndirect) != 0 ? random_table() : Table::kDirect;
      const auto head = rig.driver.add(buffers, table);
      if (head) outstanding[*head] = true;
    } else if (step == 2) {
      if (auto chain = rig.queue->pop()) held.push_back(std::move(*chain));
      RC_ASSERT(!rig.queue->broken());
    } else if (!held.empty()) {
      std::swap(held[*rc::gen::inRange<size_t>(0, held.size())], held.back());
      const bool drop = *rc::gen::arbitrary<bool>();
      const uint32_t written = drop ? 0 : *rc::gen::inRange<uint32_t>(0, 100'000);
      expected[held.back().head()] = written;
      if (!drop) held.back().complete(written);
      held.pop_back();
    }
    while (const auto used = rig.driver.poll_used()) {
      RC_ASSERT(expected.count(used->head) == 1);
      RC_ASSERT(expected[used->head] == used->written);
      expected.erase(used->head);
      RC_ASSERT(outstanding.erase(used->head) == 1);
    }
    RC_ASSERT(expected.empty());
    RC_ASSERT(rig.queue->in_flight() == held.size());
  }
  while (auto chain = rig.queue->pop()) held.push_back(std::move(*chain));
  RC_ASSERT(held.size() == outstanding.size());
  held.clear();
  size_t left = 0;
  while (rig.driver.poll_used()) ++left;
  RC_ASSERT(left == outstanding.size());
  RC_ASSERT(rig.driver.outstanding() == 0);
}

// --- garbage ---

// A small guest whose memory lies between pages nobody may touch, so that a host pointer one byte
// too far kills the test.
class GuardedGuest {
 public:
  static constexpr uint64_t kSize = 64 * 1024;
  static constexpr uint16_t kEntries = 16;
  static constexpr QueueLayout kLayout{.size = kEntries,
                                       .desc = GuestAddr{0},
                                       .driver = GuestAddr{0x1000},
                                       .device = GuestAddr{0x2000}};
  static constexpr uint64_t kUsedBytes = 6 + 8 * kEntries;

  explicit GuardedGuest(uint64_t features) {
    constexpr GuestMemory::Range kRange{GuestAddr{0}, kSize};
    memory = GuestMemory::create({&kRange, 1}, {.thp = false}).value();
    base = memory->regions()[0].host;
    guard(base - kPageSize);
    guard(base + kSize);
    queue = Queue::create(*memory, kLayout, features, interrupt, counters).value();
  }
  ~GuardedGuest() {
    for (uint8_t* const at : guards) ::munmap(at, kPageSize);
  }
  GuardedGuest(const GuardedGuest&) = delete;
  GuardedGuest& operator=(const GuardedGuest&) = delete;

  std::unique_ptr<GuestMemory> memory;
  uint8_t* base = nullptr;
  FakeInterrupt interrupt;
  QueueCounters counters;
  std::unique_ptr<Queue> queue;

 private:
  void guard(uint8_t* at) {
    // If something is mapped there already it stays; GuestMemory's own trimming leaves holes.
    void* const page =
        ::mmap(at, kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (page == at) guards.push_back(at);
  }
  std::vector<uint8_t*> guards;
};

// A descriptor that is plausible in most ways and wrong in some.
vring_desc random_descriptor() {
  const uint64_t addr = *rc::gen::weightedOneOf<uint64_t>(
      {{8, rc::gen::inRange<uint64_t>(0, GuardedGuest::kSize)},
       {2, rc::gen::map(rc::gen::inRange<uint64_t>(0, 4096), [](uint64_t p) { return p * 16; })},
       {1, rc::gen::inRange<uint64_t>(GuardedGuest::kSize - 64, GuardedGuest::kSize + 64)},
       {1, rc::gen::arbitrary<uint64_t>()}});
  const uint32_t len = *rc::gen::weightedOneOf<uint32_t>(
      {{6, rc::gen::inRange<uint32_t>(0, 512)},
       {3, rc::gen::map(rc::gen::inRange<uint32_t>(0, 20), [](uint32_t n) { return n * 16; })},
       {1, rc::gen::arbitrary<uint32_t>()}});
  const uint16_t flags = *rc::gen::weightedOneOf<uint16_t>(
      {{8,
        rc::gen::element<uint16_t>(0, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
                                   VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT)},
       {1, rc::gen::arbitrary<uint16_t>()}});
  const uint16_t next = *rc::gen::weightedOneOf<uint16_t>(
      {{12, rc::gen::inRange<uint16_t>(0, GuardedGuest::kEntries)},
       {1, rc::gen::arbitrary<uint16_t>()}});
  return {addr, len, flags, next};
}

RC_GTEST_PROP(QueueProperty, garbage_never_leads_outside_what_its_chains_describe, ()) {
  GuardedGuest guest(*rc::gen::element(uint64_t{0}, kRingFeatures));
  const auto noise = *rc::gen::arbitrary<uint32_t>();
  std::minstd_rand random(noise);
  for (uint64_t i = 0; i < GuardedGuest::kSize; ++i) guest.base[i] = static_cast<uint8_t>(random());
  // Descriptors everywhere an indirect table is likely to be.
  const auto descriptors = *rc::gen::container<std::vector<vring_desc>>(
      64, rc::gen::exec([] { return random_descriptor(); }));
  for (uint64_t at = 0; at + 1024 <= GuardedGuest::kSize; at += 1024)
    std::memcpy(guest.base + at, descriptors.data(), 1024);
  const uint64_t avail = GuardedGuest::kLayout.driver.value;
  for (uint16_t i = 0; i < GuardedGuest::kEntries; ++i) {
    const uint16_t head = *rc::gen::inRange<uint16_t>(0, GuardedGuest::kEntries + 1);
    RC_ASSERT(guest.memory->store(GuestAddr{avail + 4 + i * 2U}, head));
  }
  const uint16_t index = *rc::gen::inRange<uint16_t>(0, GuardedGuest::kEntries + 2);
  RC_ASSERT(guest.memory->store(GuestAddr{avail + 2}, index));
  const std::vector<uint8_t> before(guest.base, guest.base + GuardedGuest::kSize);

  std::vector<bool> may_change(GuardedGuest::kSize, false);
  const uint64_t used = GuardedGuest::kLayout.device.value;
  for (uint64_t i = 0; i < GuardedGuest::kUsedBytes; ++i) may_change[used + i] = true;
  int popped = 0;
  while (auto chain = guest.queue->pop()) {
    RC_ASSERT(++popped <= GuardedGuest::kEntries);
    RC_ASSERT(chain->readable().size() + chain->writable().size() <= GuardedGuest::kEntries);
    uint64_t total = 0;
    for (const auto slices : {chain->readable(), chain->writable()}) {
      for (const IoSlice& slice : slices) {
        RC_ASSERT(slice.data >= guest.base && slice.size <= GuardedGuest::kSize);
        RC_ASSERT(slice.data + slice.size <= guest.base + GuardedGuest::kSize);
        total += slice.size;
      }
    }
    RC_ASSERT(total == chain->readable_bytes() + chain->writable_bytes());
    for (const IoSlice& slice : chain->writable()) {
      const auto at = static_cast<size_t>(slice.data - guest.base);
      std::fill_n(may_change.begin() + static_cast<ptrdiff_t>(at), slice.size, true);
    }
    std::vector<uint8_t> scratch(chain->readable_bytes());
    RC_ASSERT(chain->copy_from_readable(0, scratch) == scratch.size());
    scratch.assign(chain->writable_bytes(), 0xa5);
    RC_ASSERT(chain->copy_to_writable(0, scratch) == scratch.size());
    chain->complete(static_cast<uint32_t>(scratch.size()));
    guest.queue->interrupt_if_needed();
    (void)guest.queue->enable_kicks();
  }
  RC_CLASSIFY(guest.queue->broken(), "broken");
  RC_CLASSIFY(popped > 0, "popped some");
  RC_ASSERT(guest.counters.rejected == (guest.queue->broken() ? 1U : 0U));
  for (uint64_t i = 0; i < GuardedGuest::kSize; ++i)
    RC_ASSERT(may_change[i] || guest.base[i] == before[i]);
}

}  // namespace
}  // namespace lethe
