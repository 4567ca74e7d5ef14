// A running VM seen from outside (label kvm): `lethe stats`, `top` and `reclaim`, and its control
// socket, with a bare-metal guest that gives memory back.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/test_util.h"
#include "guest-tests/pty_process.h"

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;
using testing::StartsWith;

constexpr milliseconds kDeadline{30'000};
constexpr double kMiB = 1 << 20;

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

// The text at a dotted path of JSON without arrays: enough for numbers.
double number_in(const std::string& json, const std::string& path) {
  size_t at = 0;
  for (size_t start = 0; start <= path.size();) {
    const size_t dot = std::min(path.find('.', start), path.size());
    at = json.find("\"" + path.substr(start, dot - start) + "\":", at);
    if (at == std::string::npos) return -1;
    start = dot + 1;
  }
  return std::strtod(json.c_str() + json.find(':', at) + 1, nullptr);
}

class Control : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-control-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    // Its own directory, so that other VMs of this host are not seen.
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  }
  void TearDown() override {
    if (x_pid > 0) {
      kill(x_pid, SIGKILL);
      waitpid(x_pid, nullptr, 0);
    }
    if (x_keys >= 0) close(x_keys);
    std::filesystem::remove_all(x_dir);
  }

  std::string read(const std::string& name) const {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // Runs a guest of 128 MiB that fills its memory and frees most of it, in steps.
  void start(const std::string& more = "",
             const std::string& kernel = "balloon.elf\"\ncmdline = \"test=return wait=1") {
    const std::string folder = program_folder().parent_path() / "guest-tests/baremetal";
    std::ofstream(x_dir + "/vm.toml")
        << "name = \"vm\"\n[memory]\nsize = \"128M\"\n"
        << more << "[boot]\nkernel = \"" << folder << "/" << kernel << "\"\n";
    int keys[2];
    ASSERT_EQ(pipe2(keys, O_CLOEXEC), 0);
    x_keys = keys[1];
    const std::string lethe = program_folder() / "lethe";
    x_pid = fork();
    if (x_pid == 0) {
      const int log = open((x_dir + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
      dup2(keys[0], STDIN_FILENO);
      dup2(log, STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
      execl(lethe.c_str(), "lethe", "run", (x_dir + "/vm.toml").c_str(), nullptr);
      _exit(125);
    }
    close(keys[0]);
  }
  static bool soon(auto&& holds) { return lethe::eventually(holds, kDeadline); }
  void wait_for(const std::string& text) const {
    (void)soon([&] { return read("log").find(text) != std::string::npos; });
    ASSERT_THAT(read("log"), HasSubstr(text));
  }
  void go_on() const { ASSERT_EQ(write(x_keys, "x", 1), 1); }
  // To the stage where most of the guest's memory has been returned.
  void start_and_return(const std::string& more = "") {
    ASSERT_NO_FATAL_FAILURE(start(more));
    ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
    x_filled = stats();
    ASSERT_NO_FATAL_FAILURE(go_on());
    ASSERT_NO_FATAL_FAILURE(wait_for("stage returned"));
  }

  Ran lethe(const std::string& words) const {
    const std::string command = "timeout 60 " + (program_folder() / "lethe").string() + " " +
                                words + " >" + x_dir + "/out 2>" + x_dir + "/err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  std::string stats() const {
    const Ran ran = lethe("stats vm --json");
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.out;
  }
  double stat(const std::string& path) const { return number_in(stats(), path); }

  // One request to the control socket, and all that comes back.
  std::string ask(const std::string& text) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = x_dir + "/lethe/vm/api.sock";
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
    std::string got;
    char chunk[4096];
    pollfd waiting{fd, POLLIN, 0};
    while (poll(&waiting, 1, static_cast<int>(kDeadline.count())) > 0) {
      const ssize_t part = recv(fd, chunk, sizeof chunk, 0);
      if (part <= 0) break;
      got.append(chunk, static_cast<size_t>(part));
    }
    close(fd);
    return got;
  }

  std::string put_memory(const std::string& body) const {
    return ask("PUT /memory HTTP/1.1\r\nConnection: close\r\nContent-Length: " +
               std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  std::string x_dir;
  std::string x_filled;  // the statistics when all memory was in use
  pid_t x_pid = -1;
  int x_keys = -1;
};

TEST_F(Control, stats_show_what_came_back) {
  ASSERT_NO_FATAL_FAILURE(start_and_return());
  const std::string now = stats();
  EXPECT_EQ(number_in(now, "memory.size_bytes"), 128 * kMiB);
  EXPECT_GE(number_in(x_filled, "memory.resident_bytes"), 100 * kMiB);
  EXPECT_LE(number_in(now, "memory.resident_bytes"), 50 * kMiB);
  const double reported = number_in(now, "return.reported_bytes_total.report");
  EXPECT_GE(reported, 80 * kMiB);
  const double moved = number_in(now, "return.moved_bytes_total");
  EXPECT_GE(moved + number_in(now, "return.freed_bytes_total"), 0.9 * reported);
  EXPECT_LE(number_in(now, "return.isolated_highest_bytes"), 64 * kMiB);
  // What the guest said last may be half a second old.
  EXPECT_TRUE(soon([this] { return stat("guest.memory_statistic.free_bytes") >= 80 * kMiB; }));
  EXPECT_GE(number_in(now, "return.forget_seconds.count"), 1);

  const Ran table = lethe("stats vm");
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, StartsWith("vm: running, process " + std::to_string(x_pid) + ", up "));
  for (const char* part : {"\n  guest                 128 MiB\n", "\n  reported ", "\nscrub pool\n",
                           "\n  isolated at most ", "\n  forgotten within      p50 "})
    EXPECT_THAT(table.out, HasSubstr(part));
}

TEST_F(Control, a_refault_is_counted_and_timed) {
  ASSERT_NO_FATAL_FAILURE(start_and_return("policy = \"pool\"\npool_max = \"128M\"\n"));
  if (const std::string host = lethe("doctor").out;
      host.find("UFFDIO_MOVE works") == std::string::npos &&
      host.find("mremap does") == std::string::npos)
    GTEST_SKIP() << "SKIPPED: this host can't move chunks:\n" << host;
  EXPECT_GE(stat("return.moved_bytes_total"), 80 * kMiB);
  for (int i = 0; i < 5; ++i) ASSERT_NO_FATAL_FAILURE(go_on());
  ASSERT_NO_FATAL_FAILURE(wait_for("stage refilled"));
  const std::string now = stats();
  EXPECT_GE(number_in(now, "pool.refaulted_bytes_total.pool") +
                number_in(now, "pool.refaulted_bytes_total.neighbour"),
            80 * kMiB);
  EXPECT_GE(number_in(now, "pool.refault_seconds.count"), 1);
  EXPECT_THAT(lethe("stats vm").out, HasSubstr("\n  refault took          p50 "));
}

TEST_F(Control, metrics_are_prometheus_text) {
  ASSERT_NO_FATAL_FAILURE(start_and_return());
  const std::string text = ask("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(text, StartsWith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(text, HasSubstr("\nlethe_memory_size_bytes 134217728\n"));
  EXPECT_THAT(text, HasSubstr("\nlethe_return_reported_bytes_total{source=\"report\"} "));
  EXPECT_THAT(text, HasSubstr("\nlethe_return_forget_seconds_bucket{le=\"+Inf\"} "));
}

TEST_F(Control, the_policy_is_changed_while_the_guest_runs) {
  ASSERT_NO_FATAL_FAILURE(start_and_return());
  EXPECT_THAT(put_memory(R"({"policy":"discard"})"), HasSubstr("\"policy_now\":\"discard\""));
  // The pool empties, and the guest still finds its memory.
  EXPECT_TRUE(soon([this] {
    const std::string now = stats();
    return number_in(now, "pool.bytes.dirty") + number_in(now, "pool.bytes.clean") == 0;
  }));
  for (int i = 0; i < 6; ++i) ASSERT_NO_FATAL_FAILURE(go_on());
  ASSERT_NO_FATAL_FAILURE(wait_for("reported "));
  int status = 0;
  EXPECT_EQ(waitpid(x_pid, &status, 0), x_pid);
  x_pid = -1;
  EXPECT_EQ(WEXITSTATUS(status), 64) << read("log");
}

TEST_F(Control, memory_auto_is_switched_while_the_guest_runs) {
  ASSERT_NO_FATAL_FAILURE(start_and_return());
  EXPECT_THAT(put_memory(R"({"auto":true})"), HasSubstr("\"auto\":true"));
  EXPECT_TRUE(soon([this] { return stat("governor.steps_total") >= 1; }));
  EXPECT_THAT(put_memory(R"({"balloon_target":0})"), HasSubstr("the governor sets the balloon"));
  EXPECT_THAT(put_memory(R"({"auto":false,"balloon_target":"2M"})"),
              HasSubstr("\"balloon_target\":2097152"));
  EXPECT_TRUE(soon([this] { return stat("balloon.actual_bytes") == 2 * kMiB; }));
}

TEST_F(Control, memory_auto_alone_is_a_governor_and_memory_that_comes_back) {
  ASSERT_NO_FATAL_FAILURE(start_and_return("auto = true\n"));
  EXPECT_LE(stat("memory.resident_bytes"), number_in(x_filled, "memory.resident_bytes") / 2);
  EXPECT_GE(stat("return.reported_bytes_total.report"), 80 * kMiB);
  EXPECT_TRUE(soon([this] { return stat("governor.steps_total") > 0; }));
}

// 8 MiB is two of the guest's chains, and the guest has up to 64 MiB on the way.
TEST_F(Control, no_more_is_on_its_way_than_isolated_max) {
  ASSERT_NO_FATAL_FAILURE(start_and_return("isolated_max = \"8M\"\n"));
  const std::string now = stats();
  EXPECT_GE(number_in(now, "return.reported_bytes_total.report"), 80 * kMiB);
  EXPECT_LE(number_in(now, "return.isolated_highest_bytes"), 8 * kMiB);
}

TEST_F(Control, what_the_config_promises_is_not_undone_while_the_guest_runs) {
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
  const std::string before = ask("GET /memory HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(before, HasSubstr("\"policy\":\"auto\""));
  const auto refused = [&](const std::string& body, const std::string& part) {
    const std::string answer = put_memory(body);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 4")) << body;
    EXPECT_THAT(answer, HasSubstr(part));
  };
  refused(R"({"policy":"lazy"})", "memory.forget = false");
  refused(R"({"pool_max":"130M"})", "it must be at most 128");
  refused(R"({"policy":"lazy","pool_max":"1M"})", "memory.forget = false");
  refused(R"({"policy":"discard","pool_max":"130M"})", "it must be at most 128");
  EXPECT_EQ(ask("GET /memory HTTP/1.1\r\nConnection: close\r\n\r\n"), before);
}

TEST_F(Control, lazy_is_for_who_said_forget_false_and_the_pool_for_memory_that_can_move) {
  ASSERT_NO_FATAL_FAILURE(start("forget = false\nbacking = \"shared\"\n"));
  ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
  EXPECT_THAT(put_memory(R"({"policy":"pool"})"), HasSubstr("memory.backing = \\\"anonymous\\\""));
  EXPECT_THAT(put_memory(R"({"policy":"lazy"})"), HasSubstr("\"policy_now\":\"lazy\""));
}

TEST_F(Control, wrong_names_and_arguments_are_one_line) {
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
  const auto refused = [this](const std::string& words, int code, const std::string& part) {
    SCOPED_TRACE(words);
    const Ran ran = lethe(words);
    EXPECT_EQ(ran.code, code);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, StartsWith("lethe: "));
    EXPECT_THAT(ran.err, HasSubstr(part));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  };
  refused("stats mv", 1, "'mv' does not run; running: vm");
  refused("reclaim mv", 1, "'mv' does not run; running: vm");
  refused("reclaim vm 1Q", 2, "'1Q' does not fit");
  EXPECT_THAT(lethe("top --once").out, HasSubstr("\nvm "));
}

TEST_F(Control, without_a_balloon_reclaim_says_so) {
  ASSERT_NO_FATAL_FAILURE(
      start("[balloon]\nenabled = false\n", "machine.elf\"\ncmdline = \"test=power-button"));
  ASSERT_NO_FATAL_FAILURE(wait_for("waiting for the power button"));
  EXPECT_THAT(lethe("stats vm").out, HasSubstr("\n  guest                 128 MiB\n"));
  const Ran ran = lethe("reclaim vm");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.err,
            "lethe: 'vm': this VM has no balloon: balloon.enabled = false in its config\n");
}

TEST_F(Control, a_vm_that_crashed_does_not_run) {
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
  kill(x_pid, SIGKILL);
  waitpid(x_pid, nullptr, 0);
  x_pid = -1;
  EXPECT_TRUE(std::filesystem::exists(x_dir + "/lethe/vm/api.sock")) << "no stale directory";
  for (const char* command : {"stats vm", "reclaim vm"}) {
    const Ran ran = lethe(command);
    EXPECT_EQ(ran.code, 1);
    EXPECT_EQ(ran.err, "lethe: 'vm' does not run, nor does any other VM\n");
  }
  EXPECT_THAT(lethe("top").out, StartsWith("0 VMs, "));
  // And the name may be used again.
  std::filesystem::remove(x_dir + "/log");
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_NO_FATAL_FAILURE(wait_for("stage filled"));
  EXPECT_EQ(lethe("stats vm").code, 0);
}

// `lethe top` on a pseudo-terminal.
class TopRun : public PtyProcess {
 public:
  TopRun() : PtyProcess({program_folder() / "lethe", "top", "-d", "0.2"}) {}
  // The terminal as it was: its mode, its cursor, its main screen.
  void expect_restored() const {
    EXPECT_TRUE(restored());
    EXPECT_THAT(seen(), testing::EndsWith("\x1b[?25h\x1b[?1049l"));
  }
};

TEST_F(Control, top_shows_vms_as_they_come_and_go_and_follows_the_terminal) {
  TopRun top;
  ASSERT_TRUE(top.wait_for("0 VMs, ")) << top.seen();
  ASSERT_NO_FATAL_FAILURE(start());
  ASSERT_TRUE(top.wait_for("1 VM, ")) << top.seen();
  ASSERT_TRUE(top.wait_for("\nvm  ")) << top.seen();
  top.forget();
  top.resize(30);
  EXPECT_TRUE(top.wait_for("q quit   sort by: m memory  c \x1b[H")) << top.seen();
  kill(x_pid, SIGKILL);
  waitpid(x_pid, nullptr, 0);
  x_pid = -1;
  EXPECT_TRUE(top.wait_for("0 VMs, ")) << top.seen();
  top.type("ncr");
  top.type("q");
  const int status = top.wait_for_end();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  top.expect_restored();
}

TEST_F(Control, top_gives_the_terminal_back_on_every_way_out) {
  for (const int signal : {0, SIGINT, SIGTERM, SIGHUP, SIGSEGV, SIGABRT}) {
    SCOPED_TRACE(signal);
    TopRun top;
    ASSERT_TRUE(top.wait_for("q quit"));
    if (signal == 0)
      top.type("\x03");
    else
      top.send(signal);
    const int status = top.wait_for_end();
    const bool crash = signal == SIGSEGV || signal == SIGABRT;
    EXPECT_EQ(WIFSIGNALED(status), crash);
    if (!crash) EXPECT_EQ(WEXITSTATUS(status), signal == 0 ? 0 : 128 + signal);
    top.expect_restored();
  }
}

}  // namespace
