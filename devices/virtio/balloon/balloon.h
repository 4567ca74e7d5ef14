// virtio-balloon, the traditional memory balloon (virtio 1.2, 5.5): inflate and deflate,
// statistics, free page hinting, free page reporting, page poison.
//
// How a machine gets one, last of its virtio devices, so that the other slots stay as they are:
//
//   auto pool = ScrubPool::create(*memory, ...);
//   ReturnPipeline pipeline(*memory, {.isolated_max = ..., .taker = pool.get(),
//                                     .poison_changed = [&](uint32_t v) { pool->set_poison(v); }});
//   auto balloon = BalloonDevice::create(*memory, pipeline, options);
//   BalloonControl& control = *balloon;        // for api and governor
//   VirtioPciTransport::create(environment, std::move(balloon));
//
// The pipeline must outlive the device, which is its only user: its thread is the device's.
#pragma once

#include <linux/virtio_balloon.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/metrics.h"
#include "base/mutex.h"
#include "devices/virtio/device.h"
#include "memory/return_pipeline.h"

namespace lethe {

struct BalloonOptions {
  bool deflate_on_oom = true;
  bool statistics = true;
  bool free_page_hint = true;
  bool free_page_reporting = true;
};

// Tags newer than this host's kernel headers (virtio 1.3, 5.5.6.4).
inline constexpr uint16_t kBalloonStatOomKill = 10;
inline constexpr uint16_t kBalloonStatAllocStall = 11;
inline constexpr uint16_t kBalloonStatAsyncScan = 12;
inline constexpr uint16_t kBalloonStatDirectScan = 13;
inline constexpr uint16_t kBalloonStatAsyncReclaim = 14;
inline constexpr uint16_t kBalloonStatDirectReclaim = 15;
inline constexpr uint16_t kBalloonStatNamed = 16;  // tags below have names

// "free_memory" and so on: as metrics and the API call a tag; nothing for a tag without a name.
[[nodiscard]] const char* balloon_stat_name(uint16_t tag);

// What the guest last said of its memory (5.5.6.3); absent tags were not sent.
struct BalloonStatistics {
  std::chrono::steady_clock::time_point when;  // 0: never
  std::map<uint16_t, uint64_t> tags;           // VIRTIO_BALLOON_S_*, unknown ones too; bounded
};

// What a pull (reclaim on demand) did.
struct PullResult {
  uint64_t bytes = 0;  // given back to the host
  std::chrono::milliseconds took{0};
  bool complete = false;  // false: the guest stopped answering, or was reset
  std::string text;       // one line that says why it ended
};

class BalloonControl {  // any thread
 public:
  virtual ~BalloonControl() = default;
  // Asks the guest for its statistics; `done` runs on the balloon's thread, with what is known if
  // the guest does not answer in time (or at once if it has no statistics queue).
  virtual void request_statistics(std::function<void(BalloonStatistics)> done) = 0;
  [[nodiscard]] virtual BalloonStatistics statistics() const = 0;
  // The balloon's size that the guest is asked for, in bytes; clamped to guest memory, counted.
  virtual void set_target(uint64_t bytes) = 0;
  [[nodiscard]] virtual uint64_t target() const = 0;
  [[nodiscard]] virtual uint64_t actual() const = 0;  // bytes, the guest's word
  // Pulls free memory out of the guest now: up to `bytes` (UINT64_MAX: all that is free but a
  // reserve). `progress` (bytes so far) and `done` run on the balloon's thread (`done` at once if
  // no driver is live). A second pull waits for the first; a third
  // ends at once with complete = false.
  virtual void pull(uint64_t bytes, std::function<void(uint64_t)> progress,
                    std::function<void(PullResult)> done) = 0;
  // Calls `heard`, on the balloon's thread, with the bytes that a batch of free page reports
  // brought back; until it is replaced, when no call is under way any more. It must not call back.
  virtual void on_reports(std::function<void(uint64_t)> /*heard*/) {}
  virtual void report_metrics(MetricSink& sink) const = 0;
};

// What the guest did, and did wrong. The balloon's thread writes, any thread reads.
struct BalloonCounters {
  std::atomic<uint64_t> inflated_pages{0};  // 4 KiB each, as asked for
  std::atomic<uint64_t> deflated_pages{0};
  std::atomic<uint64_t> reports{0};          // chains of the reporting queue
  std::atomic<uint64_t> hints{0};            // chains of pages that were used
  std::atomic<uint64_t> hints_ignored{0};    // without a valid command id, or too much at a time
  std::atomic<uint64_t> chains_refused{0};   // of the wrong direction or length
  std::atomic<uint64_t> statistics{0};       // answers
  std::atomic<uint64_t> statistics_late{0};  // requests without an answer in time
  std::atomic<uint64_t> targets_clamped{0};
  std::atomic<uint64_t> pulls{0};
  std::atomic<uint64_t> pulls_incomplete{0};
};

class BalloonWork;
struct BalloonShared;

// Threading: owns the thread "balloon", made when a driver first goes live, on which queues and
// pipeline live. Transport calls, on vCPU threads, wait for that thread, which never waits for a
// vCPU. The hinting queue is served while the driver waits (see BalloonWork::hints_kicked).
class BalloonDevice : public VirtioDevice, public BalloonControl {
 public:
  static constexpr uint16_t kQueueSize = 128;  // Linux wants 32 at least for reports
  static constexpr uint16_t kQueues = 5;

