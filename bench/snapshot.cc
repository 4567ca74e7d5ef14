// A snapshot of a guest of 1 GiB that uses 100 MiB: how large is it, how long does the guest stand
// still, and how does the restored guest's first instruction compare with a cold start's? Both are
// ended by the same instructions of the same guest, in turn within one run.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/stat.h>
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

namespace fs = std::filesystem;
using std::chrono::steady_clock;

constexpr int kRounds = 40;
constexpr int kSnapshots = 10;
constexpr uint64_t kUsedBytes = 100 << 20;
constexpr int kEndedWell = 64;
constexpr int kForced = 6;
constexpr int kPatienceMs = 60'000;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "bench_snapshot: %s\n", why.c_str());
  std::exit(1);
}

double ms_since(steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(steady_clock::now() - start).count();
}

// `lethe WORDS`, with pipes for its console.
class Lethe {
 public:
  Lethe(const std::string& program, std::vector<std::string> words) {
    int in[2];
    int out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) give_up("pipes");
    x_in = in[1];
    x_out = out[0];
    words.insert(words.begin(), program);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    // What ends the guest is there before it is asked for.
    if (words[1] != "snapshot" && words.back() != "filling" && write(x_in, "x", 1) != 1)
      give_up("pipe");
    if (words.back() == "filling") argv[argv.size() - 2] = nullptr;
    x_start = steady_clock::now();
    if (posix_spawn(&x_pid, program.c_str(), &actions, nullptr, argv.data(), environ) != 0)
      give_up("cannot run " + program);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
  }
  ~Lethe() {
    close(x_in);
    close(x_out);
  }
  Lethe(const Lethe&) = delete;
  Lethe& operator=(const Lethe&) = delete;

  // Until the text came out of it.
  std::string read_until(char last) {
    std::string text;
    pollfd waiting{x_out, POLLIN, 0};
    while (text.find(last) == std::string::npos) {
      char byte = 0;
      if (poll(&waiting, 1, kPatienceMs) <= 0 || read(x_out, &byte, 1) != 1)
        give_up("no answer, after: " + text);
      text += byte;
    }
    return text;
  }
  // From its start to its end, in milliseconds.
  double wait(int exit_code) {
    int status = 0;
    if (waitpid(x_pid, &status, 0) != x_pid) give_up("waitpid");
    const double ms = ms_since(x_start);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != exit_code)
      give_up("unexpected end: status " + std::to_string(status));
    return ms;
  }

 private:
  pid_t x_pid = -1;
  int x_in = -1;
  int x_out = -1;
  steady_clock::time_point x_start;
};

void write_config(const std::string& path, const std::string& kernel, const char* cmdline) {
  std::ofstream(path) << "name = \"bench\"\n[memory]\nsize = \"1G\"\n[boot]\nkernel = \"" << kernel
                      << "\"\ncmdline = \"" << cmdline << "\"\n";
}

uint64_t disk_bytes(const std::string& dir) {
  uint64_t bytes = 0;
  for (const char* name : {"/state", "/memory"}) {
    struct stat status{};
    if (stat((dir + name).c_str(), &status) != 0) give_up("no " + dir + name);
    bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

double number_after(const std::string& text, const std::string& key) {
  const size_t at = text.find("\"" + key + "\":");
  if (at == std::string::npos) give_up("no " + key + " in " + text);
  return std::strtod(text.c_str() + at + key.size() + 3, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  // A login session's run-time directory is on tmpfs; snapshots are on the disk.
  std::string run_time = "/dev/shm/lethe-bench-XXXXXX";
  std::string folder = "/var/tmp/lethe-bench-XXXXXX";
  if (mkdtemp(run_time.data()) == nullptr || mkdtemp(folder.data()) == nullptr)
    give_up("no directory for it");
  setenv("XDG_RUNTIME_DIR", run_time.c_str(), 1);
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  const std::string program = here / "lethe";
  const std::string kernel = (here / "../guest-tests/baremetal/poll.elf").lexically_normal();
  write_config(folder + "/cold.toml", kernel, "");
  write_config(folder + "/filled.toml", kernel, "f");

  std::vector<double> paused;
  std::vector<double> taken;
  std::string snapshot;
  {
    Lethe vm(program, {"run", folder + "/filled.toml", "filling"});
    (void)vm.read_until('f');
    for (int i = 0; i < kSnapshots; ++i) {
      if (!snapshot.empty()) fs::remove_all(snapshot);
      snapshot = folder + "/snapshot" + std::to_string(i);
      std::vector<std::string> words = {"snapshot", "bench", snapshot, "--json"};
      if (i == kSnapshots - 1) words.emplace_back("--stop");
      Lethe saver(program, words);
      paused.push_back(number_after(saver.read_until('\n'), "paused_ms"));
      taken.push_back(saver.wait(0));
    }
    (void)vm.wait(kForced);
  }
  const auto written = static_cast<double>(disk_bytes(snapshot));

  std::vector<double> cold;
  std::vector<double> restored;
  for (int round = -1; round < kRounds; ++round) {  // round -1 warms up
    // By turns: who runs second finds warmer caches.
    for (int turn = 0; turn < 2; ++turn) {
      const bool is_cold = (round + turn) % 2 == 0;
      Lethe vm(program, {is_cold ? "run" : "restore", is_cold ? folder + "/cold.toml" : snapshot});
      const double ms = vm.wait(kEndedWell);
      if (round >= 0) (is_cold ? cold : restored).push_back(ms);
    }
  }
  fs::remove_all(folder);
  fs::remove_all(run_time);
  report.add("snapshot.paused", lethe::median(paused), "ms");
  report.add("snapshot.taken", lethe::median(taken), "ms");
  report.add("snapshot.bytes", written, "bytes");
  report.add("snapshot.bytes_vs_used", written / static_cast<double>(kUsedBytes), "ratio");
  report.add("snapshot.cold", lethe::median(cold), "ms");
  report.add("snapshot.restore", lethe::median(restored), "ms");
  report.add("snapshot.restore_vs_cold", lethe::median(restored) / lethe::median(cold), "ratio");
  return report.finish();
}
