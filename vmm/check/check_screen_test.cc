// `lethe check` of guests with steps on their screens: stand-ins for `lethe` (a script that runs
// the config's command line as shell, with a locked run-time directory and a file for a GUI socket)
// and for lethe-shot.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/check/check_fixture.h"
#include "vmm/check/screen_steps.h"

namespace lethe {
namespace {

using testing::HasSubstr;
using testing::Not;

class CheckScreen : public CheckFixture {
 protected:
  void SetUp() override {
    CheckFixture::SetUp();
    locked_stub(std::string("show() { sleep 0.05; touch \"$run_dir/gui.sock\"; }\n") + kRunCmdline);
    // What it was given is kept; what it does, the guest's golden image says.
    script("shot",
           "[ \"$2\" = --steps ] && [ \"$4\" = --out ] || exit 99\n"
           "case $1 in check-*) ;; *) exit 99;; esac\n"
           "here=$(dirname \"$0\"); cp \"$3\" \"$here/last.json\"\n"
           "eval \"$(cat \"$here/script\")\"\n");
    write("golden.png", "no picture");
    x_options.shot_program = x_dir + "/shot";
  }

  void guest(const std::string& name, const std::string& shell, const std::string& check = "") {
    write(name + ".toml",
          fmt::format("[boot]\nkernel = \"k\"\ncmdline = '''{}'''\n[gui]\nenabled = true\n"
                      "[check]\n{}\n[[check.screen]]\nwait_image = \"golden.png\"\n"
                      "masks = [[1, 2, 3, 4]]\n[[check.screen]]\ntype = \"a\\\"b\\n\"\n",
                      shell, check));
    x_options.inputs = {x_dir + "/" + name + ".toml"};
  }
  // What the next lethe-shot does.
  void shot(const std::string& shell) { write("script", shell); }
};

TEST_F(CheckScreen, steps_that_go_through_and_a_guest_that_ends_pass) {
  guest("a", "show; while ! [ -e typed ]; do sleep 0.01; done; echo ok; exit 0",
        "must_match = ['ok']");
  shot("touch \"$here/typed\"; echo picture > \"$5/end.png\"; exit 0");
  EXPECT_EQ(run(), 0) << x_out << x_err;
  EXPECT_EQ(
      read("last.json"),
      fmt::format("{{\"steps\":[\n{{\"wait_image\":\"{}/golden.png\",\"tolerance\":0,"
                  "\"max_different\":0,\"masks\":[[1,2,3,4]],\"surface\":\"screen:0\","
                  "\"timeout_ms\":30000}},\n{{\"type\":\"a\\\"b\\u000a\",\"surface\":\"screen:0\","
                  "\"timeout_ms\":30000}}\n]}}\n",
                  x_dir));
  EXPECT_EQ(read("logs/a.screen/steps.json"), read("last.json"));
  EXPECT_EQ(read("logs/a.screen/end.png"), "picture\n");
}

TEST_F(CheckScreen, a_failed_step_ends_the_guest_and_is_named) {
  guest("a", "show; sleep 1000 & wait");
  std::filesystem::create_directories(x_dir + "/logs/a.screen");
  write("logs/a.screen/expected.png", "of a failure before");
  shot("echo x > \"$5/actual.png\"; echo 'lethe-shot: step 1 of 2: no match' >&2; exit 1");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("FAIL  a"));
  EXPECT_THAT(x_out, HasSubstr("screen: step 1 of 2: no match\n"));
  EXPECT_THAT(x_out, Not(HasSubstr("expected poweroff")));
  EXPECT_THAT(x_junit, HasSubstr("<failure message=\"screen: step 1 of 2: no match\""));
  EXPECT_EQ(read("logs/a.screen/actual.png"), "x\n");
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/logs/a.screen/expected.png"));
}

TEST_F(CheckScreen, a_long_reason_is_shown_whole) {
  guest("a", "show; sleep 1000 & wait");
  const std::string path(300, 'p');
  shot("echo 'lethe-shot: see " + path + "/actual.png' >&2; exit 1");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("screen: see " + path + "/actual.png\n"));
}

TEST_F(CheckScreen, a_failed_step_fails_a_guest_that_ends_well) {
  guest("a", "show; while ! [ -e seen ]; do sleep 0.01; done; exit 0");
  shot("touch \"$here/seen\"; sleep 0.3; exit 3");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("screen: lethe-shot ended with exit code 3\n"));
}

