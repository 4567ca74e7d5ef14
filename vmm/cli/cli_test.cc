// The built program with wrong things typed: each has its exit code, and exactly one line on
// stderr.
#include "vmm/cli/cli_test_util.h"
#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(Cli, wrong_words_are_one_line_and_exit_code_2) {
  expect_refused("", 2, "a command is missing");
  expect_refused("rnu", 2, "'rnu' is no command; did you mean 'run'?");
  expect_refused("frobnicate", 2, "'frobnicate' is no command (");
  expect_refused("--frobnicate", 2, "'--frobnicate' is no command");
  expect_refused("\"$(printf 'a\\nb\\033c')\"", 2, "'a\\x0ab\\x1bc' is no command");
  expect_refused("''", 2, "'' is no command");
  expect_refused("run", 2, "CONFIG is required");
  expect_refused("run a b", 2, "'b' is one too many");
  expect_refused("run --nme x a", 2, "'--nme' is not known; did you mean '--name'?");
  expect_refused("run a --set", 2, "--set");
  expect_refused("run a --log loud", 2, "log level 'loud' is not known");
  expect_refused("validate", 2, "CONFIG is missing");
  expect_refused("doctor now", 2, "'now' is one too many");
  expect_refused("stats", 2, "NAME is required");
  expect_refused("stats a b", 2, "'b' is one too many");
  expect_refused("stats a --jsn", 2, "did you mean '--json'?");
  expect_refused("reclaim", 2, "NAME is required");
  expect_refused("reclaim a b c", 2, "'c' is one too many");
  for (const char* bytes : {"0", "-1", "1X", "some", "''", "99999999999999999999", "1.5G"})
    expect_refused(fmt::format("reclaim a {}", bytes), 2, "");
  for (const char* command : {"attach", "vnc", "shot"}) {
    expect_refused(command, 2, "NAME is required");
    expect_refused(fmt::format("{} --frobnicate x", command), 2, "'--frobnicate' is not known");
  }
  expect_refused("top now", 2, "'now' is one too many");
  expect_refused("top -d 0", 2, "--delay");
  expect_refused("top -d nan", 2, "--delay");
  expect_refused("top --sort size", 2, "--sort");
  expect_refused("version 2", 2, "'2' is one too many");
  expect_refused("ps now", 2, "'now' is one too many");
  expect_refused("ps -q --json", 2, "excludes");
  for (const char* command : {"stop", "kill", "pause", "resume"}) {
    expect_refused(command, 2, "NAME is missing: name VMs, or write --all");
    expect_refused(fmt::format("{} a --all", command), 2, "excludes");
    expect_refused(fmt::format("{} --al", command), 2, "did you mean '--all'?");
  }
  for (const char* seconds : {"-1", "nan", "soon", "1e9"})
    expect_refused(fmt::format("stop a --timeout={}", seconds), 2, "--timeout");
  expect_refused("log", 2, "NAME is required");
  expect_refused("log a -n -1", 2, "--lines");
  expect_refused("log a -n many", 2, "--lines");
  expect_refused("console", 2, "NAME is required");
  expect_refused("console a b", 2, "'b' is one too many");
  expect_refused("completion", 2, "SHELL is required");
  expect_refused("completion csh", 2, "csh not in {bash,zsh,fish}");
  expect_refused("man rnu", 2, "'rnu' is no command; did you mean 'run'?");
  expect_refused("man run --out x", 2, "excludes");
  expect_refused("check", 2, "CONFIG is required");
  expect_refused("check x --jobs 0", 2, "--jobs");
  expect_refused("check x --jobs many", 2, "--jobs");
  expect_refused("check x --retry -1", 2, "--retry");
  expect_refused("check x --timeout-scale nan", 2, "--timeout-scale");
  for (const char* shard : {"0/2", "3/2", "1", "/", "1/", "a/b", "-1/2", "1/2/3"})
    expect_refused(fmt::format("check x --shard={}", shard), 2, "write I/N");
}

