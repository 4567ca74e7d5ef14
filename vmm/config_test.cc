#include "vmm/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "vmm/check/pattern.h"
#include "vmm/config_schema.h"
#include "vmm/run.h"
#include "vmm/toml_depth.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kKernel = "[boot]\nkernel = \"k\"\n";

struct Parsed {
  VmConfig config;
  std::vector<std::string> errors;
};

Parsed parse(const std::string& text, std::vector<std::string> overrides = {}) {
  Parsed parsed;
  parsed.config = parse_config(text, "dir/vm.toml", overrides, parsed.errors);
  return parsed;
}

// The only error of a text, or what there was instead.
std::string error_of(const std::string& text, std::vector<std::string> overrides = {}) {
  const Parsed parsed = parse(text, std::move(overrides));
  return parsed.errors.size() == 1
             ? parsed.errors[0]
             : fmt::format("{} errors: {}", parsed.errors.size(), fmt::join(parsed.errors, " | "));
}

TEST(Config, a_kernel_is_all_a_config_needs) {
  const Parsed parsed = parse(kKernel);
  EXPECT_THAT(parsed.errors, IsEmpty());
  VmConfig expected;
  expected.name = "vm";
  expected.boot.kernel = "dir/k";
  EXPECT_EQ(parsed.config, expected);
}

constexpr const char* kEveryKey = R"(
name = "demo"
cpus = 4
[memory]
size = "2G"
backing = "hugetlb"
thp = false
auto = true
policy = "lazy"
forget = false
forget_ms_max = 250
isolated_max = "32M"
pool_max = "100M"
scrub = "map"
weight = 300
floor = "512M"
[balloon]
enabled = true
deflate_on_oom = false
free_page_reporting = false
free_page_hinting = false
statistics = false
[boot]
kernel = "/abs/vmlinuz"
initrd = "sub/initrd.img"
cmdline = "console=ttyS0 quiet"
unpack = false
on_reboot = "exit"
stop_timeout_ms = 0
[console]
input = "virtio"
log = "c.log"
[[disk]]
path = "a.img"
[[disk]]
path = "/b.img"
read_only = true
direct = true
queues = 4
queue_size = 128
iops_max = 1000
bandwidth_max = "10M"
[rng]
enabled = false
source = "/dev/random"
[vsock]
enabled = true
cid = 42
path = "v.sock"
[gui]
enabled = true
width = 1920
height = 1080
screens = 2
keyboard = false
pointer = false
window_memory = "1G"
memory_max = "2G"
frontends_max = 3
free_per_iteration = 0
orphan_bytes_max = "64M"
orphans_max = 100
orphan_ms_max = 5000
[check]
deadline_ms = 1500
exit = "debug-exit:5"
must_match = ["a.*b", "c"]
must_not_match = ["BUG"]
needs = ["kvm"]
)";

