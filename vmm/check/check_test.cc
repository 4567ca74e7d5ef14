// `lethe check` with a stand-in for `lethe`: a script that runs the config's command line as shell.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "vmm/check/check_fixture.h"
#include "vmm/check/guest.h"
#include "vmm/check/run_names.h"
#include "vmm/run.h"

namespace lethe {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class Check : public CheckFixture {
 protected:
  void SetUp() override {
    CheckFixture::SetUp();
    script("stub", std::string("[ \"$1\" = run ] && [ \"$3\" = --non-interactive ] || exit 99\n"
                               "cd \"$(dirname \"$2\")\" || exit 98\n") +
                       kRunCmdline);
    x_options.inputs = {x_dir};
    x_options.out_dir = x_dir + "/logs/deep";
  }

  void guest(const std::string& name, const std::string& shell, const std::string& check = "") {
    write(name + ".toml", fmt::format("[boot]\nkernel = \"k\"\non_reboot = \"exit\"\n"
                                      "cmdline = '''{}'''\n[check]\n{}\n",
                                      shell, check));
  }
};

TEST_F(Check, json_is_all_of_standard_output) {
  guest("good", "exit 0");
  guest("sad", "exit 4");
  x_options.json = true;
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, testing::StartsWith(R"([{"name":"good","outcome":"passed",)"));
  EXPECT_THAT(x_out, HasSubstr(R"(,{"name":"sad","outcome":"failed",)"));
  EXPECT_THAT(x_out, testing::EndsWith("]}]\n"));
  EXPECT_THAT(x_err, HasSubstr("1 passed, 1 failed"));
}

TEST_F(Check, guest_that_ends_as_expected_passes) {
  guest("off", "echo booted; exit 0", "must_match = ['^boot.d$']\nmust_not_match = ['BUG']");
  guest("reboot", "exit 3", "exit = \"reboot\"");
  guest("panic", "exit 4", "exit = \"panic\"");
  guest("fault", "exit 5", "exit = \"triple-fault\"");
  guest("debug", "exit 66", "exit = \"debug-exit:2\"");
  EXPECT_EQ(run(), 0) << x_out << x_err;
  EXPECT_THAT(x_out, HasSubstr("PASS  off ("));
  EXPECT_THAT(x_out, HasSubstr("5 passed, 0 failed, 0 skipped"));
  EXPECT_EQ(x_err, "");
  EXPECT_EQ(x_out.find('\033'), std::string::npos) << "colour without a terminal";
  EXPECT_EQ(read("logs/deep/off.log"), "booted\n");
  EXPECT_THAT(x_junit, HasSubstr("tests=\"5\" failures=\"0\" errors=\"0\" skipped=\"0\""));
}

TEST_F(Check, report_may_go_into_the_directory_of_logs) {
  guest("a", "exit 0");
  x_options.junit_file = x_options.out_dir + "/report.xml";
  EXPECT_EQ(run(), 0) << x_err;
  EXPECT_THAT(read("logs/deep/report.xml"), HasSubstr("tests=\"1\""));
}

TEST_F(Check, every_other_end_fails) {
  guest("a", "exit 3");
  guest("b", "echo 'lethe: no such disk' >&2; exit 1", "must_match = ['x']");
  guest("c", "kill -SEGV $$");
  guest("d", "exit 0", "exit = \"debug-exit:0\"");
  guest("e", "exit 7");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("expected poweroff, but the guest rebooted"));
  EXPECT_THAT(x_out, HasSubstr("but the host failed it: lethe: no such disk\n"));
  EXPECT_THAT(x_out, HasSubstr("but lethe was killed by signal 11"));
  EXPECT_THAT(x_out, HasSubstr("expected debug-exit:0, but the guest powered off"));
  EXPECT_THAT(x_out, HasSubstr("but there is no KVM"));
  EXPECT_THAT(x_out, HasSubstr("0 passed, 5 failed, 0 skipped"));
}

