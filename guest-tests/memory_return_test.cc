// Memory that comes back, seen from the host (label kvm): balloon.elf fills, frees, reports and
// refills its memory, and at each stage the memory that this host has behind it is weighed, by the
// kernel's own word (smaps), beside what Lethe says of itself. Configs: baremetal/configs/memory.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "base/test_util.h"

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kDeadline{60'000};
constexpr uint64_t kLeastMapping = uint64_t{128} << 20;
constexpr int64_t kTouchedKib = 7 * 4;   // of each 2 MiB: kPlaces in balloon.cc
constexpr int64_t kSavedSlackKib = 128;  // the guest's work, and the file system's own blocks
constexpr int64_t kSlackKib = 5 * 1024;  // huge pages that are not all freed, and the guest's work

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

// KiB of a VM's guest memory, by /proc/PID/smaps.
struct Weight {
  int64_t resident = 0;
  int64_t lazy = 0;  // resident still, but the host may take it at any time
  bool memfd = false;
};

class ReturnRun {
 public:
  explicit ReturnRun(const std::string& config) : x_name("return-" + std::to_string(getpid())) {
    char folder[] = "/tmp/lethe-return-XXXXXX";
    EXPECT_NE(mkdtemp(folder), nullptr);
    x_run_time = folder;
    const std::string path =
        program_folder().parent_path() / "guest-tests/baremetal/memory" / (config + ".toml");
    int to[2];
    int from[2];
    EXPECT_EQ(pipe(to), 0);
    EXPECT_EQ(pipe(from), 0);
    x_pid = fork();
    if (x_pid == 0) {
      dup2(to[0], STDIN_FILENO);
      dup2(from[1], STDOUT_FILENO);
      dup2(from[1], STDERR_FILENO);
      for (const int fd : {to[0], to[1], from[0], from[1]}) close(fd);
      setenv("XDG_RUNTIME_DIR", x_run_time.c_str(), 1);
      execl(lethe().c_str(), "lethe", "run", path.c_str(), "--name", x_name.c_str(), nullptr);
      _exit(125);
    }
    close(to[0]);
    close(from[1]);
    x_in = to[1];
    x_out = from[0];
  }
  ReturnRun(const ReturnRun&) = delete;
  ReturnRun& operator=(const ReturnRun&) = delete;
  ~ReturnRun() {
    if (x_pid > 0) {
      kill(x_pid, SIGKILL);
      waitpid(x_pid, nullptr, 0);
    }
    close(x_in);
    close(x_out);
    std::filesystem::remove_all(x_run_time);
  }

  // The megabytes of the guest's line "stage NAME N MiB".
  int64_t stage(const std::string& name) {
    const std::string line = "stage " + name + " ";
    const auto end = steady_clock::now() + kDeadline;
    size_t at;
    while ((at = x_seen.find(line, x_read)) == std::string::npos ||
           x_seen.find('\n', at) == std::string::npos) {
      if (steady_clock::now() > end || !read_more()) {
        ADD_FAILURE() << "no stage '" << name << "': " << x_seen;
        return 0;
      }
    }
    x_read = at + line.size();
    return std::stoll(x_seen.substr(x_read));
  }
  void go_on() const { EXPECT_EQ(write(x_in, "\n", 1), 1); }

  int exit_code() {
    while (read_more()) {
    }
    int status = 0;
    EXPECT_EQ(waitpid(x_pid, &status, 0), x_pid);
    x_pid = -1;
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
  }

  // Before anything was returned: the large mapping with the most memory in it is the guest's, or
  // the one of the memfd, if there is one.
  void find_guest_memory() {
    int64_t most = 0;
    for_each_mapping([&](uint64_t begin, uint64_t end, const Weight& kib) {
      const int64_t likely = kib.memfd ? INT64_MAX : kib.resident;
      if (end - begin < kLeastMapping || likely <= most) return;
      most = likely;
      x_begin = begin;
      x_end = end;
    });
    EXPECT_GT(most, 2 * 1024) << "no mapping looks like guest memory";
  }
  Weight weigh() {
    Weight sum;
    for_each_mapping([&](uint64_t begin, uint64_t end, const Weight& kib) {
      if (begin >= x_end || end <= x_begin) return;
      sum.resident += kib.resident;
      sum.lazy += kib.lazy;
    });
    return sum;
  }

  // A number of `lethe stats --json`: the sum of all that is behind the key in the group.
  double statistic(const std::string& group, const std::string& key) const {
    const std::string text = lethe_says("stats " + x_name + " --json");
    const size_t in = text.find('"' + group + "\":{");
    const size_t at = in == std::string::npos ? in : text.find('"' + key + "\":", in);
    if (at == std::string::npos) {
      ADD_FAILURE() << group << "." << key << " is not in " << text;
      return -1;
    }
    const std::string value = text.substr(at + key.size() + 3);
    if (value[0] != '{') return std::stod(value);
    double sum = 0;
    const size_t close = value.find('}');
    for (size_t colon = value.find(':'); colon < close; colon = value.find(':', colon + 1)) {
      sum += std::stod(value.substr(colon + 1));
    }
    return sum;
  }
  int64_t statistic_kib(const std::string& group, const std::string& key) const {
    return static_cast<int64_t>(statistic(group, key)) >> 10;
  }

  std::string lethe_says(const std::string& arguments, int* code = nullptr) const {
    const std::string command =
        "XDG_RUNTIME_DIR=" + x_run_time + " timeout 60 " + lethe() + " " + arguments + " 2>&1";
    FILE* const pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return {};
    std::string text;
    char chunk[4096];
    for (size_t got; (got = fread(chunk, 1, sizeof chunk, pipe)) > 0;) text.append(chunk, got);
    const int status = pclose(pipe);
    if (code != nullptr) *code = WEXITSTATUS(status);
    return text;
  }
  const std::string& name() const { return x_name; }
  // What the memory file of a snapshot made now takes on the disk.
  int64_t snapshot_kib(const std::string& snapshot) const {
    const std::string dir = x_run_time + "/" + snapshot;
    int code = -1;
    const std::string said = lethe_says("snapshot " + x_name + " " + dir, &code);
    EXPECT_EQ(code, 0) << said;
    struct stat file{};
    EXPECT_EQ(stat((dir + "/memory").c_str(), &file), 0);
    return file.st_blocks / 2;
  }

  // PUT /memory with this body.
  void set_memory(const std::string& body) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = x_run_time + "/lethe/" + x_name + "/api.sock";
    ASSERT_LT(path.size(), sizeof address.sun_path);
    std::memcpy(address.sun_path, path.c_str(), path.size());
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << path;
    const std::string request =
        "PUT /memory HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    ASSERT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char answer[64] = {};
    ASSERT_GT(read(fd, answer, sizeof answer - 1), 0);
    close(fd);
    ASSERT_NE(std::string(answer).find(" 200 "), std::string::npos) << answer;
  }

 private:
  static std::string lethe() { return program_folder() / "lethe"; }

  // False at the end of the output, or after a while without any.
  bool read_more() {
    pollfd waiting{x_out, POLLIN, 0};
    if (poll(&waiting, 1, static_cast<int>(kDeadline.count())) <= 0) return false;
    char chunk[512];
    const ssize_t got = read(x_out, chunk, sizeof chunk);
    if (got > 0) x_seen.append(chunk, static_cast<size_t>(got));
    return got > 0;
  }

  void for_each_mapping(const std::function<void(uint64_t, uint64_t, const Weight&)>& use) const {
    std::ifstream smaps("/proc/" + std::to_string(x_pid) + "/smaps");
    uint64_t begin = 0;
    uint64_t end = 0;
    Weight kib;
    for (std::string line; std::getline(smaps, line);) {
      unsigned long b = 0;
      unsigned long e = 0;
      if (sscanf(line.c_str(), "%lx-%lx ", &b, &e) == 2) {
        begin = b;
        end = e;
        kib = {.memfd = line.find("/memfd:") != std::string::npos};
      } else if (line.starts_with("Rss:")) {
        kib.resident = std::stoll(line.substr(4));
      } else if (line.starts_with("LazyFree:")) {
        kib.lazy = std::stoll(line.substr(9));
      } else if (line.starts_with("VmFlags:")) {
        use(begin, end, kib);
      }
    }
  }

  std::string x_name;
  std::string x_run_time;
  int x_in = -1;
  int x_out = -1;
  pid_t x_pid = -1;
  std::string x_seen;
  size_t x_read = 0;
  uint64_t x_begin = 0;
  uint64_t x_end = 0;
};

