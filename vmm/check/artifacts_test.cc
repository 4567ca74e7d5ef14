// What comes out of a hostile guest as a tar archive lands below its directory, or nowhere.
#include "vmm/check/artifacts.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace lethe {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// One entry of an archive. `type`: ustar's typeflag.
std::string entry(const std::string& name, const std::string& content, char type = '0',
                  unsigned mode = 0644, std::optional<uint64_t> size = {},
                  const std::string& link = "") {
  std::string block(512, '\0');
  name.copy(block.data(), 100);
  const auto put = [&](size_t at, const std::string& text) { text.copy(block.data() + at, 12); };
  put(100, fmt::format("{:07o}", mode));
  put(124, fmt::format("{:011o}", size.value_or(content.size())));
  put(257, std::string("ustar\0"
                       "00",
                       8));
  block[156] = type;
  link.copy(block.data() + 157, 100);
  block.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum));
  block[154] = '\0';
  std::string padded = content;
  padded.resize((content.size() + 511) / 512 * 512);
  return block + padded;
}
const std::string kEnd(1024, '\0');

class Artifacts : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-art-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    fs::create_directory(x_dir + "/in");
  }
  void TearDown() override { fs::remove_all(x_dir); }
  // Writes the archive, `at_once` bytes at a time; returns what was wrong.
  std::string unpack(const std::string& path, const std::string& archive, size_t at_once = 1000,
                     uint64_t bytes_max = 1 << 20) {
    auto writer = ArtifactWriter::create(x_dir + "/in", path, bytes_max);
    if (!writer) return writer.error().text;
    for (size_t at = 0; at < archive.size(); at += at_once)
      if (!(*writer)->feed(std::string_view(archive).substr(at, at_once))) break;
    std::string wrong = (*writer)->finish();
    x_passed_over = (*writer)->passed_over();
    return wrong;
  }
  std::string read(const std::string& name) {
    std::ifstream file(x_dir + "/in/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Every name below the test's directory.
  std::vector<std::string> all() {
    std::vector<std::string> names;
    for (const auto& found : fs::recursive_directory_iterator(x_dir))
      names.push_back(found.path().string().substr(x_dir.size() + 1));
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string x_dir;
  size_t x_passed_over = 0;
};

TEST_F(Artifacts, files_and_directories_are_written_whatever_the_pieces) {
  const std::string text(1300, 'x');
  const std::string archive = entry("./log/", "", '5', 0755) + entry("./log/a", text) +
                              entry("./log/empty", "") + entry("log/deep/run", "#!", '0', 0755) +
                              entry("././@LongLink", "./log/" + std::string(120, 'n') + '\0', 'L') +
                              entry("./log/nnn", "long") + kEnd;
  for (const size_t at_once : {1u, 511u, 512u, 513u, 100000u}) {
    fs::remove_all(x_dir + "/in/log");
    EXPECT_EQ(unpack("log", archive, at_once), "");
    EXPECT_EQ(read("log/a"), text);
    EXPECT_TRUE(fs::exists(x_dir + "/in/log/empty"));
    EXPECT_EQ(read("log/deep/run"), "#!");
    EXPECT_EQ(read("log/" + std::string(120, 'n')), "long");
    struct stat status{};
    ASSERT_EQ(::stat((x_dir + "/in/log/deep/run").c_str(), &status), 0);
    EXPECT_NE(status.st_mode & 0100, 0u);
    ASSERT_EQ(::stat((x_dir + "/in/log/a").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0111, 0u);
  }
}

TEST_F(Artifacts, names_that_lead_elsewhere_are_refused) {
  for (const std::string& name :
       {std::string("../x"), std::string("log/../../x"), std::string("/etc/x"),
        std::string("other"), std::string("logx"), std::string("log/a\nb"), std::string("log/\x7f"),
        std::string(".."), std::string("log/.."), std::string("/"),
        "log" + std::string(90, '/') + "..", std::string("")}) {
    EXPECT_THAT(unpack("log", entry(name, "evil") + kEnd), HasSubstr("not safe")) << name;
    EXPECT_THAT(unpack("log", entry(name, "", '5') + kEnd), HasSubstr("not safe")) << name;
  }
  const std::string long_name = "log/../../" + std::string(200, 'x') + '\0';
  EXPECT_THAT(unpack("log", entry("l", long_name, 'L') + entry("log/a", "evil") + kEnd),
              HasSubstr("not safe"));
  std::string deep = "log";
  for (int i = 0; i < 40; ++i) deep += "/d";
  EXPECT_THAT(unpack("log", entry(deep, "evil") + kEnd), HasSubstr("not safe"));
  EXPECT_THAT(all(), testing::ElementsAre("in"));
}

TEST_F(Artifacts, links_and_devices_are_passed_over) {
  for (const char type : {'2', '3', '4', '6'})
    EXPECT_EQ(unpack("log", entry("log/x", "", type) + kEnd), "") << type;
  EXPECT_EQ(x_passed_over, 1u);
  EXPECT_THAT(all(), testing::ElementsAre("in"));
}

TEST_F(Artifacts, a_hard_link_becomes_a_copy_of_what_came_before) {
  const std::string text(100'000, 'x');
  const std::string long_name = "log/" + std::string(150, 'n');
  EXPECT_EQ(
      unpack("log", entry("log/a", text, '0', 0755) + entry("log/b", "", '1', 0644, {}, "log/a") +
                        entry("l", long_name, 'L') + entry("log/c", "c") +
                        entry("l", long_name, 'K') + entry("log/d", "", '1') + kEnd),
      "");
  EXPECT_EQ(read("log/b"), text);
  EXPECT_EQ(read("log/d"), "c");
  EXPECT_EQ(fs::hard_link_count(x_dir + "/in/log/a"), 1u);
  // To no other place, no link and no directory; and copies count.
  fs::create_symlink("../../outside", x_dir + "/in/log/link");
  std::ofstream(x_dir + "/outside") << "secret";
  std::ofstream(x_dir + "/in/beside") << "secret";
  for (const char* target : {"../outside", "beside", "/etc/passwd", "log/link", "log", "", "log/e"})
    EXPECT_THAT(unpack("log", entry("log/e", "", '1', 0644, {}, target) + kEnd),
                HasSubstr("is linked to what"))
        << target;
  EXPECT_FALSE(fs::exists(x_dir + "/in/log/e"));
  EXPECT_THAT(unpack("log", entry("log/a", text) + entry("log/b", "", '1', 0644, {}, "log/a"), 1000,
                     150'000),
              HasSubstr("more than 150000"));
}

TEST_F(Artifacts, a_hard_link_may_have_both_its_names_long) {
  const std::string from = "log/" + std::string(150, 'f');
  const std::string to = "log/" + std::string(150, 't');
  const std::string file = entry("l", from, 'L') + entry("log/cut", "text");
  const std::string old_name = entry("l", "log/" + std::string(160, 'o'), 'L');
  const std::string link = entry("l", from, 'K');
  const std::string name = entry("l", to, 'L');
  for (const std::string& names : {link + name, name + link, old_name + link + name}) {
    fs::remove_all(x_dir + "/in/log");
    EXPECT_EQ(unpack("log", file + names + entry("log/cut", "", '1') + entry("log/b", "b") + kEnd),
              "");
    EXPECT_EQ(read(to), "text");
    EXPECT_EQ(read("log/b"), "b");
    EXPECT_THAT(all(), testing::SizeIs(5));
  }
}

TEST_F(Artifacts, a_link_that_is_there_is_not_followed) {
  fs::create_directory(x_dir + "/outside");
  fs::create_directory(x_dir + "/in/log");
  fs::create_directory_symlink("../../outside", x_dir + "/in/log/dir");
  fs::create_symlink("../../outside/file", x_dir + "/in/log/file");
  EXPECT_NE(unpack("log", entry("log/dir/x", "evil") + kEnd), "");
  EXPECT_NE(unpack("log", entry("log/file", "evil") + kEnd), "");
  EXPECT_TRUE(fs::is_empty(x_dir + "/outside"));
}

TEST_F(Artifacts, limits_hold) {
  EXPECT_EQ(unpack("a", entry("a", std::string(100, 'x')) + kEnd, 1000, 100), "");
  EXPECT_THAT(unpack("a", entry("a", std::string(101, 'x')) + kEnd, 1000, 100),
              HasSubstr("more than 100 (check.artifacts_max)"));
  EXPECT_THAT(unpack("b", entry("b/1", "x") + entry("b/2", "x", '0', 0644, 1u << 20), 1000, 100),
              HasSubstr("more than 100"));
  EXPECT_THAT(unpack("a", entry("a", "", 'x', 0644, 2u << 20)), HasSubstr("has content"));
  EXPECT_THAT(unpack("a", entry("a", "", 'L', 0644, 5000)), HasSubstr("a name is too long"));
  EXPECT_THAT(unpack("a", kEnd + std::string(3 << 20, 'x')), HasSubstr("at its end"));
  std::string many;
  for (size_t i = 0; i <= kArtifactEntriesMax; ++i) many += entry("a", "", '3');
  EXPECT_THAT(unpack("a", many + kEnd), HasSubstr("more than 10000 files"));
}

TEST_F(Artifacts, what_is_no_archive_is_told) {
  EXPECT_THAT(unpack("a", std::string(2000, 'x')), HasSubstr("is no tar archive"));
  std::string broken = entry("a", "x") + kEnd;
  broken[3] = 'y';  // the checksum does not hold
  EXPECT_THAT(unpack("a", broken), HasSubstr("is no tar archive"));
  std::string negative = entry("a", "x");
  negative[124] = '\x80';  // GNU's binary numbers: larger than any limit
  EXPECT_THAT(unpack("a", negative), HasSubstr("is no tar archive"));
  const std::string cut = entry("a", std::string(2000, 'x'));
  for (const size_t size : {100u, 512u, 1000u, 2400u})
    EXPECT_THAT(unpack("a", cut.substr(0, size)), HasSubstr("ends in the middle")) << size;
}

}  // namespace
}  // namespace lethe
