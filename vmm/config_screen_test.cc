// [[check.screen]]: each step is read whole, and anything wrong with it is told.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/config.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kBase = "[boot]\nkernel = \"k\"\n[gui]\nenabled = true\n";

struct Parsed {
  VmConfig config;
  std::vector<std::string> errors;
};

Parsed parse(const std::string& text, const std::string& base = kBase) {
  Parsed parsed;
  parsed.config = parse_config(base + text, "dir/vm.toml", {}, parsed.errors);
  return parsed;
}

std::string step_error(const std::string& keys) {
  const Parsed parsed = parse("[[check.screen]]\n" + keys + "\n");
  return parsed.errors.size() == 1
             ? parsed.errors[0]
             : fmt::format("{} errors: {}", parsed.errors.size(), fmt::join(parsed.errors, " | "));
}

TEST(ConfigScreen, reads_every_kind_of_step) {
  const Parsed parsed = parse(R"(
[check]
exit = "screen"
[[check.screen]]
wait_image = "golden/login.png"
tolerance = 8
max_different = 0.001
masks = [[0, 0, 10, 20], [5, 6, 7, 8]]
surface = "window:xterm: 1"
timeout_ms = 500
[[check.screen]]
wait_text = "login:"
[[check.screen]]
type = "root\n"
[[check.screen]]
keys = ["KEY_LEFTCTRL+KEY_C", "KEY_ENTER"]
[[check.screen]]
click = [10, 20]
button = "right"
[[check.screen]]
resize = [1024, 768]
[[check.screen]]
close = true
[[check.screen]]
wait_gone = true
[[check.screen]]
shot = "end.png"
)");
  EXPECT_THAT(parsed.errors, IsEmpty());
  EXPECT_TRUE(parsed.config.check.present);
  EXPECT_TRUE(parsed.config.check.ends_with_screen());
  const std::vector<ScreenStep>& steps = parsed.config.check.screen;
  ASSERT_EQ(steps.size(), 9u);
  EXPECT_EQ(steps[0], (ScreenStep{.wait_image = "dir/golden/login.png",
                                  .surface = "window:xterm: 1",
                                  .timeout_ms = 500,
                                  .tolerance = 8,
                                  .max_different = 0.001,
                                  .masks = {{0, 0, 10, 20}, {5, 6, 7, 8}}}));
  EXPECT_EQ(steps[1], ScreenStep{.wait_text = "login:"});
  EXPECT_EQ(steps[2], ScreenStep{.type = "root\n"});
  EXPECT_THAT(steps[3].keys, ElementsAre("KEY_LEFTCTRL+KEY_C", "KEY_ENTER"));
  EXPECT_EQ(steps[4], (ScreenStep{.click = {10, 20}, .button = 2}));
  EXPECT_THAT(steps[5].resize, ElementsAre(1024, 768));
  EXPECT_TRUE(steps[6].close && steps[7].wait_gone);
  EXPECT_EQ(steps[8].shot, "end.png");
}

TEST(ConfigScreen, wants_one_thing_to_do_a_step) {
  EXPECT_THAT(step_error(""), HasSubstr("dir/vm.toml:5:1: key 'check.screen' has 0 of wait_image"));
  EXPECT_THAT(step_error("timeout_ms = 5"), HasSubstr("has 0 of wait_image"));
  EXPECT_THAT(step_error("keys = []"), HasSubstr("has 0 of wait_image"));
  EXPECT_THAT(step_error("type = \"a\"\nclick = [1, 2]"), HasSubstr("has 2 of wait_image"));
  EXPECT_THAT(step_error("type = \"a\"\ntolerance = 3"), HasSubstr("without wait_image"));
  EXPECT_THAT(step_error("type = \"a\"\nmasks = [[1,2,3,4]]"), HasSubstr("without wait_image"));
  EXPECT_THAT(step_error("type = \"a\"\nbutton = \"right\""), HasSubstr("without click"));
}

TEST(ConfigScreen, wrong_values_say_what_would_be_right) {
  EXPECT_THAT(step_error("click = [1]"),
              HasSubstr("'check.screen.click' has 1 numbers: it must be a list of 2 whole numbers "
                        "from 0 to 16384"));
  EXPECT_THAT(step_error("click = [1, -2]"), HasSubstr("-2 is out of range"));
  EXPECT_THAT(step_error("click = [1, 2.5]"), HasSubstr("must be a list of 2 whole numbers"));
  EXPECT_THAT(step_error("click = \"1,2\""), HasSubstr("is text: it must be a list of 2"));
  EXPECT_THAT(step_error("resize = [0, 5]"), HasSubstr("from 1 to 16384"));
  EXPECT_THAT(step_error("close = false"), HasSubstr("false does not fit: it must be true"));
  EXPECT_THAT(step_error("type = \"caf\u00e9\""), HasSubstr("has what no key types"));
  EXPECT_THAT(step_error("type = \"\""), HasSubstr("is empty"));
  EXPECT_THAT(step_error("shot = \"../x.png\""), HasSubstr("without a directory"));
  EXPECT_THAT(step_error("shot = \"x.jpg\""), HasSubstr("ends in .png"));
  for (const char* surface : {"screen", "screen:", "screen:16", "screen:1K", "window:", "x:0"})
    EXPECT_THAT(step_error(fmt::format("type = \"a\"\nsurface = \"{}\"", surface)),
                HasSubstr("\"window:TITLE\""))
        << surface;
  EXPECT_THAT(step_error("wait_image = \"a.png\"\nmax_different = 1.5"),
              HasSubstr("1.5 is out of range: it must be a number from 0 to 1"));
  EXPECT_THAT(step_error("wait_image = \"a.png\"\nmax_different = nan"), HasSubstr("0 to 1"));
  EXPECT_THAT(step_error("wait_image = \"a.png\"\nmasks = [[1,2,3]]"), HasSubstr("has 3 numbers"));
  EXPECT_THAT(step_error("wait_image = \"a.png\"\nmasks = [1,2,3,4]"), HasSubstr("list of lists"));
  EXPECT_THAT(step_error("wait_image = \"a.png\"\nmasks = [[1,2,3,\"4\"]]"),
              HasSubstr("list of lists"));
  EXPECT_THAT(step_error("wait_imag = \"a.png\""),
              HasSubstr("did you mean 'check.screen.wait_image'?"));
}

TEST(ConfigScreen, steps_are_a_repeated_table_and_limited) {
  EXPECT_THAT(parse("[check.screen]\ntype = \"a\"\n").errors,
              ElementsAre(HasSubstr("write [[check.screen]] above each one's keys")));
  EXPECT_THAT(parse("[check]\nscreen = 5\n").errors,
              ElementsAre(HasSubstr("write [[check.screen]] above")));
  EXPECT_THAT(parse("[check]\nscreen = []\n").errors, IsEmpty());
  std::string many;
  for (size_t i = 0; i <= kScreenStepsMax; ++i) many += "[[check.screen]]\ntype = \"a\"\n";
  EXPECT_THAT(parse(many).errors, ElementsAre(HasSubstr("at most 256")));
}

TEST(ConfigScreen, steps_need_a_screen_and_exit_screen_needs_steps) {
  EXPECT_THAT(parse("[[check.screen]]\ntype = \"a\"\n", "[boot]\nkernel = \"k\"\n").errors,
              ElementsAre(HasSubstr("set gui.enabled = true too")));
  EXPECT_THAT(parse("[check]\nexit = \"screen\"\n").errors,
              ElementsAre(HasSubstr("there is no [[check.screen]]")));
}

}  // namespace
}  // namespace lethe