TEST_F(Check, console_is_judged_line_by_line) {
  guest("missing", "printf 'one\\r\\ntwo\\r\\n'", "must_match = ['^two$', 'one.*two', '^one$']");
  guest("unwanted", "echo all well; echo kernel BUG at x.c", "must_not_match = ['BUG', 'WARN']");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("FAIL  missing"));
  EXPECT_THAT(x_out, HasSubstr(": the console has no match of 'one.*two'\n"));
  EXPECT_THAT(x_out, HasSubstr("matches 'BUG', which it must not: 'kernel BUG at x.c'\n"));
}

TEST_F(Check, messages_of_lethe_are_no_console) {
  guest("a", "echo secret >&2", "must_not_match = ['secret']");
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_EQ(read("logs/deep/a.log"), "secret\n");
}

TEST_F(Check, deadline_ends_guest_and_all_it_started) {
  guest("slow", "echo started; sleep 1000 & echo $! > child.pid; wait", "deadline_ms = 3000");
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(run(), 1);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(20));
  EXPECT_THAT(x_out, HasSubstr("FAIL  slow"));
  EXPECT_THAT(x_out, HasSubstr("timeout: still running at its deadline of 3.0 s"));
  EXPECT_THAT(x_junit, HasSubstr("<failure message=\"timeout: still"));
  EXPECT_THAT(x_junit, HasSubstr("started"));
  ASSERT_NE(read("child.pid"), "");
  const int child = std::stoi(read("child.pid"));
  // It may be a zombie until init looks, but it runs no more.
  const std::string stat = "/proc/" + std::to_string(child) + "/stat";
  std::string state = "Z";
  for (int i = 0; i < 100; ++i) {
    std::ifstream file(stat);
    std::string pid, name;
    state = "Z";
    file >> pid >> name >> state;
    if (state == "Z") break;
    ::usleep(50000);
  }
  EXPECT_EQ(state, "Z");
}

TEST_F(Check, guest_that_ignores_sigterm_is_killed) {
  guest("deaf", "trap '' TERM; while :; do sleep 1; done", "deadline_ms = 200");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("timeout"));
}

TEST_F(Check, timeout_scale_moves_the_deadline) {
  guest("slow", "sleep 0.5", "deadline_ms = 100");
  x_options.timeout_scale = 100;
  EXPECT_EQ(run(), 0) << x_out;
}

TEST_F(Check, flood_is_stopped_at_the_limit) {
  guest("flood", "exec yes");
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("printed more than 16M"));
  EXPECT_EQ(std::filesystem::file_size(x_dir + "/logs/deep/flood.log"), 16u << 20);
}

TEST_F(Check, retry_reports_flaky_loudly) {
  guest("flaky", "echo try; [ -e mark ] && exit 0; touch mark; echo first; exit 4");
  guest("bad", "exit 4");
  x_options.retries = 2;
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("RETRY flaky: attempt 1 failed: expected poweroff, but the guest"));
  EXPECT_THAT(x_out, HasSubstr("FLAKY flaky"));
  EXPECT_THAT(x_out, HasSubstr("passed on attempt 2"));
  EXPECT_THAT(x_out, HasSubstr("RETRY bad: attempt 2 failed"));
  EXPECT_THAT(x_out, HasSubstr("1 passed, 1 failed, 0 skipped, 1 of the passed were FLAKY"));
  EXPECT_THAT(x_junit, HasSubstr("<system-out>FLAKY: attempt 1 failed"));
  EXPECT_EQ(read("logs/deep/flaky.log"), "try\nfirst\n");
  EXPECT_EQ(read("logs/deep/flaky.attempt-2.log"), "try\n");
}

TEST_F(Check, jobs_run_side_by_side) {
  // Each waits, with an end, for the other.
  const std::string wait = "for i in $(seq 200); do [ -e {} ] && exit 0; sleep 0.05; done; exit 4";
  guest("a", "touch a.mark; " + fmt::format(fmt::runtime(wait), "b.mark"));
  guest("b", "touch b.mark; " + fmt::format(fmt::runtime(wait), "a.mark"));
  x_options.jobs = 2;
  EXPECT_EQ(run(), 0) << x_out;
}

