// For tests: what Linux 6.1's balloon driver does (drivers/virtio/virtio_balloon.c), against a
// balloon in this process: hinting by command id, inflate and deflate towards the target,
// statistics when asked. Its memory is a list of free 4 MiB blocks and a list of free pages.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "devices/virtio/balloon/balloon_test_util.h"

namespace lethe {

class FakeBalloonDriver {
 public:
  static constexpr uint64_t kBlock = 4 * kMiB;
  static constexpr size_t kPagesMax = 256;  // a request's

  explicit FakeBalloonDriver(BalloonGuest& guest) : x_guest(guest) {
    x_message = guest.guest->heap().alloc(4);
    x_statistics = guest.guest->heap().alloc(2 * sizeof(virtio_balloon_stat));
    x_pfns = guest.guest->heap().alloc(kPagesMax * sizeof(uint32_t));
    if (has(VIRTIO_BALLOON_F_STATS_VQ)) send_statistics();
  }

  std::vector<uint64_t> blocks;  // free, by address
  std::vector<uint64_t> pages;   // free, by address
  std::vector<uint64_t> held;    // hinted blocks
  std::vector<uint64_t> balloon;
  uint64_t total = 128 * kMiB;  // what it says it has
  uint64_t free_least = UINT64_MAX;
  bool answers_statistics = true;
  bool answers_hints = true;
  bool says_stop = true;
  bool deflates = true;
  uint64_t inflates_max = UINT64_MAX;             // pages that it can allocate
  std::function<void(uint64_t)> after_hint = {};  // the block, right after its notification
  unsigned rounds = 0;                            // of hinting
  std::vector<uint32_t> ids;                      // command ids seen

  [[nodiscard]] uint64_t free_bytes() const {
    return blocks.size() * kBlock + pages.size() * kPage;
  }
  // What its work queues would do now.
  void work() {
    serve_statistics();
    serve_hints();
    serve_size();
  }

 private:
  [[nodiscard]] bool has(unsigned feature) const {
    return (x_guest.guest->features() & balloon_bit(feature)) != 0;
  }
  void note_free() { free_least = std::min(free_least, free_bytes()); }

  void send_statistics() {
    const virtio_balloon_stat entries[] = {{VIRTIO_BALLOON_S_MEMFREE, free_bytes()},
                                           {VIRTIO_BALLOON_S_MEMTOT, total}};
    // SAFETY: packed structures of integers, seen as their bytes.
    EXPECT_TRUE(x_guest.memory->write(x_statistics,
                                      {reinterpret_cast<const uint8_t*>(entries), sizeof entries}));
    const FakeBuffer buffer{x_statistics, sizeof entries, false};
    send(BalloonQueue::kStatistics, buffer);
  }
  void serve_statistics() {
    if (!has(VIRTIO_BALLOON_F_STATS_VQ) || !answers_statistics) return;
    if (x_guest.driver(BalloonQueue::kStatistics).poll_used()) send_statistics();
  }
  void send(BalloonQueue role, const FakeBuffer& buffer) {
    while (role == BalloonQueue::kHint && x_guest.driver(role).poll_used()) {
    }
    ASSERT_TRUE(x_guest.driver(role).add({&buffer, 1}));
    // Notifications must not be suppressed on the hinting queue: each one counts.
    const bool wanted = x_guest.driver(role).kick_wanted();
    if (role == BalloonQueue::kHint) EXPECT_TRUE(wanted);
    if (wanted) x_guest.guest->kick(x_guest.index(role));
  }
  void send_id(uint32_t id) {
    EXPECT_TRUE(x_guest.memory->store(x_message, id));
    send(BalloonQueue::kHint, {x_message, sizeof id, false});
  }

  void serve_hints() {
    if (!has(VIRTIO_BALLOON_F_FREE_PAGE_HINT) || !answers_hints) return;
    const uint32_t id = x_guest.config().free_page_hint_cmd_id;
    if (id == VIRTIO_BALLOON_CMD_ID_DONE) {
      blocks.insert(blocks.end(), held.begin(), held.end());
      held.clear();
    }
    if (id <= VIRTIO_BALLOON_CMD_ID_DONE || id == x_active) return;
    x_active = id;
    ids.push_back(id);
    ++rounds;
    send_id(id);
    while (x_guest.config().free_page_hint_cmd_id == id && !blocks.empty()) {
      const uint64_t block = blocks.back();
      blocks.pop_back();
      note_free();
      send(BalloonQueue::kHint, {GuestAddr{block}, kBlock, true});
      held.push_back(block);
      if (after_hint) after_hint(block);
    }
    if (says_stop) send_id(VIRTIO_BALLOON_CMD_ID_STOP);
  }

  void serve_size() {
    const uint32_t wanted = x_guest.config().num_pages;
    if (wanted > balloon.size()) {
      std::vector<uint64_t> taken;
      while (balloon.size() + taken.size() < wanted && taken.size() < kPagesMax &&
             balloon.size() + taken.size() < inflates_max) {
        if (pages.empty() && !split_block()) break;
        taken.push_back(pages.back());
        pages.pop_back();
      }
      note_free();
      if (taken.empty()) return;
      tell(BalloonQueue::kInflate, taken);
      balloon.insert(balloon.end(), taken.begin(), taken.end());
    } else if (wanted < balloon.size() && deflates) {
      std::vector<uint64_t> given;
      while (balloon.size() > wanted && given.size() < kPagesMax) {
        given.push_back(balloon.back());
        balloon.pop_back();
      }
      tell(BalloonQueue::kDeflate, given);
      pages.insert(pages.end(), given.begin(), given.end());
    } else {
      return;
    }
    x_guest.write_config(offsetof(virtio_balloon_config, actual),
                         static_cast<uint32_t>(balloon.size()));
  }
  bool split_block() {
    if (blocks.empty()) return false;
    for (uint64_t at = 0; at < kBlock; at += kPage) pages.push_back(blocks.back() + at);
    blocks.pop_back();
    return true;
  }
  void tell(BalloonQueue role, const std::vector<uint64_t>& addresses) {
    std::vector<uint32_t> pfns;
    for (const uint64_t address : addresses) pfns.push_back(static_cast<uint32_t>(address / kPage));
    // SAFETY: integers, seen as their bytes.
    EXPECT_TRUE(x_guest.memory->write(
        x_pfns, {reinterpret_cast<const uint8_t*>(pfns.data()), pfns.size() * sizeof(uint32_t)}));
    const FakeBuffer buffer{x_pfns, static_cast<uint32_t>(pfns.size() * sizeof(uint32_t)), false};
    EXPECT_TRUE(x_guest.request(role, {&buffer, 1}));
  }

  BalloonGuest& x_guest;
  GuestAddr x_message;
  GuestAddr x_statistics;
  GuestAddr x_pfns;
  uint32_t x_active = VIRTIO_BALLOON_CMD_ID_STOP;
};

}  // namespace lethe
