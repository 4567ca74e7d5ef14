#include "vmm/api/machine_target.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "devices/gui/gui.h"
#include "devices/virtio/block/block.h"
#include "devices/virtio/console/console.h"
#include "devices/virtio/net/net.h"
#include "vmm/api/events.h"
#include "vmm/api/screenshot.h"
#include "vmm/machine_memory.h"
#include "vmm/memory_return.h"
#include "vmm/net_config.h"
#include "vmm/snapshot/snapshot.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kStatisticsAge{500};
constexpr std::chrono::milliseconds kStatisticsPatience{250};  // with a guest that is busy
constexpr const char* kNoBalloon = "this VM has no balloon: balloon.enabled = false in its config";

constexpr const char* kNoGui = "this VM has no GUI: gui.enabled = false in its config";

double uptime_s(const RunHistory& history) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - history.started).count();
}

}  // namespace

VmState MachineTarget::state() {
  return {.name = x_config.name,
          .state = x_run.stopping()     ? "stopping"
                   : x_machine.paused() ? "paused"
                                        : "running",
          .pid = static_cast<uint64_t>(::getpid()),
          .uptime_s = uptime_s(x_history),
          .boots = x_history.boots,
          .cpus = x_config.cpus,
          .memory_bytes = x_config.memory.size_bytes};
}

// A machine that is to end needs its processors, and must not start again.
Result<> MachineTarget::check_not_stopping() const {
  if (x_run.stopping()) return host_error("the VM is stopping");
  return check_not_ending();
}

// What the guest did after its memory was written would be in its disks, and not in the snapshot.
Result<> MachineTarget::check_not_ending() const {
  if (x_ends_when_saved) return host_error("the VM is being saved, and ends then");
  return {};
}

Result<> MachineTarget::pause() {
  LETHE_TRY(check_not_stopping());
  if (!x_machine.paused()) x_events.publish("paused");
  x_machine.pause();
  return {};
}

Result<> MachineTarget::resume() {
  LETHE_TRY(check_not_stopping());
  if (x_machine.paused()) x_events.publish("resumed");
  x_machine.resume();
  return {};
}

MachineTarget::~MachineTarget() {
  if (x_committer.joinable()) x_committer.join();
}

// Memory and state are written while the guest stands still; the disk may take its time while it
// runs on, and so does this loop.
void MachineTarget::snapshot(const std::string& dir, bool stop,
                             std::function<void(const Result<SnapshotEnd>&)> done) {
  if (const auto good = check_not_stopping(); !good) return done(Unexpected(good.error()));
  if (x_committer.joinable()) return done(host_error("another snapshot is being written"));
  const bool was_paused = x_machine.paused();
  auto saved = save_machine(x_machine, x_config, dir, stop);
  if (!saved) return done(Unexpected(saved.error()));
  x_ends_when_saved = stop;
  const auto finish = [this, dir, stop, was_paused,
                       done = std::move(done)](const Result<SnapshotReport>& report) {
    x_committer.join();
    if (!report) {
      x_ends_when_saved = false;
      if (stop && !was_paused) x_machine.resume();
      if (stop && x_run.stopping()) x_run.press_power_button();  // it was not while this went on
      return done(Unexpected(report.error()));
    }
    x_events.publish("snapshot", {{"dir", dir}});
    if (stop) x_run.end_soon(Ending::kForced);
    done(SnapshotEnd{.memory_bytes = report->memory_bytes,
                     .disk_bytes = report->disk_bytes,
                     .paused_ms = report->paused_ms});
  };
  x_committer = std::thread([&loop = x_loop, weak = std::weak_ptr(x_alive), finish,
                             saved = std::make_shared<SavedMachine>(std::move(*saved))]() mutable {
    auto report = saved->commit();
    saved.reset();  // what is left of a failure goes before anybody is told
    loop.post([weak, finish, report = std::move(report)] {
      if (!weak.expired()) finish(report);
    });
  });
}

Result<> MachineTarget::power_button() {
  LETHE_TRY(check_not_ending());
  x_run.press_power_button();
  return {};
}

Result<> MachineTarget::reset() {
  LETHE_TRY(check_not_stopping());
  x_run.end_soon(Ending::kReset);
  return {};
}

Result<> MachineTarget::kill() {
  x_run.end_soon(Ending::kForced);
  return {};
}

void MachineTarget::refresh(std::function<void()> done) {
  MemoryReturn* const memory = x_machine.memory_return();
  if (memory == nullptr || !x_config.balloon.statistics || x_machine.paused()) return done();
  const auto age = std::chrono::steady_clock::now() - memory->balloon().statistics().when;
  if (age < kStatisticsAge) return done();
  // Whichever comes first, the guest or the timer, ends the wait; the other one finds it gone.
  auto wait = std::make_shared<Wait>();
  wait->done = std::move(done);
  const auto end = [this, weak = std::weak_ptr(wait)] {
    const auto alive = weak.lock();
    if (!alive || x_waits.erase(alive) == 0) return;
    alive->done();
  };
  wait->timer = x_loop.make_timer(end);
  wait->timer->start(kStatisticsPatience);
  x_waits.insert(std::move(wait));
  memory->balloon().request_statistics(
      [&loop = x_loop, end](const BalloonStatistics&) { loop.post(end); });
}