void expect_near(int64_t value, int64_t expected, int64_t slack) {
  EXPECT_GE(value, expected - slack);
  EXPECT_LE(value, expected + slack);
}

class MemoryReturn : public testing::TestWithParam<const char*> {};

TEST_P(MemoryReturn, resident_memory_falls_by_what_the_guest_reported) {
  const bool lazy = std::string(GetParam()) == "lazy";
  ReturnRun run(GetParam());
  int64_t expected_all = 0;
  for (int round = 0; round < 3; ++round) {
    const int64_t filled = run.stage("filled");
    if (round == 0) run.find_guest_memory();
    const Weight before = run.weigh();
    run.go_on();
    const int64_t returned = run.stage("returned");
    const Weight after = run.weigh();
    // Huge pages, or the few small ones that the guest touched of each block.
    const bool huge = before.resident >= filled * 1024 * 9 / 10;
    const int64_t expected = returned / 2 * (huge ? 2048 : kTouchedKib);
    expected_all += expected;
    const int64_t fell = before.resident - after.resident + (lazy ? after.lazy : 0);
    expect_near(fell, expected, std::min(kSlackKib, expected / 10));
    // Lethe's own counters, of bytes that it verified, say the same.
    const int64_t reported = run.statistic_kib("return", "reported_bytes_total");
    EXPECT_GE(reported, returned * (round + 1) * 1024 - kSlackKib);
    const int64_t given = run.statistic_kib("return", "moved_bytes_total") +
                          run.statistic_kib("return", "freed_bytes_total") +
                          run.statistic_kib("return", "lazy_bytes_total");
    EXPECT_GE(given, expected_all * 95 / 100);
    // What is lazy stays resident, and counts again if it is reported again, as part of more.
    EXPECT_LE(given, lazy ? reported : expected_all * 105 / 100 + kSlackKib);
    EXPECT_LE(run.statistic_kib("return", "isolated_highest_bytes"), 64 * 1024);
    EXPECT_EQ(run.statistic_kib("return", "isolated_bytes"), 0);
    run.go_on();
  }
  run.stage("refilled");
  const bool pool = std::string(GetParam()) == "pool";
  EXPECT_EQ(run.statistic_kib("return", "moved_bytes_total") > 0, pool);
  if (pool) EXPECT_GT(run.statistic_kib("pool", "refaulted_bytes_total"), 0);
  run.go_on();
  EXPECT_EQ(run.exit_code(), 64);
}

