#include "kernel/virtio/balloon.h"

#include <linux/virtio_ids.h>

#include "kernel/check.h"

namespace kernel {
namespace {

constexpr uint32_t kPoisonOffset = 12;

}  // namespace

void BalloonDriver::negotiate() {
  const uint64_t poison = options_.poison != 0 ? feature(VIRTIO_BALLOON_F_PAGE_POISON) : 0;
  features_ = device_.start(options_.required, options_.optional | poison);
  // Section 5.5.3: before DRIVER_OK.
  if (has(VIRTIO_BALLOON_F_PAGE_POISON)) write_config(kPoisonOffset, options_.poison);
  // Queues that were not negotiated take no index.
  const bool there[kBalloonQueues] = {true, true, has(VIRTIO_BALLOON_F_STATS_VQ),
                                      has(VIRTIO_BALLOON_F_FREE_PAGE_HINT),
                                      has(VIRTIO_BALLOON_F_REPORTING)};
  int next = 0;
  for (size_t i = 0; i < kBalloonQueues; ++i) index_of_[i] = there[i] ? next++ : -1;
}

bool BalloonDriver::open(const Options& options) {
  if (!device_.open(VIRTIO_ID_BALLOON)) return false;
  options_ = options;
  negotiate();
  for (size_t i = 0; i < kBalloonQueues; ++i) {
    if (index_of_[i] < 0) continue;
    const auto index = static_cast<uint16_t>(index_of_[i]);
    queues_[index].open(device_, index, 0, kNoVector, false);
  }
  device_.driver_ok();
  return true;
}

void BalloonDriver::restart(const Options& options) {
  options_ = options;
  negotiate();
  for (size_t i = 0; i < kBalloonQueues; ++i) {
    if (index_of_[i] >= 0) queues_[index_of_[i]].reopen();
  }
  device_.driver_ok();
}

uint16_t BalloonDriver::index_of(BalloonQueue queue) const {
  const int index = index_of_[static_cast<size_t>(queue)];
  CHECK(index >= 0);
  return static_cast<uint16_t>(index);
}

void BalloonDriver::inflate(const uint32_t* pfns, size_t count) {
  CHECK(count > 0 && count <= kBalloonPfnsMax);
  const Buffer b = readable(pfns, count * sizeof(*pfns));
  CHECK_EQ(queue(BalloonQueue::kInflate).submit_and_wait(&b, 1), 0);
}

void BalloonDriver::deflate(const uint32_t* pfns, size_t count) {
  CHECK(count > 0 && count <= kBalloonPfnsMax);
  const Buffer b = readable(pfns, count * sizeof(*pfns));
  CHECK_EQ(queue(BalloonQueue::kDeflate).submit_and_wait(&b, 1), 0);
}

void BalloonDriver::send_hint_command(uint32_t id) {
  static uint32_t command;
  command = id;
  const Buffer b = readable(&command, sizeof(command));
  queue(BalloonQueue::kHint).submit_and_wait(&b, 1);
}

}  // namespace kernel
