// `lethe snapshot` and `lethe restore`.
#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cstdio>

#include "base/log.h"
#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/vm_client.h"
#include "vmm/config_schema.h"
#include "vmm/detach.h"
#include "vmm/snapshot/snapshot.h"

namespace lethe {
namespace {

constexpr std::chrono::minutes kSnapshotPatience{30};  // with a slow disk

int fail_with(const Error& error) {
  print_error(error.text);
  return exit_code_of(error.kind);
}

}  // namespace

int command_snapshot(int argc, char** argv) {
  CommandLine line(
      "snapshot",
      "Saves a running VM as the new directory DIR, from which `lethe restore` runs it "
      "on. The guest stands still while it is saved, and goes on. The disks are not part of it: "
      "`lethe restore` wants them as they were; use --stop, or copy them while the VM is paused.",
      "  lethe snapshot web /var/tmp/web-before-upgrade\n"
      "  lethe snapshot web saved --stop && lethe restore saved\n",
      "0 saved; 1 it was not, or the VM does not run; 2 bad usage.");
  std::string name;
  std::string dir;
  bool stop = false;
  bool as_json = false;
  line.app().add_option("NAME", name, "The VM's name")->required();
  line.app().add_option("DIR", dir, "The directory to make")->required();
  line.app().add_flag("--stop", stop, "End the VM when it is saved; it does not run in between");
  line.app().add_flag("--json", as_json, "Print what was saved as JSON");
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto vm = find_running_vm(name);
  if (!vm) return fail_with(vm.error());
  const std::string body =
      boost::json::serialize(boost::json::object{{"dir", absolute_path(dir)}, {"stop", stop}});
  const auto answer = http_request({.socket = vm->path + "/" + kApiSocketName,
                                    .method = "POST",
                                    .path = "/snapshot",
                                    .body = body,
                                    .patience = kSnapshotPatience});
  if (!answer) {
    print_error(fmt::format("'{}' (process {}): {}", vm->name, vm->pid, answer.error().text));
    return kExitHostError;
  }
  if (answer->status != 200) {
    print_error(fmt::format("'{}': {}", vm->name, error_in(*answer)));
    return kExitHostError;
  }
  if (as_json) {
    std::fputs(answer->body.c_str(), stdout);
    return 0;
  }
  const auto told = parse_answer(*vm, answer->body);
  if (!told) return fail_with(told.error());
  fmt::print("{} of memory saved in {}; the guest stood still for {}\n",
             human_bytes(number_at(*told, "memory_bytes").value_or(0)),
             human_bytes(number_at(*told, "disk_bytes").value_or(0)),
             human_duration(number_at(*told, "paused_ms").value_or(0) / 1000));
  return 0;
}

int command_restore(int argc, char** argv) {
  CommandLine line(
      "restore",
      "Runs the VM of a snapshot on, from where it stopped, to its end. Console, "
      "sockets and exit codes are those of `lethe run`. Memory is read when the guest needs it, "
      "and "
      "checked then: an altered file ends the VM. --verify reads and checks all of it first.",
      "  lethe restore saved\n"
      "  lethe restore saved --name web-2 --detach\n",
      "0 the guest powered off, or runs detached; 1 host error; 2 the snapshot does not fit, or "
      "bad "
      "usage; 3 to 7 and 64 + N as lethe run.");
  std::string dir;
  RestoreOptions restore;
  RunOptions options;
  line.app().add_option("DIR", dir, "What `lethe snapshot` made")->required();
  line.app().add_option("--name", restore.name, "Run under this name instead of the VM's");
  line.app().add_flag("--verify", restore.verify, "Check all of the memory before the guest runs");
  line.app().add_flag("--changed-disks", restore.changed_disks,
                      "Go on although a disk is not as it was: its file system may be damaged");
  StartOptions start;
  add_start_options(line.app(), start, options);
  if (const auto code = line.parse(argc, argv)) return *code;
  if (const auto set = set_log_levels(start.log); !set) return fail_with(set.error());
  DetachedSide side;
  if (start.detached) {
    // Before the snapshot's threads are made.
    auto made = detach();
    if (!made) return fail_with(made.error());
    side = std::move(*made);
    if (side.parent_code) return *side.parent_code;
    options.non_interactive = true;
  }
  const auto snapshot = Snapshot::open(dir, restore);
  if (!snapshot) return fail_with(snapshot.error());
  options.config_file = dir;
  options.snapshot = snapshot->get();
  return run_machine((*snapshot)->config(), options, std::move(side.signal));
}

}  // namespace lethe
