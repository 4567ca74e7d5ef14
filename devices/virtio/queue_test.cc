// What the queue does for a driver that keeps the rules; queue_reject_test.cc has the others.
#include "devices/virtio/queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "devices/virtio/fake_driver.h"
#include "devices/virtio/queue_test_util.h"

namespace lethe {
namespace {

using Table = FakeDriver::Table;

std::vector<uint8_t> bytes(size_t count, uint8_t first = 1) {
  std::vector<uint8_t> content(count);
  std::iota(content.begin(), content.end(), first);
  return content;
}

TEST(Queue, empty_ring_pops_nothing_and_is_not_broken) {
  const QueueRig rig(4);
  EXPECT_FALSE(rig.queue->pop().has_value());
  EXPECT_FALSE(rig.queue->broken());
  EXPECT_STREQ(rig.queue->broken_reason(), "");
}

TEST(Queue, chain_shows_readable_then_writable_buffers) {
  for (const Table table : {Table::kDirect, Table::kIndirect, Table::kMixed}) {
    QueueRig rig(8);
    const GuestAddr a = rig.heap.put(bytes(3));
    const GuestAddr b = rig.heap.put(bytes(5, 10));
    const GuestAddr c = rig.heap.alloc(7);
    const GuestAddr d = QueueRig::kHighStart;
    const auto head = rig.driver.add(
        std::vector<FakeBuffer>{{a, 3}, {b, 5}, {c, 7, true}, {d, 4096, true}}, table);
    auto chain = rig.queue->pop();
    ASSERT_TRUE(chain.has_value()) << rig.queue->broken_reason();
    EXPECT_EQ(chain->head(), head);
    ASSERT_EQ(chain->readable().size(), 2U);
    ASSERT_EQ(chain->writable().size(), 2U);
    EXPECT_EQ(chain->readable_bytes(), 8U);
    EXPECT_EQ(chain->writable_bytes(), 7U + 4096U);
    EXPECT_EQ(chain->readable()[1].data, rig.memory->slice(b, 5)->data);
    EXPECT_EQ(chain->writable()[1].data, rig.memory->slice(d, 1)->data);
    EXPECT_EQ(chain->writable()[1].size, 4096U);
    EXPECT_EQ(rig.queue->in_flight(), 1U);
    EXPECT_FALSE(rig.queue->pop().has_value());
  }
}

TEST(Queue, copies_run_across_buffers_and_stop_at_the_end) {
  QueueRig rig(8);
  const GuestAddr in = rig.heap.put(bytes(10));
  const GuestAddr out = rig.heap.alloc(8);
  rig.driver.add(
      std::vector<FakeBuffer>{{in, 4}, {*in.plus(4), 6}, {out, 3, true}, {*out.plus(3), 5, true}});
  auto chain = rig.queue->pop();
  ASSERT_TRUE(chain.has_value());
  std::vector<uint8_t> got(20, 0);
  EXPECT_EQ(chain->copy_from_readable(2, got), 8U);
  EXPECT_TRUE(std::equal(got.begin(), got.begin() + 8, bytes(8, 3).begin()));
  EXPECT_EQ(chain->copy_from_readable(10, got), 0U);
  EXPECT_EQ(chain->copy_from_readable(UINT64_MAX, got), 0U);
  EXPECT_EQ(chain->copy_to_writable(1, bytes(4)), 4U);
  EXPECT_EQ(chain->copy_to_writable(6, bytes(4, 50)), 2U) << "clipped at the end";
  std::vector<uint8_t> written(8);
  ASSERT_TRUE(rig.memory->read(out, written));
  EXPECT_EQ(written, std::vector<uint8_t>({0, 1, 2, 3, 4, 0, 50, 51}));
}

TEST(Queue, completion_puts_head_and_length_on_the_used_ring) {
  QueueRig rig(4);
  const auto first = rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 100, true}});
  const auto second = rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 50, true}});
  auto a = rig.queue->pop();
  auto b = rig.queue->pop();
  ASSERT_TRUE(a && b);
  b->complete(50);
  EXPECT_EQ(rig.driver.raw_used_index(), 1U);
  a->complete(7);
  EXPECT_EQ(rig.driver.raw_used_index(), 2U);
  EXPECT_EQ(rig.driver.raw_used_entry(0).id, second);
  EXPECT_EQ(rig.driver.raw_used_entry(0).len, 50U);
  EXPECT_EQ(rig.driver.raw_used_entry(1).id, first);
  EXPECT_EQ(rig.driver.raw_used_entry(1).len, 7U);
  EXPECT_EQ(rig.queue->in_flight(), 0U);
}

