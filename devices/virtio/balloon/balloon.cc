#include "devices/virtio/balloon/balloon.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "devices/virtio/balloon/balloon_work.h"

namespace lethe {
namespace {

constexpr std::array<const char*, kBalloonStatNamed> kStatNames = {
    "swap_in_bytes",    "swap_out_bytes",      "major_faults",        "minor_faults",
    "free_bytes",       "total_bytes",         "available_bytes",     "cache_bytes",
    "hugetlb_allocs",   "hugetlb_alloc_fails", "oom_kills",           "alloc_stalls",
    "async_scan_bytes", "direct_scan_bytes",   "async_reclaim_bytes", "direct_reclaim_bytes",
};

constexpr std::array<uint16_t, BalloonDevice::kQueues> kQueueSizes = {
    BalloonDevice::kQueueSize, BalloonDevice::kQueueSize, BalloonDevice::kQueueSize,
    BalloonDevice::kQueueSize, BalloonDevice::kQueueSize};

}  // namespace

const char* balloon_stat_name(uint16_t tag) {
  return tag < kStatNames.size() ? kStatNames[tag] : nullptr;
}

std::unique_ptr<BalloonDevice> BalloonDevice::create(const GuestMemory& memory,
                                                     ReturnPipeline& pipeline,
                                                     const BalloonOptions& options) {
  return std::unique_ptr<BalloonDevice>(new BalloonDevice(memory, pipeline, options));
}

BalloonDevice::BalloonDevice(const GuestMemory& memory, ReturnPipeline& pipeline,
                             const BalloonOptions& options)
    : x_options(options),
      // The configuration has 32 bits: 16 TiB.
      x_ram_pages(std::min<uint64_t>(memory.total_bytes() / kBalloonPage, UINT32_MAX)),
      x_pipeline(pipeline),
      x_shared(std::make_unique<BalloonShared>()) {
  x_shared->ram_bytes = memory.total_bytes();
}

BalloonDevice::~BalloonDevice() {
  if (x_thread_owner) x_thread_owner->run_and_wait([this] { x_work.reset(); });
}

uint64_t BalloonDevice::device_features() const {
  return balloon_bit(VIRTIO_BALLOON_F_PAGE_POISON) |
         (x_options.statistics ? balloon_bit(VIRTIO_BALLOON_F_STATS_VQ) : 0) |
         (x_options.deflate_on_oom ? balloon_bit(VIRTIO_BALLOON_F_DEFLATE_ON_OOM) : 0) |
         (x_options.free_page_hint ? balloon_bit(VIRTIO_BALLOON_F_FREE_PAGE_HINT) : 0) |
         (x_options.free_page_reporting ? balloon_bit(VIRTIO_BALLOON_F_REPORTING) : 0);
}

std::span<const uint16_t> BalloonDevice::queue_sizes_max() const {
  // As many as there are features for; a driver that takes fewer uses the first ones.
  const size_t absent = static_cast<size_t>(!x_options.statistics) +
                        static_cast<size_t>(!x_options.free_page_hint) +
                        static_cast<size_t>(!x_options.free_page_reporting);
  return std::span(kQueueSizes).first(kQueueSizes.size() - absent);
}

// --- configuration (5.5.4); vCPU threads

void BalloonDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  virtio_balloon_config config{};
  config.num_pages = x_shared->num_pages.load();
  config.actual = x_shared->actual.load();
  config.free_page_hint_cmd_id = x_shared->hint_id.load();
  config.poison_val = x_shared->poison.load();
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&config) + offset, to.size());
}

void BalloonDevice::write_config(uint32_t offset, std::span<const uint8_t> from) {
  uint32_t value = 0;
  if (from.size() != sizeof value) return;
  std::memcpy(&value, from.data(), sizeof value);
  if (offset == offsetof(virtio_balloon_config, actual)) {
    x_shared->actual.store(value);
    // One message at a time, however often the guest writes.
    if (x_shared->pulling.load() && !x_shared->actual_posted.exchange(true))
      (void)post([](BalloonWork& work) {
        work.shared().actual_posted.store(false);
        work.actual_changed();
      });
  } else if (offset == offsetof(virtio_balloon_config, poison_val)) {
    x_shared->poison.store(value);  // counts from DRIVER_OK on, and must not change then (5.5.6.6)
  }
}

// --- the transport's calls

