// The life of a VM from the command line (label kvm): run -d, ps, log, console, stop, kill, pause,
// resume, with a bare-metal guest that echoes what is typed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
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
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

constexpr milliseconds kDeadline{30'000};

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}
std::string program() { return program_folder() / "lethe"; }

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

class Lifecycle : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-life-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    // Its own directory, so that other VMs of this host are not seen.
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
    write("vm.toml", config("echo"));
  }
  void TearDown() override {
    const Ran killed = lethe("kill --all");
    EXPECT_EQ(killed.code, 0) << killed.err;
    std::filesystem::remove_all(x_dir);
  }

  static std::string config(const std::string& test, const std::string& more = "") {
    const std::string folder = program_folder().parent_path() / "guest-tests/baremetal";
    return "[memory]\nsize = \"16M\"\n[boot]\nkernel = \"" + folder +
           "/machine.elf\"\ncmdline = \"test=" + test + "\"\n" + more;
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(x_dir + "/" + name) << text;
  }
  std::string read(const std::string& name) const {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  Ran lethe(const std::string& words) const {
    const std::string command =
        "cd " + x_dir + " && timeout 60 " + program() + " " + words + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  void run_detached(const std::string& words = "vm.toml") const {
    const Ran ran = lethe("run -d " + words);
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(ran.out, "");
    EXPECT_EQ(ran.err, "");
  }
  static bool soon(auto&& holds) { return lethe::eventually(holds, kDeadline); }
  void wait_for_log(const std::string& text, const std::string& name = "vm") const {
    EXPECT_TRUE(soon([&] { return lethe("log " + name).out.find(text) != std::string::npos; }))
        << lethe("log " + name).out;
  }
  pid_t pid_of(const std::string& name) const {
    std::ifstream lock(x_dir + "/lethe/" + name + "/lock");
    pid_t pid = -1;
    lock >> pid;
    return pid;
  }
  // The words' process, in the background.
  PtyProcess on_terminal(std::vector<std::string> words) const {
    words.insert(words.begin(), program());
    return PtyProcess(std::move(words));
  }

  std::string x_dir;
};

TEST_F(Lifecycle, run_detached_returns_when_the_guest_runs_and_stop_ends_it) {
  run_detached();
  const pid_t pid = pid_of("vm");
  EXPECT_EQ(getsid(pid), pid) << "in a session of its own";
  wait_for_log("echo is ready\n");
  const Ran stopped = lethe("stop vm");
  EXPECT_EQ(stopped.code, 0) << stopped.err;
  EXPECT_EQ(stopped.out, "vm: ended\n");
  EXPECT_EQ(lethe("ps -q").out, "");
  // What it printed, and how it ended, can still be asked for.
  const Ran log = lethe("log vm");
  EXPECT_EQ(log.code, 0);
  EXPECT_THAT(log.out, EndsWith("echo is ready\npower button pressed\n"));
  EXPECT_THAT(log.err, HasSubstr("'vm' ended: exit code 0\n"));
  EXPECT_EQ(lethe("log vm --messages").out, "lethe: 'vm' ended: exit code 0\n");
}

TEST_F(Lifecycle, a_detached_vm_holds_no_lock_of_the_shell_that_started_it) {
  const std::string kernel = program_folder().parent_path() / "guest-tests/baremetal/machine.elf";
  // Descriptor 8 is a file that the config names by its number.
  const std::string command = "cd " + x_dir + " && exec 8<" + kernel + " 9>lock && flock 9 && " +
                              program() + " run -d vm.toml --set boot.kernel=/dev/fd/8 2>err";
  ASSERT_EQ(std::system(command.c_str()), 0) << read("err");
  const int lock = open((x_dir + "/lock").c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(lock, 0);
  EXPECT_EQ(flock(lock, LOCK_EX | LOCK_NB), 0) << "the VM has inherited it";
  close(lock);
  wait_for_log("echo is ready\n");
}

TEST_F(Lifecycle, a_service_manager_that_waits_is_told_when_the_guest_runs) {
  const std::string path = x_dir + "/notify";
  const int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
  ASSERT_EQ(bind(notify, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  setenv("NOTIFY_SOCKET", path.c_str(), 1);
  run_detached();
  unsetenv("NOTIFY_SOCKET");
  char text[64] = {};
  pollfd waiting{notify, POLLIN, 0};
  ASSERT_GT(poll(&waiting, 1, static_cast<int>(kDeadline.count())), 0);
  ASSERT_GT(recv(notify, text, sizeof text - 1, 0), 0);
  EXPECT_STREQ(text, "READY=1\n");
  EXPECT_EQ(lethe("kill vm").code, 0);
  EXPECT_EQ(recv(notify, text, sizeof text, MSG_DONTWAIT), -1) << "once";
  close(notify);
}

TEST_F(Lifecycle, run_detached_that_fails_says_why_with_runs_exit_code) {
  const auto refused = [this](const std::string& words, int code, const std::string& part) {
    SCOPED_TRACE(words);
    const Ran ran = lethe("run -d " + words);
    EXPECT_EQ(ran.code, code);
    EXPECT_THAT(ran.err, AllOf(StartsWith("lethe: "), HasSubstr(part)));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
    EXPECT_EQ(lethe("ps -q").out, "");
  };
  refused("gone.toml", 2, "No such file");
  refused("vm.toml --set memory.size=1M", 2, "key 'memory.size'");
  write("text", "no kernel");
  refused("vm.toml --set boot.kernel=text", 2, "is neither an ELF file nor a Linux bzImage");
}

TEST_F(Lifecycle, ps_lists_what_runs_as_table_json_and_names) {
  EXPECT_EQ(lethe("ps --json").out, "[]\n");
  EXPECT_EQ(lethe("ps -q").out, "");
  run_detached("vm.toml --name web");
  run_detached("vm.toml --name mail");
  EXPECT_EQ(lethe("ps -q").out, "mail\nweb\n");
  const std::string pid = std::to_string(pid_of("mail"));
  EXPECT_THAT(lethe("ps").out, MatchesRegex("NAME  STATE +PID +UPTIME  CPUS +MEMORY +RESIDENT\n"
                                            "mail  running +" +
                                            pid + " +[0-9]+ s +1 +16 MiB +[0-9.]+ MiB\nweb .*\n"));
  const std::string json = lethe("ps --json").out;
  EXPECT_THAT(json, StartsWith("[{\"name\":\"mail\",\"state\":\"running\",\"pid\":" + pid + ","));
  EXPECT_THAT(json, HasSubstr("\"memory_bytes\":16777216,"));
  EXPECT_THAT(json, HasSubstr("\"config\":\"" + x_dir + "/vm.toml\""));
}

TEST_F(Lifecycle, second_start_of_a_name_says_who_has_it) {
  run_detached();
  for (const char* words : {"run vm.toml", "run -d vm.toml"}) {
    const Ran ran = lethe(words);
    EXPECT_EQ(ran.code, 1);
    EXPECT_THAT(ran.err, MatchesRegex("lethe: 'vm' is running already, as process " +
                                      std::to_string(pid_of("vm")) + ", since [-0-9: ]+, from '" +
                                      x_dir + "/vm.toml': stop that one .*\n"));
  }
}

TEST_F(Lifecycle, of_two_detached_starts_of_one_name_exactly_one_wins) {
  for (int round = 0; round < 5; ++round) {
    const std::string start = program() + " run -d vm.toml 2>>errs & ";
    const std::string command = "cd " + x_dir + " && { " + start + "a=$!; " + start +
                                "b=$!; wait $a; ra=$?; wait $b; echo $ra $? >codes; } </dev/null";
    ASSERT_EQ(std::system(("timeout 60 bash -c '" + command + "'").c_str()), 0);
    EXPECT_THAT(read("codes"), testing::AnyOf("0 1\n", "1 0\n")) << read("errs");
    EXPECT_THAT(read("errs"), HasSubstr("'vm' is running already"));
    EXPECT_EQ(lethe("ps -q").out, "vm\n");
    EXPECT_EQ(lethe("kill vm").code, 0);
  }
}

TEST_F(Lifecycle, name_of_a_killed_process_is_used_again) {
  run_detached();
  wait_for_log("echo is ready");
  const pid_t pid = pid_of("vm");
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  EXPECT_TRUE(soon([&] { return lethe("ps -q").out.empty(); }));
  EXPECT_TRUE(std::filesystem::exists(x_dir + "/lethe/vm/console.sock"));
  for (const char* command : {"console", "stop", "kill"}) {
    const Ran ran = lethe(std::string(command) + " vm");
    EXPECT_EQ(ran.code, 1);
    EXPECT_EQ(ran.err, "lethe: 'vm' does not run, nor does any other VM\n");
  }
  const Ran log = lethe("log vm");
  EXPECT_EQ(log.code, 0);
  EXPECT_THAT(log.err, HasSubstr("ended without a word"));
  run_detached();
  wait_for_log("echo is ready");
}

TEST_F(Lifecycle, stop_waits_gives_up_and_forces) {
  write("deaf.toml", config("ignore-button"));
  run_detached("deaf.toml");
  wait_for_log("waiting for the power button", "deaf");
  Ran ran = lethe("stop deaf --timeout 0.3");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err,
            "lethe: stop: 'deaf' did not power off within 0.3 s: lethe stop --force, or lethe "
            "kill, ends it by force\n");
  EXPECT_EQ(lethe("ps -q").out, "deaf\n");
  ran = lethe("stop deaf --timeout 0.3 --force");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "deaf: ended\n");
  EXPECT_EQ(lethe("ps -q").out, "");
  EXPECT_EQ(lethe("log deaf --messages").out, "lethe: 'deaf' ended: exit code 6\n");
}

TEST_F(Lifecycle, stop_takes_several_names_or_all) {
  for (const char* name : {"a", "b", "c"}) run_detached(std::string("vm.toml --name ") + name);
  for (const char* name : {"a", "b", "c"}) wait_for_log("echo is ready", name);
  Ran ran = lethe("stop a nobody");
  EXPECT_EQ(ran.code, 1);
  EXPECT_EQ(ran.err, "lethe: 'nobody' does not run; running: a, b, c\n");
  EXPECT_EQ(lethe("ps -q").out, "a\nb\nc\n") << "nothing was done to the others";
  EXPECT_EQ(lethe("stop b a b").code, 0);
  EXPECT_EQ(lethe("ps -q").out, "c\n");
  ran = lethe("stop --all");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "c: ended\n");
  EXPECT_EQ(lethe("stop --all").code, 0);
}

TEST_F(Lifecycle, stop_is_interrupted_and_leaves_the_vm_to_itself) {
  write("deaf.toml", config("ignore-button"));
  run_detached("deaf.toml");
  wait_for_log("waiting for the power button", "deaf");
  PtyProcess stop = on_terminal({"stop", "deaf"});
  ASSERT_TRUE(stop.wait_for("stop: 0 of 1 have ended, waiting for 'deaf' (0 s)"));
  stop.send(SIGINT);
  EXPECT_EQ(WEXITSTATUS(stop.wait_for_end()), 130);
  EXPECT_THAT(stop.seen(), HasSubstr("interrupted; 'deaf' was asked to power off"));
  EXPECT_EQ(lethe("ps -q").out, "deaf\n");
}

TEST_F(Lifecycle, kill_ends_a_vm_and_a_stuck_process) {
  run_detached("vm.toml --name a");
  EXPECT_EQ(lethe("kill a").out, "a: ended\n");
  EXPECT_EQ(lethe("log a --messages").out, "lethe: 'a' ended: exit code 6\n");
  // A process that takes no signals but SIGKILL: it is stopped.
  run_detached("vm.toml --name b");
  ASSERT_EQ(kill(pid_of("b"), SIGSTOP), 0);
  const Ran ran = lethe("kill b");
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.out, "b: ended\n");
  EXPECT_EQ(ran.err, "lethe: kill: 'b' did not end when told so: killed\n");
}

