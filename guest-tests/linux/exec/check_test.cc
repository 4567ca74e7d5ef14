// `lethe check` with commands in the guest, from config to report: a script stands for `lethe run`,
// a Unix socket for the guest's vsock, and behind it is the real agent, which runs the commands
// here.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "guest-tests/linux/exec/serve.h"
#include "vmm/check/check_fixture.h"
#include "vmm/exec/fake_vsock.h"
#include "vmm/exec/protocol.h"

namespace lethe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class CheckExec : public CheckFixture {
 protected:
  void SetUp() override {
    CheckFixture::SetUp();
    // Ends when the file `end` is there, or by a signal.
    locked_stub(
        "trap 'exit 6' TERM\n"
        "echo booted\n"
        "while ! [ -e end ]; do sleep 0.01; done\n"
        "exit \"$(cat end)\"\n");
    x_options.inputs = {x_dir + "/a.toml"};
    fs::create_directories(x_dir + "/lethe/check-1-a");
    start_agent([](UniqueFd fd) { exec::serve(std::move(fd)); });
  }
  void TearDown() override {
    x_vsock.reset();
    CheckFixture::TearDown();
  }

  void start_agent(FakeVsock::Guest guest) {
    x_vsock.reset();
    x_vsock.emplace(x_dir + "/lethe/check-1-a/vsock.sock", std::move(guest));
  }
  // A guest with these keys of [check], and these [[check.exec]].
  void guest(const std::string& check, const std::vector<std::string>& steps) {
    std::string text = fmt::format("[boot]\nkernel = \"k\"\n{}[check]\n{}\n", kVsockTable, check);
    for (const std::string& step : steps) text += "[[check.exec]]\n" + step + "\n";
    write("a.toml", text);
  }

  static constexpr const char* kVsockTable = "[vsock]\nenabled = true\n";
  std::optional<FakeVsock> x_vsock;
  std::string x_code;  // what the guest ends with
};

TEST_F(CheckExec, commands_run_in_order_and_end_the_guest) {
  guest("exit = \"exec\"",
        {fmt::format("shell = 'echo one; pwd > {}/seen'\ncwd = \"/usr\"", x_dir),
         fmt::format("run = [\"cat\", \"{}/seen\"]\nstdout_match = ['^/usr$']", x_dir),
         "shell = 'cat >&2; exit 3'\nstdin = \"to stderr\\n\"\nexpect_exit = 3\n"
         "stderr_match = ['^to stderr$']\nstdout_not_match = ['.']\nenv = [\"A=1\"]"});
  EXPECT_EQ(run(), 0) << x_out << x_err;
  EXPECT_THAT(x_out, HasSubstr("1 passed, 0 failed"));
  EXPECT_EQ(x_vsock->last_port(), 1024u);
  EXPECT_EQ(read("logs/a.exec.log"),
            fmt::format("$ echo one; pwd > {0}/seen\none\n--- exit code 0\n"
                        "$ cat {0}/seen\n/usr\n--- exit code 0\n"
                        "$ cat >&2; exit 3\n--- stderr:\nto stderr\n--- exit code 3\n",
                        x_dir));
}

TEST_F(CheckExec, a_wrong_exit_code_is_found_and_the_step_is_named) {
  guest("exit = \"exec\"", {"shell = 'true'", "shell = '''echo out\necho why >&2\nexit 2'''",
                            fmt::format("shell = 'touch {}/ran'", x_dir)});
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out,
              HasSubstr("exec: step 2 of 3 'echo out...': exit code 2, expected exit code 0; "
                        "its stderr ends with 'why'\n"));
  EXPECT_THAT(x_out, HasSubstr("      the command's output:\n      | stdout, last lines:\n"
                               "      | out\n      | stderr, last lines:\n      | why\n"));
  EXPECT_THAT(x_out, Not(HasSubstr("expected to be ended")));
  EXPECT_THAT(x_junit,
              HasSubstr("<failure message=\"exec: step 2 of 3 'echo out...': exit code 2"));
  EXPECT_THAT(x_junit, HasSubstr("command's output, last lines:\nstdout, last lines:\nout\n"));
  EXPECT_FALSE(fs::exists(x_dir + "/ran"));
}

TEST_F(CheckExec, a_wrong_output_is_found) {
  guest("exit = \"exec\"",
        {"shell = 'echo alpha; echo beta'\nstdout_match = ['gamma']\nstdout_not_match = ['^al']"});
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("exec: step 1 of 1 'echo alpha; echo beta': stdout has no match of "
                               "'gamma'; stdout matches '^al', which it must not: 'alpha'; its "
                               "stdout ends with 'beta'\n"));
}