TEST(Config, reads_every_key) {
  const Parsed parsed = parse(kEveryKey);
  ;
  EXPECT_THAT(parsed.errors, IsEmpty());
  VmConfig expected;
  expected.name = "demo";
  expected.cpus = 4;
  expected.memory = {.size_bytes = 2 * kGiB,
                     .backing = MemoryBacking::kHugetlb,
                     .thp = false,
                     .automatic = true,
                     .policy = MemoryPolicy::kLazy,
                     .forget = false,
                     .forget_ms_max = 250,
                     .isolated_max = 32 * kMiB,
                     .pool_max = 100 * kMiB,
                     .scrub = ScrubTime::kMap,
                     .weight = 300,
                     .floor_bytes = 512 * kMiB};
  expected.balloon = {.deflate_on_oom = false,
                      .free_page_reporting = false,
                      .free_page_hinting = false,
                      .statistics = false};
  expected.boot = {.kernel = "/abs/vmlinuz",
                   .initrd = "dir/sub/initrd.img",
                   .cmdline = "console=ttyS0 quiet",
                   .unpack = false,
                   .on_reboot = OnReboot::kExit,
                   .stop_timeout_ms = 0};
  expected.console = {.input = ConsoleInput::kVirtio, .log = "dir/c.log"};
  expected.disks.push_back({.path = "dir/a.img"});
  expected.disks.push_back({.path = "/b.img",
                            .read_only = true,
                            .direct = true,
                            .queues = 4,
                            .queue_size = 128,
                            .iops_max = 1000,
                            .bandwidth_bytes_max = 10 * kMiB});
  expected.rng = {.enabled = false, .source = "/dev/random"};
  expected.vsock = {.enabled = true, .cid = 42, .path = "dir/v.sock"};
  expected.gui = {.enabled = true,
                  .width = 1920,
                  .height = 1080,
                  .screens = 2,
                  .keyboard = false,
                  .pointer = false,
                  .window_memory = kGiB,
                  .memory_max = 2 * kGiB,
                  .frontends_max = 3,
                  .free_per_iteration = 0,
                  .orphan_bytes_max = 64 * kMiB,
                  .orphans_max = 100,
                  .orphan_ms_max = 5000};
  expected.check = {.present = true,
                    .deadline_ms = 1500,
                    .exit = "debug-exit:5",
                    .must_match = {"a.*b", "c"},
                    .must_not_match = {"BUG"},
                    .needs = {"kvm"}};
  EXPECT_EQ(parsed.config, expected);
}

TEST(Config, unknown_key_gets_place_and_suggestion) {
  EXPECT_EQ(error_of(std::string(kKernel) + "[memory]\n  sise = \"1G\"\n"),
            "dir/vm.toml:4:3: key 'memory.sise' is not known; did you mean 'memory.size'?");
  EXPECT_EQ(error_of(std::string("size = \"1G\"\n") + kKernel),
            "dir/vm.toml:1:1: key 'size' is not known; did you mean 'memory.size'?");
  EXPECT_EQ(error_of(std::string(kKernel) + "[memroy]\nsize = \"1G\"\n"),
            "dir/vm.toml:3:2: key 'memroy' is not known; did you mean the table 'memory'?");
  EXPECT_THAT(error_of(std::string(kKernel) + "frobnicate = 1\n"),
              HasSubstr("key 'boot.frobnicate' is not known: see docs/config.md"));
}