std::vector<DecisionLine> MachineTarget::decisions() {
  std::vector<DecisionLine> lines;
  MachineMemory* const memory = x_machine.memory_policy();
  if (memory == nullptr) return lines;
  const auto now = std::chrono::steady_clock::now();
  for (auto& line : memory->policy().decisions())
    lines.push_back({std::chrono::duration<double>(now - line.when).count(), std::move(line.text)});
  std::reverse(lines.begin(), lines.end());
  return lines;
}

void MachineTarget::report_metrics(MetricSink& sink) {
  sink.gauge("lethe_vm_uptime_seconds", "Since `lethe run` began.", uptime_s(x_history));
  sink.counter("lethe_vm_boots_total", "How often the guest was started.", x_history.boots);
  x_machine.report_metrics(sink);
}

MemorySettings MachineTarget::memory() {
  MemorySettings settings{.policy = std::string(policy_name(x_config.memory.policy)),
                          .policy_now = "none",
                          .automatic = x_config.memory.automatic};
  MemoryReturn* const memory = x_machine.memory_return();
  if (memory == nullptr) return settings;
  settings.policy = policy_name(memory->wanted_policy());
  settings.policy_now = policy_name(memory->policy());
  settings.pool_max = memory->pool_max();
  settings.automatic = x_machine.memory_policy()->policy().automatic();
  settings.balloon_target = memory->balloon().target();
  settings.balloon_actual = memory->balloon().actual();
  return settings;
}

Result<> MachineTarget::set_memory(const MemoryChange& change) {
  MemoryReturn* const memory = x_machine.memory_return();
  if (memory == nullptr) return host_error("{}", kNoBalloon);
  if (change.balloon_target.value_or(0) > x_config.memory.size_bytes)
    return host_error("balloon_target is more than the guest has: it must be at most {}",
                      x_config.memory.size_bytes);
  if (change.balloon_target &&
      change.automatic.value_or(x_machine.memory_policy()->policy().automatic()))
    return host_error("the governor sets the balloon: set \"auto\" to false to do it yourself");
  // Everything is checked before anything is changed.
  if (change.policy) LETHE_TRY(memory->check_policy(*change.policy));
  if (change.pool_max) LETHE_TRY(memory->check_pool_max(*change.pool_max));
  memory->want(change.policy.value_or(memory->wanted_policy()),
               change.pool_max.value_or(memory->pool_max()));
  MemoryPolicyLoop& policy = x_machine.memory_policy()->policy();
  if (change.automatic) policy.set_automatic(*change.automatic);
  policy.start();  // harmless if it runs
  if (change.balloon_target) memory->balloon().set_target(*change.balloon_target);
  return {};
}

std::vector<DiskState> MachineTarget::disks() {
  std::vector<DiskState> disks;
  for (BlockDevice* const disk : x_machine.disks()) {
    const BlockRates rates = disk->rates();
    disks.push_back({.path = x_config.disks[disks.size()].path,
                     .read_only = disk->read_only(),
                     .size_bytes = disk->sectors() * kSectorBytes,
                     .iops_max = rates.iops_max,
                     .bandwidth_max = rates.bandwidth_max});
  }
  return disks;
}

Result<> MachineTarget::set_disk(size_t index, const DiskChange& change) {
  BlockDevice& disk = *x_machine.disks()[index];
  if (change.resize) LETHE_TRY(disk.resize(change.size_bytes));
  if (!change.iops_max && !change.bandwidth_max) return {};
  const BlockRates now = disk.rates();
  disk.set_rates({.iops_max = change.iops_max.value_or(now.iops_max),
                  .bandwidth_max = change.bandwidth_max.value_or(now.bandwidth_max)});
  return {};
}

Result<GuiSettings> MachineTarget::gui() {
  if (x_gui == nullptr) return host_error("{}", kNoGui);
  const LedgerLimits limits = x_gui->limits();
  const auto age = std::chrono::duration_cast<std::chrono::milliseconds>(limits.orphan_age_max);
  return GuiSettings{.free_per_iteration = x_gui->ledger().free_per_iteration(),
                     .orphan_bytes_max = limits.orphan_bytes_max,
                     .orphans_max = limits.orphans_max,
                     .orphan_ms_max = static_cast<uint32_t>(age.count())};
}

Result<> MachineTarget::set_gui(const GuiChange& change) {
  if (x_gui == nullptr) return host_error("{}", kNoGui);
  if (change.free_per_iteration) x_gui->ledger().set_free_per_iteration(*change.free_per_iteration);
  LedgerLimits limits = x_gui->limits();
  limits.orphan_bytes_max = change.orphan_bytes_max.value_or(limits.orphan_bytes_max);
  limits.orphans_max = change.orphans_max.value_or(limits.orphans_max);
  if (change.orphan_ms_max)
    limits.orphan_age_max = std::chrono::milliseconds(*change.orphan_ms_max);
  x_gui->set_limits(limits);
  return {};
}

