// What files and their names may be.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/other_user_test_util.h"
#include "vmm/config.h"

namespace lethe {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kKernel = "[boot]\nkernel = \"k\"\n";

class ConfigFiles : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-config-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
  }
  void TearDown() override { std::filesystem::remove_all(x_dir); }
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(x_dir + "/" + name) << text;
    return x_dir + "/" + name;
  }
  std::string load_error(const std::string& path) {
    const auto config = load_config(path);
    if (config) return "loaded";
    EXPECT_EQ(config.error().kind, ErrorClass::kConfig);
    EXPECT_EQ(config.error().text.find('\n'), std::string::npos);
    return config.error().text;
  }
  std::string x_dir;
};

TEST_F(ConfigFiles, refuses_what_is_no_config_file) {
  EXPECT_EQ(load_error("/nonexistent/x.toml"),
            "config '/nonexistent/x.toml': No such file or directory");
  EXPECT_THAT(load_error(x_dir), HasSubstr("is a directory: name a TOML file"));
  EXPECT_THAT(load_error("/dev/null"), HasSubstr("is a character device"));
  ASSERT_EQ(::mkfifo((x_dir + "/pipe").c_str(), 0600), 0);
  EXPECT_THAT(load_error(x_dir + "/pipe"), HasSubstr("is a pipe"));
  const auto padded = [](size_t size) {
    return kKernel + std::string(size - std::string_view(kKernel).size(), '#');
  };
  const std::string just = write("just.toml", padded(kConfigFileBytesMax));
  EXPECT_EQ(load_error(just), "loaded");
  const std::string over = write("over.toml", padded(kConfigFileBytesMax + 1));
  EXPECT_THAT(load_error(over), HasSubstr("larger than 1 MiB"));
}

TEST_F(ConfigFiles, one_line_counts_the_other_errors) {
  const std::string path = write("a.toml", "cpus = 0\nfoo = 1\nbar = 2\n" + std::string(kKernel));
  EXPECT_THAT(load_error(path), HasSubstr("(and 2 more: `lethe validate` lists them)"));
}

TEST_F(ConfigFiles, files_the_config_names_are_checked) {
  const std::string kernel = write("k", "x");
  ASSERT_EQ(::mkdir((x_dir + "/dir").c_str(), 0700), 0);
  const std::string path = write("a.toml", R"(
[boot]
kernel = "dir"
initrd = "none"
[console]
log = "nowhere/log"
[[disk]]
path = "k"
[[disk]]
path = "gone.img"
[rng]
source = "dir"
)");
  const auto config = load_config(path);
  ASSERT_TRUE(config) << config.error().text;
  EXPECT_THAT(
      check_config_files(*config, path),
      ElementsAre(HasSubstr("a.toml: key 'boot.kernel': '" + x_dir + "/dir': is a directory"),
                  HasSubstr("key 'boot.initrd': '" + x_dir + "/none': No such file"),
                  HasSubstr("key 'disk.1.path': '" + x_dir + "/gone.img': No such file"),
                  HasSubstr("key 'rng.source'"), HasSubstr("key 'console.log'")));
}

TEST_F(ConfigFiles, a_disk_that_is_read_only_is_refused_with_the_way_out) {
  write("k", "x");
  const std::string disk = write("disk.img", "x");
  ASSERT_EQ(::chmod(disk.c_str(), 0444), 0);
  ASSERT_EQ(::chmod(x_dir.c_str(), 0755), 0);
  const std::string text = std::string(kKernel) + "[[disk]]\npath = \"disk.img\"\n";
  const auto said = [](const std::string& path) {
    return said_to_another_user([&] {
      const auto config = load_config(path);
      if (!config) return config.error().text;
      std::string lines;
      for (const std::string& line : check_config_files(*config, path)) lines += line + "\n";
      return lines;
    });
  };
  EXPECT_EQ(said(write("a.toml", text)),
            x_dir + "/a.toml: key 'disk.0.path': '" + disk +
                "': Permission denied: grant reading and writing to this user, or set read_only = "
                "true\n");
  EXPECT_EQ(said(write("b.toml", text + "read_only = true\n")), "");
  ASSERT_EQ(::chmod(disk.c_str(), 0), 0);
  EXPECT_THAT(said(x_dir + "/b.toml"), EndsWith("Permission denied: grant reading to this user\n"));
}

TEST_F(ConfigFiles, good_files_pass) {
  write("k", "x");
  const std::string path = write("a.toml", std::string(kKernel) + "[console]\nlog = \"new.log\"\n");
  const auto config = load_config(path);
  ASSERT_TRUE(config) << config.error().text;
  EXPECT_THAT(check_config_files(*config, path), IsEmpty());
}

}  // namespace
}  // namespace lethe
