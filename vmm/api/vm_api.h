// The control API of one VM: which request does what. docs/api.md lists them.
//
// Threading: the main loop's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "vmm/api/http_server.h"
#include "vmm/config.h"

namespace lethe {

class Events;

struct VmState {
  std::string name;
  std::string state;  // "running", "paused", "stopping"
  uint64_t pid = 0;
  double uptime_s = 0;  // since `lethe run` began
  uint64_t boots = 0;   // how often the guest was started, 1 the first time
  uint32_t cpus = 0;
  uint64_t memory_bytes = 0;
};

// What of the memory can be set while the VM runs.
struct MemorySettings {
  std::string policy;      // the config's word: "auto", "pool", "discard", "lazy"
  std::string policy_now;  // what it comes to: "pool", "discard", "lazy", or "none" (no balloon)
  bool automatic = false;
  uint64_t pool_max = 0;        // bytes
  uint64_t balloon_target = 0;  // bytes that the guest is asked to give up
  uint64_t balloon_actual = 0;  // bytes that it says it gave
};
struct MemoryChange {
  std::optional<MemoryPolicy> policy;
  std::optional<bool> automatic;
  std::optional<uint64_t> pool_max;
  std::optional<uint64_t> balloon_target;
};

// What of the GUI can be set while the VM runs; as in [gui].
struct GuiSettings {
  uint32_t free_per_iteration = 0;
  uint64_t orphan_bytes_max = 0;
  uint32_t orphans_max = 0;
  uint32_t orphan_ms_max = 0;
};
struct GuiChange {
  std::optional<uint32_t> free_per_iteration;
  std::optional<uint64_t> orphan_bytes_max;
  std::optional<uint32_t> orphans_max;
  std::optional<uint32_t> orphan_ms_max;
};
// Shared buffers, by what is or was their end.
struct GuiBuffers {
  const char* state;  // "live", "orphan", "freed", "revoked", "leaked"
  uint64_t buffers = 0;
  uint64_t bytes = 0;
};

struct ScreenState {
  uint32_t number = 0;
  uint32_t width = 0;  // pixels: what is shown, or what the guest is asked for
  uint32_t height = 0;
  bool shows = false;  // something
};

struct DiskState {
  std::string path;
  bool read_only = false;
  uint64_t size_bytes = 0;     // as the guest sees it
  uint64_t iops_max = 0;       // requests per second, 0: no limit
  uint64_t bandwidth_max = 0;  // bytes per second, 0: no limit
};
struct DiskChange {
  bool resize = false;
  std::optional<uint64_t> size_bytes;  // with `resize`; none: the size that the file has
  std::optional<uint64_t> iops_max;
  std::optional<uint64_t> bandwidth_max;
};

// A network card.
struct NetState {
  std::string name;     // "net0"
  std::string backend;  // "user", "tap", "tap_fd", "socket"
  std::string mac;
  uint32_t mtu = 0;
  bool link = false;           // wanted
  bool up = false;             // and there is another end
  uint64_t bandwidth_max = 0;  // bytes per second and direction, 0: no limit
  uint64_t packets_max = 0;    // per second and direction, 0: no limit
};
struct NetChange {
  std::optional<bool> link;
  std::optional<uint64_t> bandwidth_max;
  std::optional<uint64_t> packets_max;
};

struct DecisionLine {
  double age_s = 0;
  std::string text;  // what was changed, and why
};

struct ReclaimEnd {
  uint64_t bytes = 0;
  std::chrono::milliseconds took{0};
  bool complete = false;
  std::string text = {};  // one line: why it ended
};

// What a snapshot came to.
struct SnapshotEnd {
  uint64_t memory_bytes = 0;  // of guest memory that holds something
  uint64_t disk_bytes = 0;    // what the snapshot takes
  double paused_ms = 0;       // how long the guest stood still
};

// What the API acts on; tests have a fake.
class ApiTarget {
 public:
  virtual ~ApiTarget() = default;
  [[nodiscard]] virtual VmState state() = 0;
  // The guest's processors stand still from the one to the other. Both are harmless twice. Errors
  // of these: one line that says why not now.
  [[nodiscard]] virtual Result<> pause() = 0;
  [[nodiscard]] virtual Result<> resume() = 0;
  // A paused guest is resumed: it could not hear the button. What the guest does is its business.
  [[nodiscard]] virtual Result<> power_button() = 0;
  // Both happen soon after this has returned: a new machine, or the end of the run.
  [[nodiscard]] virtual Result<> reset() = 0;
  [[nodiscard]] virtual Result<> kill() = 0;
  // Saves the VM as the new directory `dir`, an absolute path; `stop`: it does not run on, and ends
  // soon after `done`. That runs once, when the snapshot is safe on the disk or has failed, on the
  // main loop, perhaps before this returns, and not after the machine's end. Error: one line; the
  // VM is as it was.
  virtual void snapshot(const std::string& dir, bool stop,
                        std::function<void(const Result<SnapshotEnd>&)> done) = 0;
  [[nodiscard]] virtual Events& events() = 0;
  // Asks the guest for its statistics, if the last ones are old; `done` runs on the main loop when
  // they are there, or soon, perhaps before this returns.
  virtual void refresh(std::function<void()> done) = 0;
  virtual void report_metrics(MetricSink& sink) = 0;
  // The governor's last decisions, the newest first.
  [[nodiscard]] virtual std::vector<DecisionLine> decisions() = 0;
  [[nodiscard]] virtual MemorySettings memory() = 0;
  // Error: one line that says what does not fit; nothing was changed then.
  [[nodiscard]] virtual Result<> set_memory(const MemoryChange& change) = 0;
  [[nodiscard]] virtual std::vector<DiskState> disks() = 0;
  // `index`: one of disks()'s. Error: one line; nothing was changed then.
  [[nodiscard]] virtual Result<> set_disk(size_t index, const DiskChange& change) = 0;
  // Error: one line (the VM has no GUI).
  [[nodiscard]] virtual Result<GuiSettings> gui() = 0;
  [[nodiscard]] virtual Result<> set_gui(const GuiChange& change) = 0;
  [[nodiscard]] virtual std::vector<GuiBuffers> gui_buffers() = 0;
  // Error of these: one line (no GUI; the screen shows nothing; another picture is being made).
  [[nodiscard]] virtual Result<std::vector<ScreenState>> screens() = 0;
  // Asks the guest for another size; what it shows is its decision.
  [[nodiscard]] virtual Result<> resize_screen(uint32_t number, uint32_t width,
                                               uint32_t height) = 0;
  // A PNG file. `done` runs later on the main loop, unless the machine has ended by then.
  [[nodiscard]] virtual Result<> screenshot(uint32_t number,
                                            std::function<void(Result<std::string>)> done) = 0;
  [[nodiscard]] virtual std::vector<NetState> nets() = 0;
  // `index`: of nets().
  virtual void set_net(size_t index, const NetChange& change) = 0;
  // Pulls free memory out of the guest: `bytes`, or UINT64_MAX for all. The callbacks run on the
  // main loop, `progress` (bytes so far) any number of times, `done` once, neither before this
  // returns, and not after the machine's end. Error: one line (there is no balloon).
  [[nodiscard]] virtual Result<> reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                         std::function<void(ReclaimEnd)> done) = 0;
  // What the console printed last, at most 64 KiB.
  [[nodiscard]] virtual std::string console_log() = 0;
  // The size, in characters, of the terminal that the guest's virtio console is shown on.
  virtual void resize_console(uint16_t columns, uint16_t rows) = 0;
};

// Answers one request.
void answer_api(ApiTarget& target, const HttpRequest& request, std::shared_ptr<HttpReply> reply);

}  // namespace lethe
