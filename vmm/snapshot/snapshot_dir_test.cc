#include "vmm/snapshot/snapshot_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/state.h"

namespace lethe {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

StateWriter written() {
  StateWriter writer;
  writer.begin_section("config", 1);
  writer.text("hello");
  writer.end_section();
  return writer;
}

std::vector<uint8_t> sections() { return written().take(); }

TEST(StateFile, reads_back_what_was_written) {
  const auto file = make_state_file(sections());
  EXPECT_TRUE(check_state_file(file).has_value());
  SnapshotFiles files;
  files.state = file;
  EXPECT_TRUE(std::ranges::equal(files.sections(), sections()));
}

TEST(StateFile, every_truncation_and_addition_is_refused) {
  auto file = make_state_file(sections());
  for (size_t size = 0; size < file.size(); ++size)
    EXPECT_FALSE(check_state_file(std::span(file).first(size)).has_value()) << size;
  file.push_back(0);
  EXPECT_FALSE(check_state_file(file).has_value());
}

TEST(StateFile, every_flipped_bit_is_refused) {
  auto file = make_state_file(sections());
  for (size_t bit = 0; bit < file.size() * 8; ++bit) {
    file[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
    EXPECT_FALSE(check_state_file(file).has_value()) << bit;
    file[bit / 8] ^= static_cast<uint8_t>(1U << bit % 8);
  }
}

TEST(StateFile, a_wrong_version_is_refused_and_named) {
  auto file = make_state_file(sections());
  file[8] = 7;
  EXPECT_EQ(check_state_file(file).error().text, "it has version 7, this lethe reads 1");
}

class SnapshotDirTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-snapshot-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_root = made;
    x_dir = x_root / "snap";
  }
  void TearDown() override { fs::remove_all(x_root); }
  [[nodiscard]] size_t entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(x_root), {}));
  }
  void make() {
    auto writer = SnapshotWriter::create(x_dir);
    ASSERT_TRUE(writer.has_value()) << writer.error().text;
    ASSERT_EQ(::ftruncate(writer->memory_fd(), 4096), 0);
    ASSERT_TRUE(writer->write_state(written()).has_value());
    ASSERT_TRUE(writer->commit().has_value());
  }
  fs::path x_root;
  fs::path x_dir;
};

TEST_F(SnapshotDirTest, has_its_name_only_when_it_is_whole) {
  {
    auto writer = SnapshotWriter::create(x_dir);
    ASSERT_TRUE(writer.has_value());
    ASSERT_TRUE(writer->write_state(written()).has_value());
    EXPECT_FALSE(fs::exists(x_dir));
    EXPECT_EQ(entries(), 1u);
  }
  EXPECT_EQ(entries(), 0u) << "given up: nothing is left";
  ASSERT_NO_FATAL_FAILURE(make());
  EXPECT_EQ(entries(), 1u);
  const auto files = open_snapshot(x_dir);
  ASSERT_TRUE(files.has_value()) << files.error().text;
  EXPECT_EQ(files->memory_bytes, 4096u);
  EXPECT_TRUE(std::ranges::equal(files->sections(), sections()));
}

