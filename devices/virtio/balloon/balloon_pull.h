// Pull: free memory taken from the guest now, not when the guest gets round to it.
//
//   look -> [hinting window -> look]... -> [inflate -> look]... -> release -> top up -> deflate
//
// A look: the guest's statistics, and what of its memory is resident. What is free in the guest and
// still resident is what there is to gain; nothing more is asked for, since a guest may touch what
// it gives (Debian's kernels zero each block that they take out of the allocator).
//
// Big blocks come by free page hinting (virtio 1.2, 5.5.6.5), in windows: each no more than what is
// free but a reserve, and short, because Linux hints in one go without letting others run. The
// guest keeps the blocks of all windows out of use until the end, so that none is hinted twice.
// Then the balloon is inflated: fragments. Then the blocks are released, the balloon is topped up
// out of the fragments that were the reserve so far, and is deflated again.
//
// The guest is never short: what is free but held stays within its reach, since Linux's shrinker
// takes hinted blocks and its OOM notifier takes pages out of the balloon
// (VIRTIO_BALLOON_F_DEFLATE_ON_OOM, without which nothing is inflated).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "devices/virtio/balloon/balloon.h"

namespace lethe {

class PulledBalloon;

// Threading: the balloon's thread.
class BalloonPull {
 public:
  using Progress = std::function<void(uint64_t)>;
  using Done = std::function<void(PullResult)>;

  static constexpr uint64_t kReserveMin = 8 * kMiB;
  static constexpr uint64_t kReserveShare = 64;        // or this part of the guest's memory
  static constexpr uint64_t kHintBlock = 4 * kMiB;     // Linux hints blocks of this size
  static constexpr uint64_t kWindowMax = 256 * kMiB;   // of a hinting window
  static constexpr uint64_t kInflateStep = 16 * kMiB;  // between two looks
  static constexpr uint64_t kInflateMin = 1 * kMiB;    // one request of Linux
  // With less to gain than this, or than this share of what is free, a pull has all.
  static constexpr uint64_t kGainMin = 1 * kMiB;
  static constexpr uint64_t kGainShare = 256;
  static constexpr uint64_t kFirstWindow = 8 * kMiB;
  static constexpr uint64_t kFirstStep = 2 * kMiB;
  // Windows, or steps, that may bring less than a quarter of their size before they end.
  static constexpr unsigned kPoorMax = 2;
  static constexpr unsigned kRoundsMax = 1024;
  static constexpr unsigned kReleaseLooksMax = 20;
  static constexpr std::chrono::milliseconds kReleasePause{50};
  static constexpr std::chrono::milliseconds kWindowTime{250};
  // No sign of life from the guest for so long ends a step: hinting, deflating ...
  static constexpr std::chrono::milliseconds kPatience{3'000};
  // ... and inflating, where it only means that there is no more to have.
  static constexpr std::chrono::milliseconds kInflatePatience{1'000};
  static constexpr std::chrono::seconds kPullMax{60};  // whatever the guest does

  explicit BalloonPull(PulledBalloon& balloon);
  ~BalloonPull();

  // While one runs, a second one waits for its end; a third is refused.
  void start(uint64_t bytes, Progress progress, Done done);
  // Ends it, if it runs: the driver is gone.
  void stop(const char* why);
  [[nodiscard]] bool running() const { return x_step != Step::kIdle; }

  // The last command id of hinting: the next one is another.
  [[nodiscard]] uint32_t last_id() const { return x_last_id; }
  void set_last_id(uint32_t id) { x_last_id = id; }

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
    kRelease,
    kDeflate
  };

  // What a look found, in bytes.
  struct Look {
    uint64_t room = 0;  // free, but the reserve
    uint64_t kept = 0;  // the reserve
    uint64_t gain = 0;  // free and resident at least; 0 if it is not worth while
    bool told = false;  // by the guest: there are statistics
  };

  void ask();
  [[nodiscard]] Look look(const BalloonStatistics& statistics);
  void plan(const Look& now);
  void judge_last_step(const Look& now);
  void start_window(uint64_t bytes);
  void end_window();
  void inflate(uint64_t bytes);
  void release(bool more);
  void deflate();
  void timed_out();
  void finish(bool complete, std::string why);
  void show_num_pages(uint64_t pages);
  void show_hint_id(uint32_t id);
  [[nodiscard]] uint64_t given() const;  // bytes at the last look

  PulledBalloon& x_balloon;
  std::unique_ptr<EventLoop::Timer> x_timer;     // the step's
  std::unique_ptr<EventLoop::Timer> x_deadline;  // the whole pull's
  Step x_step = Step::kIdle;
  uint64_t x_generation = 0;  // of pulls: an answer to an older one is none
  uint32_t x_last_id = VIRTIO_BALLOON_CMD_ID_DONE;

  uint64_t x_wanted = 0;
  uint64_t x_resident_before = 0;  // at the start
  uint64_t x_resident = 0;         // at the last look
  uint64_t x_held = 0;             // bytes hinted and not released, about
  uint64_t x_free = 0;             // the guest's word at the last look
  uint64_t x_window = 0;           // bytes of the hinting window that are left
  uint64_t x_step_bytes = 0;       // what the last window or step was about
  uint64_t x_step_resident = 0;    // resident before it
  uint64_t x_window_size = 0;      // of the next window that is to find out
  uint64_t x_inflate_size = 0;     // of the next step, likewise
  uint64_t x_goal = 0;             // pages of the balloon to reach
  unsigned x_rounds = 0;
  unsigned x_release_looks = 0;
  unsigned x_poor_windows = 0;
  unsigned x_poor_steps = 0;
  bool x_hints_dry = false;
  bool x_inflate_dry = false;
  bool x_hinted_any = false;
  bool x_inflated_any = false;
  bool x_released = false;
  bool x_topped_up = false;
  bool x_window_without_statistics = false;
  std::chrono::steady_clock::time_point x_started;
  std::chrono::steady_clock::time_point x_asked;
  std::chrono::steady_clock::time_point x_window_began;
  Progress x_progress;
  Done x_done;
  struct Waiting {
    uint64_t bytes;
    Progress progress;
    Done done;
  };
  std::optional<Waiting> x_waiting;
};

}  // namespace lethe
