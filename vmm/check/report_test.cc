#include "vmm/check/report.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "vmm/check/pattern.h"
#include "vmm/check/verdict.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

LinePatterns patterns(std::vector<std::string> must, std::vector<std::string> must_not) {
  CheckConfig check;
  check.must_match = std::move(must);
  check.must_not_match = std::move(must_not);
  auto compiled = compile_patterns(check, "x.toml");
  EXPECT_TRUE(compiled) << compiled.error().text;
  return compiled ? std::move(*compiled) : LinePatterns();
}

TEST(Junit, escapes_markup_and_what_xml_has_no_place_for) {
  EXPECT_EQ(xml_escape("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
  EXPECT_EQ(xml_escape(std::string("\0\x01\x1b[0m\t\r\n\x7f\xff", 11)),
            "\\x00\\x01\\x1b[0m\t\n\\x7f\\xff");
  EXPECT_EQ(xml_escape("]]>"), "]]&gt;");
}

TEST(ResultsJson, has_an_object_a_guest) {
  EXPECT_EQ(results_json({}), "[]\n");
  std::vector<GuestResult> results(5);
  results[0] = {.name = "p",
                .outcome = Outcome::kPassed,
                .failed_attempts = {"flaky \"1\"", "2"},
                .seconds = 1.5};
  results[1] = {.name = "f", .outcome = Outcome::kFailed, .reasons = {"why\n", "b"}};
  results[2] = {.name = "s", .outcome = Outcome::kSkipped};
  results[3] = {.name = "i", .outcome = Outcome::kInterrupted};
  results[4] = {.name = "n"};
  EXPECT_EQ(
      results_json(results),
      R"([{"name":"p","outcome":"passed","seconds":1.500,"reasons":[],)"
      R"("failed_attempts":["flaky \"1\"","2"]},)"
      R"({"name":"f","outcome":"failed","seconds":0.000,"reasons":["why\u000a","b"],)"
      R"("failed_attempts":[]},)"
      R"({"name":"s","outcome":"skipped","seconds":0.000,"reasons":[],"failed_attempts":[]},)"
      R"({"name":"i","outcome":"interrupted","seconds":0.000,"reasons":[],"failed_attempts":[]},)"
      R"({"name":"n","outcome":"not-run","seconds":0.000,"reasons":[],"failed_attempts":[]}])"
      "\n");
}

TEST(Junit, counts_and_details_every_outcome) {
  std::vector<GuestResult> results(5);
  results[0] = {.name = "p&q", .outcome = Outcome::kPassed, .seconds = 1.5};
  results[1] = {.name = "f",
                .outcome = Outcome::kFailed,
                .reasons = {"why <1>", "why 2"},
                .tail = "tail \x1b\n"};
  results[2] = {.name = "s", .outcome = Outcome::kSkipped, .reasons = {"needs kvm"}};
  results[3] = {.name = "i", .outcome = Outcome::kInterrupted, .reasons = {"interrupted"}};
  results[4] = {.name = "n"};
  EXPECT_EQ(junit_xml(results, 2.25),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
            "<testsuite name=\"lethe check\" tests=\"5\" failures=\"1\" errors=\"2\" skipped=\"1\" "
            "time=\"2.250\">\n"
            "<testcase classname=\"lethe.check\" name=\"p&amp;q\" time=\"1.500\"></testcase>\n"
            "<testcase classname=\"lethe.check\" name=\"f\" time=\"0.000\">\n"
            "<failure message=\"why &lt;1&gt;; why 2\">console, last lines:\ntail \\x1b\n"
            "</failure></testcase>\n"
            "<testcase classname=\"lethe.check\" name=\"s\" time=\"0.000\">\n"
            "<skipped message=\"needs kvm\"/></testcase>\n"
            "<testcase classname=\"lethe.check\" name=\"i\" time=\"0.000\">\n"
            "<error message=\"interrupted\"/></testcase>\n"
            "<testcase classname=\"lethe.check\" name=\"n\" time=\"0.000\">\n"
            "<error message=\"not run: interrupted\"/></testcase>\n"
            "</testsuite>\n</testsuites>\n");
}

