// Snapshot and restore of running guests (label kvm): a bare-metal guest counts, checks its memory,
// writes and reads a disk, and says where it is; whatever is done to its VM, no round may be lost,
// done twice or wrong (baremetal/guests/snapshot.cc).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/test_util.h"

namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

constexpr milliseconds kDeadline{60'000};
constexpr int kEndedWell = 64;  // debug-exit 0
constexpr uint64_t kDiskBytes = 1 << 20;

fs::path program_folder() { return fs::read_symlink("/proc/self/exe").parent_path(); }

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

// The guest's own recurrence.
uint64_t next_state(uint64_t state) { return state * 6364136223846793005u + 1442695040888963407u; }

struct Counted {
  uint64_t first = 0;
  uint64_t last = 0;
  std::string wrong;  // empty: every round was right and in order
};

// The whole lines `round N STATE` of a console.
Counted count_rounds(const std::string& text) {
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
                    const std::string& size = "32M") const {
    const std::string kernel =
        program_folder().parent_path() / "guest-tests/baremetal/snapshot.elf";
    std::ofstream config(x_dir + "/vm.toml");
    config << "name = \"vm\"\ncpus = " << cpus << "\n[memory]\nsize = \"" << size
           << "\"\n[boot]\nkernel = \"" << kernel << "\"\ncmdline = \"" << cmdline
           << (disk ? " disk=1" : "") << "\"\n";
    if (!disk) return;
    config << "[[disk]]\npath = \"disk.img\"\n";
    std::ofstream image(x_dir + "/disk.img");
    image.close();
    fs::resize_file(x_dir + "/disk.img", kDiskBytes);
  }

  // Starts `lethe WORDS`; its console is the file `log`. `file_bytes_max`: RLIMIT_FSIZE.
  void start(const std::vector<std::string>& words, const std::string& log,
             rlim_t file_bytes_max = RLIM_INFINITY) {
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

TEST_F(Snapshot, a_killed_vm_goes_on_from_its_snapshot) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const uint64_t then = count_rounds(read("log")).last;
  // It runs on by itself.
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", then + 20));
  end_by_force();
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_goes_on("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, two_cpus_and_a_disk_go_on) {
  write_config("", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, nobody_resumes_a_vm_that_ends_when_it_is_saved) {
  write_config("pages=2000", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  std::atomic<bool> saved = false;
  std::thread others([&] {
    const std::string lethe = (program_folder() / "lethe").string();
    while (!saved) (void)std::system((lethe + " resume vm >/dev/null 2>&1").c_str());
  });
  save("s", "--stop");
  saved = true;
  others.join();
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, twenty_in_a_row_of_a_busy_guest) {
  write_config("pages=2000", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  for (int i = 0; i < 20; ++i) {
    ASSERT_NO_FATAL_FAILURE(save("s" + std::to_string(i))) << i;
    if (i > 0) fs::remove_all(path("s" + std::to_string(i - 1)));
  }
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  ASSERT_NO_FATAL_FAILURE(save("last", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("last", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 1000 / 2));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, a_restored_vm_can_be_saved_at_once_and_restored_again) {
  write_config("pages=2000");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s0", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  for (int i = 0; i < 5; ++i) {
    const std::string log = "log" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(restore("s" + std::to_string(i), log));
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds(log, 1));
    ASSERT_NO_FATAL_FAILURE(save("s" + std::to_string(i + 1), "--stop"));
    EXPECT_EQ(wait_for_end(), 6);
  }
  ASSERT_NO_FATAL_FAILURE(restore("s5", "again", {"--verify"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 600));  // every page was looked at
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, two_vms_run_from_one_snapshot_under_two_names) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  expect_refused("restore " + path("s"), 1, "'vm' is running already");
  const pid_t first = x_pid;
  ASSERT_NO_FATAL_FAILURE(restore("s", "again", {"--name", "vm-2"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
  kill(first, SIGKILL);
  EXPECT_EQ(waitpid(first, nullptr, 0), first);
}

TEST_F(Snapshot, memory_that_holds_nothing_costs_nothing) {
  write_config("pages=256", 1, false, "512M");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const std::string command = "du -sB1 " + path("s") + " | cut -f1 >" + path("out");
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_LT(std::stoul(read("out")), (1U + 3U) << 20);  // its own 1 MiB, code and tables
  EXPECT_EQ(fs::file_size(path("s/memory")), 512U << 20);
}

TEST_F(Snapshot, a_changed_disk_is_refused_unless_told_otherwise) {
  write_config("", 1, true);
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  std::ofstream(path("disk.img"), std::ios::in | std::ios::out) << "somebody was here";
  expect_refused("restore " + path("s"), 2, "disk.img' is not as it was");
  ASSERT_NO_FATAL_FAILURE(restore("s", "again", {"--changed-disks"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, wrong_versions_truncated_and_altered_files_are_refused) {
  write_config("pages=64");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  const std::string restore_it = "restore --non-interactive " + path("s");
  flip("s/state", 8);
  expect_refused(restore_it, 2, "it has version 65, this lethe reads 1");
  flip("s/state", 8);
  const auto state_bytes = fs::file_size(path("s/state"));
  for (const uint64_t at : {uint64_t{30}, state_bytes / 2, state_bytes - 1}) {
    flip("s/state", at);
    expect_refused(restore_it, 2, "altered");
    flip("s/state", at);
  }
  fs::copy_file(path("s/state"), path("state"));
  fs::resize_file(path("s/state"), state_bytes - 1);
  expect_refused(restore_it, 2, "truncated or altered");
  fs::rename(path("state"), path("s/state"));
  fs::copy_file(path("s/memory"), path("memory"));
  fs::resize_file(path("s/memory"), fs::file_size(path("memory")) - 4096);
  expect_refused(restore_it, 2, "truncated or altered");
  fs::rename(path("memory"), path("s/memory"));
  // The guest's code, which it needs for its first instruction; and with --verify any page.
  flip("s/memory", 0x10'0000 + 100);
  expect_refused(restore_it, 2, "its memory was altered");
  expect_refused(restore_it + " --verify", 2, "its memory was altered");
  flip("s/memory", 0x10'0000 + 100);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 5));
}

TEST_F(Snapshot, a_snapshot_that_fails_leaves_the_vm_running_and_nothing_by_its_name) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(start({"run", path("vm.toml")}, "log", 1 << 20));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", 10));
  expect_refused("snapshot vm " + path("no/s"), 1, "No such file or directory");
  fs::create_directory(path("there"));
  expect_refused("snapshot vm " + path("there") + " --stop", 1, "is there already");
  // The disk is full: a file of this process may have 1 MiB.
  expect_refused("snapshot vm " + path("s") + " --stop", 1, "File too large");
  EXPECT_FALSE(fs::exists(path("s")));
  for (const auto& entry : fs::directory_iterator(x_dir))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".tmp-")));
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

TEST_F(Snapshot, a_vm_killed_while_it_is_saved_leaves_a_whole_snapshot_or_none) {
  write_config("pages=4000");
  int whole = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string name = "s" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(run());
    const pid_t saver = fork();
    if (saver == 0) {
      (void)lethe("snapshot vm " + path(name));
      _exit(0);
    }
    // At another moment each time; the last ones when it is done.
    std::this_thread::sleep_for(milliseconds(5) * i * i);
    end_by_force();
    EXPECT_EQ(waitpid(saver, nullptr, 0), saver);
    if (!fs::exists(path(name))) continue;
    ++whole;
    ASSERT_NO_FATAL_FAILURE(restore(name, "again", {"--verify"}));
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 3));
    end_by_force();
  }
  RecordProperty("whole", whole);
}

TEST_F(Snapshot, a_restored_vm_can_run_detached) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  const Ran started = lethe("restore --detach " + path("s"));
  ASSERT_EQ(started.code, 0) << started.err;
  const Ran listed = lethe("ps");
  EXPECT_THAT(listed.out, HasSubstr("vm"));
  // It runs: it can be saved once more.
  ASSERT_NO_FATAL_FAILURE(save("s2"));
  EXPECT_EQ(lethe("kill vm").code, 0);
  // One that can't be restored says so, and is not left running.
  flip("s/state", 30);
  expect_refused("restore --detach " + path("s"), 2, "altered");
}

TEST_F(Snapshot, a_paused_vm_stays_paused) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  const std::string curl = "curl -s --max-time 20 --unix-socket " + path("lethe/vm/api.sock");
  ASSERT_EQ(std::system((curl + " -X POST http://vm/pause >" + path("out")).c_str()), 0);
  ASSERT_NO_FATAL_FAILURE(save("s"));
  ASSERT_EQ(std::system((curl + " http://vm/state >" + path("out")).c_str()), 0);
  EXPECT_THAT(read("out"), HasSubstr("\"paused\""));
  end_by_force();
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

}  // namespace
