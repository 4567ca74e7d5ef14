// How long from exec to a guest's first instruction and its exit? Lethe, a bare program that issues
// the same KVM ioctls and runs the same guest, and QEMU microvm, in turn within one run.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "bench/report.h"

extern char** environ;

namespace {

constexpr int kRounds = 60;
constexpr int kQemuEvery = 3;  // QEMU takes so long that fewer runs of it do

struct Runner {
  std::string name;
  std::vector<std::string> arguments;
  int exit_code;  // that says the guest ran
  std::vector<double> ms;
};

// From exec to the end of the process, in milliseconds; exits if the guest did not run.
double time_once(const Runner& runner) {
  std::vector<char*> arguments;
  for (const std::string& argument : runner.arguments)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  const auto start = std::chrono::steady_clock::now();
  pid_t child = 0;
  int status = 0;
  if (posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ) != 0 ||
      waitpid(child, &status, 0) != child) {
    std::fprintf(stderr, "bench_start: cannot run %s\n", arguments[0]);
    std::exit(1);
  }
  const auto end = std::chrono::steady_clock::now();
  posix_spawn_file_actions_destroy(&actions);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != runner.exit_code) {
    std::fprintf(stderr, "bench_start: %s: the guest did not run (status %#x)\n",
                 runner.name.c_str(), static_cast<unsigned>(status));
    std::exit(1);
  }
  return std::chrono::duration<double, std::milli>(end - start).count();
}

// A login session's run-time directory is on tmpfs; without one, Lethe falls back to /tmp, whose
// file system would be a third of the figure.
std::string run_time_directory() {
  std::string path = "/dev/shm/lethe-bench-XXXXXX";
  if (mkdtemp(path.data()) == nullptr || setenv("XDG_RUNTIME_DIR", path.c_str(), 1) != 0) {
    std::perror("bench_start: /dev/shm");
    std::exit(1);
  }
  return path;
}

}  // namespace

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  const std::string run_time = run_time_directory();
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::string guests = (here / "../guest-tests/baremetal").lexically_normal().string();
  // QEMU's isa-debug-exit ends with (value << 1) | 1: 1 for 0.
  Runner lethe{
      "lethe", {here / "lethe", "run", guests + "/tiny.toml", "--non-interactive"}, 64, {}};
  Runner floor{"floor", {here / "bench_start_floor", guests + "/tiny.elf"}, 0, {}};
  Runner qemu{
      "QEMU microvm",
      {"qemu-system-x86_64", "-M", "microvm,rtc=off,pit=off,pic=off", "-accel", "kvm", "-cpu",
       "host", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
       "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", guests + "/tiny.elf"},
      1,
      {}};
  for (int round = -1; round < kRounds; ++round) {  // round -1 warms up
    // By turns: who runs first after QEMU finds colder caches.
    Runner* const first = round % 2 == 0 ? &lethe : &floor;
    Runner* const second = first == &lethe ? &floor : &lethe;
    for (Runner* runner : {first, second, &qemu}) {
      if (runner == &qemu && round % kQemuEvery != 0) continue;
      const double ms = time_once(*runner);
      if (round >= 0) runner->ms.push_back(ms);
    }
  }
  std::filesystem::remove_all(run_time);
  report.add("start.lethe", lethe::median(lethe.ms), "ms");
  report.add("start.floor", lethe::median(floor.ms), "ms");
  report.add("start.qemu_microvm", lethe::median(qemu.ms), "ms");
  report.add("start.vs_floor", lethe::median(lethe.ms) / lethe::median(floor.ms), "ratio");
  report.add("start.vs_qemu_microvm", lethe::median(lethe.ms) / lethe::median(qemu.ms), "ratio");
  return report.finish();
}
