#include "memory/pressure.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr const char* kPsi =
    "some avg10=12.50 avg60=3.00 avg300=0.10 total=123456\n"
    "full avg10=4.25 avg60=1.00 avg300=0.00 total=2345\n";

// A host made of files.
class PressureTest : public testing::Test {
 protected:
  PressureTest() {
    std::string path = testing::TempDir() + "/lethe-pressure-XXXXXX";
    root_ = ::mkdtemp(path.data());
  }
  ~PressureTest() override { std::filesystem::remove_all(root_); }
  void file(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  void meminfo() {
    file("/proc/meminfo",
         "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    5000000 kB\n");
  }
  void v2(const std::string& group) {
    file("/proc/self/cgroup", "0::" + group + "\n");
    file("/proc/self/mountinfo",
         "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  std::string root_;
};

TEST(PressureText, averages_are_read_and_nonsense_is_refused) {
  const auto averages = parse_pressure(kPsi);
  ASSERT_TRUE(averages);
  EXPECT_DOUBLE_EQ(averages->some_avg10, 12.5);
  EXPECT_DOUBLE_EQ(averages->full_avg10, 4.25);
  for (const char* bad : {"", "\n\n", "some", "some avg10=", "some avg10=x", "some avg10=-1",
                          "some avg10=nan", "some avg10=101", "full avg10=1.00", "avg10=1.00"})
    EXPECT_FALSE(parse_pressure(bad)) << bad;
}

TEST_F(PressureTest, own_cgroups_pressure_comes_before_the_systems) {
  meminfo();
  v2("/user/vm");
  file("/proc/pressure/memory", kPsi);
  EXPECT_EQ(Pressure(root_).psi_file(), root_ + "/proc/pressure/memory");
  file("/sys/fs/cgroup/user/vm/memory.pressure", "some avg10=33.00 avg60=0 avg300=0 total=0\n");
  const Pressure pressure(root_);
  EXPECT_EQ(pressure.psi_file(), root_ + "/sys/fs/cgroup/user/vm/memory.pressure");
  EXPECT_DOUBLE_EQ(pressure.read().averages.some_avg10, 33);
}

TEST_F(PressureTest, host_figures_are_read_from_meminfo) {
  meminfo();
  const MemoryState state = Pressure(root_).read();
  EXPECT_EQ(state.host_total, 16000000ULL * 1024);
  EXPECT_EQ(state.host_available, 5000000ULL * 1024);
  EXPECT_EQ(state.limit, 0U);
}

TEST_F(PressureTest, nothing_there_at_all_means_unknown_and_no_trigger) {
  const Pressure pressure(root_);
  EXPECT_EQ(pressure.read().host_total, 0U);
  EXPECT_EQ(pressure.read().averages.some_avg10, 0);
  const auto trigger = pressure.open_trigger();
  ASSERT_FALSE(trigger);
  EXPECT_NE(trigger.error().text.find("pressure stall"), std::string::npos);
}

TEST_F(PressureTest, tightest_limit_of_the_groups_above_counts) {
  v2("/a/b");
  const std::string base = "/sys/fs/cgroup";
  file(base + "/a/b/memory.current", "1000000\n");
  file(base + "/a/b/memory.max", "max\n");
  file(base + "/a/b/memory.high", "900000000\n");
  file(base + "/a/memory.current", "400000000\n");
  file(base + "/a/memory.max", "500000000\n");
  file(base + "/a/memory.stat", "anon 5\nfile 70000000\ninactive_file 50000000\nactive_file 3\n");
  const MemoryState state = Pressure(root_).read();
  EXPECT_EQ(state.limit, 500000000U);
  EXPECT_EQ(state.headroom, 150000000U);  // droppable cache is not used memory
}

TEST_F(PressureTest, group_at_or_over_its_limit_has_no_headroom) {
  v2("/a");
  file("/sys/fs/cgroup/a/memory.current", "600\n");
  file("/sys/fs/cgroup/a/memory.max", "500\n");
  const MemoryState state = Pressure(root_).read();
  EXPECT_EQ(state.limit, 500U);
  EXPECT_EQ(state.headroom, 0U);
}

TEST_F(PressureTest, v1_groups_have_limits_too) {
  file("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/vm\n0::/\n");
  file("/proc/self/mountinfo",
       "32 31 0:29 / /cg/memory rw,relatime - cgroup cgroup rw,cpu,memory\n"
       "33 31 0:30 / /cg/unified rw,relatime - cgroup2 cgroup2 rw\n");
  file("/cg/memory/vm/memory.usage_in_bytes", "300\n");
  file("/cg/memory/vm/memory.limit_in_bytes", "1000\n");
  file("/cg/memory/memory.usage_in_bytes", "5000\n");
  file("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
  const MemoryState state = Pressure(root_).read();
  EXPECT_EQ(state.limit, 1000U);
  EXPECT_EQ(state.headroom, 700U);
}

TEST_F(PressureTest, container_that_sees_a_part_of_the_tree_finds_its_group) {
  file("/proc/self/cgroup", "0::/outer/inner\n");
  file("/proc/self/mountinfo", "31 23 0:28 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  file("/sys/fs/cgroup/inner/memory.current", "1\n");
  file("/sys/fs/cgroup/inner/memory.max", "100\n");
  EXPECT_EQ(Pressure(root_).read().limit, 100U);
}

TEST_F(PressureTest, trigger_is_written_as_the_kernel_wants_it) {
  file("/proc/pressure/memory", kPsi);
  const auto trigger = Pressure(root_).open_trigger();
  ASSERT_TRUE(trigger) << trigger.error().text;
  std::ifstream written(root_ + "/proc/pressure/memory");
  std::string text;
  std::getline(written, text, '\0');
  EXPECT_EQ(text, "some 150000 1000000");
}

TEST_F(PressureTest, trigger_that_is_forbidden_is_an_error_with_the_files_name) {
  file("/proc/pressure/memory", kPsi);
  const Pressure pressure(root_);
  std::filesystem::remove(root_ + "/proc/pressure/memory");
  const auto trigger = pressure.open_trigger();
  ASSERT_FALSE(trigger);
  EXPECT_NE(trigger.error().text.find("/proc/pressure/memory"), std::string::npos);
}

// Root may open anything for writing: a directory stands for a file that this user may only read.
class OwnPressureForbidden : public PressureTest {
 protected:
  OwnPressureForbidden() {
    v2("/session");
    file(kSystem, kPsi);
    file(kOwn, kPsi);
  }
  void forbid(const std::string& path) {
    std::filesystem::remove(root_ + path);
    std::filesystem::create_directory(root_ + path);
  }
  const std::string kOwn = "/sys/fs/cgroup/session/memory.pressure";
  const std::string kSystem = "/proc/pressure/memory";
};

TEST_F(OwnPressureForbidden, trigger_is_the_systems_then) {
  const Pressure pressure(root_);
  ASSERT_EQ(pressure.psi_file(), root_ + kOwn);
  forbid(kOwn);
  const auto trigger = pressure.open_trigger();
  ASSERT_TRUE(trigger) << trigger.error().text;
  std::ifstream written(root_ + kSystem);
  std::string text;
  std::getline(written, text, '\0');
  EXPECT_EQ(text, "some 150000 1000000");
}

TEST_F(OwnPressureForbidden, own_trigger_leaves_the_systems_alone) {
  const auto trigger = Pressure(root_).open_trigger();
  ASSERT_TRUE(trigger) << trigger.error().text;
  std::ifstream untouched(root_ + kSystem);
  std::string text;
  std::getline(untouched, text);
  EXPECT_TRUE(text.starts_with("some avg10=")) << text;
}

TEST_F(OwnPressureForbidden, error_names_both_where_both_are_forbidden) {
  const Pressure pressure(root_);
  forbid(kOwn);
  forbid(kSystem);
  const auto trigger = pressure.open_trigger();
  ASSERT_FALSE(trigger);
  EXPECT_NE(trigger.error().text.find(kOwn), std::string::npos) << trigger.error().text;
  EXPECT_NE(trigger.error().text.find(kSystem), std::string::npos) << trigger.error().text;
  EXPECT_EQ(trigger.error().text.find('\n'), std::string::npos);
}

TEST_F(PressureTest, odd_files_are_read_without_harm) {
  meminfo();
  for (const char* text : {"", ":", "::", "0::", "0::/../x", "x\ny:z\n"}) {
    file("/proc/self/cgroup", text);
    for (const char* mounts : {"", "-", "1 2 3 / /x rw -", "1 2 3 / /x rw - cgroup2 a rw"}) {
      file("/proc/self/mountinfo", mounts);
      EXPECT_EQ(Pressure(root_).read().limit, 0U);
    }
  }
}

// The real host, whatever it has.
TEST(PressureHere, files_of_this_host_are_understood) {
  const Pressure pressure;
  const MemoryState state = pressure.read();
  EXPECT_GT(state.host_total, 64 * kMiB);
  EXPECT_LE(state.host_available, state.host_total);
  const auto trigger = pressure.open_trigger();
  if (!trigger) {
    std::printf("no trigger here: %s\n", trigger.error().text.c_str());
    return;
  }
  pollfd ready{.fd = trigger->get(), .events = POLLPRI, .revents = 0};
  ASSERT_GE(::poll(&ready, 1, 0), 0);
  EXPECT_EQ(ready.revents & POLLERR, 0);
}

}  // namespace
}  // namespace lethe
