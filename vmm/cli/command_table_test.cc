// The rules that every command holds, whichever it is: what the table promises, names of VMs,
// manual pages, completions.
#include <iterator>

#include "vmm/cli/cli_test_util.h"
#include "vmm/cli/command.h"
#include "vmm/cli/completion.h"
#include "vmm/cli/man_page.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

using testing::HasSubstr;

bool has(const char* program) {
  return WEXITSTATUS(std::system(fmt::format("command -v {} >/dev/null", program).c_str())) == 0;
}

bool takes_name(const CommandText& text) {
  return std::ranges::any_of(text.options, [](const OptionText& option) {
    return option.positional && option.names[0] == "NAME";
  });
}

// All tests, as text.
std::string source_of_tests() {
  std::string text;
  for (const char* folder : {"/vmm", "/guest-tests"})
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(std::string(LETHE_SOURCE_DIR) + folder)) {
      const std::string name = entry.path().filename();
      if (!name.ends_with("_test.cc")) continue;
      std::ifstream file(entry.path());
      text.append(std::istreambuf_iterator<char>(file), {});
    }
  return text;
}

class CommandTable : public Cli {
 protected:
  // What bash offers for the words, the last one being completed.
  std::string complete(const std::string& words, int place) {
    write("try", fmt::format("source completion\nCOMP_WORDS=({} {})\nCOMP_CWORD={}\n_lethe\n"
                             "echo \"${{COMPREPLY[*]}}\"\n",
                             LETHE_PROGRAM, words, place));
    EXPECT_EQ(std::system(fmt::format("cd {} && timeout 20 bash try >out 2>err", x_dir).c_str()),
              0);
    EXPECT_EQ(read("err"), "");
    return read("out");
  }
};

TEST_F(CommandTable, each_command_has_a_help_text_an_example_and_a_test) {
  const std::string tests = source_of_tests();
  const std::string help = lethe("--help").out;
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    SCOPED_TRACE(command.name);
    names.emplace_back(command.name);
    const CommandText text = describe(command);
    EXPECT_THAT(help, HasSubstr(fmt::format("\n  {:<10} {}\n", text.name, text.summary)));
    EXPECT_GE(text.description.size(), 12u);
    EXPECT_TRUE(text.description.ends_with('.'));
    EXPECT_FALSE(text.exits.empty());
    const bool example = std::ranges::any_of(text.examples, [&](const std::string& line) {
      return line.find("lethe " + text.name) != std::string::npos;
    });
    EXPECT_TRUE(example);
    for (const OptionText& option : text.options) EXPECT_NE(option.help, "") << option.names[0];
    // Its help says so.
    const Ran ran = lethe(text.name + " --help");
    EXPECT_EQ(ran.code, 0);
    EXPECT_EQ(ran.err, "");
    EXPECT_THAT(ran.out, HasSubstr("Usage: " + usage_of(text).substr(0, text.name.size() + 6)));
    for (const std::string& line : text.examples) EXPECT_THAT(ran.out, HasSubstr(line));
    const bool tested = tests.find('"' + text.name + '"') != std::string::npos ||
                        tests.find("lethe(\"" + text.name + ' ') != std::string::npos ||
                        tests.find("} " + text.name + ' ') != std::string::npos;
    EXPECT_TRUE(tested) << "no test runs it";
  }
  EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
}

TEST_F(CommandTable, bad_names_of_vms_are_one_line_and_touch_nothing) {
  int count = 0;
  for (const Command& command : commands()) {
    const CommandText text = describe(command);
    if (!takes_name(text)) continue;
    ++count;
    std::string more;  // what it needs besides
    for (const OptionText& option : text.options)
      if (option.positional && option.required && option.names[0] != "NAME") more += " x";
    const auto refused = [&](const std::string& name, int code, const std::string& part) {
      expect_refused(fmt::format("{} {}{}", command.name, name, more), code, part);
    };
    const int failed = text.name == "exec" ? 125 : kExitHostError;  // 1 is the guest's command's
    for (const char* name : {"''", "..", ".", "a/b", "../lethe", "/etc", "a//b", "Web", "' '"})
      refused(name, failed, "' does not run");
    refused(std::string(300, 'a'), failed, "aaa...' does not run");
    refused("\"$(printf 'a\\nb\\033[31m\\177')\"", failed, "'a\\x0ab\\x1b[31m\\x7f' does not run");
    refused("-web", 2, "");
    refused("--web", 2, "");
  }
  EXPECT_GE(count, 10);
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/lethe"));
}

TEST_F(CommandTable, man_pages_say_what_the_help_says) {
  ASSERT_EQ(lethe("man --out pages/man1").code, 0);
  for (const Command& command : commands()) {
    const CommandText text = describe(command);
    const std::string page = read("pages/man1/lethe-" + text.name + ".1");
    EXPECT_EQ(page, lethe("man " + text.name).out);
    for (const char* section : {".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n",
                                ".SH OPTIONS\n", ".SH EXIT STATUS\n", ".SH EXAMPLES\n"})
      EXPECT_THAT(page, HasSubstr(section)) << text.name;
    EXPECT_THAT(read("pages/man1/lethe.1"), HasSubstr(".BR lethe\\-" + text.name + " (1)\n"));
  }
  EXPECT_EQ(lethe("man").out, read("pages/man1/lethe.1"));
  EXPECT_THAT(lethe("man run").out, HasSubstr("\\fB\\-d\\fR, \\fB\\-\\-detach\\fR\nReturn when"));
  EXPECT_THAT(lethe("man run").out, HasSubstr("\n.TP\n\\fB64 + N\\fR\nthe guest wrote N"));
  expect_refused("man --out /proc/nowhere", 1, "cannot make '/proc/nowhere'");
}