INSTANTIATE_TEST_SUITE_P(Policies, MemoryReturn,
                         testing::Values("pool", "discard", "shared", "lazy"),
                         [](const auto& info) { return std::string(info.param); });

class MemoryInASnapshot : public testing::TestWithParam<const char*> {};

TEST_P(MemoryInASnapshot, what_was_returned_costs_nothing) {
  ReturnRun run(GetParam());
  const int64_t blocks = run.stage("filled") / 2;
  const int64_t full = run.snapshot_kib("full");
  EXPECT_GE(full, blocks * kTouchedKib);
  run.go_on();
  const int64_t returned = run.stage("returned") / 2;
  if (GetParam() == std::string("pool")) EXPECT_GT(run.statistic_kib("pool", "bytes"), 0);
  const int64_t kept = run.snapshot_kib("kept");
  // What Lethe still holds in its pool is not the guest's any more.
  if (GetParam() == std::string("pool")) EXPECT_GT(run.statistic_kib("pool", "bytes"), 0);
  expect_near(full - kept, returned * kTouchedKib, kSavedSlackKib);
  for (const char* stage : {"filled", "returned", "filled", "returned", "refilled"}) {
    run.go_on();
    run.stage(stage);  // the guest checks its blocks, and finds those it returned empty
  }
  run.go_on();
  EXPECT_EQ(run.exit_code(), 64);
}

INSTANTIATE_TEST_SUITE_P(Policies, MemoryInASnapshot, testing::Values("pool", "discard"),
                         [](const auto& info) { return std::string(info.param); });

TEST(MemoryReturnByTheHost, a_balloon_takes_memory_and_gives_it_back) {
  constexpr int64_t kTargetKib = 96 * 1024;
  ReturnRun run("host-driven");
  run.stage("filled");
  run.find_guest_memory();
  for (const char* stage : {"freed", "filled again", "room for a balloon"}) {
    run.go_on();
    run.stage(stage);
  }
  const Weight full = run.weigh();
  const int64_t saved_full = run.snapshot_kib("full");
  run.set_memory(R"({"balloon_target": "96M"})");
  EXPECT_TRUE(lethe::eventually(
      [&] { return run.statistic_kib("balloon", "actual_bytes") == kTargetKib; }, kDeadline));
  expect_near(full.resident - run.weigh().resident, kTargetKib, kSlackKib);
  const int64_t saved = kTargetKib / 2048 * kTouchedKib;
  expect_near(saved_full - run.snapshot_kib("inflated"), saved, saved / 10 + kSavedSlackKib);
  run.set_memory(R"({"balloon_target": 0})");
  EXPECT_TRUE(lethe::eventually([&] { return run.statistic_kib("balloon", "actual_bytes") == 0; },
                                kDeadline));
  run.go_on();
  EXPECT_EQ(run.exit_code(), 64);
}

TEST(MemoryReturnByTheHost, reclaim_takes_what_is_free_though_the_guest_reported_nothing) {
  ReturnRun run("host-driven");
  run.stage("filled");
  run.find_guest_memory();
  const Weight before = run.weigh();
  run.go_on();
  const int64_t freed = run.stage("freed") * 1024;
  expect_near(before.resident, run.weigh().resident, 1024);  // nothing was reported
  int code = -1;
  const std::string said = run.lethe_says("reclaim " + run.name(), &code);
  EXPECT_EQ(code, 0) << said;
  // The guest keeps a reserve.
  EXPECT_GE(before.resident - run.weigh().resident, freed * 9 / 10) << said;
  for (const char* stage : {"filled again", "room for a balloon"}) {
    run.go_on();
    run.stage(stage);
  }
  run.go_on();
  EXPECT_EQ(run.exit_code(), 64);
}

}  // namespace
