// [[check.exec]]: each command is read whole, and anything wrong with it is told.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/config.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct Parsed {
  VmConfig config;
  std::vector<std::string> errors;
};

Parsed parse(const std::string& text) {
  Parsed parsed;
  parsed.config = parse_config("[boot]\nkernel = \"k\"\n[vsock]\nenabled = true\n" + text,
                               "dir/vm.toml", {}, parsed.errors);
  return parsed;
}

std::string error_of(const std::string& text) {
  const Parsed parsed = parse(text);
  return parsed.errors.size() == 1
             ? parsed.errors[0]
             : fmt::format("{} errors: {}", parsed.errors.size(), fmt::join(parsed.errors, " | "));
}
std::string step_error(const std::string& keys) { return error_of("[[check.exec]]\n" + keys); }

TEST(ConfigExec, reads_every_key) {
  const Parsed parsed = parse(R"(
[check]
exit = "exec"
agent_port = 5000
artifacts = ["/var/log", "/tmp/core.1"]
artifacts_max = "10M"
[[check.exec]]
run = ["make", "test"]
env = ["A=1=2", "B="]
cwd = "/src"
stdin = "yes\n"
expect_exit = 3
stdout_match = ["^ok$"]
stdout_not_match = ["FAIL"]
stderr_match = ["a"]
stderr_not_match = ["b"]
timeout_ms = 500
output_max = "64K"
[[check.exec]]
shell = '''
cd /tmp
ls'''
)");
  EXPECT_THAT(parsed.errors, IsEmpty());
  const CheckConfig& check = parsed.config.check;
  EXPECT_EQ(check.agent_port, 5000u);
  EXPECT_THAT(check.artifacts, ElementsAre("/var/log", "/tmp/core.1"));
  EXPECT_EQ(check.artifacts_max, 10 * kMiB);
  EXPECT_TRUE(check.ends_with_exec());
  EXPECT_THAT(check.exec, ElementsAre(ExecStep{.run = {"make", "test"},
                                               .env = {"A=1=2", "B="},
                                               .cwd = "/src",
                                               .input = "yes\n",
                                               .expect_exit = 3,
                                               .stdout_match = {"^ok$"},
                                               .stdout_not_match = {"FAIL"},
                                               .stderr_match = {"a"},
                                               .stderr_not_match = {"b"},
                                               .timeout_ms = 500,
                                               .output_max = 64 * 1024},
                                      ExecStep{.shell = "cd /tmp\nls"}));
}

TEST(ConfigExec, a_step_has_one_of_run_and_shell) {
  EXPECT_THAT(step_error("expect_exit = 1"), HasSubstr("has none of run and shell"));
  EXPECT_THAT(step_error("run = [\"a\"]\nshell = \"b\""), HasSubstr("has both of run and shell"));
  EXPECT_THAT(step_error("run = []"), HasSubstr("has none of run and shell"));
}

TEST(ConfigExec, wrong_values_are_told) {
  EXPECT_THAT(step_error("run = \"ls\""), HasSubstr("'check.exec.run' is text: it must be"));
  EXPECT_THAT(step_error("shell = \"a\\u0000\""), HasSubstr("'check.exec.shell'"));
  EXPECT_THAT(step_error("shell = \"a\"\ncwd = \"tmp\""), HasSubstr("an absolute path in quotes"));
  EXPECT_THAT(step_error("shell = \"a\"\nenv = [\"=1\"]"), HasSubstr("a list of \"NAME=value\""));
  EXPECT_THAT(step_error("shell = \"a\"\nexpect_exit = 256"), HasSubstr("from 0 to 255"));
  EXPECT_THAT(step_error("shell = \"a\"\noutput_max = \"1G\""),
              HasSubstr("from \"4K\" to \"64M\""));
  EXPECT_THAT(step_error("shel = \"a\""), HasSubstr("did you mean 'check.exec.shell'?"));
}

TEST(ConfigExec, artifacts_are_absolute_paths_without_ways_up) {
  for (const char* path : {"tmp", "/", "//", "/tmp/..", "/../etc", "/a/../b", "../x"})
    EXPECT_THAT(
        error_of(fmt::format("[check]\nartifacts = [\"{}\"]\n[[check.exec]]\nshell = \"a\"", path)),
        HasSubstr("a list of absolute paths without \"..\""))
        << path;
  EXPECT_THAT(
      parse("[check]\nartifacts = [\"/a..b\", \"/..a/b\"]\n[[check.exec]]\nshell = \"a\"").errors,
      IsEmpty());
}

TEST(ConfigExec, commands_need_a_vsock) {
  std::vector<std::string> errors;
  (void)parse_config("[boot]\nkernel = \"k\"\n[[check.exec]]\nshell = \"a\"", "vm.toml", {},
                     errors);
  EXPECT_THAT(errors, ElementsAre(HasSubstr("set vsock.enabled = true too")));
}

TEST(ConfigExec, what_needs_commands_says_so) {
  EXPECT_THAT(error_of("[check]\nexit = \"exec\""), HasSubstr("there is no [[check.exec]]"));
  EXPECT_THAT(error_of("[check]\nartifacts = [\"/tmp\"]"), HasSubstr("there is no [[check.exec]]"));
  std::string many;
  for (size_t i = 0; i <= kExecStepsMax; ++i) many += "[[check.exec]]\nshell = \"a\"\n";
  EXPECT_THAT(error_of(many), HasSubstr("is one too many: at most 256"));
}

}  // namespace
}  // namespace lethe
