#include "devices/virtio/balloon/balloon_returns.h"

#include <algorithm>
#include <array>
#include <bit>

#include "devices/virtio/balloon/balloon_work.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPfnBytes = sizeof(uint32_t);
constexpr size_t kPfnsAtATime = 256;  // what Linux sends in one request

}  // namespace

BalloonReturns::BalloonReturns(ReturnPipeline& pipeline, BalloonCounters& counters)
    : x_pipeline(pipeline), x_counters(counters) {
  x_held.reserve(kHeldMax);
}

bool BalloonReturns::serve(Queue& queue, ReturnSource source) {
  const auto deadline = Clock::now() + kWakeTime;
  for (;;) {
    const bool may_take = !x_feeding && !x_pipeline.flushing() && x_held.size() < kHeldMax;
    if (may_take && take_chain(queue, source)) continue;
    if (x_feeding && room_for(*x_feeding)) {
      const Fed fed = feed(*x_feeding);
      if (fed == Fed::kAll) {
        x_held.push_back(std::move(x_feeding->held));
        x_feeding.reset();
        continue;
      }
      if (fed == Fed::kPaused) {
        if (Clock::now() >= deadline) return false;
        continue;
      }
    }
    if (!x_feeding && x_held.empty()) return true;
    if (!x_pipeline.flush()) return false;
    complete_held();
    if (Clock::now() >= deadline) return false;
  }
}

// Takes what is fed next from the queue. False: there is nothing, or a chain of the wrong kind was
// sent back.
bool BalloonReturns::take_chain(Queue& queue, ReturnSource source) {
  auto chain = queue.pop();
  if (!chain) return false;
  const bool inflate = source == ReturnSource::kInflate;
  const uint64_t bytes =
      inflate ? chain->readable_bytes() / kPfnBytes * kBalloonPage : chain->writable_bytes();
  // Inflate arrays are for the device to read, reported pages are its to write (5.5.6, 5.5.6.7).
  const bool refused =
      inflate ? chain->writable_bytes() != 0 || chain->readable_bytes() % kPfnBytes != 0
              : chain->readable_bytes() != 0;
  if (refused) x_counters.chains_refused.fetch_add(1, std::memory_order_relaxed);
  if (!inflate) x_counters.reports.fetch_add(1, std::memory_order_relaxed);
  Held held{.queue = &queue, .chain = std::move(*chain)};
  if (refused || bytes == 0) {
    x_held.push_back(std::move(held));
  } else {
    x_feeding.emplace(Feeding{.held = std::move(held), .source = source, .bytes = bytes});
  }
  return true;
}

// Whether the chain may be taken now: beside others only within the bound, alone in any case.
bool BalloonReturns::room_for(const Feeding& feeding) const {
  return feeding.begun || x_held.empty() ||
         (x_pipeline.isolated() <= x_pipeline.isolated_max() &&
          feeding.bytes <= x_pipeline.isolated_max() - x_pipeline.isolated());
}

BalloonReturns::Fed BalloonReturns::feed(Feeding& feeding) {
  feeding.begun = true;
  return feeding.source == ReturnSource::kInflate ? feed_inflate(feeding) : feed_report(feeding);
}

BalloonReturns::Fed BalloonReturns::feed_report(Feeding& feeding) {
  const auto slices = feeding.held.chain.writable();
  for (; feeding.slice < slices.size(); ++feeding.slice) {
    const IoSlice& slice = slices[feeding.slice];
    const auto added = x_pipeline.add(slice, feeding.source);
    if (added == ReturnPipeline::Added::kFull) return Fed::kFull;
    if (added == ReturnPipeline::Added::kTaken) feeding.held.taken += slice.size;
  }
  return Fed::kAll;
}

// The array is copied out once, a part at a time, and runs of pages become one range. What did not
// fit is read again: nothing was done with it.
BalloonReturns::Fed BalloonReturns::feed_inflate(Feeding& feeding) {
  std::array<uint32_t, kPfnsAtATime> pfns;
  for (uint64_t looked = 0; looked < kStepRangesMax; looked += kPfnsAtATime) {
    // SAFETY: an array of integers, seen as its bytes; x86 is little-endian like the wire.
    static_assert(std::endian::native == std::endian::little);
    const size_t bytes = feeding.held.chain.copy_from_readable(
        feeding.offset, {reinterpret_cast<uint8_t*>(pfns.data()), sizeof pfns});
    const size_t count = bytes / kPfnBytes;
    for (size_t i = 0; i < count;) {
      const GuestAddr start{pfns[i] * kBalloonPage};
      size_t run = 1;
      while (i + run < count && pfns[i + run] == uint64_t{pfns[i]} + run) ++run;
      // A run that leaves memory, or its region, is judged page by page.
      if (!x_pipeline.valid(start, run * kBalloonPage)) run = 1;
      const auto added = x_pipeline.add(start, run * kBalloonPage, ReturnSource::kInflate);
      if (added == ReturnPipeline::Added::kFull) return Fed::kFull;
      if (added == ReturnPipeline::Added::kTaken) {
        feeding.held.taken += run * kBalloonPage;
        x_counters.inflated_pages.fetch_add(run, std::memory_order_relaxed);
      }
      i += run;
      feeding.offset += run * kPfnBytes;
    }
    if (count < kPfnsAtATime) return Fed::kAll;
  }
  return Fed::kPaused;
}

void BalloonReturns::complete_held() {
  for (Held& held : x_held) {
    x_pipeline.given_back(held.taken);
    held.chain.complete(0);
  }
  // Two queues at most: inflate and reports.
  Queue* last = nullptr;
  for (const Held& held : x_held) {
    if (held.queue != last) held.queue->interrupt_if_needed();
    last = held.queue;
  }
  x_held.clear();
}

void BalloonReturns::settle() {
  x_pipeline.flush_all();
  complete_held();
}

void BalloonReturns::leave(const Queue& queue) {
  settle();
  if (x_feeding && x_feeding->held.queue == &queue) {
    x_pipeline.given_back(x_feeding->held.taken);
    x_feeding.reset();
  }
}

}  // namespace lethe