TEST_F(Lifecycle, pause_and_resume_stop_the_guest_for_a_while) {
  run_detached();
  wait_for_log("echo is ready\n");
  EXPECT_EQ(lethe("pause vm").code, 0);
  EXPECT_THAT(lethe("ps").out, HasSubstr("\nvm    paused "));
  EXPECT_EQ(lethe("pause vm").code, 0) << "it is paused already";
  // What is typed now is echoed when the guest goes on.
  PtyProcess console = on_terminal({"console", "vm"});
  ASSERT_TRUE(console.wait_for("echo is ready"));
  console.type("p");
  EXPECT_EQ(lethe("stats vm").code, 0);
  EXPECT_THAT(console.seen(), testing::Not(HasSubstr("[p]")));
  EXPECT_EQ(lethe("resume --all").code, 0);
  ASSERT_TRUE(console.wait_for("[p]"));
  EXPECT_THAT(lethe("ps").out, HasSubstr("\nvm    running "));
  EXPECT_EQ(lethe("resume vm").code, 0);
  // A paused VM can be stopped: the button lets it go on.
  EXPECT_EQ(lethe("pause vm").code, 0);
  EXPECT_EQ(lethe("stop vm").out, "vm: ended\n");
}

TEST_F(Lifecycle, console_shows_what_was_typed_and_detaches) {
  run_detached();
  wait_for_log("echo is ready\n");
  PtyProcess console = on_terminal({"console", "vm"});
  ASSERT_TRUE(console.wait_for("echo is ready"));
  EXPECT_TRUE(console.raw());
  console.type("a");
  ASSERT_TRUE(console.wait_for("[a]"));
  console.type("\1h");
  ASSERT_TRUE(console.wait_for("leave (the guest goes on)"));
  // A second one sees the same, and types too.
  PtyProcess other = on_terminal({"console", "vm"});
  ASSERT_TRUE(other.wait_for("[a]"));
  other.type("b");
  ASSERT_TRUE(other.wait_for("[b]"));
  ASSERT_TRUE(console.wait_for("[b]"));
  console.type("\1x");
  EXPECT_EQ(WEXITSTATUS(console.wait_for_end()), 0);
  EXPECT_TRUE(console.restored());
  EXPECT_EQ(lethe("ps -q").out, "vm\n");
  // The guest's reboot is no end of the console; its end is.
  other.forget();
  other.type("r");
  ASSERT_TRUE(other.wait_for("echo is ready"));
  other.type("\1p");
  EXPECT_EQ(WEXITSTATUS(other.wait_for_end()), 0);
  EXPECT_THAT(other.seen(), HasSubstr("power button pressed"));
  EXPECT_THAT(other.seen(), HasSubstr("'vm' has closed its console"));
  EXPECT_TRUE(other.restored());
}