  // `memory` and `pipeline` must outlive the device.
  [[nodiscard]] static std::unique_ptr<BalloonDevice> create(const GuestMemory& memory,
                                                             ReturnPipeline& pipeline,
                                                             const BalloonOptions& options);
  ~BalloonDevice() override;

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_BALLOON; }
  [[nodiscard]] const char* name() const override { return "balloon"; }
  [[nodiscard]] uint64_t device_features() const override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] uint32_t config_size() const override { return sizeof(virtio_balloon_config); }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t offset, std::span<const uint8_t> from) override;
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  [[nodiscard]] bool serves_kicks(uint16_t index) const override;
  void kicked(uint16_t index) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  // A pull ends: the guest gets everything back. What was returned is missing in a snapshot's
  // memory, and reads as zeros; where the guest wants its poison there instead, none is taken.
  void freeze() override;
  [[nodiscard]] Result<> can_save() const override;
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  void request_statistics(std::function<void(BalloonStatistics)> done) override;
  [[nodiscard]] BalloonStatistics statistics() const override;
  void set_target(uint64_t bytes) override;
  [[nodiscard]] uint64_t target() const override;
  [[nodiscard]] uint64_t actual() const override;
  void pull(uint64_t bytes, std::function<void(uint64_t)> progress,
            std::function<void(PullResult)> done) override;
  void on_reports(std::function<void(uint64_t)> heard) override;
  void report_metrics(MetricSink& sink) const override;  // without the pipeline's

  [[nodiscard]] const BalloonCounters& counters() const;
  // CPU time of the balloon's thread so far; 0 if there is none yet. For benchmarks.
  [[nodiscard]] std::chrono::nanoseconds thread_cpu_time();

 private:
  BalloonDevice(const GuestMemory& memory, ReturnPipeline& pipeline, const BalloonOptions& options);
  // Runs `work` on the balloon's thread; false, and nothing happens, if there is none.
  bool post(std::function<void(BalloonWork&)> work);
  void run_and_wait(const std::function<void(BalloonWork&)>& work);

  const BalloonOptions x_options;
  const uint64_t x_ram_pages;  // 4 KiB
  ReturnPipeline& x_pipeline;
  const std::unique_ptr<BalloonShared> x_shared;
  uint64_t x_features = 0;  // negotiated; under the transport's lock

  // The thread is made once and stays; who has seen the pointer may use it.
  std::atomic<IoThread*> x_thread{nullptr};
  std::unique_ptr<IoThread> x_thread_owner;
  std::unique_ptr<BalloonWork> x_work;  // the thread's
};

}  // namespace lethe
