#include "base/log.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace lethe {
namespace {

class LogTest : public testing::Test {
 protected:
  ~LogTest() override { (void)set_log_levels("warn"); }
};

TEST_F(LogTest, default_level_is_warn) {
  EXPECT_TRUE(log_enabled(LogModule::kBlock, LogLevel::kWarn));
  EXPECT_FALSE(log_enabled(LogModule::kBlock, LogLevel::kInfo));
}

TEST_F(LogTest, spec_sets_all_modules_then_single_ones) {
  ASSERT_TRUE(set_log_levels("error,block=debug").has_value());
  EXPECT_TRUE(log_enabled(LogModule::kBlock, LogLevel::kDebug));
  EXPECT_FALSE(log_enabled(LogModule::kBlock, LogLevel::kTrace));
  EXPECT_TRUE(log_enabled(LogModule::kVirtio, LogLevel::kError));
  EXPECT_FALSE(log_enabled(LogModule::kVirtio, LogLevel::kWarn));
}

TEST_F(LogTest, unknown_words_are_named_and_nothing_changes) {
  const auto level = set_log_levels("block=debug,loud");
  ASSERT_FALSE(level.has_value());
  EXPECT_NE(level.error().text.find("'loud'"), std::string::npos) << level.error().text;
  EXPECT_EQ(level.error().kind, ErrorClass::kConfig);
  const auto module = set_log_levels("blok=debug");
  ASSERT_FALSE(module.has_value());
  EXPECT_NE(module.error().text.find("'blok'"), std::string::npos) << module.error().text;
  EXPECT_FALSE(log_enabled(LogModule::kBlock, LogLevel::kDebug));
}

TEST_F(LogTest, line_says_level_module_and_text_on_stderr) {
  testing::internal::CaptureStderr();
  log_warn(LogModule::kBlock, "{}: short read", "disk.img");
  log_info(LogModule::kBlock, "not wanted");
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "lethe: warning: block: disk.img: short read\n");
}

TEST_F(LogTest, off_silences_a_module) {
  ASSERT_TRUE(set_log_levels("rng=off").has_value());
  testing::internal::CaptureStderr();
  log_error(LogModule::kRng, "nobody reads this");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(LogTest, limiter_lets_ten_lines_through_then_one_a_second) {
  LogLimiter limiter;
  const auto begin = std::chrono::steady_clock::now();
  int admitted = 0;
  int refused = 0;
  uint64_t held = 0;
  while (admitted < 11) {
    if (limiter.admit(held)) {
      ++admitted;
      if (admitted <= 10) EXPECT_EQ(held, 0U);
    } else {
      EXPECT_EQ(admitted, 10);
      ++refused;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  }
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(950));
  EXPECT_EQ(held, static_cast<uint64_t>(refused)) << "each line held back is counted once";
}

TEST_F(LogTest, limited_log_stops_a_flood) {
  testing::internal::CaptureStderr();
  for (int i = 0; i < 1000; ++i) LETHE_LOG_LIMITED(LogModule::kVirtio, "flood {}", i);
  const std::string text = testing::internal::GetCapturedStderr();
  size_t lines = 0;
  for (const char c : text) lines += c == '\n' ? 1 : 0;
  EXPECT_GE(lines, 10U);
  EXPECT_LE(lines, 14U) << text;
}

}  // namespace
}  // namespace lethe