TEST_F(Cli, a_vm_that_does_not_run_is_one_line_and_exit_code_1) {
  expect_refused("stats nobody", 1, "'nobody' does not run, nor does any other VM");
  // What a crash leaves.
  std::filesystem::create_directories(x_dir + "/lethe/crashed");
  write("lethe/crashed/lock", "1\n");
  write("lethe/crashed/api.sock", "");
  expect_refused("stats crashed", 1, "'crashed' does not run, nor does any other VM");
  expect_refused("reclaim crashed", 1, "'crashed' does not run, nor does any other VM");
  expect_refused("reclaim crashed 1M", 1, "'crashed' does not run, nor does any other VM");
  EXPECT_THAT(lethe("top").out, StartsWith("0 VMs, "));
  for (const char* command : {"attach", "vnc", "shot"}) {
    expect_refused(fmt::format("{} nobody x", command), 1, "'nobody' does not run, nor does any");
    expect_refused(fmt::format("{} ''", command), 1, "'' does not run");
  }
}

TEST_F(Cli, bad_configs_are_one_line_and_exit_code_2) {
  write("k", "kernel");
  const std::string good = "[boot]\nkernel = \"k\"\n";
  std::string junk;
  for (int i = 0; i < 4096; ++i) junk += static_cast<char>((i * 167 + 13) % 256);
  write("junk.toml", junk);
  write("huge.toml", std::string((1 << 20) + 1, '#'));
  write("deep.toml", "a = " + std::string(500000, '['));
  write("three.toml", "cpus = 0\nfoo = 1\nbar = 2\n" + good);
  write("type.toml", "cpus = \"two\"\n" + good);
  write("Bad Name.toml", good);
  write("nokernel.toml", "[boot]\nkernel = \"none\"\n");
  write("good.toml", good);
  for (const char* command : {"run", "check", "validate"}) {
    const auto refused = [&](const std::string& file, const std::string& part) {
      expect_refused(fmt::format("{} '{}'", command, file), 2, part);
    };
    refused("gone.toml", "config 'gone.toml': No such file or directory");
    refused("junk.toml", "junk.toml:1:");
    refused("huge.toml", "larger than 1 MiB");
    refused("deep.toml", "deep.toml:1:");
    refused("type.toml",
            "type.toml:1:1: key 'cpus' is text: it must be a whole number from 1 to 64");
    refused("Bad Name.toml", "key 'name' is missing");
    refused("/dev/zero", "is a character device");
  }
  expect_refused("run .", 2, "is a directory");
  expect_refused("run three.toml", 2, "(and 2 more: `lethe validate` lists them)");
  expect_refused("run nokernel.toml", 2, "nokernel.toml: key 'boot.kernel': 'none': No such file");
  expect_refused("validate nokernel.toml", 2, "key 'boot.kernel': 'none': No such file");
  expect_refused("run good.toml --name Bad", 2, "key 'name' 'Bad' does not fit");
  expect_refused("run good.toml --set memory.size=1", 2, "--set memory.size=1: key 'memory.size'");
}

TEST_F(Cli, a_run_time_directory_that_cannot_be_written_is_exit_code_1) {
  write("k", "\177ELF");
  write("a.toml", "[boot]\nkernel = \"k\"\n");
  // Nobody, not even root, makes directories there.
  expect_refused("run a.toml", 1,
                 "run-time directory '/proc/lethe': No such file or directory: set XDG_RUNTIME_DIR "
                 "to a directory you may write",
                 "env XDG_RUNTIME_DIR=/proc");
  expect_refused("run a.toml", 1,
                 "run-time directory '/nowhere': is missing or no directory: make it, or unset "
                 "XDG_RUNTIME_DIR",
                 "env XDG_RUNTIME_DIR=/nowhere");
}

TEST_F(Cli, without_kvm_it_is_exit_code_7_and_nothing_of_the_vm_is_left) {
  write("k", "\177ELF");
  write("a.toml", "[boot]\nkernel = \"k\"\n");
  // A /dev of its own that has only what the config names.
  const std::string elsewhere = "unshare -rm sh " + write("elsewhere", R"(set -e
mkdir -p dev
mount -t tmpfs none dev
for device in null urandom; do
  : >dev/$device
  mount --bind /dev/$device dev/$device
done
mount --rbind dev /dev
exec "$@"
)");
  if (const Ran ran = lethe("version", elsewhere); ran.code != 0)
    GTEST_SKIP() << "SKIPPED: no name spaces for this user here: " << ran.err;
  expect_refused("run a.toml", 7, "/dev/kvm is missing: load the kvm_intel or kvm_amd module",
                 elsewhere);
  expect_refused("run -d a.toml", 7, "/dev/kvm is missing", elsewhere);
  EXPECT_TRUE(std::filesystem::is_empty(x_dir + "/lethe"));
}

