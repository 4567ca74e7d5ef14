// `lethe exec`, the built program, with the real agent behind a Unix socket: streams, exit codes.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "base/test_util.h"
#include "guest-tests/linux/exec/serve.h"
#include "vmm/exec/fake_vsock.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

using testing::HasSubstr;

struct Ran {
  int code = -1;
  std::string out, err;
};

class ExecCommand : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-exc-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    auto run_dir = RunDir::create("web", {.xdg = x_dir, .run_user = "", .temporary = ""});
    ASSERT_TRUE(run_dir);
    x_run_dir.emplace(std::move(*run_dir));
    x_vsock.emplace(socket(), [](UniqueFd fd) { exec::serve(std::move(fd)); });
    x_run_dir->set_ready();
  }
  void TearDown() override {
    x_vsock.reset();
    x_run_dir.reset();
    std::filesystem::remove_all(x_dir);
  }
  [[nodiscard]] std::string socket() const { return x_run_dir->path() + "/" + kVsockSocketName; }
  std::string read(const std::string& name) {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // `words` are shell words after `lethe exec`; `before` is a shell's beginning of the line.
  Ran run(const std::string& words, const std::string& before = "") {
    const std::string command =
        fmt::format("cd {0} && {1} XDG_RUNTIME_DIR={0} timeout 20 {2} exec {3} >{0}/out 2>{0}/err",
                    x_dir, before, LETHE_PROGRAM, words);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }

  // Its exit code; 128 + SIGKILL if it took too long: then all that it started is killed, too.
  int run_script(const std::string& script) {
    std::ofstream(x_dir + "/script") << script << "\n";
    const int status = std::system(
        fmt::format("cd {0} && XDG_RUNTIME_DIR={0} timeout -s KILL 30 bash script", x_dir).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string x_dir;
  std::optional<RunDir> x_run_dir;
  std::optional<FakeVsock> x_vsock;
};

TEST_F(ExecCommand, streams_and_exit_code_are_the_commands) {
  const Ran ran = run("web -- sh -c 'echo out; echo err >&2; exit 42'");
  EXPECT_EQ(ran.code, 42);
  EXPECT_EQ(ran.out, "out\n");
  EXPECT_EQ(ran.err, "err\n");
}

TEST_F(ExecCommand, input_is_given_when_it_is_asked_for) {
  EXPECT_EQ(run("-i web -- wc -c", "head -c 300000 /dev/zero |").out, "300000\n");
  EXPECT_EQ(run("web -- wc -c", "echo not read |").out, "0\n");
  std::ofstream(x_dir + "/file") << "of a file";
  EXPECT_EQ(run("-i web -- cat <file").out, "of a file");
}

TEST_F(ExecCommand, environment_and_directory_are_set) {
  EXPECT_EQ(run("-e A=1 -e B=2=3 --cwd /usr web -- sh -c 'echo $A $B; pwd'").out, "1 2=3\n/usr\n");
}

TEST_F(ExecCommand, other_ends_have_codes_of_their_own) {
  EXPECT_EQ(run("web -- sh -c 'kill -9 $$'").code, 137);
  const Ran late = run("--timeout 0.3 web -- sleep 1000");
  EXPECT_EQ(late.code, 124);
  EXPECT_EQ(late.err, "lethe: exec: 'web': timeout\n");
  const Ran missing = run("web -- /no/such");
  EXPECT_EQ(missing.code, 126);
  EXPECT_THAT(missing.err, HasSubstr("cannot run '/no/such': No such file or directory\n"));
}

TEST_F(ExecCommand, without_a_vm_or_an_agent_one_line_says_so) {
  const Ran nobody = run("nobody -- true");
  EXPECT_EQ(nobody.code, 125);
  EXPECT_EQ(nobody.err, "lethe: 'nobody' does not run; running: web\n");
  x_vsock.emplace(socket(), nullptr);
  const Ran silent = run("--wait 0.3 web -- true");
  EXPECT_EQ(silent.code, 125);
  EXPECT_THAT(silent.err, HasSubstr("no agent answers: nobody listens at vsock port 1024"));
  EXPECT_THAT(silent.err, HasSubstr("the guest must run lethe-exec"));
}

TEST_F(ExecCommand, wrong_words_are_refused) {
  EXPECT_EQ(run("").code, 2);
  EXPECT_EQ(run("web").code, 2);
  EXPECT_EQ(run("-e =1 web -- true").code, 2);
  EXPECT_EQ(run("--timeout nan web -- true").code, 2);
  const Ran help = run("--help");
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("lethe exec web -- uname -a"));
}

TEST_F(ExecCommand, a_signal_ends_the_command_too) {
  EXPECT_EQ(run_script(fmt::format("{} exec web -- sh -c 'echo $$ >{}/pid; exec sleep 1000' & "
                                   "until [ -s pid ]; do sleep 0.05; done; kill -TERM $!; wait $!",
                                   LETHE_PROGRAM, x_dir)),
            128 + SIGTERM);
  EXPECT_TRUE(eventually([&] { return ::kill(std::stoi(read("pid")), 0) != 0; }));
}

TEST_F(ExecCommand, a_signal_ends_it_while_its_output_is_blocked) {
  ASSERT_EQ(::mkfifo((x_dir + "/fifo").c_str(), 0600), 0);
  const UniqueFd fifo(::open((x_dir + "/fifo").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  ASSERT_TRUE(fifo.valid());
  std::thread looks([&] {
    EXPECT_TRUE(eventually([&] {
      pollfd room{fifo.get(), POLLOUT, 0};
      return ::poll(&room, 1, 0) == 0;
    }));
    std::ofstream(x_dir + "/full") << "full";
  });
  EXPECT_EQ(run_script(fmt::format("{} exec web -- sh -c 'echo $$ >{}/pid; exec yes' >fifo & "
                                   "until [ -s full ]; do sleep 0.05; done; kill -TERM $!; wait $!",
                                   LETHE_PROGRAM, x_dir)),
            128 + SIGTERM);
  looks.join();
  EXPECT_TRUE(eventually([&] { return ::kill(std::stoi(read("pid")), 0) != 0; }));
}

}  // namespace
}  // namespace lethe
