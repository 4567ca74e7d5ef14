// Pull: free memory taken from the guest now, not when the guest gets round to it.
//
//   statistics -> [hinting -> statistics]... -> [inflate -> statistics]... -> release -> top up
//   -> deflate
//
// Big blocks come by free page hinting (virtio 1.2, 5.5.6.5), in windows: each is no more than what
// the guest says is free but a reserve, and the guest keeps the blocks of all windows out of use
// until the end, so that no block is hinted twice. Then the balloon is inflated by what is left but
// the reserve: fragments. Then the blocks are released, the balloon is topped up by about the
// reserve, which now comes out of the fragments that are left, and is deflated again.
//
// The guest is never short: what is free but held stays within its reach, since Linux's shrinker
// takes hinted blocks and its OOM notifier takes pages out of the balloon
// (VIRTIO_BALLOON_F_DEFLATE_ON_OOM, without which nothing is inflated).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "devices/virtio/balloon/balloon.h"

namespace lethe {

class BalloonWork;

// Threading: the balloon's thread.
class BalloonPull {
 public:
  using Progress = std::function<void(uint64_t)>;
  using Done = std::function<void(PullResult)>;

  static constexpr uint64_t kReserveMin = 8 * kMiB;
  static constexpr uint64_t kReserveShare = 64;        // or this part of the guest's memory
  static constexpr uint64_t kHintBlock = 4 * kMiB;     // Linux hints blocks of this size
  static constexpr uint64_t kInflateStep = 32 * kMiB;  // between two looks at the statistics
  static constexpr uint64_t kInflateMin = 1 * kMiB;    // one request of Linux
  static constexpr uint64_t kTopUp = 8 * kMiB;         // beyond the reserve
  static constexpr unsigned kRoundsMax = 256;
  // No sign of life from the guest for so long ends a step: hinting, deflating ...
  static constexpr std::chrono::milliseconds kPatience{3'000};
  // ... and inflating, where it only means that there is no more to have.
  static constexpr std::chrono::milliseconds kInflatePatience{1'000};
  static constexpr std::chrono::seconds kPullMax{60};  // whatever the guest does

  explicit BalloonPull(BalloonWork& work);
  ~BalloonPull();

  void start(uint64_t bytes, Progress progress, Done done);
  // Ends it, if it runs: the driver is gone.
  void stop(const char* why);
  [[nodiscard]] bool running() const { return x_step != Step::kIdle; }

  // From the queues and the configuration.
  void hinting_began();  // the driver took up the command id
  void hinting_ended();  // the driver has no more, or heard STOP
  void hinted(uint64_t bytes);
  void actual_changed();
  void target_changed();

  // What the guest keeps of `total` bytes of memory.
  [[nodiscard]] static uint64_t reserve(uint64_t total);

 private:
  enum class Step : uint8_t {
    kIdle,
    kStatistics,
    kHintStart,
    kHinting,
    kHintStop,
    kInflate,
    kDeflate
  };

  void ask();
  void plan(const BalloonStatistics& statistics);
  void start_window(uint64_t bytes);
  void end_window();
  void inflate(uint64_t bytes);
  void release();
  void deflate();
  void timed_out();
  void finish(bool complete, std::string why);
  void show_num_pages(uint64_t pages);
  void show_hint_id(uint32_t id);
  void report_progress();
  [[nodiscard]] uint64_t given() const;  // bytes so far
  [[nodiscard]] uint64_t returned() const;

  BalloonWork& x_work;
  std::unique_ptr<EventLoop::Timer> x_timer;     // the step's
  std::unique_ptr<EventLoop::Timer> x_deadline;  // the whole pull's
  Step x_step = Step::kIdle;
  uint64_t x_generation = 0;  // of pulls: an answer to an older one is none
  uint32_t x_last_id = VIRTIO_BALLOON_CMD_ID_DONE;

  uint64_t x_wanted = 0;
  uint64_t x_before = 0;  // returned() at the start
  uint64_t x_window = 0;  // bytes of the hinting window that are left
  uint64_t x_goal = 0;    // pages of the balloon to reach
  unsigned x_rounds = 0;
  bool x_hinted_any = false;
  bool x_hints_dry = false;
  bool x_inflate_dry = false;
  bool x_released = false;
  bool x_topped_up = false;
  bool x_window_without_statistics = false;
  std::chrono::steady_clock::time_point x_started;
  std::chrono::steady_clock::time_point x_asked;
  Progress x_progress;
  Done x_done;
};

}  // namespace lethe
