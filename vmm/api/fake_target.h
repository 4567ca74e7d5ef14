// For tests: a machine that is none, for the control API to act on.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmm/api/events.h"
#include "vmm/api/vm_api.h"

namespace lethe {

class FakeTarget final : public ApiTarget {
 public:
  [[nodiscard]] VmState state() override {
    return {.name = "vm",
            .state = word == "paused" ? "paused" : "running",
            .pid = 42,
            .uptime_s = 1.5,
            .boots = 2,
            .cpus = 4,
            .memory_bytes = 128 * kMiB};
  }
  [[nodiscard]] Result<> pause() override { return run("paused"); }
  [[nodiscard]] Result<> resume() override { return run("running"); }
  [[nodiscard]] Result<> power_button() override { return run("button"); }
  [[nodiscard]] Result<> reset() override { return run("reset"); }
  [[nodiscard]] Result<> kill() override { return run("killed"); }
  [[nodiscard]] Result<SnapshotEnd> snapshot(const std::string& dir, bool stop) override {
    if (refuse) return host_error("snapshot '{}' is there already", dir);
    word = stop ? "snapshot, stopped" : "snapshot";
    return SnapshotEnd{.memory_bytes = 4096, .disk_bytes = 8192, .paused_ms = 1.5};
  }
  [[nodiscard]] Events& events() override { return hub; }
  void refresh(std::function<void()> done) override { done(); }
  [[nodiscard]] std::vector<DecisionLine> decisions() override {
    return {{1.25, "pool to 64 MiB: \"pressure\""}, {60, "older"}};
  }
  void report_metrics(MetricSink& sink) override {
    sink.counter("lethe_a_b_total", "Help.", 7, {{"k", "v"}});
  }
  [[nodiscard]] MemorySettings memory() override { return settings; }
  [[nodiscard]] Result<> set_memory(const MemoryChange& asked) override {
    change = asked;
    if (refuse) return host_error("no balloon");
    if (asked.balloon_target) settings.balloon_target = *asked.balloon_target;
    return {};
  }
  [[nodiscard]] Result<GuiSettings> gui() override {
    if (refuse) return host_error("no GUI");
    return gui_settings;
  }
  [[nodiscard]] Result<> set_gui(const GuiChange& asked) override {
    gui_asked = asked;
    if (refuse) return host_error("no GUI");
    if (asked.orphan_bytes_max) gui_settings.orphan_bytes_max = *asked.orphan_bytes_max;
    return {};
  }
  [[nodiscard]] std::vector<GuiBuffers> gui_buffers() override {
    return {{"live", 3, 4096}, {"leaked", 0, 0}};
  }
  [[nodiscard]] Result<> reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                 std::function<void(ReclaimEnd)> done) override {
    if (refuse) return host_error("one pull is under way");
    pulled = bytes;
    on_progress = std::move(progress);
    on_done = std::move(done);
    return {};
  }

  Result<> run(const char* done) {
    if (refuse) return host_error("the VM is stopping");
    word = done;
    return {};
  }

  Events hub;
  std::string word;  // what was done last
  MemorySettings settings{.policy = "auto", .policy_now = "pool"};
  MemoryChange change;
  GuiSettings gui_settings{.free_per_iteration = 10000, .orphan_ms_max = 5};
  GuiChange gui_asked;
  bool refuse = false;
  std::optional<uint64_t> pulled;
  std::function<void(uint64_t)> on_progress;
  std::function<void(ReclaimEnd)> on_done;
};

}  // namespace lethe
