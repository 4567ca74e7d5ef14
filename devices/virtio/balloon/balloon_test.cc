#include "devices/virtio/balloon/balloon.h"

#include <gtest/gtest.h>

#include <random>
#include <semaphore>

#include "devices/virtio/balloon/balloon_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kFree = BalloonGuest::kFree;
constexpr auto kPfn = [](uint64_t address) { return static_cast<uint32_t>(address / kPage); };

TEST(BalloonShape, queue_indices_are_dense_over_what_was_negotiated) {
  using Q = BalloonQueue;
  constexpr uint64_t kStatsBit = balloon_bit(VIRTIO_BALLOON_F_STATS_VQ);
  constexpr uint64_t kHintBit = balloon_bit(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
  constexpr uint64_t kReportBit = balloon_bit(VIRTIO_BALLOON_F_REPORTING);
  const struct {
    uint64_t features;
    std::vector<Q> queues;
  } cases[] = {
      {0, {Q::kInflate, Q::kDeflate}},
      {kStatsBit, {Q::kInflate, Q::kDeflate, Q::kStatistics}},
      {kHintBit, {Q::kInflate, Q::kDeflate, Q::kHint}},
      {kReportBit, {Q::kInflate, Q::kDeflate, Q::kReport}},
      {kStatsBit | kReportBit, {Q::kInflate, Q::kDeflate, Q::kStatistics, Q::kReport}},
      {kHintBit | kReportBit, {Q::kInflate, Q::kDeflate, Q::kHint, Q::kReport}},
      {kStatsBit | kHintBit | kReportBit,
       {Q::kInflate, Q::kDeflate, Q::kStatistics, Q::kHint, Q::kReport}},
  };
  for (const auto& c : cases) {
    for (uint16_t i = 0; i < 8; ++i) {
      const Q expected = i < c.queues.size() ? c.queues[i] : Q::kNone;
      EXPECT_EQ(balloon_queue(c.features, i), expected) << c.features << " " << i;
    }
  }
}

TEST(BalloonShape, offers_what_the_options_say) {
  constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 16 * kMiB};
  const auto memory = GuestMemory::create({&kRam, 1}, {}).value();
  ReturnPipeline pipeline(*memory);
  const auto all = BalloonDevice::create(*memory, pipeline, {});
  EXPECT_EQ(all->device_features(), 0x3eu);  // all but MUST_TELL_HOST
  EXPECT_EQ(all->queue_sizes_max().size(), 5u);
  const auto none = BalloonDevice::create(*memory, pipeline,
                                          {.deflate_on_oom = false,
                                           .statistics = false,
                                           .free_page_hint = false,
                                           .free_page_reporting = false});
  EXPECT_EQ(none->device_features(), balloon_bit(VIRTIO_BALLOON_F_PAGE_POISON));
  EXPECT_EQ(none->queue_sizes_max().size(), 2u);
}

// --- inflate and deflate

TEST(BalloonInflate, pages_are_freed_when_their_request_is_used) {
  BalloonGuest b;
  fill(*b.memory, kFree, 8 * kMiB, 0xaa);
  std::vector<uint32_t> pfns;
  for (uint32_t i = 0; i < 256; ++i) pfns.push_back(kPfn(kFree) + i);
  ASSERT_TRUE(b.inflate(pfns));
  EXPECT_EQ(resident(*b.memory, kFree, kMiB), 0u);
  EXPECT_EQ(resident(*b.memory, kFree + kMiB, 7 * kMiB), 7 * kMiB);
  EXPECT_EQ(b.returned().freed, kMiB);
  EXPECT_EQ(b.counters().inflated_pages, 256u);
  EXPECT_EQ(b.returned().ranges, 1u) << "a run is one range";
  EXPECT_TRUE(b.reads(kFree + kMiB, 7 * kMiB, 0xaa));
}

TEST(BalloonInflate, descending_and_scattered_pages_are_merged) {
  BalloonGuest b;
  fill(*b.memory, kFree, 8 * kMiB, 0xaa);
  std::vector<uint32_t> pfns;
  for (uint32_t i = 256; i-- > 0;) pfns.push_back(kPfn(kFree) + i);
  pfns.push_back(kPfn(kFree) + 1000);
  ASSERT_TRUE(b.inflate(pfns));
  EXPECT_EQ(b.returned().merged, 255u);
  EXPECT_EQ(b.returned().merged_bytes, 255 * kPage);
  EXPECT_EQ(b.returned().freed, 257 * kPage);
}