void BalloonDevice::run_and_wait(const std::function<void(BalloonWork&)>& work) {
  x_thread_owner->run_and_wait([&] { work(*x_work); });
}

bool BalloonDevice::post(std::function<void(BalloonWork&)> work) {
  // SAFETY: acquire pairs with start()'s release: the loop and x_work are there.
  IoThread* const thread = x_thread.load(std::memory_order_acquire);
  if (thread == nullptr) return false;
  thread->loop().post([this, work = std::move(work)] {
    if (x_work) work(*x_work);
  });
  return true;
}

void BalloonDevice::start(uint64_t features, VirtioHost& host) {
  x_features = features;
  if (!x_thread_owner) {
    x_thread_owner = std::make_unique<IoThread>("balloon");
    x_thread_owner->run_and_wait([this] {
      x_work = std::make_unique<BalloonWork>(x_thread_owner->loop(), x_pipeline, *x_shared);
    });
    x_thread.store(x_thread_owner.get(), std::memory_order_release);
  }
  run_and_wait([&](BalloonWork& work) { work.start(features, host); });
}

void BalloonDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  run_and_wait([&](BalloonWork& work) {
    work.start_queue(balloon_queue(x_features, index), std::move(queue), kick);
  });
}

bool BalloonDevice::serves_kicks(uint16_t index) const {
  return balloon_queue(x_features, index) == BalloonQueue::kHint;
}

void BalloonDevice::kicked(uint16_t /*index*/) {
  if (x_thread_owner) run_and_wait([](BalloonWork& work) { work.hints_kicked(); });
}

void BalloonDevice::stop_queue(uint16_t index) {
  if (!x_thread_owner) return;
  run_and_wait([&](BalloonWork& work) { work.stop_queue(balloon_queue(x_features, index)); });
}

void BalloonDevice::reset() {
  if (x_thread_owner) run_and_wait([](BalloonWork& work) { work.stop_all(); });
  x_features = 0;
  x_shared->actual.store(0);
  x_shared->poison.store(0);
  x_shared->hint_id.store(VIRTIO_BALLOON_CMD_ID_STOP);
  x_shared->num_pages.store(x_shared->target_pages.load());
}

// --- snapshots

void BalloonDevice::freeze() {
  if (x_thread_owner) run_and_wait([](BalloonWork& work) { work.freeze(); });
}

Result<> BalloonDevice::can_save() const {
  const bool poisons = (x_features & balloon_bit(VIRTIO_BALLOON_F_PAGE_POISON)) != 0;
  if (!poisons || x_shared->poison.load() == 0) return {};
  return host_error(
      "the guest's kernel poisons free memory (page_poisoning): its returned pages can't be saved");
}

void BalloonDevice::save(StateWriter& to) {
  to.number(x_shared->target_pages.load());
  to.number(x_shared->actual.load());
  to.number(x_shared->hint_id.load());
  to.number(x_shared->poison.load());
  const BalloonStatistics known = statistics();
  to.number(static_cast<uint32_t>(known.tags.size()));
  for (const auto& [tag, amount] : known.tags) {
    to.number(tag);
    to.number(amount);
  }
  uint32_t last_id = 0;
  if (x_thread_owner) run_and_wait([&](BalloonWork& work) { last_id = work.last_hint_id(); });
  to.number(last_id);
}

Result<> BalloonDevice::restore(StateReader& from) {
  const auto target = from.number<uint32_t>();
  const auto actual = from.number<uint32_t>();
  const auto hint_id = from.number<uint32_t>();
  const auto poison = from.number<uint32_t>();
  BalloonStatistics known{.when = std::chrono::steady_clock::now(), .tags = {}};
  const auto count = from.number<uint32_t>();
  if (count > BalloonWork::kStatisticsMax) from.fail(fmt::format("{} statistics", count));
  for (uint32_t i = 0; i < count && from.ok(); ++i) {
    const auto tag = from.number<uint16_t>();
    known.tags[tag] = from.number<uint64_t>();
  }
  const auto last_id = from.number<uint32_t>();
  // No pull is under way: that would be another id.
  if (target > x_ram_pages || hint_id > VIRTIO_BALLOON_CMD_ID_DONE)
    from.fail("a balloon can't be in this state");
  LETHE_TRY(from.check());
  x_shared->target_pages.store(target);
  x_shared->num_pages.store(target);
  x_shared->actual.store(actual);
  x_shared->hint_id.store(hint_id);
  x_shared->poison.store(poison);
  if (count > 0) {
    MutexLock lock(x_shared->mutex);
    x_shared->statistics = std::move(known);
  }
  if (x_thread_owner) run_and_wait([&](BalloonWork& work) { work.go_on(last_id); });
  return {};
}