TEST_F(SnapshotDirTest, nobody_else_may_read_it) {
  ASSERT_NO_FATAL_FAILURE(make());
  EXPECT_EQ(fs::status(x_dir).permissions(), fs::perms::owner_all);
  for (const char* name : {"state", "memory"})
    EXPECT_EQ(fs::status(x_dir / name).permissions(),
              fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(SnapshotDirTest, what_is_there_already_is_refused_at_the_start_and_at_the_end) {
  auto writer = SnapshotWriter::create(x_dir);
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE(writer->write_state(written()).has_value());
  fs::create_directory(x_dir);  // empty: rename() by itself would replace it
  const auto committed = writer->commit();
  ASSERT_FALSE(committed.has_value());
  EXPECT_THAT(committed.error().text, HasSubstr("File exists"));
  EXPECT_THAT(SnapshotWriter::create(x_dir).error().text, HasSubstr("is there already"));
  EXPECT_TRUE(fs::is_empty(x_dir));
}

TEST_F(SnapshotDirTest, a_relative_path_and_a_missing_parent_are_refused) {
  EXPECT_THAT(SnapshotWriter::create("snap").error().text, HasSubstr("absolute path"));
  EXPECT_THAT(SnapshotWriter::create("/").error().text, HasSubstr("absolute path"));
  EXPECT_THAT(SnapshotWriter::create(x_root / "no" / "snap").error().text,
              HasSubstr("No such file"));
}

// A full disk: the file may not grow past a limit.
TEST_F(SnapshotDirTest, a_full_disk_leaves_nothing) {
  (void)::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit tight{.rlim_cur = 64, .rlim_max = before.rlim_max};
  {
    auto writer = SnapshotWriter::create(x_dir);
    ASSERT_TRUE(writer.has_value());
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
    StateWriter large;
    large.bytes(std::vector<uint8_t>(100));
    const auto result = writer->write_state(std::move(large));
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().kind, ErrorClass::kHost);
    EXPECT_THAT(result.error().text, HasSubstr("File too large"));
  }
  EXPECT_EQ(entries(), 0u);
}

TEST_F(SnapshotDirTest, a_state_that_could_not_be_read_back_is_refused) {
  {
    StateWriter state(100);
    state.bytes(std::vector<uint8_t>(97));
    auto writer = SnapshotWriter::create(x_dir);
    ASSERT_TRUE(writer.has_value());
    const auto result = writer->write_state(std::move(state));
    ASSERT_FALSE(result.has_value());
    EXPECT_EQ(result.error().kind, ErrorClass::kHost);
    EXPECT_THAT(result.error().text, HasSubstr("more than 1024 MiB"));
    EXPECT_THAT(result.error().text, HasSubstr("close some of its windows"));
  }
  EXPECT_EQ(entries(), 0u);
}

TEST_F(SnapshotDirTest, what_a_killed_writer_left_goes_with_the_next_snapshot) {
  const pid_t child = ::fork();
  if (child == 0) {
    auto writer = SnapshotWriter::create(x_dir);
    (void)writer->write_state(written());
    (void)::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(fs::exists(x_dir));
  EXPECT_EQ(entries(), 1u);
  // Neither another snapshot's nor what only looks like it.
  for (const char* name :
       {"snap-2.unfinished-abcdef", "snap.unfinished-abcdefg", "snap.unfinished-abcde"})
    fs::create_directory(x_root / name);
  std::ofstream(x_root / "snap.unfinished-ABCDEF") << "a file";
  EXPECT_EQ(entries(), 5u);
  ASSERT_NO_FATAL_FAILURE(make());  // and the name is free
  EXPECT_EQ(entries(), 5u) << "the left-over went, the snapshot came";
  EXPECT_TRUE(fs::exists(x_dir / "state"));
}

TEST_F(SnapshotDirTest, who_is_at_work_keeps_its_directory) {
  auto first = SnapshotWriter::create(x_dir);
  ASSERT_TRUE(first.has_value());
  ASSERT_EQ(::ftruncate(first->memory_fd(), 4096), 0);
  {
    auto second = SnapshotWriter::create(x_dir);
    ASSERT_TRUE(second.has_value());
    EXPECT_EQ(entries(), 2u);
  }
  EXPECT_EQ(entries(), 1u);
  ASSERT_TRUE(first->write_state(written()).has_value());
  ASSERT_TRUE(first->commit().has_value());
  EXPECT_TRUE(open_snapshot(x_dir).has_value());
}

TEST_F(SnapshotDirTest, what_is_no_snapshot_is_refused_by_name) {
  EXPECT_THAT(open_snapshot(x_dir).error().text, HasSubstr("No such file"));
  fs::create_directory(x_dir);
  EXPECT_THAT(open_snapshot(x_dir).error().text, HasSubstr("its file 'state'"));
  fs::create_directory(x_dir / "state");
  EXPECT_FALSE(open_snapshot(x_dir).has_value());
  fs::remove(x_dir / "state");
  ASSERT_EQ(::mkfifo((x_dir / "state").c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_FALSE(open_snapshot(x_dir).has_value());
  fs::remove(x_dir / "state");
  std::ofstream(x_dir / "state") << "hello";
  EXPECT_THAT(open_snapshot(x_dir).error().text, HasSubstr("is no state of a VM"));
}

TEST_F(SnapshotDirTest, a_missing_memory_is_refused) {
  ASSERT_NO_FATAL_FAILURE(make());
  fs::remove(x_dir / "memory");
  EXPECT_THAT(open_snapshot(x_dir).error().text, HasSubstr("its file 'memory'"));
}

}  // namespace
}  // namespace lethe
