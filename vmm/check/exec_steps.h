// The steps of [[check.exec]]: commands run in the guest by its agent, one after the other, each
// judged by how it ended and what it printed; then the artifacts, which are fetched in any case
// that leaves an agent to ask.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "vmm/check/artifacts.h"
#include "vmm/check/pattern.h"
#include "vmm/config.h"
#include "vmm/exec/client.h"

namespace lethe {

struct ExecPlan {
  std::vector<ExecStep> steps;
  std::vector<LinePatterns> stdout_patterns;  // one a step
  std::vector<LinePatterns> stderr_patterns;
  std::string socket;  // vsock.path; empty: in the VM's run-time directory
  uint32_t port = exec::kAgentPort;
  std::vector<std::string> artifacts;  // paths in the guest
  uint64_t artifacts_max = 0;          // bytes, of all of them
};

// The error (kConfig) names `file`, the key and the pattern.
[[nodiscard]] Result<ExecPlan> plan_exec(const VmConfig& config, const std::string& file);

struct ExecSpec {
  const ExecPlan* plan = nullptr;  // outlives the run
  std::string vm_name;             // what the guest runs as
  double timeout_scale = 1.0;
  std::string log_file;       // gets what each step did; empty: none
  std::string artifacts_dir;  // made if need be, emptied; empty: artifacts are not fetched
  bool ends_guest = false;    // when the steps are through
};

struct ExecResult {
  // What went wrong, the first one names the step; empty: nothing.
  std::vector<std::string> errors;
  std::string output;  // of the failed step: what it printed, cut
};

// Threading: the loop's thread.
class ExecSteps {
 public:
  // `socket`: the VM's vsock.sock. `done` is called once, from the loop; it may destroy this.
  ExecSteps(EventLoop& loop, const ExecSpec& spec, std::string socket,
            std::function<void(ExecResult)> done);
  ~ExecSteps() { *x_alive = false; }
  ExecSteps(const ExecSteps&) = delete;
  ExecSteps& operator=(const ExecSteps&) = delete;

  // The guest has ended: an agent is not waited for any more, and no further command is run.
  void guest_ended();
  // Nor is a command that runs.
  void give_up();

 private:
  void run_step();
  void step_ended(const ExecEnd& end);
  void give_input();
  void keep(std::string_view bytes, bool is_error);
  void fail(const std::string& what);
  void fetch_next();
  void fetch_ended(const ExecEnd& end);
  void finish();
  [[nodiscard]] bool may_take_guest_along() const;

  EventLoop& x_loop;
  const ExecSpec& x_spec;
  const std::string x_socket;
  std::function<void(ExecResult)> x_done;
  ExecResult x_result;
  size_t x_step = 0;
  size_t x_artifact = 0;
  bool x_started = false;  // the step
  bool x_too_much = false;
  bool x_guest_ended = false;
  size_t x_input_at = 0;
  uint64_t x_fetched = 0;  // bytes of artifacts
  std::string x_out, x_err;
  std::unique_ptr<ArtifactWriter> x_writer;
  std::unique_ptr<ExecClient> x_client;
  std::shared_ptr<bool> x_alive = std::make_shared<bool>(true);  // for posted work
};

}  // namespace lethe