TEST_F(Check, interruption_ends_guests_and_writes_the_report) {
  guest("a", "exit 0");
  guest("b", "kill -INT $PPID; sleep 1000");
  guest("c", "exit 0");
  EXPECT_EQ(run(), kExitInterrupted);
  EXPECT_THAT(x_out, HasSubstr("PASS  a"));
  EXPECT_THAT(x_out, HasSubstr("STOP  b: interrupted"));
  EXPECT_THAT(x_out, HasSubstr("1 passed, 0 failed, 0 skipped, 2 not run to the end"));
  EXPECT_THAT(x_junit, HasSubstr("errors=\"2\""));
  EXPECT_THAT(x_junit, HasSubstr("<error message=\"not run: interrupted\"/>"));
  EXPECT_THAT(x_junit, HasSubstr("</testsuites>"));
}

TEST_F(Check, missing_need_is_skipped_with_its_reason) {
  guest("a", "exit 0", "needs = [\"kvm\"]");
  CheckConfig check;
  check.needs = {"kvm"};
  const std::string missing = missing_needs(check);
  EXPECT_EQ(run(), 0) << x_out;
  if (missing.empty()) {
    EXPECT_THAT(x_out, HasSubstr("1 passed, 0 failed, 0 skipped"));
  } else {
    EXPECT_THAT(x_out, HasSubstr("SKIP  a: needs kvm: /dev/kvm: "));
    EXPECT_THAT(x_junit, HasSubstr("<skipped message=\"needs kvm: "));
  }
}

TEST_F(Check, program_that_cannot_start_fails_the_guest) {
  guest("a", "exit 0");
  x_options.program = x_dir + "/nothing";
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_out, HasSubstr("cannot start the program"));
}

TEST_F(Check, shards_part_the_list_and_added_files_move_no_guest) {
  const auto names = [&](uint32_t shard, uint32_t shards) {
    std::vector<std::string> errors;
    std::vector<std::string> taken;
    for (const Guest& guest :
         take_shard(collect_guests(x_options.inputs, errors).guests, shard, shards))
      taken.push_back(guest.name);
    EXPECT_THAT(errors, ElementsAre());
    return taken;
  };
  for (const char* name : {"e", "c", "a", "d", "b"}) guest(name, "exit 0");
  EXPECT_THAT(names(1, 1), ElementsAre("a", "b", "c", "d", "e"));
  const auto first = names(1, 2);
  const auto second = names(2, 2);
  // On every machine, for ever: they were written down.
  EXPECT_THAT(first, ElementsAre("b", "c", "d"));
  EXPECT_THAT(second, ElementsAre("a", "e"));
  for (int i = 0; i < 40; ++i) guest(fmt::format("aa{}", i), "exit 0");
  const auto more = names(1, 2);
  EXPECT_THAT(more, testing::IsSupersetOf(first));
  EXPECT_THAT(more, Not(Contains(testing::AnyOfArray(second))));
  size_t all = 0;
  for (uint32_t shard = 1; shard <= 7; ++shard) all += names(shard, 7).size();
  EXPECT_EQ(all, 45u);
  x_options.shard = 1;
  x_options.shards = 2;
  EXPECT_EQ(run(), 0);
  EXPECT_THAT(x_out, HasSubstr(fmt::format("{} passed", more.size())));
}

TEST_F(Check, guests_run_under_the_same_names_each_time_and_no_two_checks_share_one) {
  ::setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  guest("a", "echo $5 >> names");  // the word behind --name
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_EQ(run(), 0);
  {
    const auto other = RunNames::create();
    ASSERT_TRUE(other);
    EXPECT_EQ(run(), 0);
  }
  EXPECT_EQ(run(), 0);
  ::unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(read("names"), "check-1-a\ncheck-1-a\ncheck-2-a\ncheck-1-a\n");
}

