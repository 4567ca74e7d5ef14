// What the tests of snapshots share: a VM that runs the counting guest
// (baremetal/guests/snapshot.cc), and what is done to it.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "guest-tests/api_check.h"

namespace lethe::snapshots {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

inline constexpr milliseconds kDeadline{60'000};
inline constexpr int kEndedWell = 64;  // debug-exit 0
inline constexpr uint64_t kDiskBytes = 1 << 20;

inline fs::path program_folder() { return fs::read_symlink("/proc/self/exe").parent_path(); }

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

// The guest's own recurrence.
inline uint64_t next_state(uint64_t state) {
  return state * 6364136223846793005u + 1442695040888963407u;
}

struct Counted {
  uint64_t first = 0;
  uint64_t last = 0;
  std::string wrong;  // empty: every round was right and in order
};

// The whole lines `round N STATE` of a console.
inline Counted count_rounds(const std::string& text) {
  Counted counted;
  uint64_t state = 0;
  uint64_t at = 0;
  for (size_t start = 0, end = 0; (end = text.find('\n', start)) != std::string::npos;
       start = end + 1) {
    unsigned long round = 0;
    unsigned long said = 0;
    const std::string line = text.substr(start, end - start);
    if (std::sscanf(line.c_str(), "round %lu %lx", &round, &said) != 2) continue;
    if (counted.first == 0) counted.first = round;
    if (counted.last != 0 && round != counted.last + 1) counted.wrong = "out of order: " + line;
    if (round < at) counted.wrong = "back: " + line;
    for (; at < round; ++at) state = next_state(state);
    if (said != state) counted.wrong = "wrong state: " + line;
    counted.last = round;
  }
  return counted;
}

class Snapshot : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-snapshots-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  }
  void TearDown() override {
    end_by_force();
    fs::remove_all(x_dir);
  }