TEST_F(CheckScreen, exit_screen_ends_the_guest_after_the_last_step) {
  guest("a", "show; trap 'exit 6' TERM; sleep 1000 & wait", "exit = \"screen\"");
  shot("exit 0");
  EXPECT_EQ(run(), 0) << x_out;
  shot("echo 'lethe-shot: step 2 of 2: late' >&2; exit 1");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("screen: step 2 of 2: late\n"));
}

TEST_F(CheckScreen, a_guest_that_ends_before_its_screen_fails) {
  guest("a", "exit 0");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("screen: the guest ended before its screen was there\n"));
  guest("b", "show; while ! [ -e started ]; do sleep 0.01; done; exit 4", "exit = \"screen\"");
  shot("touch \"$here/started\"; sleep 0.2; echo 'lethe-shot: the VM has ended' >&2; exit 1");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("on its screen, but the guest panicked;"));
  EXPECT_THAT(x_out, HasSubstr("; screen: the VM has ended\n"));
}

TEST_F(CheckScreen, a_tester_that_hangs_is_ended_with_its_guest) {
  guest("a", "show; while ! [ -e started ]; do sleep 0.01; done; exit 0");
  shot("touch \"$here/started\"; sleep 1000");
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(run(), 1);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
  EXPECT_THAT(x_out, HasSubstr("screen: lethe-shot was killed by signal 15\n"));
  // And one that hangs while the guest does: the deadline is the guest's.
  guest("b", "show; sleep 1000 & wait", "deadline_ms = 500");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("timeout: still running at its deadline of 0.5 s;"));
}

TEST_F(CheckScreen, a_retry_keeps_the_pictures_of_the_failure) {
  guest("a", "show; trap 'exit 6' TERM; sleep 1000 & wait", "exit = \"screen\"");
  shot(
      "echo \"$5\" > \"$5/actual.png\"; [ -e \"$here/again\" ] && exit 0; touch \"$here/again\"; "
      "exit 1");
  x_options.retries = 1;
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_TRUE(std::filesystem::exists(x_dir + "/logs/a.screen/actual.png"));
  EXPECT_TRUE(std::filesystem::exists(x_dir + "/logs/a.attempt-2.screen/actual.png"));
}

TEST_F(CheckScreen, without_out_nothing_is_left) {
  guest("a", "show; trap 'exit 6' TERM; sleep 1000 & wait", "exit = \"screen\"");
  shot("echo \"$5\" > \"$here/where\"; exit 0");
  x_options.out_dir.clear();
  EXPECT_EQ(run(), 0) << x_out;
  std::string where = read("where");
  where.pop_back();
  EXPECT_THAT(where, HasSubstr("lethe-screen-"));
  EXPECT_FALSE(std::filesystem::exists(where));
}

TEST_F(CheckScreen, a_missing_golden_image_stops_all_before_it_starts) {
  guest("a", "touch ran; exit 0");
  std::filesystem::remove(x_dir + "/golden.png");
  EXPECT_EQ(run(), 2);
  EXPECT_THAT(x_err, HasSubstr("key 'check.screen.wait_image': '"));
  EXPECT_THAT(x_err, HasSubstr("golden.png': No such file"));
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/ran"));
}

TEST(ScreenSteps, every_kind_becomes_its_json) {
  const ScreenStep steps[] = {{.keys = {"KEY_A", "KEY_B"}},
                              {.click = {1, 2}, .button = 1},
                              {.resize = {3, 4}},
                              {.close = true, .surface = "window:a\"b"},
                              {.wait_gone = true},
                              {.wait_text = "login:", .timeout_ms = 100},
                              {.shot = "x.png"}};
  EXPECT_EQ(steps_json(steps, 2.5),
            "{\"steps\":[\n"
            "{\"keys\":[\"KEY_A\",\"KEY_B\"],\"surface\":\"screen:0\",\"timeout_ms\":75000},\n"
            "{\"click\":[1,2],\"button\":\"middle\",\"surface\":\"screen:0\",\"timeout_ms\":75000},"
            "\n{\"resize\":[3,4],\"surface\":\"screen:0\",\"timeout_ms\":75000},\n"
            "{\"close\":true,\"surface\":\"window:a\\\"b\",\"timeout_ms\":75000},\n"
            "{\"wait_gone\":true,\"surface\":\"screen:0\",\"timeout_ms\":75000},\n"
            "{\"wait_text\":\"login:\",\"surface\":\"screen:0\",\"timeout_ms\":250},\n"
            "{\"shot\":\"x.png\",\"surface\":\"screen:0\",\"timeout_ms\":75000}\n"
            "]}\n");
}

}  // namespace
}  // namespace lethe