TEST(Queue, dropped_chain_is_completed_with_nothing_written) {
  QueueRig rig(4);
  const auto head = rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 100, true}});
  {
    const auto chain = rig.queue->pop();
    ASSERT_TRUE(chain.has_value());
    EXPECT_EQ(rig.driver.raw_used_index(), 0U);
  }
  ASSERT_EQ(rig.driver.raw_used_index(), 1U);
  EXPECT_EQ(rig.driver.raw_used_entry(0).id, head);
  EXPECT_EQ(rig.driver.raw_used_entry(0).len, 0U);
}

TEST(Queue, moved_chain_is_completed_once_by_its_last_owner) {
  QueueRig rig(4);
  const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 9, true}};
  rig.driver.add(buffer);
  const auto second = rig.driver.add(buffer);
  auto popped = rig.queue->pop();
  ASSERT_TRUE(popped.has_value());
  {
    Chain owner(std::move(*popped));
    popped.reset();
    EXPECT_EQ(rig.driver.raw_used_index(), 0U);
    auto other = rig.queue->pop();
    ASSERT_TRUE(other.has_value());
    owner = std::move(*other);  // drops the first
    EXPECT_EQ(rig.driver.raw_used_index(), 1U);
    EXPECT_EQ(owner.head(), second);
    owner.complete(9);
  }
  EXPECT_EQ(rig.driver.raw_used_index(), 2U);
}

TEST(Queue, claiming_more_bytes_than_the_chain_can_take_is_a_bug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        QueueRig rig(4);
        rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 9, true}});
        rig.queue->pop()->complete(10);
      },
      "assertion failed");
}

TEST(Queue, chain_may_be_as_long_as_the_queue) {
  for (const uint16_t size : {uint16_t{1}, uint16_t{16}, kQueueSizeMax}) {
    for (const Table table : {Table::kDirect, Table::kIndirect}) {
      QueueRig rig(size);
      std::vector<FakeBuffer> buffers;
      for (uint16_t i = 0; i < size; ++i)
        buffers.push_back({*QueueRig::kFreeStart.plus(i * 8U), 8, i >= size / 2});
      // Twice, since storage for long chains is kept, or gone, after the first.
      for (int round = 0; round < 2; ++round) {
        ASSERT_TRUE(rig.driver.add(buffers, table).has_value());
        auto chain = rig.queue->pop();
        ASSERT_TRUE(chain.has_value()) << rig.queue->broken_reason();
        ASSERT_EQ(chain->readable().size() + chain->writable().size(), size);
        for (uint16_t i = 0; i < size; ++i) {
          const IoSlice& slice =
              i < size / 2 ? chain->readable()[i] : chain->writable()[i - size / 2];
          ASSERT_EQ(slice.data, rig.memory->slice(buffers[i].address, 8)->data);
        }
        chain->complete(0);
        ASSERT_TRUE(rig.driver.poll_used().has_value());
      }
    }
  }
}

// A guest can't make the process keep more than 512 bytes a head, whatever it sent.
TEST(Queue, storage_of_long_chains_ends_with_them_and_of_shorter_ones_is_kept) {
  constexpr uint16_t kSize = 256;
  constexpr size_t kKept = kSize * Queue::kKeptSlices * sizeof(IoSlice);
  static_assert(kKept == 128 * kKiB);
  QueueRig rig(kSize);
  const auto run_all = [&](size_t buffers) {
    const std::vector<FakeBuffer> chain(buffers, {QueueRig::kFreeStart, 8});
    std::vector<Chain> chains;
    for (uint16_t i = 0; i < kSize; ++i) {
      rig.driver.add(chain, Table::kIndirect);
      chains.push_back(rig.queue->pop().value());
    }
    const size_t in_flight = rig.queue->long_slice_bytes();
    chains.clear();
    while (rig.driver.poll_used()) {
    }
    return in_flight;
  };
  EXPECT_EQ(run_all(Queue::kInlineSlices), 0U);
  EXPECT_EQ(run_all(Queue::kKeptSlices), kKept);
  EXPECT_EQ(rig.queue->long_slice_bytes(), kKept);
  EXPECT_EQ(run_all(kSize), kSize * kSize * sizeof(IoSlice));
  EXPECT_EQ(rig.queue->long_slice_bytes(), 0U);
}

