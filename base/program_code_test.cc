#include "base/program_code.h"

#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace lethe {
namespace {

struct Code {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  uint64_t rss_kib = 0;
};

// This program's code, as the kernel has it mapped.
Code find_code() {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  std::ifstream smaps("/proc/self/smaps");
  Code code;
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find(" r-xp ") != std::string::npos && line.ends_with(program)) {
      here = true;
      code.begin = std::stoull(line, nullptr, 16);
      code.end = std::stoull(line.substr(line.find('-') + 1), nullptr, 16);
    } else if (here && line.starts_with("Rss:")) {
      code.rss_kib = std::stoull(line.substr(4));
      return code;
    }
  }
  return code;
}

TEST(ProgramCode, what_is_not_used_is_not_mapped) {
  const Code code = find_code();
  ASSERT_LT(code.begin, code.end);
  for (uintptr_t at = code.begin; at < code.end; at += 4096)
    (void)*reinterpret_cast<const volatile uint8_t*>(at);
  const uint64_t all = find_code().rss_kib;
  ASSERT_GE(all, (code.end - code.begin) / 1024 * 9 / 10);
  unmap_unused_code();
  // What finds this out is mapped again: half of it, in the smallest program.
  EXPECT_LT(find_code().rss_kib, all * 7 / 8);
}

TEST(ProgramCode, stays_under_a_debugger_whose_breakpoints_are_in_it) {
  const auto traced = [] {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(2);
    const uint64_t before = find_code().rss_kib;
    unmap_unused_code();
    ::_exit(find_code().rss_kib < before ? 1 : 0);
  };
  EXPECT_EXIT(traced(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace lethe
