// For tests (label kvm): a VM with a screen, run by `lethe run`, and programs beside it. Every wait
// has a deadline.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "base/unique_fd.h"

namespace lethe_test {

inline constexpr std::chrono::milliseconds kPatience{60'000};

inline bool soon(auto&& holds) { return lethe::eventually(holds, kPatience); }

inline std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

inline std::string file_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A program with what it says in a file. Killed, and waited for, when this goes.
class Program {
 public:
  Program() = default;
  // `words`: the program (looked up in PATH) and its arguments. Its standard input is `input`, or
  // nothing.
  Program(const std::vector<std::string>& words, std::string log, int input = -1)
      : x_log(std::move(log)) {
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    x_pid = fork();
    if (x_pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = open(x_log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(input >= 0 ? input : open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(125);
  }
  Program(Program&& other) noexcept
      : x_log(std::move(other.x_log)), x_pid(std::exchange(other.x_pid, -1)) {}
  Program& operator=(Program&& other) noexcept {
    kill_and_wait();
    x_log = std::move(other.x_log);
    x_pid = std::exchange(other.x_pid, -1);
    return *this;
  }
  ~Program() { kill_and_wait(); }

  void kill_and_wait() {
    if (x_pid <= 0) return;
    kill(x_pid, SIGKILL);
    waitpid(x_pid, nullptr, 0);
    x_pid = -1;
  }
  void send(int signal) const { EXPECT_EQ(kill(x_pid, signal), 0); }
  [[nodiscard]] pid_t pid() const { return x_pid; }
  [[nodiscard]] std::string said() const { return file_text(x_log); }
  // Descriptors that it has open.
  [[nodiscard]] size_t descriptors() const {
    const std::filesystem::directory_iterator all("/proc/" + std::to_string(x_pid) + "/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
  }
  [[nodiscard]] bool says_soon(const std::string& text) const {
    const bool found = soon([&] { return said().find(text) != std::string::npos; });
    EXPECT_TRUE(found) << "no '" << text << "' in: " << said();
    return found;
  }
  // The exit code; -1 if it does not end, or by a signal.
  int wait_for_end() {
    int status = 0;
    if (!soon([&] { return waitpid(x_pid, &status, WNOHANG) == x_pid; })) {
      ADD_FAILURE() << "it does not end: " << said();
      return -1;
    }
    x_pid = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  [[nodiscard]] bool runs() const { return x_pid > 0 && waitpid(x_pid, nullptr, WNOHANG) == 0; }

 private:
  std::string x_log;
  pid_t x_pid = -1;
};

// How often `part` is in `whole`.
inline size_t count_of(const std::string& whole, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = whole.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

// A VM named "vm" in a run-time directory of its own.
class GuiVm : public testing::Test {
 protected:
  void SetUp() override {
    if (access("/dev/kvm", R_OK | W_OK) != 0)
      GTEST_SKIP() << "SKIPPED: /dev/kvm is missing or not permitted";
    char made[] = "/tmp/lethe-gui-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  }
  void TearDown() override {
    x_vm.kill_and_wait();
    if (x_keys >= 0) close(x_keys);
    if (!x_dir.empty()) std::filesystem::remove_all(x_dir);
  }

  // `kernel` with this command line; `more` goes before [boot], `gui` into [gui].
  void start(const std::string& kernel, const std::string& cmdline, const std::string& gui = "",
             const std::string& boot = "") {
    const std::string folder = program_folder().parent_path() / "guest-tests/baremetal";
    std::ofstream(x_dir + "/vm.toml")
        << "name = \"vm\"\n[memory]\nsize = \"64M\"\n[gui]\nenabled = true\nwidth = 640\n"
        << "height = 480\n"
        << gui << "[boot]\nkernel = \"" << folder << "/" << kernel << "\"\ncmdline = \"" << cmdline
        << "\"\n"
        << boot;
    int keys[2];
    ASSERT_EQ(pipe2(keys, O_CLOEXEC), 0);
    if (x_keys >= 0) close(x_keys);
    x_keys = keys[1];
    x_vm =
        Program({program_folder() / "lethe", "run", x_dir + "/vm.toml"}, x_dir + "/log", keys[0]);
    close(keys[0]);
  }
  [[nodiscard]] std::string socket_path() const { return x_dir + "/lethe/vm/gui.sock"; }
  // The guest's stage goes on: a byte on its serial port.
  void go_on() const { ASSERT_EQ(write(x_keys, "x", 1), 1); }
  [[nodiscard]] size_t lines_with(const std::string& part) const {
    return count_of(x_vm.said(), part);
  }

  // A figure of `lethe stats --json`, by its dotted path; -1: there is none.
  [[nodiscard]] double stat(const std::string& path) const {
    Program stats({program_folder() / "lethe", "stats", "vm", "--json"}, x_dir + "/stats");
    if (stats.wait_for_end() != 0) return -1;
    const std::string json = stats.said();
    size_t at = 0;
    for (size_t begin = 0; begin <= path.size();) {
      const size_t dot = std::min(path.find('.', begin), path.size());
      at = json.find("\"" + path.substr(begin, dot - begin) + "\":", at);
      if (at == std::string::npos) return -1;
      begin = dot + 1;
    }
    return std::strtod(json.c_str() + json.find(':', at) + 1, nullptr);
  }
  [[nodiscard]] bool stat_soon(const std::string& path, double expected) const {
    double last = -1;
    const bool came = soon([&] { return (last = stat(path)) == expected; });
    EXPECT_TRUE(came) << path << " is " << last << ", not " << expected;
    return came;
  }

  std::string x_dir;
  Program x_vm;
  int x_keys = -1;
};

}  // namespace lethe_test