TEST(Config, wrong_type_says_what_would_be_right) {
  EXPECT_EQ(
      error_of(std::string(kKernel) + "[memory]\nsize = 128\n"),
      "dir/vm.toml:4:1: key 'memory.size' is a whole number: it must be a size in quotes from "
      "\"16M\" to \"1T\", with suffix K, M, G or T, a multiple of 1M");
  EXPECT_EQ(error_of(std::string(kKernel) + "[memory]\nthp = \"yes\"\n"),
            "dir/vm.toml:4:1: key 'memory.thp' is text: it must be true or false");
  EXPECT_THAT(error_of(std::string("cpus = 1.5\n") + kKernel),
              HasSubstr("is a fraction: it must be a whole number from 1 to 64"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[check]\nmust_match = \"x\"\n"),
              HasSubstr("is text: it must be a list of texts"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[check]\nmust_match = [\"x\", 1]\n"),
              HasSubstr("is a list with something else than texts"));
  EXPECT_THAT(error_of("memory = 5\n[boot]\nkernel = \"k\""), HasSubstr("write [memory] above"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[disk]\npath = \"x\""), HasSubstr("write [[disk]]"));
}

TEST(Config, out_of_range_says_the_range) {
  EXPECT_THAT(error_of(std::string("cpus = 0\n") + kKernel), HasSubstr("0 is out of range"));
  EXPECT_THAT(error_of(std::string("cpus = 65\n") + kKernel), HasSubstr("from 1 to 64"));
  EXPECT_THAT(error_of(std::string("cpus = -1\n") + kKernel), HasSubstr("-1 is out of range"));
  const auto memory = [](const char* size) {
    return error_of(fmt::format("{}[memory]\nsize = \"{}\"\n", kKernel, size));
  };
  EXPECT_THAT(memory("15M"), HasSubstr("15M is out of range"));
  EXPECT_THAT(memory("1025G"), HasSubstr("1025G is out of range"));
  EXPECT_THAT(memory("999999999999T"), HasSubstr("is no size"));
  EXPECT_THAT(memory("16385K"), HasSubstr("a multiple of 1M"));
  EXPECT_THAT(memory("12x"), HasSubstr("'12x' is no size"));
  EXPECT_THAT(memory(""), HasSubstr("'' is no size"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[[disk]]\npath = \"x\"\nqueue_size = 100\n"),
              HasSubstr("100 does not fit: it must be a power of two from 16 to 1024"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[memory]\nbacking = \"shard\"\n"),
              HasSubstr("'shard' is not known; did you mean 'shared'?: it must be \"anonymous\", "
                        "\"shared\" or \"hugetlb\""));
  EXPECT_THAT(error_of(std::string(kKernel) + "cmdline = \"" + std::string(2048, 'x') + "\"\n"),
              HasSubstr("is 2048 bytes long, more than 2047"));
  EXPECT_THAT(error_of("[boot]\nkernel = \"a\\u0000b\""), HasSubstr("has a control character"));
  EXPECT_THAT(error_of("[boot]\nkernel = \"\""), HasSubstr("is empty"));
}

TEST(Config, reports_every_error_of_a_file) {
  const Parsed parsed = parse("cpus = 0\nfoo = 1\n[boot]\nunpack = 3\n[[disk]]\nqueues = 0\n");
  EXPECT_EQ(parsed.errors.size(), 6u) << fmt::format("{}", fmt::join(parsed.errors, "\n"));
}

TEST(Config, missing_keys_are_named) {
  EXPECT_THAT(error_of(""), HasSubstr("dir/vm.toml: key 'boot.kernel' is missing"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[[disk]]\nqueues = 2\n"),
              HasSubstr("dir/vm.toml:3:1: key 'disk.path' is missing"));
}

TEST(Config, keys_that_contradict_each_other_are_refused) {
  EXPECT_THAT(error_of(std::string(kKernel) + "[memory]\nsize = \"17M\"\nbacking = \"hugetlb\"\n"),
              HasSubstr("multiple of 2M"));
  EXPECT_THAT(error_of(std::string(kKernel) + "[check]\nexit = \"reboot\"\n"),
              HasSubstr("set boot.on_reboot = \"exit\" too"));
}

TEST(Config, gui_keys_have_their_ranges) {
  const auto gui = [](const char* key) {
    return error_of(fmt::format("{}[gui]\n{}\n", kKernel, key));
  };
  EXPECT_THAT(gui("width = 319"), HasSubstr("from 320 to 16384"));
  EXPECT_THAT(gui("screens = 17"), HasSubstr("from 1 to 16"));
  EXPECT_THAT(gui("frontends_max = 0"), HasSubstr("from 1 to 16"));
  EXPECT_THAT(gui("window_memory = \"3M\""), HasSubstr("a power of two"));
  EXPECT_THAT(gui("orphan_ms_max = 0"), HasSubstr("from 1 to 3600000"));
  EXPECT_THAT(gui("free_per_iterations = 0"), HasSubstr("did you mean 'gui.free_per_iteration'?"));
}

TEST(Config, memory_keys_that_contradict_each_other_are_refused) {
  const auto memory = [](const char* keys) {
    return error_of(fmt::format("{}[memory]\n{}\n", kKernel, keys));
  };
  EXPECT_THAT(memory("policy = \"lazy\""), HasSubstr("set memory.forget = false too"));
  EXPECT_EQ(memory("policy = \"lazy\"\nforget = false"), "0 errors: ");
  EXPECT_THAT(memory("policy = \"pool\"\nbacking = \"shared\""),
              HasSubstr("with memory.backing = \"anonymous\" only"));
  EXPECT_THAT(memory("size = \"64M\"\nfloor = \"65M\""),
              HasSubstr("it must be at most memory.size = 64M"));
  EXPECT_THAT(memory("size = \"64M\"\npool_max = \"1G\""),
              HasSubstr("it must be at most memory.size = 64M"));
  EXPECT_THAT(memory("auto = true\n[balloon]\nenabled = false"),
              HasSubstr("set balloon.enabled = true, or memory.auto = false"));
}

TEST(Config, the_pool_is_a_quarter_of_the_memory_but_no_more_than_512_mib) {
  MemoryConfig memory;
  memory.size_bytes = 20 * kMiB;
  EXPECT_EQ(memory.pool_bytes_max(), 4 * kMiB);  // 5 MiB, in whole huge pages
  memory.size_bytes = 64 * kGiB;
  EXPECT_EQ(memory.pool_bytes_max(), 512 * kMiB);
  memory.pool_max = 3 * kMiB;
  EXPECT_EQ(memory.pool_bytes_max(), 2 * kMiB);
  memory.pool_max = 0;
  EXPECT_EQ(memory.pool_bytes_max(), 0u);
}

TEST(Config, disks_are_limited) {
  std::string text = kKernel;
  for (size_t i = 0; i < kDisksMax; ++i) text += "[[disk]]\npath = \"x\"\n";
  EXPECT_THAT(parse(text).errors, IsEmpty());
  EXPECT_THAT(error_of(text + "[[disk]]\npath = \"x\"\n"), HasSubstr("key 'disk' is one too many"));
}

TEST(Config, names_follow_the_rule) {
  EXPECT_TRUE(valid_vm_name("a"));
  EXPECT_TRUE(valid_vm_name("0-a_b.c"));
  EXPECT_TRUE(valid_vm_name(std::string(64, 'a')));
  for (const char* bad : {"", ".", "..", "-a", "_a", "A", "a/b", "a b", "\xc3\xa4"})
    EXPECT_FALSE(valid_vm_name(bad)) << bad;
  EXPECT_FALSE(valid_vm_name(std::string(65, 'a')));
  std::vector<std::string> errors;
  EXPECT_EQ(parse_config(kKernel, "x.y.toml", {}, errors).name, "x.y");
  EXPECT_THAT(errors, IsEmpty());
  (void)parse_config(kKernel, "My VM.toml", {}, errors);
  EXPECT_THAT(errors, ElementsAre(HasSubstr("key 'name' is missing")));
}

TEST(Config, overrides_come_last) {
  const std::string text =
      std::string(kKernel) + "[memory]\nsize = \"1G\"\n[[disk]]\npath = \"a\"\n";
  const Parsed parsed =
      parse(text, {"memory.size=32M", "cpus=2", "disk.0.read_only=true", "name=other",
                   "boot.cmdline=a=b c", "check.needs=[\"kvm\"]", "memory.backing='shared'"});
  EXPECT_THAT(parsed.errors, IsEmpty());
  EXPECT_EQ(parsed.config.memory.size_bytes, 32 * kMiB);
  EXPECT_EQ(parsed.config.cpus, 2u);
  EXPECT_TRUE(parsed.config.disks.at(0).read_only);
  EXPECT_EQ(parsed.config.name, "other");
  EXPECT_EQ(parsed.config.boot.cmdline, "a=b c");
  EXPECT_EQ(parsed.config.memory.backing, MemoryBacking::kShared);
  EXPECT_THAT(parsed.config.check.needs, ElementsAre("kvm"));
  EXPECT_THAT(error_of(text, {"cpus=many"}),
              "--set cpus=many: key 'cpus' is text: it must be a whole number from 1 to 64");
  EXPECT_EQ(parse(text, {"name=42"}).config.name, "42");
  EXPECT_THAT(error_of(text, {"cpu=2"}), HasSubstr("did you mean 'cpus'?"));
  EXPECT_THAT(error_of(text, {"cpus"}), HasSubstr("write it as key=value"));
  EXPECT_THAT(error_of(text, {"disk.1.path=x"}), HasSubstr("names no disk"));
  EXPECT_THAT(error_of(text, {"disk.path=x"}), HasSubstr("names no disk"));
  EXPECT_THAT(error_of(text, {"cpus=1\nname=\"x\""}), HasSubstr("\\x0aname"));
}

TEST(Config, text_that_is_no_toml_names_the_place) {
  EXPECT_THAT(error_of("name = \n"), HasSubstr("dir/vm.toml:1:8: not TOML: "));
  EXPECT_THAT(error_of("[boot\nkernel = 1"), HasSubstr("not TOML: "));
  EXPECT_THAT(error_of("[[.]]"), HasSubstr("not TOML: "));  // an assertion of toml++ 3.3
  EXPECT_THAT(error_of("[\x01]"), HasSubstr("not TOML: "));
  // toml++ 3.3 has undefined behaviour for some letters where it looks for whitespace.
  EXPECT_THAT(error_of("x \xc8\x8e = 1"), HasSubstr("not TOML: "));
  EXPECT_THAT(
      parse(std::string(kKernel) + "cmdline = \"\"\"a\\\n \xc8\x8e\"\"\"").config.boot.cmdline,
      "a\xc8\x8e");
  std::string junk;
  for (int i = 0; i < 4096; ++i) junk += static_cast<char>((i * 167 + 13) % 256);
  EXPECT_THAT(error_of(junk), HasSubstr("not TOML: "));
  EXPECT_EQ(error_of(junk).find('\n'), std::string::npos);
  EXPECT_THAT(error_of(std::string("\x7f"
                                   "ELF\0\0\0\0",
                                   8)),
              HasSubstr("not TOML: "));
}

TEST(Config, nesting_is_bounded) {
  EXPECT_THAT(error_of("a = " + std::string(100000, '[')), HasSubstr("not TOML: "));
  std::string dotted = "a";
  for (int i = 0; i < 400000; ++i) dotted += ".a";
  EXPECT_THAT(error_of(dotted + " = 1\n"), HasSubstr("a key has too many parts"));
  EXPECT_THAT(error_of("\n[" + dotted + "]\n"), HasSubstr("dir/vm.toml:2: a key has too many"));
  EXPECT_THAT(error_of("x = { " + dotted + " = 1 }\n"), HasSubstr("a key has too many parts"));
}

TEST(Config, dots_in_strings_and_comments_are_no_nesting) {
  const std::string dots(100, '.');
  EXPECT_FALSE(toml_too_deep("a = \"" + dots + "\" # " + dots + "\n"));
  EXPECT_FALSE(toml_too_deep("a = '" + dots + "\\'\n"));
  EXPECT_FALSE(toml_too_deep("a = \"\\\"" + dots + "\"\n"));
  EXPECT_FALSE(toml_too_deep("a = \"\"\"\n" + dots + "\"\n" + dots + "\"\"\"\"\n"));
  EXPECT_EQ(toml_too_deep("a = \"\"\"\n\n\"\"\"\n" + dots), 4u);
  EXPECT_EQ(toml_too_deep("a = 'x'" + dots), 1u);
}

TEST(Config, documented_defaults_are_the_defaults) {
  for (const ConfigKey& key : config_keys()) {
    if (key.fallback.empty()) continue;
    std::string text = kKernel;
    if (key.section == "disk") {
      text += "[[disk]]\npath = \"x\"\n";
    } else if (key.section == "net") {
      text += "[[net]]\nuser = true\n";
    } else if (key.section == "check.screen") {
      text += "[gui]\nenabled = true\n[[check.screen]]\ntype = \"x\"\n";
    } else if (key.section == "check.exec") {
      text += "[vsock]\nenabled = true\n[[check.exec]]\nshell = \"x\"\n";
    }
    const Parsed without = parse(text);
    if (key.section.empty()) {
      text = fmt::format("{} = {}\n{}", key.name, key.fallback, text);
    } else if (key.section == "boot" || key.section == "disk" || key.section == "net" ||
               key.section.starts_with("check.")) {
      text += fmt::format("{} = {}\n", key.name, key.fallback);
    } else {
      text += fmt::format("[{}]\n{} = {}\n", key.section, key.name, key.fallback);
    }
    Parsed with = parse(text);
    with.config.check.present = without.config.check.present;
    EXPECT_THAT(with.errors, IsEmpty()) << key.full_name();
    EXPECT_EQ(with.config, without.config) << key.full_name();
  }
}

TEST(Config, expected_exits_are_run_exit_codes) {
  const auto code = [](const char* exit) {
    CheckConfig check;
    check.exit = exit;
    return expected_exit_code(check);
  };
  EXPECT_EQ(code("poweroff"), 0);
  EXPECT_EQ(code("reboot"), 3);
  EXPECT_EQ(code("panic"), 4);
  EXPECT_EQ(code("triple-fault"), 5);
  EXPECT_EQ(code("debug-exit:0"), 64);
  EXPECT_EQ(code("debug-exit:62"), 126);
  EXPECT_EQ(code("debug-exit:63"), 127);
  for (const char* bad :
       {"", "off", "debug-exit:", "debug-exit:64", "debug-exit:-1", "debug-exit:1x"})
    EXPECT_EQ(code(bad), -1) << bad;
  EXPECT_THAT(error_of(std::string(kKernel) + "[check]\nexit = \"debug-exit:99\"\n"),
              HasSubstr("it must be \"poweroff\", \"reboot\""));
  EXPECT_THAT(error_of(std::string(kKernel) + "[check]\nneeds = [\"net\"]\n"),
              HasSubstr("it must be a list of \"kvm\""));
}

TEST(Config, sizes_print_and_parse) {
  EXPECT_EQ(parse_size("0"), 0u);
  EXPECT_EQ(parse_size("1K"), 1024u);
  EXPECT_EQ(parse_size("16777215T"), 16777215 * kTiB);
  EXPECT_EQ(parse_size("16777216T"), std::nullopt);
  for (const char* bad : {"", "K", "1KB", "1k", " 1", "-1", "+1", "1.5M", "99999999999999999999"})
    EXPECT_EQ(parse_size(bad), std::nullopt) << bad;
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, kKiB, 1536 * kKiB, kGiB, 3 * kTiB})
    EXPECT_EQ(parse_size(format_size(bytes)), bytes);
}

// docs/config.md holds the reference as the program prints it.
TEST(Config, docs_are_up_to_date) {
  std::ifstream docs(LETHE_SOURCE_DIR "/docs/config.md");
  const std::string text{std::istreambuf_iterator<char>(docs), {}};
  EXPECT_NE(text.find(config_reference()), std::string::npos)
      << "run: lethe validate --print-reference, and put it under 'Reference' in docs/config.md";
}

TEST(Config, all_configs_of_the_tree_are_right) {
  size_t seen = 0;
  for (const char* folder : {"/configs", "/guest-tests"}) {
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(std::string(LETHE_SOURCE_DIR) + folder)) {
      if (entry.path().extension() != ".toml") continue;
      ++seen;
      const auto config = load_config(entry.path());
      ASSERT_TRUE(config) << config.error().text;
      const auto patterns = compile_patterns(config->check, entry.path());
      EXPECT_TRUE(patterns) << patterns.error().text;
    }
  }
  EXPECT_GE(seen, 3u);
}

}  // namespace
}  // namespace lethe