TEST_F(Lifecycle, console_gives_the_terminal_back_on_every_way_out) {
  run_detached();
  wait_for_log("echo is ready\n");
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGSEGV, SIGABRT}) {
    SCOPED_TRACE(signal);
    PtyProcess console = on_terminal({"console", "vm"});
    ASSERT_TRUE(console.wait_for("echo is ready"));
    console.send(signal);
    const int status = console.wait_for_end();
    const bool crash = signal == SIGSEGV || signal == SIGABRT;
    EXPECT_EQ(WIFSIGNALED(status), crash);
    if (!crash) EXPECT_EQ(WEXITSTATUS(status), 128 + signal);
    EXPECT_TRUE(console.restored());
  }
}

TEST_F(Lifecycle, console_takes_keys_from_a_pipe) {
  run_detached();
  wait_for_log("echo is ready\n");
  const std::string command =
      "cd " + x_dir + " && printf xq | timeout 60 " + program() + " console vm >out 2>err";
  EXPECT_EQ(std::system(command.c_str()), 0) << read("err");
  EXPECT_THAT(read("out"), EndsWith("echo is ready\n[x]\n[q]\n"));
}

TEST_F(Lifecycle, foreground_runs_have_a_console_for_others_too) {
  PtyProcess run = on_terminal({"run", x_dir + "/vm.toml"});
  ASSERT_TRUE(run.wait_for("echo is ready"));
  PtyProcess console = on_terminal({"console", "vm"});
  ASSERT_TRUE(console.wait_for("echo is ready"));
  console.type("z");
  ASSERT_TRUE(console.wait_for("[z]"));
  ASSERT_TRUE(run.wait_for("[z]"));
  run.type("q");
  EXPECT_EQ(WEXITSTATUS(run.wait_for_end()), 0);
  EXPECT_EQ(WEXITSTATUS(console.wait_for_end()), 0);
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/lethe/vm")) << "only detached VMs leave anything";
}