TEST(BalloonInflate, an_array_longer_than_any_buffer_is_worked_in_parts) {
  BalloonGuest b(1 * kGiB);
  std::vector<uint32_t> pfns;
  for (uint32_t i = 0; i < 100'000; ++i) pfns.push_back(kPfn(kFree) + 2 * i);  // no runs
  fill(*b.memory, kFree, 2 * kMiB, 0xaa);
  ASSERT_TRUE(b.inflate(pfns));
  EXPECT_EQ(b.counters().inflated_pages, 100'000u);
  EXPECT_EQ(b.returned().freed, 256 * kPage);
  EXPECT_LE(b.returned().isolated_highest, 100'000 * kPage);
  EXPECT_EQ(b.returned().isolated, 0u);
}

TEST(BalloonInflate, repeated_pages_are_freed_once) {
  BalloonGuest b;
  fill(*b.memory, kFree, kMiB, 0xaa);
  ASSERT_TRUE(b.inflate({kPfn(kFree), kPfn(kFree), kPfn(kFree) + 1, kPfn(kFree)}));
  EXPECT_EQ(b.returned().freed, 2 * kPage);
  EXPECT_EQ(b.returned().repeated, 2 * kPage);
}

TEST(BalloonInflate, pages_outside_memory_are_refused_and_the_rest_is_taken) {
  BalloonGuest b;
  fill(*b.memory, kFree, kMiB, 0xaa);
  const auto end = kPfn(128 * kMiB);
  ASSERT_TRUE(b.inflate({end - 1, end, end + 1, 0xffff'ffff, kPfn(kFree), 0xffff'fffe, end}));
  EXPECT_EQ(b.returned().refused[0], 5u);
  EXPECT_EQ(b.counters().inflated_pages, 2u);
  EXPECT_EQ(b.returned().freed, kPage);
  EXPECT_EQ(b.guest->needs_reset_count(), 0u);
}

TEST(BalloonInflate, chains_of_the_wrong_shape_are_sent_back_unserved) {
  BalloonGuest b;
  fill(*b.memory, kFree, kMiB, 0xaa);
  const FakeBuffer writable = BalloonGuest::range(kFree, kPage);
  EXPECT_TRUE(b.request(BalloonQueue::kInflate, {&writable, 1}));
  const FakeBuffer odd{b.pfn_buffer({kPfn(kFree)}).address, 3, false};
  EXPECT_TRUE(b.request(BalloonQueue::kInflate, {&odd, 1}));
  const FakeBuffer both[] = {b.pfn_buffer({kPfn(kFree)}), writable};
  EXPECT_TRUE(b.request(BalloonQueue::kInflate, both));
  const FakeBuffer readable{GuestAddr{kFree}, kPage, false};
  EXPECT_TRUE(b.request(BalloonQueue::kReport, {&readable, 1}));
  EXPECT_TRUE(b.request(BalloonQueue::kDeflate, {&writable, 1}));
  EXPECT_EQ(b.counters().chains_refused, 5u);
  EXPECT_TRUE(b.reads(kFree, kMiB, 0xaa));
}

// The guest's own loss: no crash, and a ring that is gone is a broken ring.
TEST(BalloonInflate, the_pages_of_its_own_rings_break_the_device_until_a_reset) {
  BalloonGuest b;
  std::vector<uint32_t> pfns;
  for (uint32_t i = 0; i < kPfn(kFree); ++i) pfns.push_back(i);
  const FakeBuffer buffer = b.pfn_buffer(pfns);
  ASSERT_TRUE(b.driver(BalloonQueue::kInflate).add({&buffer, 1}));
  b.guest->kick(b.index(BalloonQueue::kInflate));
  EXPECT_TRUE(eventually([&] { return b.counters().inflated_pages == kPfn(kFree); }));
  b.guest->reset();
  b.guest->start();
  fill(*b.memory, kFree, kMiB, 0xaa);
  EXPECT_TRUE(b.inflate({kPfn(kFree)}));
  EXPECT_EQ(b.returned().freed % kPage, 0u);
}

TEST(BalloonDeflate, pages_read_as_zero_and_can_be_written) {
  BalloonGuest b;
  fill(*b.memory, kFree, kMiB, 0xaa);
  ASSERT_TRUE(b.inflate({kPfn(kFree), kPfn(kFree) + 1}));
  const FakeBuffer buffer = b.pfn_buffer({kPfn(kFree), kPfn(kFree) + 1});
  ASSERT_TRUE(b.request(BalloonQueue::kDeflate, {&buffer, 1}));
  EXPECT_EQ(b.counters().deflated_pages, 2u);
  EXPECT_TRUE(b.reads(kFree, 2 * kPage, 0));
  fill(*b.memory, kFree, 2 * kPage, 0xbb);
  EXPECT_TRUE(b.reads(kFree, 2 * kPage, 0xbb));
}

// --- target and configuration

TEST(BalloonTarget, is_shown_to_the_driver_with_an_interrupt) {
  BalloonGuest b;
  b.device->set_target(10 * kMiB + 1);
  EXPECT_TRUE(b.guest->wait_config_changes());
  EXPECT_EQ(b.config().num_pages, 10 * kMiB / kPage);
  EXPECT_EQ(b.device->target(), 10 * kMiB);
  b.write_config(offsetof(virtio_balloon_config, actual), 77);
  EXPECT_EQ(b.device->actual(), 77 * kPage);
  EXPECT_EQ(b.config().actual, 77u);
}

TEST(BalloonTarget, above_memory_is_clamped_and_counted) {
  BalloonGuest b;
  b.device->set_target(UINT64_MAX);
  EXPECT_EQ(b.device->target(), 128 * kMiB);
  EXPECT_EQ(b.counters().targets_clamped, 1u);
  b.device->set_target(128 * kMiB);
  EXPECT_EQ(b.counters().targets_clamped, 1u);
}

TEST(BalloonTarget, set_before_there_is_a_driver_waits_for_it) {
  constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 16 * kMiB};
  const auto memory = GuestMemory::create({&kRam, 1}, {}).value();
  ReturnPipeline pipeline(*memory);
  const auto device = BalloonDevice::create(*memory, pipeline, {});
  device->set_target(kMiB);
  uint32_t pages = 0;
  device->read_config(0, {reinterpret_cast<uint8_t*>(&pages), sizeof pages});
  EXPECT_EQ(pages, kMiB / kPage);
}

TEST(BalloonTarget, survives_a_reset_and_the_drivers_word_does_not) {
  BalloonGuest b;
  b.device->set_target(kMiB);
  EXPECT_TRUE(b.guest->wait_config_changes());
  b.write_config(offsetof(virtio_balloon_config, actual), 77);
  b.guest->reset();
  EXPECT_EQ(b.config().num_pages, kMiB / kPage);
  EXPECT_EQ(b.config().actual, 0u);
}

TEST(BalloonTarget, the_driver_can_not_write_the_hosts_fields) {
  BalloonGuest b;
  b.write_config(offsetof(virtio_balloon_config, num_pages), 77);
  b.write_config(offsetof(virtio_balloon_config, free_page_hint_cmd_id), 77);
  const uint8_t byte = 5;
  b.device->write_config(offsetof(virtio_balloon_config, actual), {&byte, 1});
  EXPECT_EQ(b.config().num_pages, 0u);
  EXPECT_EQ(b.config().free_page_hint_cmd_id, 0u);
  EXPECT_EQ(b.config().actual, 0u);
}

// --- reporting

TEST(BalloonReport, content_is_unreadable_when_the_chain_is_used) {
  BalloonGuest b;
  for (int round = 0; round < 20; ++round) {
    fill(*b.memory, kFree, 16 * kMiB, 0xaa);
    ASSERT_TRUE(b.report(
        {BalloonGuest::range(kFree, 4 * kMiB), BalloonGuest::range(kFree + 8 * kMiB, 2 * kMiB)}));
    EXPECT_TRUE(b.reads(kFree, 4 * kMiB, 0));
    EXPECT_TRUE(b.reads(kFree + 4 * kMiB, 4 * kMiB, 0xaa));
    EXPECT_TRUE(b.reads(kFree + 8 * kMiB, 2 * kMiB, 0));
    EXPECT_TRUE(b.reads(kFree + 10 * kMiB, 6 * kMiB, 0xaa));
  }
  EXPECT_EQ(b.counters().reports, 20u);
  EXPECT_EQ(b.returned().freed, 20 * 6 * kMiB);
}

TEST(BalloonReport, no_chain_is_used_before_the_call_that_discards_its_ranges_has_returned) {
  FailingOps ops;
  std::binary_semaphore entered(0);
  std::binary_semaphore go_on(0);
  ops.before_all = [&](std::span<const iovec> ranges) {
    EXPECT_EQ(ranges.size(), 4u);
    entered.release();
    EXPECT_TRUE(go_on.try_acquire_for(FakeTransport::kPatience));
  };
  BalloonGuest b(128 * kMiB, {}, {.ops = &ops, .wake_time_max = std::chrono::hours(1)});
  const uint16_t index = b.index(BalloonQueue::kReport);
  FakeDriver& driver = b.driver(BalloonQueue::kReport);
  fill(*b.memory, kFree, 32 * kMiB, 0xaa);
  for (uint64_t chain = 0; chain < 2; ++chain) {
    const FakeBuffer ranges[] = {BalloonGuest::range(kFree + chain * 16 * kMiB, 2 * kMiB),
                                 BalloonGuest::range(kFree + chain * 16 * kMiB + 8 * kMiB, kPage)};
    ASSERT_TRUE(driver.prepare(ranges, FakeDriver::Table::kDirect));
  }
  driver.publish();
  b.guest->kick(index);
  ASSERT_TRUE(entered.try_acquire_for(FakeTransport::kPatience));
  EXPECT_FALSE(driver.poll_used()) << "its content can still be read";
  EXPECT_TRUE(b.reads(kFree, 32 * kMiB, 0xaa));
  EXPECT_EQ(b.returned().isolated, 4 * kMiB + 2 * kPage);
  go_on.release();
  for (uint64_t chain = 0; chain < 2; ++chain) {
    ASSERT_TRUE(driver.wait_used(b.guest->interrupt(index), deadline_in(FakeTransport::kPatience)));
    EXPECT_TRUE(b.reads(kFree + chain * 16 * kMiB, 2 * kMiB, 0));
    EXPECT_TRUE(b.reads(kFree + chain * 16 * kMiB + 8 * kMiB, kPage, 0));
  }
}

TEST(BalloonReport, unaligned_ranges_are_refused_whole) {
  BalloonGuest b;
  fill(*b.memory, kFree, 4 * kMiB, 0xaa);
  ASSERT_TRUE(b.report({BalloonGuest::range(kFree + 1, 2 * kPage),
                        BalloonGuest::range(kFree + kMiB, kPage + 1),
                        BalloonGuest::range(kFree + 2 * kMiB, kPage)}));
  EXPECT_EQ(b.returned().refused[1], 2u);
  EXPECT_TRUE(b.reads(kFree, 2 * kMiB, 0xaa));
  EXPECT_EQ(b.returned().freed, kPage);
}

// A range outside memory is a broken rule of the ring itself (Queue); device memory is no RAM.
TEST(BalloonReport, a_range_outside_memory_breaks_the_queue) {
  BalloonGuest b;
  const FakeBuffer outside = BalloonGuest::range(128 * kMiB - kPage, 2 * kPage);
  ASSERT_TRUE(b.driver(BalloonQueue::kReport).add({&outside, 1}));
  b.guest->kick(b.index(BalloonQueue::kReport));
  EXPECT_TRUE(b.guest->wait_needs_reset());
}

TEST(BalloonReport, reads_as_the_poison_value_that_was_negotiated) {
  BalloonGuest b;
  b.guest->reset();
  b.write_config(offsetof(virtio_balloon_config, poison_val), 0xaaaaaaaa);
  b.guest->start();
  fill(*b.memory, kFree, 4 * kMiB, 0xaa);
  ASSERT_TRUE(b.report({BalloonGuest::range(kFree, 2 * kMiB)}));
  EXPECT_TRUE(b.reads(kFree, 4 * kMiB, 0xaa));
  EXPECT_EQ(b.returned().overwritten, 2 * kMiB);
  // Inflated pages have no content to keep.
  ASSERT_TRUE(b.inflate({kPfn(kFree)}));
  EXPECT_TRUE(b.reads(kFree, kPage, 0));
  // Without the feature the value is nobody's.
  b.guest->reset();
  b.write_config(offsetof(virtio_balloon_config, poison_val), 0xaaaaaaaa);
  b.guest->start(~balloon_bit(VIRTIO_BALLOON_F_PAGE_POISON));
  ASSERT_TRUE(b.report({BalloonGuest::range(kFree, 2 * kMiB)}));
  EXPECT_TRUE(b.reads(kFree, 2 * kMiB, 0));
}

// The named finding: "Reporting with 10 GiB freed at once never has more than 64 MiB isolated".
TEST(BalloonReport, ten_gib_freed_at_once_never_has_more_than_64_mib_isolated) {
  constexpr uint64_t kSize = 11 * kGiB;
  BalloonGuest b(kSize);
  std::mt19937_64 random(1);
  // One page of each 32 MiB is there: 10 GiB of it would not fit.
  for (uint64_t at = kGiB; at < kSize; at += 32 * kMiB) fill(*b.memory, at, kPage, 0xaa);
  FakeDriver& driver = b.driver(BalloonQueue::kReport);
  uint64_t reported = 0;
  uint64_t at = kGiB;
  uint64_t outstanding_bytes = 0;
  uint64_t used = 0;
  uint64_t added = 0;
  while (at < kSize || driver.outstanding() > 0) {
    // As many chains as the ring takes: up to 32 ranges of 2 MiB each, as Linux has.
    while (at < kSize && driver.free_descriptors() >= 32) {
      std::vector<FakeBuffer> ranges;
      const uint64_t count = 1 + random() % 32;
      for (; ranges.size() < count && at < kSize; at += 2 * kMiB)
        ranges.push_back(BalloonGuest::range(at, 2 * kMiB));
      reported += ranges.size() * 2 * kMiB;
      outstanding_bytes += ranges.size() * 2 * kMiB;
      ASSERT_TRUE(driver.add(ranges));
      ++added;
    }
    b.guest->kick_if_wanted(b.index(BalloonQueue::kReport));
    EXPECT_LE(b.returned().isolated, 64 * kMiB);
    ASSERT_TRUE(driver.wait_used(b.guest->interrupt(b.index(BalloonQueue::kReport)),
                                 deadline_in(FakeTransport::kPatience)));
    ++used;
  }
  EXPECT_EQ(used, added);
  EXPECT_EQ(reported, 10 * kGiB);
  EXPECT_EQ(b.returned().taken[1], 10 * kGiB);
  EXPECT_GT(b.returned().isolated_highest, 32 * kMiB) << "chains are gathered";
  EXPECT_LE(b.returned().isolated_highest, 64 * kMiB);
  EXPECT_EQ(b.returned().isolated, 0u);
  EXPECT_LT(outstanding_bytes, 11 * kGiB);
  for (uint64_t page = kGiB; page < kSize; page += 32 * kMiB)
    ASSERT_EQ(resident(*b.memory, page, kPage), 0u) << page;
}

TEST(BalloonReport, one_chain_larger_than_the_bound_is_worked_off_alone) {
  BalloonGuest b(1 * kGiB);
  fill(*b.memory, kFree, kPage, 0xaa);
  std::vector<FakeBuffer> ranges;
  for (uint64_t i = 0; i < 32; ++i)  // Linux 6.1: 32 blocks of up to 4 MiB
    ranges.push_back(BalloonGuest::range(kFree + i * 8 * kMiB, 4 * kMiB));
  FakeDriver& driver = b.driver(BalloonQueue::kReport);
  ASSERT_TRUE(driver.add(ranges));
  const FakeBuffer small = BalloonGuest::range(kFree + 4 * kMiB, 2 * kMiB);
  ASSERT_TRUE(driver.add({&small, 1}));
  b.guest->kick_if_wanted(b.index(BalloonQueue::kReport));
  for (int i = 0; i < 2; ++i)
    ASSERT_TRUE(driver.wait_used(b.guest->interrupt(b.index(BalloonQueue::kReport)),
                                 deadline_in(FakeTransport::kPatience)));
  EXPECT_EQ(b.returned().isolated_highest, 128 * kMiB);
  EXPECT_TRUE(b.reads(kFree, kPage, 0));
}

TEST(BalloonReport, a_4_gib_range_is_given_back_in_pieces_while_others_are_served) {
  BalloonGuest b(6 * kGiB, {}, {.wake_bytes_max = ReturnPipeline::kPieceBytes});
  fill(*b.memory, 4 * kGiB, kPage, 0xaa);
  const FakeBuffer large = BalloonGuest::range(kGiB, 4 * kGiB - kPage);
  ASSERT_TRUE(b.request(BalloonQueue::kReport, {&large, 1}));
  EXPECT_GE(b.returned().budget_ends, 255u);
  EXPECT_EQ(resident(*b.memory, 4 * kGiB, kPage), 0u);
}

// --- life cycle

TEST(BalloonReset, with_reports_in_flight_loses_nothing_that_was_not_reported) {
  BalloonGuest b(256 * kMiB);
  const uint16_t index = b.index(BalloonQueue::kReport);
  fill(*b.memory, kFree, 64 * kMiB, 0xaa);
  for (int round = 0; round < 30; ++round) {
    fill(*b.memory, kFree, 32 * kMiB, 0xaa);
    for (uint64_t i = 0; i < 8; ++i) {
      const FakeBuffer range = BalloonGuest::range(kFree + i * 4 * kMiB, 2 * kMiB);
      ASSERT_TRUE(b.driver(BalloonQueue::kReport).add({&range, 1}));
    }
    b.guest->kick(index);
    if (round % 3 == 0) std::this_thread::yield();
    if (round % 2 == 0) {
      b.guest->reset();
      b.guest->start();
    } else {
      b.guest->stop_queue(index);
      b.guest->restart_queue(index);
    }
    EXPECT_EQ(b.returned().isolated, 0u);
    // From here on nothing is touched any more.
    fill(*b.memory, kFree, 32 * kMiB, 0xbb);
    ASSERT_TRUE(b.reads(kFree, 32 * kMiB, 0xbb));
    ASSERT_TRUE(b.reads(kFree + 32 * kMiB, 32 * kMiB, 0xaa));
  }
  ASSERT_TRUE(b.report({BalloonGuest::range(kFree, 2 * kMiB)}));
  EXPECT_TRUE(b.reads(kFree, 2 * kMiB, 0));
}

TEST(BalloonReset, a_broken_ring_needs_one_and_works_after_it) {
  BalloonGuest b;
  for (const auto role : {BalloonQueue::kInflate, BalloonQueue::kDeflate, BalloonQueue::kStatistics,
                          BalloonQueue::kHint, BalloonQueue::kReport}) {
    b.driver(role).raw_publish(9999);
    b.guest->kick(b.index(role));
    EXPECT_TRUE(b.guest->wait_needs_reset()) << static_cast<int>(role);
    b.guest->kick(b.index(role));
    b.guest->reset();
    b.guest->start();
  }
  fill(*b.memory, kFree, kMiB, 0xaa);
  EXPECT_TRUE(b.inflate({kPfn(kFree)}));
  EXPECT_EQ(b.guest->needs_reset_count(), 0u);
}

TEST(BalloonReset, a_device_that_was_never_started_costs_no_thread) {
  constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 16 * kMiB};
  const auto memory = GuestMemory::create({&kRam, 1}, {}).value();
  ReturnPipeline pipeline(*memory);
  const auto device = BalloonDevice::create(*memory, pipeline, {});
  device->reset();
  device->stop_queue(0);
  EXPECT_EQ(device->thread_cpu_time().count(), 0);
  bool called = false;
  device->pull(
      kMiB, [](uint64_t) {},
      [&](const PullResult& result) {
        called = true;
        EXPECT_FALSE(result.complete);
      });
  EXPECT_TRUE(called);
}

}  // namespace
}  // namespace lethe
