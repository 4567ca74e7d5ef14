// For tests of `lethe check`: a folder that is the run-time directory too, with scripts that stand
// for `lethe` and its helpers, and what the last run said.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "vmm/check/check.h"

namespace lethe {

class CheckFixture : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-check-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    const char* const before = std::getenv("XDG_RUNTIME_DIR");
    if (before != nullptr) x_xdg_before = before;
    ::setenv("XDG_RUNTIME_DIR", made, 1);
    x_options.program = x_dir + "/stub";
    x_options.junit_file = x_dir + "/out.xml";
    x_options.out_dir = x_dir + "/logs";
  }
  void TearDown() override {
    if (x_xdg_before)
      ::setenv("XDG_RUNTIME_DIR", x_xdg_before->c_str(), 1);
    else
      ::unsetenv("XDG_RUNTIME_DIR");
    std::filesystem::remove_all(x_dir);
  }

  void write(const std::string& name, const std::string& text) {
    std::ofstream(x_dir + "/" + name) << text;
  }
  void script(const std::string& name, const std::string& text) {
    write(name, "#!/bin/sh\n" + text);
    ASSERT_EQ(::chmod((x_dir + "/" + name).c_str(), 0755), 0);
  }
  // The script `stub`, which stands for `lethe run`: it holds its run-time directory's lock, and
  // does `then` in the config's folder.
  void locked_stub(const std::string& then) {
    script("stub",
           "run_dir=$XDG_RUNTIME_DIR/lethe/$5\n"
           "mkdir -p -m 700 \"$run_dir\"\n"
           "exec 9>\"$run_dir/lock\"; flock 9; echo $$ >&9\n"
           "cd \"$(dirname \"$2\")\" || exit 98\n" +
               then);
  }
  // For stubs: runs the config's command line as shell.
  static constexpr const char* kRunCmdline =
      "eval \"$(sed -n \"s/^cmdline = '''\\(.*\\)'''$/\\1/p\" \"$2\")\"\n";

  std::string read(const std::string& name) {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // The exit code; stdout goes to x_out, stderr to x_err, the report to x_junit.
  int run() {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = run_checks(x_options);
    x_out = testing::internal::GetCapturedStdout();
    x_err = testing::internal::GetCapturedStderr();
    x_junit = read("out.xml");
    return code;
  }

  std::string x_dir;
  CheckOptions x_options;
  std::string x_out, x_err, x_junit;

 private:
  std::optional<std::string> x_xdg_before;
};

}  // namespace lethe
