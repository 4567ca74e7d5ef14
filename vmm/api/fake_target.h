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
  void snapshot(const std::string& dir, bool stop,
                std::function<void(const Result<SnapshotEnd>&)> done) override {
    if (refuse) return done(host_error("snapshot '{}' is there already", dir));
    word = stop ? "snapshot, stopped" : "snapshot";
    done(SnapshotEnd{.memory_bytes = 4096, .disk_bytes = 8192, .paused_ms = 1.5});
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
  [[nodiscard]] std::vector<DiskState> disks() override { return disk_states; }
  [[nodiscard]] Result<> set_disk(size_t index, const DiskChange& asked) override {
    if (refuse) return host_error("disk 'a.img' has 1 bytes: it is not made smaller");
    disk_asked = asked;
    DiskState& disk = disk_states[index];
    disk.size_bytes = asked.size_bytes.value_or(disk.size_bytes);
    disk.iops_max = asked.iops_max.value_or(disk.iops_max);
    disk.bandwidth_max = asked.bandwidth_max.value_or(disk.bandwidth_max);
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
    return {{"live", 3, 4096},
            {"orphan", 1, 512},
            {"freed", 9, 8192},
            {"revoked", 2, 64},
            {"leaked", 0, 0}};
  }
  [[nodiscard]] Result<std::vector<ScreenState>> screens() override {
    if (refuse) return host_error("no GUI");
    return std::vector{screen};
  }
  [[nodiscard]] Result<> resize_screen(uint32_t number, uint32_t width, uint32_t height) override {
    screen = {.number = number, .width = width, .height = height, .shows = screen.shows};
    return {};
  }
  [[nodiscard]] Result<> screenshot(uint32_t number,
                                    std::function<void(Result<std::string>)> done) override {
    if (!screen.shows) return host_error("screen {} shows nothing", number);
    on_picture = std::move(done);
    return {};
  }
  [[nodiscard]] std::vector<NetState> nets() override { return net_states; }
  void set_net(size_t index, const NetChange& asked) override {
    NetState& net = net_states[index];
    net.up = net.link = asked.link.value_or(net.link);
    net.bandwidth_max = asked.bandwidth_max.value_or(net.bandwidth_max);
    net.packets_max = asked.packets_max.value_or(net.packets_max);
  }
  [[nodiscard]] Result<> reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                 std::function<void(ReclaimEnd)> done) override {
    if (refuse) return host_error("one pull is under way");
    pulled = bytes;
    on_progress = std::move(progress);
    on_done = std::move(done);
    return {};
  }

  [[nodiscard]] std::string console_log() override { return console; }
  void resize_console(uint16_t columns, uint16_t rows) override { console_size = {columns, rows}; }

  Result<> run(const char* done) {
    if (refuse) return host_error("the VM is stopping");
    word = done;
    return {};
  }

  Events hub;
  std::string console;
  std::pair<int, int> console_size{0, 0};
  std::string word;  // what was done last
  MemorySettings settings{.policy = "auto", .policy_now = "pool"};
  MemoryChange change;
  std::vector<DiskState> disk_states{{.path = "a.img", .size_bytes = 512},
                                     {.path = "b.img", .read_only = true, .size_bytes = 1024}};
  DiskChange disk_asked;
  GuiSettings gui_settings{.free_per_iteration = 10000, .orphan_ms_max = 5};
  GuiChange gui_asked;
  ScreenState screen{.width = 640, .height = 480, .shows = true};
  std::function<void(Result<std::string>)> on_picture;
  std::vector<NetState> net_states{{.name = "net0",
                                    .backend = "user",
                                    .mac = "02:00:00:00:00:01",
                                    .mtu = 65520,
                                    .link = true,
                                    .up = true}};
  bool refuse = false;
  std::optional<uint64_t> pulled;
  std::function<void(uint64_t)> on_progress;
  std::function<void(ReclaimEnd)> on_done;
};

}  // namespace lethe
