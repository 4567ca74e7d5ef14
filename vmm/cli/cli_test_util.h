// For tests: the built program, run by a shell in a directory of its own, where no VM runs.
#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace lethe {

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

class Cli : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-cli-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    ::setenv("XDG_RUNTIME_DIR", made, 1);
  }
  void TearDown() override { std::filesystem::remove_all(x_dir); }

  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(x_dir + "/" + name) << text;
    return x_dir + "/" + name;
  }
  std::string read(const std::string& name) {
    std::ifstream file(x_dir + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // `words` are shell words after the program, `before` what runs it.
  Ran lethe(const std::string& words, const std::string& before = "") {
    const std::string command =
        fmt::format("cd {0} && timeout 20 {1} {2} {3} >{0}/out 2>{0}/err </dev/null", x_dir, before,
                    LETHE_PROGRAM, words);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  void expect_refused(const std::string& words, int code, const std::string& part,
                      const std::string& before = "") {
    SCOPED_TRACE(words);
    const Ran ran = lethe(words, before);
    EXPECT_EQ(ran.code, code);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, testing::StartsWith("lethe: "));
    EXPECT_THAT(ran.err, testing::HasSubstr(part));
    EXPECT_THAT(ran.err, testing::EndsWith("\n"));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  }

  std::string x_dir;
};

}  // namespace lethe
