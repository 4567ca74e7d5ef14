#include "vmm/snapshot/memory_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "vmm/snapshot/memory_test_util.h"

namespace lethe {
namespace {

using ::testing::HasSubstr;

TEST(PageRuns, are_the_runs_of_ones) {
  EXPECT_EQ(runs_of(0).count, 0u);
  const PageRuns all = runs_of(0xffff);
  ASSERT_EQ(all.count, 1u);
  EXPECT_EQ(all.runs[0].bytes, kBlockBytes);
  const PageRuns some = runs_of(0b1000'0000'0110'0001);
  ASSERT_EQ(some.count, 3u);
  EXPECT_EQ(some.runs[1].offset, 5 * kPageBytes);
  EXPECT_EQ(some.runs[1].bytes, 2 * kPageBytes);
  EXPECT_EQ(some.runs[2].offset, 15 * kPageBytes);
  EXPECT_EQ(runs_of(0x5555).count, 8u);
}

TEST(MemoryFile, holds_pages_with_content_and_nothing_else) {
  const auto memory = test_memory();
  fill_page(*memory, 0, 1);
  fill_page(*memory, 3, 2);
  fill_page(*memory, kTestPages - 1, 3);
  touch_page(*memory, 40);  // there, and zero
  const UniqueFd file = test_file();
  const auto table = write_memory(*memory, file.get());
  ASSERT_TRUE(table.has_value()) << table.error().text;
  EXPECT_EQ(table->bytes, kTestPages * kPageBytes);
  EXPECT_EQ(table->bytes_used(), 3 * kPageBytes);
  ASSERT_EQ(table->blocks.size(), 2u);
  EXPECT_EQ(table->blocks[0].pages, 0b1001);
  EXPECT_EQ(table->blocks[1].pages, 0x8000);
  struct stat status{};
  ASSERT_EQ(::fstat(file.get(), &status), 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), table->bytes);
  EXPECT_LE(static_cast<uint64_t>(status.st_blocks) * 512, 3 * kPageBytes);
}

TEST(MemoryFile, is_written_without_touching_what_is_not_there) {
  const auto memory = test_memory();
  fill_page(*memory, 100, 1);
  const uint64_t before = memory->resident_bytes();
  const UniqueFd file = test_file();
  ASSERT_TRUE(write_memory(*memory, file.get()).has_value());
  EXPECT_EQ(memory->resident_bytes(), before);
}

TEST(MemoryFile, memory_of_a_memfd_is_written_as_well) {
  const auto memory = test_memory(MemoryBacking::kShared);
  fill_page(*memory, 7, 1);
  const UniqueFd file = test_file();
  const auto table = write_memory(*memory, file.get());
  ASSERT_TRUE(table.has_value());
  EXPECT_EQ(table->bytes_used(), kPageBytes);
}

TEST(MemoryFile, a_full_disk_is_an_error) {
  const auto memory = test_memory();
  fill_page(*memory, 7, 1);
  const UniqueFd full(::open("/dev/full", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  EXPECT_FALSE(write_memory(*memory, full.get()).has_value());
}

class SavedMemory : public testing::Test {
 protected:
  void SetUp() override {
    for (const uint64_t page : {0, 1, 5, 15}) fill_page(*x_memory, page, page + 1);
    x_table = write_memory(*x_memory, x_file.get()).value();
    ASSERT_EQ(x_table.blocks.size(), 1u);
  }
  [[nodiscard]] Result<> read() {
    return read_block(x_file.get(), x_table.blocks[0], x_block.data());
  }
  void flip(uint64_t offset) const {
    uint8_t byte = 0;
    ASSERT_EQ(::pread(x_file.get(), &byte, 1, static_cast<off_t>(offset)), 1);
    byte ^= 0x10;
    ASSERT_EQ(::pwrite(x_file.get(), &byte, 1, static_cast<off_t>(offset)), 1);
  }
  std::unique_ptr<GuestMemory> x_memory = test_memory();
  UniqueFd x_file = test_file();
  MemoryTable x_table;
  std::array<uint8_t, kBlockBytes> x_block{};
};

TEST_F(SavedMemory, reads_back) {
  ASSERT_TRUE(read().has_value());
  for (const uint64_t page : {0, 1, 5, 15})
    EXPECT_EQ(std::memcmp(x_block.data() + page * kPageBytes, page_of(*x_memory, page), kPageBytes),
              0);
}

TEST_F(SavedMemory, an_altered_file_is_refused_wherever_it_was_altered) {
  for (const uint64_t page : {0, 1, 5, 15}) {
    for (const uint64_t at : {uint64_t{0}, uint64_t{2000}, kPageBytes - 1}) {
      flip(page * kPageBytes + at);
      const auto result = read();
      ASSERT_FALSE(result.has_value());
      EXPECT_EQ(result.error().kind, ErrorClass::kConfig);
      EXPECT_THAT(result.error().text, HasSubstr("altered"));
      flip(page * kPageBytes + at);
    }
  }
  flip(2 * kPageBytes);  // a hole: nobody reads it
  EXPECT_TRUE(read().has_value());
}

TEST_F(SavedMemory, a_truncated_file_is_refused) {
  ASSERT_EQ(::ftruncate(x_file.get(), 5 * kPageBytes + 100), 0);
  EXPECT_THAT(read().error().text, HasSubstr("truncated"));
}

TEST_F(SavedMemory, tables_that_do_not_fit_are_refused) {
  StateWriter writer;
  save_table(x_table, writer);
  const auto good = writer.take();
  {
    StateReader reader(good);
    const auto table = restore_table(x_table.bytes, reader);
    ASSERT_TRUE(table.has_value());
    EXPECT_EQ(table->blocks[0].sum, x_table.blocks[0].sum);
  }
  {
    StateReader reader(good);
    EXPECT_FALSE(restore_table(x_table.bytes * 2, reader).has_value()) << "another size";
  }
  const auto refused = [&](const std::vector<MemoryBlock>& blocks) {
    StateWriter bad;
    save_table({.bytes = x_table.bytes, .blocks = blocks}, bad);
    const auto bytes = bad.take();
    StateReader reader(bytes);
    return !restore_table(x_table.bytes, reader).has_value();
  };
  const auto end = static_cast<uint32_t>(x_table.bytes / kBlockBytes);
  EXPECT_TRUE(refused({{.number = end, .pages = 1, .sum = 0}}));
  EXPECT_TRUE(refused({{.number = 0, .pages = 0, .sum = 0}}));
  EXPECT_TRUE(refused({{.number = 1, .pages = 1, .sum = 0}, {.number = 1, .pages = 1, .sum = 0}}));
  EXPECT_TRUE(refused(std::vector<MemoryBlock>(end + 1)));
  for (size_t size = 0; size < good.size(); ++size) {
    StateReader reader(std::span(good).first(size));
    EXPECT_FALSE(restore_table(x_table.bytes, reader).has_value()) << size;
  }
}

}  // namespace
}  // namespace lethe