TEST(Queue, empty_buffers_are_allowed_and_left_out) {
  QueueRig rig(8);
  const GuestAddr nowhere{UINT64_MAX};
  rig.driver.add(std::vector<FakeBuffer>{
      {nowhere, 0}, {QueueRig::kFreeStart, 4}, {nowhere, 0, true}, {nowhere, 0, true}});
  const auto chain = rig.queue->pop();
  ASSERT_TRUE(chain.has_value()) << rig.queue->broken_reason();
  EXPECT_EQ(chain->readable().size(), 1U);
  EXPECT_EQ(chain->writable().size(), 0U);
  EXPECT_EQ(chain->writable_bytes(), 0U);
}

TEST(Queue, chain_may_describe_four_gib_in_total) {
  QueueRig rig(4);
  rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kHighStart, 1U << 31, true},
                                         {QueueRig::kHighStart, 1U << 31, true}});
  const auto chain = rig.queue->pop();
  ASSERT_TRUE(chain.has_value()) << rig.queue->broken_reason();
  EXPECT_EQ(chain->writable_bytes(), uint64_t{1} << 32);
}

TEST(Queue, write_flag_of_an_indirect_descriptor_is_ignored) {
  QueueRig rig(4);
  const vring_desc entry{QueueRig::kFreeStart.value, 4, 0, 0};
  ASSERT_TRUE(rig.memory->store(rig.driver.indirect_table(0), entry));
  rig.driver.raw_descriptor(
      0, {rig.driver.indirect_table(0).value, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0});
  rig.driver.raw_publish(0);
  const auto chain = rig.queue->pop();
  ASSERT_TRUE(chain.has_value()) << rig.queue->broken_reason();
  EXPECT_EQ(chain->readable_bytes(), 4U);
}

TEST(Queue, indirect_table_may_be_unaligned) {
  QueueRig rig(4);
  const GuestAddr table = *QueueRig::kFreeStart.plus(3);
  ASSERT_TRUE(rig.memory->store(table, vring_desc{QueueRig::kFreeStart.value + 64, 4, 0, 0}));
  rig.driver.raw_descriptor(0, {table.value, 16, VRING_DESC_F_INDIRECT, 0});
  rig.driver.raw_publish(0);
  EXPECT_EQ(rig.queue->pop()->readable_bytes(), 4U);
}

TEST(Queue, indices_wrap_at_65536_with_chains_completed_in_any_order) {
  std::minstd_rand random(7);  // NOLINT: the same order each time
  for (const uint16_t size : {uint16_t{1}, uint16_t{16}}) {
    for (const uint64_t features : {uint64_t{0}, kRingFeatures}) {
      QueueRig rig(size, features);
      std::vector<Chain> held;
      uint32_t made = 0;
      uint32_t used = 0;
      while (used < 140'000) {
        while (rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 4, true}})) ++made;
        while (auto chain = rig.queue->pop()) held.push_back(std::move(*chain));
        ASSERT_EQ(held.size(), size) << rig.queue->broken_reason();
        std::shuffle(held.begin(), held.end(), random);
        const size_t keep = random() % held.size();
        while (held.size() > keep) {
          held.back().complete(held.back().head() % 5U);
          held.pop_back();
        }
        rig.queue->interrupt_if_needed();
        while (const auto entry = rig.driver.poll_used()) {
          ASSERT_EQ(entry->written, entry->head % 5U);
          ++used;
        }
      }
      EXPECT_EQ(used + held.size(), made);
      EXPECT_EQ(rig.counters.chains, made);
    }
  }
}

// --- notifications ---

// Adds and completes one chain.
void one_chain(QueueRig& rig) {
  ASSERT_TRUE(rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 4, true}}));
  auto chain = rig.queue->pop();
  ASSERT_TRUE(chain.has_value());
  chain->complete(4);
  ASSERT_TRUE(rig.driver.poll_used().has_value());
}