// --- control; any thread

void BalloonDevice::request_statistics(std::function<void(BalloonStatistics)> done) {
  if (!post([done](BalloonWork& work) { work.request_statistics(done); })) done(statistics());
}

BalloonStatistics BalloonDevice::statistics() const { return x_shared->known(); }

void BalloonDevice::set_target(uint64_t bytes) {
  uint64_t pages = bytes / kBalloonPage;
  if (pages > x_ram_pages) {
    pages = x_ram_pages;
    x_shared->counters.targets_clamped.fetch_add(1, std::memory_order_relaxed);
  }
  x_shared->target_pages.store(static_cast<uint32_t>(pages));
  // Before a driver is live: it looks at the configuration by itself.
  if (!post([](BalloonWork& work) { work.target_changed(); }))
    x_shared->num_pages.store(static_cast<uint32_t>(pages));
}

uint64_t BalloonDevice::target() const { return x_shared->target_pages.load() * kBalloonPage; }
uint64_t BalloonDevice::actual() const { return x_shared->actual.load() * kBalloonPage; }

void BalloonDevice::pull(uint64_t bytes, std::function<void(uint64_t)> progress,
                         std::function<void(PullResult)> done) {
  if (!post([bytes, progress, done](BalloonWork& work) { work.pull(bytes, progress, done); }))
    done({.text = "the guest has no balloon driver yet"});
}

void BalloonDevice::on_reports(std::function<void(uint64_t)> heard) {
  MutexLock lock(x_shared->mutex);
  x_shared->heard = std::move(heard);
}

const BalloonCounters& BalloonDevice::counters() const { return x_shared->counters; }

std::chrono::nanoseconds BalloonDevice::thread_cpu_time() {
  timespec time{};
  if (x_thread_owner)
    x_thread_owner->run_and_wait([&] { (void)::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time); });
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

void BalloonDevice::report_metrics(MetricSink& sink) const {
  const BalloonCounters& counters = x_shared->counters;
  const auto value = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  sink.gauge("lethe_balloon_target_bytes", "The balloon's size that the guest is asked for.",
             static_cast<double>(target()));
  sink.gauge("lethe_balloon_actual_bytes", "The balloon's size by the guest's word.",
             static_cast<double>(actual()));
  const struct {
    const char* name;
    const char* help;
    const std::atomic<uint64_t>& counter;
  } entries[] = {
      {"lethe_balloon_inflated_pages_total", "4 KiB pages put into the balloon.",
       counters.inflated_pages},
      {"lethe_balloon_deflated_pages_total", "4 KiB pages taken out of it.",
       counters.deflated_pages},
      {"lethe_balloon_reports_total", "Free page reports.", counters.reports},
      {"lethe_balloon_hints_total", "Free page hints that were used.", counters.hints},
      {"lethe_balloon_hints_ignored_total", "Free page hints that came unasked or too many.",
       counters.hints_ignored},
      {"lethe_balloon_chains_refused_total", "Chains of the wrong direction or length.",
       counters.chains_refused},
      {"lethe_balloon_statistics_total", "Statistics that the guest sent.", counters.statistics},
      {"lethe_balloon_statistics_late_total", "Requests for statistics without an answer in time.",
       counters.statistics_late},
      {"lethe_balloon_targets_clamped_total", "Targets above the guest's memory.",
       counters.targets_clamped},
      {"lethe_balloon_pulls_total", "Pulls of free memory.", counters.pulls},
      {"lethe_balloon_pulls_incomplete_total", "Pulls that the guest did not see through.",
       counters.pulls_incomplete},
  };
  for (const auto& entry : entries) sink.counter(entry.name, entry.help, value(entry.counter));
  for (const auto& [tag, amount] : statistics().tags) {
    const char* const known = balloon_stat_name(tag);
    const std::string name = known != nullptr ? known : std::to_string(tag);
    sink.gauge("lethe_guest_memory_statistic", "What the guest last said of its memory, by tag.",
               static_cast<double>(amount), {{"tag", name}});
  }
}

}  // namespace lethe
