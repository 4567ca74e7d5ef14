// The control API's hand on a machine.
#pragma once

#include <chrono>
#include <memory>
#include <set>
#include <thread>

#include "vmm/api/vm_api.h"
#include "vmm/console_host.h"
#include "vmm/machine.h"

namespace lethe {

// When the process began to run the VM, and how often it has started the guest since.
struct RunHistory {
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  uint64_t boots = 0;
};

// The run around a machine, which ends and begins it.
class RunControl {
 public:
  virtual ~RunControl() = default;
  // The VM is to end: a signal asked for it.
  [[nodiscard]] virtual bool stopping() const = 0;
  // Resumes a paused machine first. Does nothing while it is saved and ends then.
  virtual void press_power_button() = 0;
  // The machine's end, soon: the loop goes on first. By `kReset` another machine follows.
  virtual void end_soon(Ending ending) = 0;
};

// Threading: the main loop's thread. What it is given must outlive it; `gui` may be null.
class MachineTarget final : public ApiTarget {
 public:
  MachineTarget(const VmConfig& config, EventLoop& loop, Machine& machine, Gui* gui,
                const RunHistory& history, RunControl& run, Events& events,
                const ConsoleHub& console)
      : x_config(config),
        x_loop(loop),
        x_machine(machine),
        x_gui(gui),
        x_history(history),
        x_run(run),
        x_events(events),
        x_console(console) {}

  // The machine is paused, and must stay so: it ends as soon as its snapshot is safe.
  [[nodiscard]] bool ends_when_saved() const { return x_ends_when_saved; }

  // Waits for the disk, if a snapshot is on its way there.
  ~MachineTarget() override;

  [[nodiscard]] VmState state() override;
  [[nodiscard]] Result<> pause() override;
  [[nodiscard]] Result<> resume() override;
  [[nodiscard]] Result<> power_button() override;
  [[nodiscard]] Result<> reset() override;
  [[nodiscard]] Result<> kill() override;
  void snapshot(const std::string& dir, bool stop,
                std::function<void(const Result<SnapshotEnd>&)> done) override;
  [[nodiscard]] Events& events() override { return x_events; }
  void refresh(std::function<void()> done) override;
  void report_metrics(MetricSink& sink) override;
  [[nodiscard]] std::vector<DecisionLine> decisions() override;
  [[nodiscard]] MemorySettings memory() override;
  [[nodiscard]] Result<> set_memory(const MemoryChange& change) override;
  [[nodiscard]] std::vector<DiskState> disks() override;
  [[nodiscard]] Result<> set_disk(size_t index, const DiskChange& change) override;
  [[nodiscard]] Result<GuiSettings> gui() override;
  [[nodiscard]] Result<> set_gui(const GuiChange& change) override;
  [[nodiscard]] std::vector<GuiBuffers> gui_buffers() override;
  [[nodiscard]] Result<std::vector<ScreenState>> screens() override;
  [[nodiscard]] Result<> resize_screen(uint32_t number, uint32_t width, uint32_t height) override;
  [[nodiscard]] Result<> screenshot(uint32_t number,
                                    std::function<void(Result<std::string>)> done) override;
  [[nodiscard]] std::vector<NetState> nets() override;
  void set_net(size_t index, const NetChange& change) override;
  [[nodiscard]] Result<> reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                 std::function<void(ReclaimEnd)> done) override;
  [[nodiscard]] std::string console_log() override { return x_console.kept(); }
  void resize_console(uint16_t columns, uint16_t rows) override;

 private:
  [[nodiscard]] Result<> check_not_stopping() const;
  [[nodiscard]] Result<> check_not_ending() const;

  struct Wait {  // for the guest's statistics
    std::function<void()> done;
    std::unique_ptr<EventLoop::Timer> timer;
  };
  struct Pull {
    std::function<void(uint64_t)> progress;
    std::function<void(ReclaimEnd)> done;
  };

  const VmConfig& x_config;
  EventLoop& x_loop;
  Machine& x_machine;
  Gui* const x_gui;  // null: none
  const RunHistory& x_history;
  RunControl& x_run;
  Events& x_events;
  const ConsoleHub& x_console;
  std::set<std::shared_ptr<Wait>> x_waits;
  std::set<std::shared_ptr<Pull>> x_pulls;
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);  // for what is posted
  std::thread x_committer;  // waits for the disk to take a snapshot
  bool x_ends_when_saved = false;
  // One picture at a time; made on a thread of its own, which is there when it was first needed.
  std::function<void(Result<std::string>)> x_picture_done;
  std::unique_ptr<IoThread> x_painter;
};

}  // namespace lethe