std::vector<GuiBuffers> MachineTarget::gui_buffers() {
  if (x_gui == nullptr) return {};
  const LedgerCounters& counters = x_gui->ledger().counters();
  const auto part = [](const char* state, const LedgerCounters::Amount& amount) {
    return GuiBuffers{.state = state,
                      .buffers = amount.buffers.load(std::memory_order_relaxed),
                      .bytes = amount.bytes.load(std::memory_order_relaxed)};
  };
  return {part("live", counters.live), part("orphan", counters.orphan),
          part("freed", counters.freed), part("revoked", counters.revoked),
          part("leaked", counters.leaked)};
}

Result<std::vector<ScreenState>> MachineTarget::screens() {
  if (x_gui == nullptr) return host_error("{}", kNoGui);
  std::vector<ScreenState> screens;
  for (const ScreenView& view : x_gui->screens())
    screens.push_back({.number = view.output,
                       .width = view.width,
                       .height = view.height,
                       .shows = view.content.buffer.valid()});
  return screens;
}

Result<> MachineTarget::resize_screen(uint32_t number, uint32_t width, uint32_t height) {
  if (x_gui == nullptr || !x_gui->resize_screen(number, width, height))
    return host_error("there is no screen {}", number);
  return {};
}

Result<> MachineTarget::screenshot(uint32_t number, std::function<void(Result<std::string>)> done) {
  if (x_gui == nullptr) return host_error("{}", kNoGui);
  if (x_picture_done) return host_error("another picture is being made");
  auto screens = x_gui->screens(true);
  if (number >= screens.size() || !screens[number].pixels.valid())
    return host_error("screen {} shows nothing", number);
  if (!x_painter) x_painter = std::make_unique<IoThread>("painter");
  x_picture_done = std::move(done);
  // The painter ends before this object does; what it has posted then is not called any more.
  x_painter->loop().post([this, screen = std::make_shared<ScreenView>(std::move(screens[number]))] {
    x_loop.post([this, png = std::make_shared<Result<std::string>>(make_png(*screen))] {
      std::exchange(x_picture_done, nullptr)(std::move(*png));
    });
  });
  return {};
}

std::vector<NetState> MachineTarget::nets() {
  std::vector<NetState> nets;
  for (size_t i = 0; i < x_machine.nets().size(); ++i) {
    NetDevice& net = *x_machine.nets()[i];
    const NetConfig& config = x_config.nets[i];
    const NetLimits limits = net.limits();
    nets.push_back({.name = net.name(),
                    .backend = backend_name(config),
                    .mac = mac_text(net.mac()),
                    .mtu = mtu_of(config),
                    .link = net.link_wanted(),
                    .up = net.link_up(),
                    .bandwidth_max = limits.bandwidth_max,
                    .packets_max = limits.packets_max});
  }
  return nets;
}

void MachineTarget::set_net(size_t index, const NetChange& change) {
  NetDevice& net = *x_machine.nets()[index];
  const NetLimits now = net.limits();
  const NetLimits wanted{.bandwidth_max = change.bandwidth_max.value_or(now.bandwidth_max),
                         .packets_max = change.packets_max.value_or(now.packets_max)};
  if (wanted != now) net.set_limits(wanted);
  if (change.link) net.set_link(*change.link);
}

Result<> MachineTarget::reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                std::function<void(ReclaimEnd)> done) {
  MemoryReturn* const memory = x_machine.memory_return();
  if (memory == nullptr) return host_error("{}", kNoBalloon);
  // What this process keeps for reuse costs the guest nothing: it goes first.
  const uint64_t purged = x_machine.memory_policy()->shrinker().purge(bytes).freed_bytes;
  // The callbacks belong to this thread: the balloon's has but weak pointers, and posts.
  auto pull = std::make_shared<Pull>(Pull{std::move(progress), std::move(done)});
  const std::weak_ptr weak(pull);
  x_pulls.insert(std::move(pull));
  if (purged > 0)
    x_loop.post([weak, purged] {
      if (const auto alive = weak.lock()) alive->progress(purged);
    });
  if (x_machine.paused()) {
    x_loop.post([this, weak, purged] {
      const auto alive = weak.lock();
      if (!alive || x_pulls.erase(alive) == 0) return;
      alive->done({.bytes = purged, .text = "the guest is paused: only the host's caches gave"});
    });
    return {};
  }
  memory->balloon().pull(
      bytes - std::min(bytes, purged),
      [&loop = x_loop, weak, purged](uint64_t so_far) {
        loop.post([weak, so_far = so_far + purged] {
          if (const auto alive = weak.lock()) alive->progress(so_far);
        });
      },
      [this, &loop = x_loop, weak, purged](const PullResult& result) {
        loop.post([this, weak,
                   end = ReclaimEnd{.bytes = result.bytes + purged,
                                    .took = result.took,
                                    .complete = result.complete,
                                    .text = result.text}] {
          const auto alive = weak.lock();
          if (alive && x_pulls.erase(alive) > 0) alive->done(end);
        });
      });
  return {};
}

void MachineTarget::resize_console(uint16_t columns, uint16_t rows) {
  x_machine.virtio_console().resize(columns, rows);
}

}  // namespace lethe