TEST_F(Check, memory_bounds_how_many_run_at_a_time) {
  for (const char* name : {"a", "b"}) guest(name, "echo + >> order; sleep 0.5; echo - >> order");
  x_options.jobs = 2;
  x_options.memory_bytes = 200 * kMiB;  // a guest has 128 MiB, its pool and process 32 each
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_EQ(read("order"), "+\n-\n+\n-\n");
  EXPECT_THAT(x_out, Not(HasSubstr("NOTE")));
}

TEST_F(Check, a_guest_that_is_too_large_says_so_and_runs_alone) {
  guest("a", "exit 0");
  guest("b", "exit 0");
  x_options.jobs = 2;
  x_options.memory_bytes = 100 * kMiB;
  EXPECT_EQ(run(), 0) << x_out;
  EXPECT_THAT(x_out, HasSubstr("NOTE a: it may take 192 MiB, more than the 100 MiB of --memory: it "
                               "runs alone, and may fail"));
  EXPECT_THAT(x_out, HasSubstr("NOTE b: it may take 192 MiB"));
}

TEST_F(Check, a_guest_that_needs_fast_kvm_is_skipped_where_it_is_slow) {
  guest("a", "exit 0", "needs = [\"fast-kvm\"]");
  CheckConfig check;
  check.needs = {"fast-kvm"};
  const std::string missing = missing_needs(check);
  EXPECT_EQ(run(), 0) << x_out;
  if (missing.empty()) {
    EXPECT_THAT(x_out, HasSubstr("1 passed, 0 failed, 0 skipped"));
  } else {
    EXPECT_THAT(x_out, HasSubstr("SKIP  a: needs fast-kvm: "));
    EXPECT_THAT(x_out, HasSubstr("0 passed, 0 failed, 1 skipped"));
  }
}

TEST_F(Check, bad_inputs_are_all_told_and_nothing_runs) {
  guest("good", "touch ran");
  write("wrong.toml", "cpus = 0\n[boot]\nkernel = \"k\"\n[check]\n");
  write("pattern.toml", "[boot]\nkernel = \"k\"\n[check]\nmust_match = [\"(\"]\n");
  EXPECT_EQ(run(), kExitUsage);
  EXPECT_THAT(x_err, HasSubstr("wrong.toml:1:1: key 'cpus' 0 is out of range"));
  EXPECT_THAT(x_err, HasSubstr("key 'check.must_match', entry 1: '(' is no regular expression"));
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/ran"));
}

TEST_F(Check, config_without_check_table_is_told) {
  guest("good", "exit 0");
  write("plain.toml", "[boot]\nkernel = \"k\"\n");
  EXPECT_EQ(run(), 0);
  EXPECT_THAT(x_out, HasSubstr("plain.toml' has no [check] table: passed over"));
  x_options.inputs = {x_dir + "/plain.toml"};
  EXPECT_EQ(run(), kExitUsage);
  EXPECT_THAT(x_err, HasSubstr("has no [check] table: add one"));
}

TEST_F(Check, two_guests_of_one_name_are_refused) {
  guest("a", "exit 0");
  std::filesystem::create_directory(x_dir + "/more");
  std::filesystem::copy(x_dir + "/a.toml", x_dir + "/more/a.toml");
  x_options.inputs = {x_dir, x_dir + "/more"};
  EXPECT_EQ(run(), kExitUsage);
  EXPECT_THAT(x_err, HasSubstr("two guests have the name 'a'"));
}

TEST_F(Check, directory_without_configs_is_refused) {
  EXPECT_EQ(run(), kExitUsage);
  EXPECT_THAT(x_err, HasSubstr("has no *.toml file"));
}

TEST_F(Check, unwritable_outputs_are_refused_before_any_guest) {
  guest("a", "touch ran");
  x_options.junit_file = x_dir + "/none/out.xml";
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_err, HasSubstr("none/out.xml': No such file"));
  x_options.junit_file.clear();
  x_options.out_dir = x_dir + "/stub/logs";
  EXPECT_EQ(run(), 1);
  EXPECT_THAT(x_err, HasSubstr("--out '"));
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/ran"));
}

}  // namespace
}  // namespace lethe