TEST_F(Cli, validate_lists_every_error) {
  write("three.toml", "cpus = 0\nfoo = 1\nbar = 2\n[boot]\nkernel = \"k\"\n");
  const Ran ran = lethe("validate three.toml");
  EXPECT_EQ(ran.code, 2);
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 3) << ran.err;
}

TEST_F(Cli, validate_looks_at_the_kernel) {
  write("k", "kernel");
  write("a.toml", "[boot]\nkernel = \"k\"\n");
  expect_refused("validate a.toml", 2,
                 "a.toml: boot.kernel 'k' is neither an ELF file nor a Linux bzImage");
}

TEST_F(Cli, validate_compiles_the_patterns) {
  write("k", "\177ELF");
  write("a.toml",
        "[boot]\nkernel = \"k\"\n[vsock]\nenabled = true\n[check]\nmust_match = ['(']\n"
        "[[check.exec]]\nshell = 'true'\nstdout_match = [')']\n");
  const Ran ran = lethe("validate a.toml");
  EXPECT_EQ(ran.code, 2);
  EXPECT_THAT(ran.err, HasSubstr("key 'check.must_match', entry 1: '('"));
  EXPECT_THAT(ran.err, HasSubstr("key 'check.exec.stdout_match', entry 1: ')'"));
}

TEST_F(Cli, validate_accepts_good_configs) {
  write("k", "\177ELF");
  write("good.toml", "[boot]\nkernel = \"k\"\n");
  const Ran ran = lethe("validate good.toml");
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out, "good.toml: good\n");
}

TEST_F(Cli, help_and_version_go_to_stdout) {
  for (const char* words : {"--help", "help", "-h", "check -h", "--version", "version"}) {
    SCOPED_TRACE(words);
    const Ran ran = lethe(words);
    EXPECT_EQ(ran.code, 0);
    EXPECT_EQ(ran.err, "");
    EXPECT_THAT(ran.out, HasSubstr("lethe"));
  }
  EXPECT_THAT(lethe("run --help").out, HasSubstr("Examples:"));
}

TEST_F(Cli, doctor_has_a_finding_for_each_means_whatever_the_host) {
  const Ran ran = lethe("doctor");
  for (const char* row :
       {"kernel", "io_uring", "huge pages", "pressure", "scrub pool", "GUI", "frontends", "KVM"}) {
    const size_t at = ("\n" + ran.out).find(fmt::format("\n{:<13}", row));
    ASSERT_NE(at, std::string::npos) << row << "\n" << ran.out;
    EXPECT_NE(ran.out[at + 13], '\n') << row;
  }
  EXPECT_EQ(lethe("doctor --quiet").out, "");
}

TEST_F(Cli, reference_is_printed) {
  EXPECT_EQ(lethe("validate --print-reference").out, config_reference());
}

TEST_F(Cli, output_that_cannot_be_written_is_an_error) {
  const std::string command = fmt::format("{} version >/dev/full 2>{}/err", LETHE_PROGRAM, x_dir);
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(read("err"), "lethe: cannot write to standard output: No space left on device\n");
}

TEST_F(Cli, closed_standard_descriptors_do_no_harm) {
  const std::string command =
      fmt::format("cd {} && {} run gone.toml <&- >&- 2>&-", x_dir, LETHE_PROGRAM);
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 2);
}

TEST_F(Cli, check_runs_this_program) {
  // No guest is needed to see that the child is `lethe run`: the missing kernel is its error.
  ::setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
  write("a.toml", "[boot]\nkernel = \"none\"\n[check]\n");
  const Ran ran = lethe("check a.toml");
  EXPECT_EQ(ran.code, 1);
  EXPECT_THAT(ran.out,
              HasSubstr("expected poweroff, but the config was refused: lethe: a.toml: key "
                        "'boot.kernel': 'none': No such file"));
}

TEST(Suggest, finds_the_nearest_word) {
  const std::string_view words[] = {"run", "validate", "check"};
  EXPECT_EQ(closest_word("run", words), "run");
  EXPECT_EQ(closest_word("rnu", words), "run");
  EXPECT_EQ(closest_word("chekc", words), "check");
  EXPECT_EQ(closest_word("valdiaet", words), "validate");
  EXPECT_EQ(closest_word("banana", words), std::nullopt);
  EXPECT_EQ(closest_word("", words), std::nullopt);
  EXPECT_EQ(closest_word(std::string(1000, 'r'), words), std::nullopt);
}

}  // namespace
}  // namespace lethe
