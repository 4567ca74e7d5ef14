// virtio-balloon, the traditional memory balloon (virtio 1.2, 5.5): inflate and deflate, statistics,
// free page hinting, free page reporting, page poison.
//
// (Contract sketch. Owner: the balloon's author; the names below are what others build against.)
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "base/metrics.h"

namespace lethe {

struct BalloonOptions {
  bool deflate_on_oom = true;
  bool statistics = true;
  bool free_page_hint = true;
  bool free_page_reporting = true;
  uint64_t isolated_max = 64ull << 20;  // bytes taken from the guest and not yet given back
};

// What the guest last said of its memory (5.5.6.4); absent tags were not sent.
struct BalloonStatistics {
  std::chrono::steady_clock::time_point when;  // 0: never
  std::map<uint16_t, uint64_t> tags;           // VIRTIO_BALLOON_S_*, unknown ones too; bounded
};

// What a pull (reclaim on demand) did.
struct PullResult {
  uint64_t bytes = 0;             // given back to the host
  std::chrono::milliseconds took{0};
  bool complete = false;          // false: the guest stopped answering, or was reset
  std::string text;               // one line that says why it ended
};

class BalloonControl {  // any thread
 public:
  virtual ~BalloonControl() = default;
  // Asks the guest for its statistics; `done` runs on the balloon's thread (or at once if the
  // guest has no statistics queue, with what is known).
  virtual void request_statistics(std::function<void(BalloonStatistics)> done) = 0;
  [[nodiscard]] virtual BalloonStatistics statistics() const = 0;
  // The balloon's size that the guest is asked for, in bytes; clamped to guest memory, counted.
  virtual void set_target(uint64_t bytes) = 0;
  [[nodiscard]] virtual uint64_t target() const = 0;
  [[nodiscard]] virtual uint64_t actual() const = 0;  // bytes, the guest's word
  // Pulls free memory out of the guest now: up to `bytes` (UINT64_MAX: all that is free but a
  // reserve). `progress` (bytes so far) and `done` run on the balloon's thread. A second pull while
  // one runs ends at once with complete = false.
  virtual void pull(uint64_t bytes, std::function<void(uint64_t)> progress,
                    std::function<void(PullResult)> done) = 0;
  virtual void report_metrics(MetricSink& sink) const = 0;
};

}  // namespace lethe