TEST_F(Lifecycle, log_follows_and_ends_with_the_vm) {
  run_detached();
  wait_for_log("echo is ready\n");
  EXPECT_EQ(lethe("log vm -n 1").out, "echo is ready\n");
  EXPECT_EQ(lethe("log vm -n 0").out, "");
  PtyProcess log = on_terminal({"log", "vm", "-f", "-n", "1"});
  ASSERT_TRUE(log.wait_for("echo is ready"));
  EXPECT_THAT(log.seen(), testing::Not(HasSubstr("run machine/echo")));
  PtyProcess console = on_terminal({"console", "vm"});
  ASSERT_TRUE(console.wait_for("echo is ready"));
  console.type("k");
  ASSERT_TRUE(log.wait_for("[k]"));
  console.type("q");
  EXPECT_EQ(WEXITSTATUS(log.wait_for_end()), 0);
  EXPECT_THAT(log.seen(), HasSubstr("[q]"));
}

TEST_F(Lifecycle, log_that_follows_ends_at_a_signal_and_with_its_reader) {
  run_detached();
  wait_for_log("echo is ready\n");
  for (const int signal : {SIGINT, SIGTERM}) {
    PtyProcess log = on_terminal({"log", "vm", "--follow"});
    ASSERT_TRUE(log.wait_for("echo is ready"));
    log.send(signal);
    EXPECT_EQ(WEXITSTATUS(log.wait_for_end()), 128 + signal);
  }
  const std::string command = "timeout 60 bash -c 'set -o pipefail; " + program() +
                              " log vm --follow | head -n 1' >/dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0) << "a closed standard output is no error";
}

TEST_F(Lifecycle, log_keeps_the_last_64_kib) {
  run_detached();
  wait_for_log("echo is ready\n");
  const std::string command =
      "printf fx | timeout 60 " + program() + " console vm | grep -qm1 '^.x.'";
  EXPECT_EQ(std::system(command.c_str()), 0);
  const std::string log = lethe("log vm").out;
  EXPECT_EQ(log.size(), 64u * 1024);
  EXPECT_TRUE(log.ends_with("flood 000002500 ..............\n[x]\n")) << log.substr(65000);
}

}  // namespace