  std::string read(const std::string& name) const {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string path(const std::string& name) const { return x_dir + "/" + name; }

  void write_config(const std::string& cmdline, unsigned cpus = 1, bool disk = false,
                    const std::string& size = "32M", const std::string& disk_options = "") const {
    const std::string kernel =
        program_folder().parent_path() / "guest-tests/baremetal/snapshot.elf";
    std::ofstream config(x_dir + "/vm.toml");
    config << "name = \"vm\"\ncpus = " << cpus << "\n[memory]\nsize = \"" << size
           << "\"\n[boot]\nkernel = \"" << kernel << "\"\ncmdline = \"" << cmdline
           << (disk ? " disk=1" : "") << "\"\n";
    if (!disk) return;
    config << "[[disk]]\npath = \"disk.img\"\n" << disk_options;
    std::ofstream image(x_dir + "/disk.img");
    image.close();
    fs::resize_file(x_dir + "/disk.img", kDiskBytes);
  }

  // Starts `lethe WORDS`; its console is the file `log`. `file_bytes_max`: RLIMIT_FSIZE.
  void start(const std::vector<std::string>& words, const std::string& log,
             rlim_t file_bytes_max = RLIM_INFINITY) {
    fs::remove(path(log));  // an older guest's: nobody is to take it for this one's
    int keys[2];
    ASSERT_EQ(pipe2(keys, O_CLOEXEC), 0);
    if (x_keys >= 0) close(x_keys);
    x_keys = keys[1];
    const std::string lethe = program_folder() / "lethe";
    x_pid = fork();
    if (x_pid == 0) {
      const int out = open(path(log).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(keys[0], STDIN_FILENO);
      dup2(out, STDOUT_FILENO);
      dup2(out, STDERR_FILENO);
      const rlimit limit{.rlim_cur = file_bytes_max, .rlim_max = RLIM_INFINITY};
      setrlimit(RLIMIT_FSIZE, &limit);
      std::vector<char*> argv;
      argv.push_back(const_cast<char*>("lethe"));
      for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
      argv.push_back(nullptr);
      execv(lethe.c_str(), argv.data());
      _exit(125);
    }
    close(keys[0]);
  }
  void run(const std::string& log = "log") {
    ASSERT_NO_FATAL_FAILURE(start({"run", path("vm.toml")}, log));
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds(log, 10));
  }
  void restore(const std::string& snapshot, const std::string& log,
               const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"restore", path(snapshot)};
    words.insert(words.end(), more.begin(), more.end());
    ASSERT_NO_FATAL_FAILURE(start(words, log));
  }
  // That many rounds at least are in the log, and right.
  void wait_for_rounds(const std::string& log, uint64_t rounds) {
    Counted counted;
    (void)lethe::eventually(
        [&] {
          counted = count_rounds(read(log));
          return counted.first > 0 && counted.last - counted.first + 1 >= rounds;
        },
        kDeadline);
    ASSERT_TRUE(counted.first > 0 && counted.last - counted.first + 1 >= rounds) << read(log);
    ASSERT_EQ(counted.wrong, "") << read(log);
  }
  // Lets the guest end, and expects that all was well.
  void end_well(const std::string& log) {
    ASSERT_EQ(write(x_keys, "x", 1), 1);
    EXPECT_EQ(wait_for_end(), kEndedWell) << read(log);
    EXPECT_THAT(read(log), HasSubstr("ended\n"));
    EXPECT_EQ(count_rounds(read(log)).wrong, "");
  }
  int wait_for_end() {
    int status = 0;
    const bool ended =
        lethe::eventually([&] { return waitpid(x_pid, &status, WNOHANG) == x_pid; }, kDeadline);
    EXPECT_TRUE(ended);
    if (!ended) return -1;
    x_pid = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  void end_by_force() {
    if (x_pid > 0) {
      kill(x_pid, SIGKILL);
      waitpid(x_pid, nullptr, 0);
      x_pid = -1;
    }
    if (x_keys >= 0) close(x_keys);
    x_keys = -1;
  }
  Ran lethe(const std::string& words) const {
    const std::string command = "timeout 60 " + (program_folder() / "lethe").string() + " " +
                                words + " >" + x_dir + "/out 2>" + x_dir + "/err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  // The body of the control API's answer, which must be a 200.
  std::string ask(const std::string& method, const std::string& target,
                  const std::string& body = "") const {
    const auto answer = lethe_test::ask_api(path("lethe/vm/api.sock"), method, target, body);
    EXPECT_EQ(answer.status, 200u) << method << " " << target << ": " << answer.body;
    return answer.body;
  }
  void save(const std::string& name, const std::string& more = "") const {
    const Ran ran = lethe("snapshot vm " + path(name) + " " + more);
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("of memory saved in"));
  }
  // The restored guest's first round follows on one that the first guest had done.
  void expect_goes_on(const std::string& log, const std::string& from) {
    const Counted before = count_rounds(read(from));
    const Counted after = count_rounds(read(log));
    EXPECT_GT(after.first, 1u);
    EXPECT_LE(after.first, before.last + 1);
  }
  // Of a guest that did not run on after it was saved: both consoles together are one, to the byte.
  void expect_nothing_lost(const std::string& log, const std::string& from) {
    const Counted together = count_rounds(read(from) + read(log));
    EXPECT_EQ(together.first, 1u);
    EXPECT_EQ(together.wrong, "");
  }
  void flip(const std::string& name, uint64_t offset) const {
    std::fstream file(path(name), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int byte = file.get();
    ASSERT_GE(byte, 0);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 0x40));
  }
  void expect_refused(const std::string& words, int code, const std::string& text) const {
    const Ran ran = lethe(words);
    EXPECT_EQ(ran.code, code) << ran.out << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(text));
    EXPECT_THAT(ran.out, Not(HasSubstr("round")));
  }

  std::string x_dir;
  pid_t x_pid = -1;
  int x_keys = -1;
};

}  // namespace lethe::snapshots