// What Progress writes for one failure, to a terminal or to a file.
std::string progress_output(bool terminal) {
  const int main_end = ::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
  EXPECT_GE(main_end, 0);
  EXPECT_EQ(::grantpt(main_end) | ::unlockpt(main_end), 0);
  std::FILE* file = terminal ? std::fopen(::ptsname(main_end), "w") : std::tmpfile();
  EXPECT_NE(file, nullptr);
  {
    Progress progress(file, 2);
    progress.started("one");
    progress.started("two");
    progress.ended({.name = "one", .outcome = Outcome::kFailed, .reasons = {"why"}});
    std::fflush(file);
  }
  std::string text;
  if (terminal) {
    // The kernel hands a terminal's output over in pieces, at leisure: read until the last line.
    pollfd poll{main_end, POLLIN, 0};
    while (text.find("[1/2] two") == std::string::npos && ::poll(&poll, 1, 10000) == 1) {
      char piece[4096];
      const ssize_t got = ::read(main_end, piece, sizeof piece);
      if (got <= 0) break;
      text.append(piece, static_cast<size_t>(got));
    }
  } else {
    std::rewind(file);
    for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  }
  std::fclose(file);
  ::close(main_end);
  return text;
}

TEST(Progress, terminal_gets_colours_and_a_line_of_progress) {
  const std::string text = progress_output(true);
  EXPECT_THAT(text, HasSubstr("\r\x1b[K[0/2] one two"));
  EXPECT_THAT(text, HasSubstr("\r\x1b[K\x1b[31mFAIL \x1b[0m one (0.0 s): why\r\n[1/2] two"));
}

TEST(Progress, file_gets_a_line_a_guest) {
  EXPECT_EQ(progress_output(false), "FAIL  one (0.0 s): why\n");
}

TEST(Tail, is_the_last_lines) {
  EXPECT_EQ(tail_of("", 3), "");
  EXPECT_EQ(tail_of("\n\r\n", 3), "");
  EXPECT_EQ(tail_of("a", 3), "a\n");
  EXPECT_EQ(tail_of("a\nb\nc\nd\n", 2), "c\nd\n");
  EXPECT_EQ(tail_of("a\n\nc", 2), "\nc\n");
  EXPECT_EQ(tail_of("\na", 5), "\na\n");
  EXPECT_EQ(tail_of(std::string(10000, 'x'), 2).size(), 4097u);
}

TEST(Patterns, match_within_lines_only) {
  EXPECT_THAT(patterns({"^a$", "b+"}, {"^$"}).judge("a\r\nbb\n"), IsEmpty());
  EXPECT_THAT(patterns({"a.b", "a\\sb"}, {}).judge("a\nb\n").size(), 2u);
  EXPECT_THAT(patterns({}, {"x"}).judge("line x one\nx\n"),
              ElementsAre("the console matches 'x', which it must not: 'line x one'"));
  EXPECT_THAT(patterns({"end"}, {}).judge("no newline at the end"), IsEmpty());
  EXPECT_THAT(patterns({"a"}, {}).judge(""), ElementsAre("the console has no match of 'a'"));
}

TEST(Patterns, bytes_that_are_no_utf8_are_matched_past) {
  EXPECT_THAT(patterns({"ok$"}, {}).judge("\xff\xfe\x80 ok\n"), IsEmpty());
}

TEST(Patterns, hostile_console_takes_linear_time) {
  const auto before = std::chrono::steady_clock::now();
  const std::string line(1 << 20, 'a');
  EXPECT_THAT(patterns({"(a+)+b"}, {"(a|aa)*c$"}).judge(line).size(), 1u);
  // Backtracking would not end in a lifetime.
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(30));
}

TEST(Patterns, bad_pattern_names_file_key_and_entry) {
  for (const char* bad : {"(", "[z-a]", "a{2,1}", "*", "(?=look)"}) {
    CheckConfig check;
    check.must_not_match = {"good", bad};
    const auto compiled = compile_patterns(check, "x.toml");
    ASSERT_FALSE(compiled) << bad;
    EXPECT_EQ(compiled.error().kind, ErrorClass::kConfig);
    EXPECT_THAT(compiled.error().text, HasSubstr("x.toml: key 'check.must_not_match', entry 2: '"));
  }
}

}  // namespace
}  // namespace lethe
