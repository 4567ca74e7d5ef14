// How many VMs start a second, and what does each cost, when many run side by side? `lethe run -d`
// until 64 run together, and QEMU microvm, -daemonize, until 16 do: the same idle guest, one after
// the other, by turns within one run.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "bench/report.h"

extern char** environ;

namespace {

constexpr int kLetheVms = 64;
constexpr int kQemuVms = 16;
constexpr int kRounds = 3;
constexpr std::chrono::seconds kEndPatience{20};

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "bench_density: %s\n", why.c_str());
  std::exit(1);
}

// Runs a command that returns when its VM runs; gives up if it fails.
void start(std::vector<std::string> words) {
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  int status = 0;
  if (posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ) != 0 ||
      waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
    give_up("cannot start " + words[0]);
  posix_spawn_file_actions_destroy(&actions);
}

pid_t pid_in(const std::string& file) {
  std::ifstream stream(file);
  pid_t pid = 0;
  if (!(stream >> pid) || pid <= 1) give_up("no process in " + file);
  return pid;
}

// Proportional set size in KiB: shared pages count by their share.
double pss_kib(pid_t pid) {
  std::ifstream rollup("/proc/" + std::to_string(pid) + "/smaps_rollup");
  for (std::string word; rollup >> word;) {
    double kib = 0;
    if (word == "Pss:" && rollup >> kib) return kib;
  }
  give_up("process " + std::to_string(pid) + " does not run");
}

bool runs(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const size_t end = text.rfind(')');  // a zombie may wait for its parent
  return end != std::string::npos && end + 2 < text.size() && text[end + 2] != 'Z';
}

void end_all(const std::vector<pid_t>& pids) {
  for (const pid_t pid : pids) kill(pid, SIGKILL);
  const auto deadline = std::chrono::steady_clock::now() + kEndPatience;
  for (const pid_t pid : pids)
    while (runs(pid)) {
      if (std::chrono::steady_clock::now() > deadline) give_up("a VM can't be killed");
      usleep(1000);
    }
}

struct Figures {
  std::vector<double> starts_per_s;
  std::vector<double> pss_kib_each;
};

// Starts `count` VMs by `start_one`, one after the other, and looks at all of them.
template <typename StartOne>
void measure(int count, StartOne&& start_one, Figures& figures) {
  std::vector<pid_t> pids;
  std::vector<std::string> files;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) files.push_back(start_one(i));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  for (const std::string& file : files) pids.push_back(pid_in(file));
  double pss = 0;
  for (const pid_t pid : pids) pss += pss_kib(pid);
  for (const pid_t pid : pids)
    if (!runs(pid)) give_up("not all VMs run together");
  figures.starts_per_s.push_back(count / took.count());
  figures.pss_kib_each.push_back(pss / count);
  end_all(pids);
}

}  // namespace

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  std::string directory = "/dev/shm/lethe-bench-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr || setenv("XDG_RUNTIME_DIR", directory.c_str(), 1) != 0)
    give_up("cannot make a directory in /dev/shm");
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::string guest =
      (here / "../guest-tests/baremetal/idle.elf").lexically_normal().string();
  std::ofstream(directory + "/idle.toml")
      << "[memory]\nsize = \"16M\"\n[boot]\nkernel = \"" << guest << "\"\n";

  const auto start_lethe = [&](int i) {
    const std::string name = "vm-" + std::to_string(i);
    start({here / "lethe", "run", "-d", directory + "/idle.toml", "--name", name});
    return directory + "/lethe/" + name + "/lock";
  };
  const auto start_qemu = [&](int i) {
    const std::string file = directory + "/qemu-" + std::to_string(i);
    start({"qemu-system-x86_64", "-M", "microvm,rtc=off,pit=off,pic=off", "-accel", "kvm", "-cpu",
           "host", "-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
           "-kernel", guest, "-daemonize", "-pidfile", file});
    return file;
  };
  Figures ours;
  Figures
      few;  // as many as of QEMU's: the more there are, the less of what they share is one's PSS
  Figures qemu;
  for (int round = 0; round < kRounds; ++round) {
    measure(kLetheVms, start_lethe, ours);
    measure(kQemuVms, start_lethe, few);
    measure(kQemuVms, start_qemu, qemu);
  }
  std::filesystem::remove_all(directory);

  using lethe::median;
  const double rate = median(ours.starts_per_s);
  const double pss = median(ours.pss_kib_each);
  report.add("density.vms", kLetheVms, "VMs");
  report.add("density.start_rate", rate, "VMs/s");
  report.add("density.pss", pss / 1024, "MiB");
  report.add("density.qemu_start_rate", median(qemu.starts_per_s), "VMs/s");
  report.add("density.qemu_pss", median(qemu.pss_kib_each) / 1024, "MiB");
  report.add("density.start_rate_vs_qemu", rate / median(qemu.starts_per_s), "ratio");
  report.add("density.pss_vs_qemu", median(few.pss_kib_each) / median(qemu.pss_kib_each), "ratio");
  return report.finish();
}
