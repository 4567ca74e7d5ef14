// The VMs that a command names: NAME ..., or --all.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "vmm/run_dir.h"

namespace lethe {

class VmSelection {
 public:
  explicit VmSelection(CLI::App& app) {
    x_option = app.add_option("NAME", x_names, "VMs' names (lethe ps lists those that run)");
    app.add_flag("-a,--all", x_all, "All VMs of this user that run")->excludes(x_option);
  }
  // After the words were parsed. Errors: none is named (kConfig), one does not run (kHost: then
  // nothing was done to the others). Each VM once.
  [[nodiscard]] Result<std::vector<RunningVm>> find() const;

 private:
  CLI::Option* x_option = nullptr;
  std::vector<std::string> x_names;
  bool x_all = false;
};

}  // namespace lethe