TEST_F(CommandTable, groff_has_nothing_to_say_about_the_man_pages) {
  if (!has("groff")) GTEST_SKIP() << "SKIPPED: groff is not installed";
  ASSERT_EQ(lethe("man --out pages").code, 0);
  const std::string command = fmt::format(
      "cd {}/pages && for page in *.1; do groff -ww -man -Tutf8 -z $page; done 2>&1", x_dir);
  EXPECT_EQ(WEXITSTATUS(std::system((command + " >../groff").c_str())), 0);
  EXPECT_EQ(read("groff"), "");
}

TEST(ManPage, shows_dots_quotes_and_backslashes_as_they_are) {
  const CommandText text{.name = "x",
                         .summary = "s",
                         .description = ".dot first, a\\b and -c",
                         .examples = {".lethe 'x'", "'quoted"},
                         .exits = {"0 good"},
                         .options = {}};
  const std::string page = man_page(text);
  EXPECT_THAT(page, HasSubstr("\n\\&.dot first, a\\eb and \\-c\n"));
  EXPECT_THAT(page, HasSubstr("\n\\&.lethe 'x'\n\\&'quoted\n"));
}

TEST_F(CommandTable, bash_completes_commands_options_and_names_of_vms) {
  if (!has("bash")) GTEST_SKIP() << "SKIPPED: bash is not installed";
  write("completion", lethe("completion bash").out);
  const auto web = RunDir::create("web");
  const auto work = RunDir::create("work");
  ASSERT_TRUE(web && work);
  for (const auto* vm : {&web, &work}) (*vm)->set_ready();
  EXPECT_EQ(complete("recl", 1), "reclaim\n");
  for (const Command& command : commands()) {
    SCOPED_TRACE(command.name);
    EXPECT_THAT(" " + complete("''", 1), HasSubstr(std::string(" ") + command.name));
    const CommandText text = describe(command);
    const std::string options = " " + complete(text.name + " -", 2) + " ";
    for (const OptionText& option : text.options)
      for (const std::string& name : option.names)
        if (!option.positional) EXPECT_THAT(options, HasSubstr(" " + name));
    if (takes_name(text)) EXPECT_EQ(complete(text.name + " w", 2), "web work\n");
  }
  EXPECT_EQ(complete("run --det", 2), "--detach\n");
  EXPECT_EQ(complete("stop web wo", 3), "work\n");
  EXPECT_EQ(complete("completion ''", 2), "bash zsh fish\n");
  EXPECT_EQ(complete("man rec", 2), "reclaim\n");
  EXPECT_EQ(complete("run comp", 2), "completion\n") << "a file";
  EXPECT_EQ(complete("check --out comp", 3), "completion\n") << "an option's file";
  EXPECT_EQ(complete("frobnicate x", 2), "\n");
}

TEST_F(CommandTable, other_shells_read_their_completions) {
  for (const std::string shell : {"zsh", "fish"}) {
    const Ran ran = lethe("completion " + shell);
    EXPECT_EQ(ran.code, 0);
    write("completion", ran.out);
    for (const Command& command : commands()) EXPECT_THAT(ran.out, HasSubstr(command.name));
    if (!has(shell.c_str())) {
      std::printf("SKIPPED: %s is not installed: its completion was not read by it\n",
                  shell.c_str());
      continue;
    }
    EXPECT_EQ(std::system(fmt::format("cd {} && {} -n completion 2>err", x_dir, shell).c_str()), 0);
    EXPECT_EQ(read("err"), "");
  }
}

TEST_F(CommandTable, what_prints_data_prints_json_too) {
  EXPECT_THAT(lethe("version --json").out,
              testing::MatchesRegex("\\{\"version\":\"[0-9.]+\"\\}\n"));
  EXPECT_EQ(lethe("ps --json").out, "[]\n");
  write("bad.toml", "cpus = 0\nfoo = 1\n[boot]\nkernel = \"k\"\n");
  write("good.toml", "[boot]\nkernel = \"elf\"\n");
  write("elf", "\177ELF");
  const Ran checked = lethe("validate --json good.toml bad.toml");
  EXPECT_EQ(checked.code, 2);
  EXPECT_EQ(checked.err, "");
  EXPECT_THAT(checked.out, testing::StartsWith("[{\"file\":\"good.toml\",\"problems\":[]},"
                                               "{\"file\":\"bad.toml\",\"problems\":[\"bad.toml:"));
  const Ran doctor = lethe("doctor --json");
  EXPECT_EQ(doctor.code, lethe("doctor --quiet").code);
  EXPECT_THAT(doctor.out, testing::StartsWith("{\"kernel\":\"Linux "));
  EXPECT_THAT(doctor.out, HasSubstr(fmt::format(",\"exit_code\":{}}}\n", doctor.code)));
}

TEST(Wrapped, breaks_at_spaces_and_indents_what_follows) {
  EXPECT_EQ(wrapped("one two three", 7, 0), "one two\nthree");
  EXPECT_EQ(wrapped("one two three", 9, 2), "one two\n  three");
  EXPECT_EQ(wrapped("unbreakable", 3, 0), "unbreakable");
  EXPECT_EQ(wrapped("", 3, 0), "");
}

}  // namespace
}  // namespace lethe