TEST(Queue, interrupt_comes_once_for_a_batch_and_not_for_nothing) {
  for (const uint64_t features : {uint64_t{0}, kRingFeatures}) {
    QueueRig rig(4, features);
    rig.queue->interrupt_if_needed();
    EXPECT_EQ(rig.interrupt.count(), 0U);
    (void)rig.driver.enable_interrupts();
    one_chain(rig);
    one_chain(rig);
    rig.queue->interrupt_if_needed();
    EXPECT_EQ(rig.interrupt.count(), 1U);
    rig.queue->interrupt_if_needed();
    EXPECT_EQ(rig.interrupt.count(), 1U);
    EXPECT_EQ(rig.counters.interrupts, 1U);
  }
}

TEST(Queue, interrupt_flag_is_respected_without_event_idx_only) {
  QueueRig plain(4, 0);
  plain.driver.raw_avail_flags(VRING_AVAIL_F_NO_INTERRUPT);
  one_chain(plain);
  plain.queue->interrupt_if_needed();
  EXPECT_EQ(plain.interrupt.count(), 0U);
  QueueRig event(4);
  event.driver.raw_avail_flags(VRING_AVAIL_F_NO_INTERRUPT);  // means nothing here (2.7.7.1)
  one_chain(event);
  event.queue->interrupt_if_needed();
  EXPECT_EQ(event.interrupt.count(), 1U);
}

TEST(Queue, interrupt_comes_when_the_used_index_passes_used_event) {
  // Each batch's range of used indices, and whether used_event lies in it: with the wrap at 2^16.
  QueueRig rig(4);
  const auto batch = [&](uint16_t event, int chains) {
    rig.driver.raw_used_event(event);
    const uint64_t before = rig.interrupt.count();
    for (int i = 0; i < chains; ++i) one_chain(rig);
    rig.queue->interrupt_if_needed();
    return rig.interrupt.count() - before;
  };
  EXPECT_EQ(batch(3, 3), 0U) << "0, 1, 2 used: 3 not yet";
  EXPECT_EQ(batch(3, 1), 1U);
  EXPECT_EQ(batch(3, 1), 0U) << "passed already";
  EXPECT_EQ(batch(5, 10), 1U) << "the first of a batch";
  EXPECT_EQ(batch(24, 10), 1U) << "the last of a batch";
  EXPECT_EQ(batch(25, 65'536 - 25 - 2), 1U);
  EXPECT_EQ(batch(1, 3), 0U) << "65534, 65535, 0 used";
  EXPECT_EQ(batch(65'535, 1), 0U);
  EXPECT_EQ(batch(2, 1), 1U);
  EXPECT_EQ(batch(65'000, 65'536), 1U) << "a batch that passes every index";
}

TEST(Queue, kicks_are_wanted_at_first_and_again_after_enable) {
  for (const uint64_t features : {uint64_t{0}, kRingFeatures}) {
    QueueRig rig(4, features);
    const std::vector<FakeBuffer> buffer{{QueueRig::kFreeStart, 4, true}};
    const auto kick_for_one = [&] {
      EXPECT_TRUE(rig.driver.add(buffer).has_value());
      const bool wanted = rig.driver.kick_wanted();
      while (auto chain = rig.queue->pop()) chain->complete(0);
      while (rig.driver.poll_used()) {
      }
      return wanted;
    };
    EXPECT_TRUE(kick_for_one());
    rig.queue->disable_kicks();
    for (int i = 0; i < 10; ++i) EXPECT_FALSE(kick_for_one());
    EXPECT_FALSE(rig.queue->enable_kicks());
    EXPECT_TRUE(kick_for_one());
  }
}

TEST(Queue, enable_kicks_says_that_a_chain_came_meanwhile) {
  for (const uint64_t features : {uint64_t{0}, kRingFeatures}) {
    QueueRig rig(4, features);
    rig.queue->disable_kicks();
    EXPECT_FALSE(rig.queue->enable_kicks());
    rig.queue->disable_kicks();
    rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 4, true}});
    EXPECT_TRUE(rig.queue->enable_kicks());
    EXPECT_TRUE(rig.queue->pop().has_value());
    EXPECT_FALSE(rig.queue->enable_kicks());
  }
}

TEST(Queue, enable_kicks_is_true_while_chains_that_were_seen_wait) {
  QueueRig rig(4);
  for (int i = 0; i < 2; ++i)
    rig.driver.add(std::vector<FakeBuffer>{{QueueRig::kFreeStart, 4, true}});
  EXPECT_TRUE(rig.queue->pop().has_value());
  EXPECT_TRUE(rig.queue->enable_kicks());
}

}  // namespace
}  // namespace lethe
