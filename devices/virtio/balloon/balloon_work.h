// What the balloon's thread does: its queues, on one event loop.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "devices/virtio/balloon/balloon.h"
#include "devices/virtio/balloon/balloon_returns.h"

namespace lethe {

// Queues by what they are for. Their indices are dense over what was negotiated (virtio 1.2, 5.5.2:
// a queue "only exists if" its feature is set; Linux numbers them the same way).
enum class BalloonQueue : uint8_t { kInflate, kDeflate, kStatistics, kHint, kReport, kNone };
[[nodiscard]] BalloonQueue balloon_queue(uint64_t features, uint16_t index);

inline constexpr uint64_t balloon_bit(unsigned feature) { return uint64_t{1} << feature; }
inline constexpr uint64_t kBalloonPage = uint64_t{1} << VIRTIO_BALLOON_PFN_SHIFT;

// What vCPU threads, the balloon's thread and the callers of BalloonControl share.
struct BalloonShared {
  // The configuration (5.5.4).
  std::atomic<uint32_t> num_pages{0};  // what the driver sees: the target, or a pull's
  std::atomic<uint32_t> actual{0};
  std::atomic<uint32_t> hint_id{VIRTIO_BALLOON_CMD_ID_STOP};
  std::atomic<uint32_t> poison{0};

  uint64_t ram_bytes = 0;  // fixed
  std::atomic<uint32_t> target_pages{0};
  std::atomic<bool> pulling{false};
  std::atomic<bool> actual_posted{false};  // the balloon's thread is going to look at `actual`
  BalloonCounters counters;

  mutable Mutex mutex;
  BalloonStatistics statistics LETHE_GUARDED_BY(mutex);
  std::function<void(uint64_t)> heard LETHE_GUARDED_BY(mutex);  // of reports; may be null

  [[nodiscard]] BalloonStatistics known() const {
    MutexLock lock(mutex);
    return statistics;
  }
};

class BalloonPull;

// What a pull needs of the balloon that it belongs to: BalloonWork, or a model of it (tests).
class PulledBalloon {
 public:
  virtual ~PulledBalloon() = default;
  [[nodiscard]] virtual bool live() const = 0;
  [[nodiscard]] virtual bool has(BalloonQueue role) const = 0;
  [[nodiscard]] virtual uint64_t features() const = 0;
  [[nodiscard]] virtual BalloonShared& shared() = 0;
  [[nodiscard]] virtual uint64_t resident_bytes() const = 0;  // of guest memory
  [[nodiscard]] virtual std::unique_ptr<EventLoop::Timer> make_timer(EventLoop::Callback call) = 0;
  // `done` runs in any case: at once, or soon.
  virtual void request_statistics(std::function<void(BalloonStatistics)> done) = 0;
  virtual void config_changed() = 0;
};

class BalloonWork final : public PulledBalloon {
 public:
  static constexpr size_t kStatisticsMax = 64;  // tags kept, and entries read of an answer
  static constexpr size_t kWaitersMax = 16;     // for an answer
  static constexpr std::chrono::milliseconds kStatisticsPatience{2'000};
  static constexpr uint64_t kKickBytesMax = 1 * kGiB;  // hints served of one kick

  // All functions: the loop's thread only.
  BalloonWork(EventLoop& loop, ReturnPipeline& pipeline, BalloonShared& shared);
  ~BalloonWork() override;

  void start(uint64_t features, VirtioHost& host);
  void start_queue(BalloonQueue role, std::unique_ptr<Queue> queue, const EventFd& kick);
  // What was taken is forgotten and given back first.
  void stop_queue(BalloonQueue role);
  void stop_all();

  // Snapshots. What the shared state has is restored before go_on().
  void freeze();
  [[nodiscard]] uint32_t last_hint_id() const;
  void go_on(uint32_t last_hint_id);

  // The driver notified the hinting queue and waits. Linux puts a hinted page where its shrinker
  // finds it, and may use it again, only after the notification (6.1: get_free_page_and_send()), so
  // this is the one moment at which its content is certainly not wanted. Hence hints are popped
  // nowhere else, and each one asks for the next notification.
  void hints_kicked();

  void request_statistics(std::function<void(BalloonStatistics)> done) override;
  void target_changed();
  void actual_changed();  // the driver wrote it
  void pull(uint64_t bytes, std::function<void(uint64_t)> progress,
            std::function<void(PullResult)> done);

  // For the pull.
  [[nodiscard]] bool live() const override { return x_host != nullptr; }
  [[nodiscard]] bool has(BalloonQueue role) const override { return line(role).queue != nullptr; }
  [[nodiscard]] uint64_t features() const override { return x_features; }
  [[nodiscard]] BalloonShared& shared() override { return x_shared; }
  [[nodiscard]] uint64_t resident_bytes() const override {
    return x_pipeline.memory().resident_bytes();
  }
  [[nodiscard]] std::unique_ptr<EventLoop::Timer> make_timer(EventLoop::Callback call) override {
    return x_loop.make_timer(std::move(call));
  }
  void config_changed() override;

 private:
  struct Line {
    std::unique_ptr<Queue> queue;
    const EventFd* kick = nullptr;
    std::unique_ptr<EventLoop::Watch> watch;
  };
  [[nodiscard]] Line& line(BalloonQueue role) { return x_lines[static_cast<size_t>(role)]; }
  [[nodiscard]] const Line& line(BalloonQueue role) const {
    return x_lines[static_cast<size_t>(role)];
  }
  void take_poison();
  void serve(BalloonQueue role);
  void serve_returns(BalloonQueue role);
  void serve_deflate();
  void serve_statistics();
  void serve_hint(Chain& chain, uint64_t& budget);
  [[nodiscard]] bool hints_wanted() const;
  void read_statistics(const Chain& chain);
  void answer_waiters();
  void drop_if_broken(BalloonQueue role);

  EventLoop& x_loop;
  ReturnPipeline& x_pipeline;
  BalloonShared& x_shared;
  BalloonReturns x_returns;
  std::array<Line, BalloonDevice::kQueues> x_lines;
  VirtioHost* x_host = nullptr;
  uint64_t x_features = 0;

  // The driver's buffer, kept until statistics are wanted (5.5.6.3).
  std::optional<Chain> x_statistics_chain;
  std::vector<std::function<void(BalloonStatistics)>> x_waiters;
  std::unique_ptr<EventLoop::Timer> x_statistics_timer;

  uint32_t x_hint_answer = VIRTIO_BALLOON_CMD_ID_STOP;  // the last command id the driver sent
  std::unique_ptr<BalloonPull> x_pull;
};

}  // namespace lethe