TEST_F(CheckExec, other_ends_are_told_apart) {
  const auto failure_of = [&](const std::string& step) {
    guest("exit = \"exec\"", {step});
    EXPECT_EQ(run(), 1);
    return x_out;
  };
  EXPECT_THAT(failure_of("shell = 'kill -9 $$'"),
              HasSubstr("killed by signal 9 (Killed), expected"));
  EXPECT_THAT(failure_of("shell = 'echo on; sleep 1000'\ntimeout_ms = 2000"),
              HasSubstr("timeout: still running after 2.0 s; its stdout ends with 'on'\n"));
  EXPECT_THAT(failure_of("run = [\"/no/such\"]"),
              HasSubstr("the agent refuses: cannot run '/no/such': No such file or directory"));
  EXPECT_THAT(failure_of("run = [\"yes\"]\noutput_max = \"64K\""),
              HasSubstr("printed 64K or more (output_max)\n"));
}

TEST_F(CheckExec, timeouts_are_scaled) {
  guest("exit = \"exec\"", {"shell = 'sleep 0.5'\ntimeout_ms = 50"});
  x_options.timeout_scale = 200;
  EXPECT_EQ(run(), 0) << x_out;
}

TEST_F(CheckExec, artifacts_come_out_of_a_guest_that_passes_and_of_one_that_fails) {
  fs::create_directories(x_dir + "/g/dir/deep");
  write("g/dir/x", std::string(100'000, 'x'));
  write("g/dir/deep/y", "y");
  write("g/file", "content");
  fs::create_symlink("deep/y", x_dir + "/g/dir/link");
  const std::string keys =
      fmt::format("exit = \"exec\"\nartifacts = [\"{0}/g/dir\", \"{0}/g/file\"]", x_dir);
  for (const int code : {0, 1}) {
    guest(keys, {fmt::format("shell = 'exit {}'", code)});
    fs::create_directories(x_dir + "/logs/a.artifacts/of-a-run-before");
    EXPECT_EQ(run(), code) << x_out;
    const std::string root = "logs/a.artifacts" + x_dir + "/g";
    EXPECT_EQ(read(root + "/dir/x"), std::string(100'000, 'x'));
    EXPECT_EQ(read(root + "/dir/deep/y"), "y");
    EXPECT_EQ(read(root + "/dir/link"), "y");
    EXPECT_FALSE(fs::is_symlink(x_dir + "/" + root + "/dir/link"));
    EXPECT_EQ(read(root + "/file"), "content");
    EXPECT_FALSE(fs::exists(x_dir + "/logs/a.artifacts/of-a-run-before"));
    EXPECT_THAT(read("logs/a.exec.log"),
                HasSubstr(fmt::format("artifact {}/g/file: 7 bytes\n", x_dir)));
  }
}

TEST_F(CheckExec, an_artifact_that_is_not_there_or_too_large_fails) {
  write("large", std::string(5000, 'x'));
  guest(fmt::format("exit = \"exec\"\nartifacts = [\"/no/such\", \"{}/large\"]\n"
                    "artifacts_max = \"4K\"",
                    x_dir),
        {"shell = 'true'"});
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out,
              HasSubstr("exec: artifact '/no/such': exit code 2; its stderr ends with 'tar"));
  EXPECT_THAT(x_out, HasSubstr("large': more than 4K (check.artifacts_max)"));
}

TEST_F(CheckExec, an_artifact_that_changes_while_it_is_read_is_none_that_fails) {
  write("grows", "content");
  fs::create_directory(x_dir + "/bin");
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", (x_dir + "/bin:" + path).c_str(), 1);
  guest(fmt::format("exit = \"exec\"\nartifacts = [\"{}/grows\"]", x_dir), {"shell = 'true'"});
  const auto run_with = [&](const std::string& says, int code) {
    write("bin/tar", fmt::format("#!/bin/sh\nPATH='{}' tar \"$@\"\n"
                                 "[ \"$LC_ALL\" = C ] && printf '{}' >&2\nexit {}\n",
                                 path, says, code));
    EXPECT_EQ(::chmod((x_dir + "/bin/tar").c_str(), 0755), 0);
    return run();
  };
  EXPECT_EQ(run_with("tar: ./grows: file changed as we read it\\n", 1), 0) << x_out;
  EXPECT_EQ(read("logs/a.artifacts" + x_dir + "/grows"), "content");
  EXPECT_THAT(read("logs/a.exec.log"),
              HasSubstr("grows: 7 bytes, and tar warned; its stderr ends with 'tar: ./grows: file "
                        "changed as we read it'\n"));
  EXPECT_EQ(run_with("tar: ./grows: file changed as we read it\\n", 2), 1);
  EXPECT_EQ(run_with("tar: ./x: No such file or directory\\n", 1), 1);
  EXPECT_EQ(run_with("", 1), 1);
  EXPECT_THAT(x_out, HasSubstr("grows': exit code 1; it printed nothing"));
  ::setenv("PATH", path.c_str(), 1);
}

TEST_F(CheckExec, without_out_artifacts_stay_in_the_guest_and_that_is_said) {
  guest("exit = \"exec\"\nartifacts = [\"/no/such\"]", {"shell = 'true'"});
  x_options.out_dir.clear();
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_THAT(x_out, HasSubstr("NOTE artifacts are not fetched: give --out DIR to keep them\n"));
}

TEST_F(CheckExec, a_guest_whose_agent_never_answers_fails_at_its_deadline) {
  start_agent(nullptr);
  guest("exit = \"exec\"\ndeadline_ms = 3000", {"shell = 'true'"});
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(run(), 1);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
  EXPECT_THAT(x_out, HasSubstr("timeout: still running at its deadline of 3.0 s; exec: step 1 of 1 "
                               "'true': no agent answers: "));
}

TEST_F(CheckExec, a_guest_that_ends_meanwhile_fails) {
  guest("exit = \"exec\"", {fmt::format("shell = 'echo 4 > {}/end; sleep 1000'", x_dir)});
  // The VM's end closes its sockets; here the agent's thread sees to it.
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out,
              AllOf(HasSubstr("expected to be ended after the last step in it, but the guest "
                              "panicked"),
                    HasSubstr("exec: step 1 of 1 '")));
}

TEST_F(CheckExec, lethe_that_crashes_when_its_guest_is_ended_fails_it) {
  guest("exit = \"exec\"", {"shell = 'true'"});
  const std::string stub = read("stub");
  const std::string trap = "trap 'exit 6' TERM";
  const auto run_with = [&](const std::string& at_end) {
    write("stub",
          std::string(stub).replace(stub.find(trap), trap.size(), "trap '" + at_end + "' TERM"));
    return run();
  };
  EXPECT_EQ(run_with("kill -SEGV $$"), 1);
  EXPECT_THAT(x_out, HasSubstr("expected to be ended with the steps, but lethe was killed by "
                               "signal 11"));
  EXPECT_EQ(run_with("exit 1"), 1);
  EXPECT_THAT(x_out, HasSubstr("but the host failed it"));
  EXPECT_EQ(run_with("exit 0"), 0) << x_out;
}

TEST_F(CheckExec, the_last_command_may_power_the_guest_off) {
  start_agent([this](UniqueFd fd) {
    // The guest is gone while the command runs.
    char c = 0;
    while (::recv(fd.get(), &c, 1, 0) == 1 && c != '\n') {
    }
    const std::string started = exec::frame_of(exec::FrameType::kStarted, exec::Started{1, 1});
    (void)!::send(fd.get(), started.data(), started.size(), MSG_NOSIGNAL);
    write("end", x_code);
  });
  guest("", {"shell = 'poweroff -f'"});
  x_code = "0";
  EXPECT_EQ(run(), 0) << x_out;
  fs::remove(x_dir + "/end");
  x_code = "4";
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr(": expected poweroff, but the guest panicked\n"));
}

TEST_F(CheckExec, a_hostile_guest_is_told_and_nothing_of_it_believed) {
  start_agent([](UniqueFd fd) {
    (void)!::send(fd.get(), "HTTP/1.1 200 OK\r\n\r\n", 19, MSG_NOSIGNAL);
    char c = 0;
    while (::recv(fd.get(), &c, 1, 0) > 0) {
    }
  });
  guest("exit = \"exec\"", {"shell = 'true'"});
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("the guest is no agent: a frame of unknown type, or too long"));
}

TEST_F(CheckExec, a_pattern_that_is_none_stops_all_before_it_starts) {
  guest("", {"shell = 'true'\nstdout_match = ['(']"});
  EXPECT_EQ(run(), 2);
  EXPECT_THAT(x_err, HasSubstr("key 'check.exec.stdout_match', entry 1: '(' is no regular"));
}

}  // namespace
}  // namespace lethe
