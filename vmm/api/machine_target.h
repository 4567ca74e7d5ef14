// The control API's hand on a machine.
#pragma once

#include <chrono>
#include <memory>
#include <set>

#include "vmm/api/vm_api.h"
#include "vmm/machine.h"

namespace lethe {

// When the process began to run the VM, and how often it has started the guest since.
struct RunHistory {
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  uint64_t boots = 0;
};

// Threading: the main loop's thread. `machine`, `gui`, `history` and `stopping` must outlive it.
class MachineTarget final : public ApiTarget {
 public:
  MachineTarget(const VmConfig& config, EventLoop& loop, Machine& machine, Gui* gui,
                const RunHistory& history, const bool& stopping)
      : x_config(config),
        x_loop(loop),
        x_machine(machine),
        x_gui(gui),
        x_history(history),
        x_stopping(stopping) {}

  [[nodiscard]] VmState state() override;
  void refresh(std::function<void()> done) override;
  void report_metrics(MetricSink& sink) override;
  [[nodiscard]] std::vector<DecisionLine> decisions() override;
  [[nodiscard]] MemorySettings memory() override;
  [[nodiscard]] Result<> set_memory(const MemoryChange& change) override;
  [[nodiscard]] Result<GuiSettings> gui() override;
  [[nodiscard]] Result<> set_gui(const GuiChange& change) override;
  [[nodiscard]] std::vector<GuiBuffers> gui_buffers() override;
  [[nodiscard]] Result<> reclaim(uint64_t bytes, std::function<void(uint64_t)> progress,
                                 std::function<void(ReclaimEnd)> done) override;

 private:
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
  const bool& x_stopping;
  std::set<std::shared_ptr<Wait>> x_waits;
  std::set<std::shared_ptr<Pull>> x_pulls;
};

}  // namespace lethe
