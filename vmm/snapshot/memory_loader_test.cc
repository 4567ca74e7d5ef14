#include "vmm/snapshot/memory_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cstring>
#include <thread>

#include "base/test_util.h"
#include "memory/return_pipeline.h"
#include "memory/return_test_util.h"
#include "vmm/snapshot/memory_test_util.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kDeadline{20'000};

// Forbids userfaultfd.
class NoUserfault : public PoolOps {
 public:
  [[nodiscard]] int open_userfaultfd() override { return -EPERM; }
};

// Loads slowly: what a test does at once comes before most of the memory.
class SlowUserfault : public PoolOps {
 public:
  [[nodiscard]] int control(int fd, unsigned long request, void* argument) override {
    for (int i = 0; request == UFFDIO_COPY && i < pause_ms; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return PoolOps::control(fd, request, argument);
  }
  std::atomic<int> pause_ms{1};  // before each copy; less ends the one under way, too
};

// A host short of memory: some copies of several pages have done the first one when there is no
// more room, once. Or, as long as `none` says, there is no room at all.
class ShortOfMemory : public PoolOps {
 public:
  [[nodiscard]] int control(int fd, unsigned long request, void* argument) override {
    if (request != UFFDIO_COPY) return PoolOps::control(fd, request, argument);
    auto& copy = *static_cast<uffdio_copy*>(argument);
    if (none || failing.exchange(false)) {
      ++refused;
      copy.copy = -ENOMEM;
      return ENOMEM;
    }
    if (copy.len <= kPageBytes || copies++ % 8 != 0) return PoolOps::control(fd, request, argument);
    // As the kernel: what was done, and EAGAIN for the rest; ENOMEM at the next try.
    copy.len = kPageBytes;
    failing = true;
    const int error = PoolOps::control(fd, request, argument);
    return error == 0 ? EAGAIN : error;
  }
  std::atomic<bool> none{false};
  std::atomic<bool> failing{false};
  std::atomic<uint64_t> copies{0};
  std::atomic<uint64_t> refused{0};
};

class MemoryLoaderTest : public testing::Test {
 protected:
  // Of so many pages one holds something.
  explicit MemoryLoaderTest(uint64_t sparse = 3) : x_sparse(sparse) {}
  void SetUp() override {
    const auto saved = test_memory();
    for (uint64_t page = 0; page < kTestPages; page += x_sparse) fill_page(*saved, page, page + 1);
    x_table = write_memory(*saved, x_file.get()).value();
  }
  void start(MemoryLoaderOptions options = {}) {
    options.on_complete = [this] { ++x_completed; };
    if (!options.on_failure)
      options.on_failure = [](const Error& error) { ADD_FAILURE() << error.text; };
    auto loader =
        MemoryLoader::create(*x_memory, UniqueFd(::dup(x_file.get())), x_table, std::move(options));
    ASSERT_TRUE(loader.has_value()) << loader.error().text;
    x_loader = std::move(*loader);
  }
  // What the page must hold: its pattern, or zeros.
  [[nodiscard]] bool is_right(uint64_t page) const {
    if (page % x_sparse != 0) return is_zero(page);
    const auto* const words = reinterpret_cast<const uint64_t*>(page_of(*x_memory, page));
    for (uint64_t i = 0; i < kPageBytes / 8; ++i)
      if (words[i] != (page + 1) * 0x9E37'79B9'7F4A'7C15 + i) return false;
    return true;
  }
  [[nodiscard]] bool is_zero(uint64_t page) const {
    const uint8_t* const bytes = page_of(*x_memory, page);
    return std::all_of(bytes, bytes + kPageBytes, [](uint8_t byte) { return byte == 0; });
  }
  void wait_until_complete() const {
    EXPECT_TRUE(eventually([this] { return x_loader->complete(); }, kDeadline));
  }
  const uint64_t x_sparse;
  UniqueFd x_file = test_file();
  MemoryTable x_table;
  std::unique_ptr<GuestMemory> x_memory = test_memory();
  std::atomic<int> x_completed{0};
  SlowUserfault x_slow;
  NoUserfault x_none;
  ShortOfMemory x_short;
  std::unique_ptr<MemoryLoader> x_loader;
};

TEST_F(MemoryLoaderTest, every_page_is_as_it_was_whoever_comes_first) {
  ASSERT_NO_FATAL_FAILURE(start());
  // Backwards: the loader goes the other way.
  for (uint64_t page = kTestPages; page-- > 0;) EXPECT_TRUE(is_right(page)) << page;
  wait_until_complete();
  EXPECT_EQ(x_completed, 1);
}

// Many rounds: in some of them a thread begins to wait for a page when all has just come.
TEST_F(MemoryLoaderTest, several_threads_at_once_see_the_same) {
  for (int round = 0; round < 100; ++round) {
    x_loader.reset();
    x_memory = test_memory();
    ASSERT_NO_FATAL_FAILURE(start());
    std::atomic<uint64_t> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t n = 0; n < 4; ++n)
      threads.emplace_back([&, n] {
        for (uint64_t i = 0; i < kTestPages; ++i)
          if (!is_right((i * 7 + n * 257) % kTestPages)) ++wrong;
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0u);
  }
}

TEST_F(MemoryLoaderTest, all_comes_without_being_touched) {
  ASSERT_NO_FATAL_FAILURE(start());
  wait_until_complete();
  EXPECT_EQ(x_memory->resident_bytes(), x_table.bytes_used());
  for (uint64_t page = 0; page < kTestPages; ++page) EXPECT_TRUE(is_right(page)) << page;
}

TEST_F(MemoryLoaderTest, where_userfaultfd_is_forbidden_all_is_loaded_at_once) {
  ASSERT_NO_FATAL_FAILURE(start({.ops = &x_none}));
  EXPECT_TRUE(x_loader->complete());
  for (uint64_t page = 0; page < kTestPages; ++page) EXPECT_TRUE(is_right(page)) << page;
}

TEST_F(MemoryLoaderTest, memory_of_a_memfd_is_loaded_at_once) {
  x_memory = test_memory(MemoryBacking::kShared);
  ASSERT_NO_FATAL_FAILURE(start());
  EXPECT_TRUE(x_loader->complete());
  for (uint64_t page = 0; page < kTestPages; ++page) EXPECT_TRUE(is_right(page)) << page;
}

TEST_F(MemoryLoaderTest, verifying_refuses_an_altered_file_before_anything_runs) {
  const uint8_t byte = 0xee;
  ASSERT_EQ(::pwrite(x_file.get(), &byte, 1, (kTestPages - 1) / 3 * 3 * kPageBytes + 9), 1);
  const auto loader = MemoryLoader::create(*x_memory, UniqueFd(::dup(x_file.get())), x_table,
                                           {.at_once = true, .on_failure = {}, .on_complete = {}});
  ASSERT_FALSE(loader.has_value());
  EXPECT_THAT(loader.error().text, testing::HasSubstr("altered"));
}

TEST_F(MemoryLoaderTest, an_altered_page_is_never_seen) {
  const uint8_t byte = 0xee;
  ASSERT_EQ(::pwrite(x_file.get(), &byte, 1, 3 * kPageBytes + 9), 1);
  const auto touch = [&] {
    start({.on_failure = [](const Error& error) {
      // As `lethe restore` does: the process is gone before the page is there.
      ::_exit(error.text.find("altered") != std::string::npos ? 42 : 43);
    }});
    ::_exit(*static_cast<volatile uint8_t*>(page_of(*x_memory, 3)) == 0xee ? 44 : 45);
  };
  EXPECT_EXIT(touch(), testing::ExitedWithCode(42), "");
}

TEST_F(MemoryLoaderTest, what_is_dropped_before_it_came_reads_as_zeros) {
  ASSERT_NO_FATAL_FAILURE(start({.ops = &x_slow}));
  for (uint64_t page = kTestPages; page-- > kTestPages / 2 + 30;) {
    x_loader->drop(page_of(*x_memory, page), kPageBytes);
    ASSERT_EQ(::madvise(page_of(*x_memory, page), kPageBytes, MADV_DONTNEED), 0);
    EXPECT_TRUE(is_zero(page)) << page;
  }
  for (uint64_t page = 0; page < kTestPages / 2 + 30; ++page) EXPECT_TRUE(is_right(page)) << page;
  wait_until_complete();
}

TEST_F(MemoryLoaderTest, what_a_restored_guest_returns_reads_as_zeros_and_stays_out_of_memory) {
  x_slow.pause_ms = 500;
  ASSERT_NO_FATAL_FAILURE(start({.ops = &x_slow}));
  ReturnPipeline pipeline(*x_memory, {.pending = x_loader.get()});
  const uint64_t half = kTestPages / 2 * kPageBytes;
  // The upper half: most of it is still in the file.
  ASSERT_EQ(pipeline.add(GuestAddr{4 * kGiB}, half, ReturnSource::kReport),
            ReturnPipeline::Added::kTaken);
  pipeline.flush_all();
  pipeline.given_back(half);
  EXPECT_FALSE(x_loader->complete()) << "it was too quick for this test";
  x_slow.pause_ms = 0;
  wait_until_complete();
  uint64_t there = 0;
  for (uint64_t page = 0; page < kTestPages / 2; ++page) there += page % 3 == 0 ? 1 : 0;
  EXPECT_EQ(x_memory->resident_bytes(), there * kPageBytes);
  for (uint64_t page = kTestPages / 2; page < kTestPages; ++page) EXPECT_TRUE(is_zero(page));
  for (uint64_t page = 0; page < kTestPages / 2; ++page) EXPECT_TRUE(is_right(page)) << page;
}

TEST_F(MemoryLoaderTest, reported_memory_of_a_guest_with_poison_comes_first_and_is_overwritten) {
  ASSERT_NO_FATAL_FAILURE(start());
  ReturnPipeline pipeline(*x_memory, {.pending = x_loader.get()});
  pipeline.set_poison(0xAAAA'AAAA);
  ASSERT_EQ(pipeline.add(GuestAddr{4 * kGiB}, 64 * kPageBytes, ReturnSource::kReport),
            ReturnPipeline::Added::kTaken);
  pipeline.flush_all();
  for (uint64_t page = kTestPages / 2; page < kTestPages / 2 + 64; ++page)
    EXPECT_EQ(*page_of(*x_memory, page), page % 3 == 0 ? 0xAA : 0) << page;
}

TEST_F(MemoryLoaderTest, fetched_memory_is_there_at_once) {
  ASSERT_NO_FATAL_FAILURE(start());
  x_loader->fetch_all();
  EXPECT_TRUE(x_loader->complete());
  EXPECT_EQ(x_memory->resident_bytes(), x_table.bytes_used());
  EXPECT_EQ(x_completed, 1);
}

TEST_F(MemoryLoaderTest, can_be_destroyed_half_way) {
  for (int i = 0; i < 20; ++i) {
    x_memory = test_memory();
    ASSERT_NO_FATAL_FAILURE(start());
    (void)*static_cast<volatile uint8_t*>(page_of(*x_memory, 600));
    x_loader.reset();
  }
}

// Runs of pages: a copy may end within one.
class MemoryLoaderRunsTest : public MemoryLoaderTest {
 protected:
  MemoryLoaderRunsTest() : MemoryLoaderTest(1) {}
};

TEST_F(MemoryLoaderRunsTest, a_copy_that_ends_half_way_for_want_of_memory_goes_on_from_there) {
  ASSERT_NO_FATAL_FAILURE(start({.ops = &x_short}));
  wait_until_complete();
  EXPECT_GT(x_short.refused, 0u);
  for (uint64_t page = 0; page < kTestPages; ++page) EXPECT_TRUE(is_right(page)) << page;
}

TEST_F(MemoryLoaderRunsTest, can_be_destroyed_while_the_host_has_no_memory) {
  x_short.none = true;
  ASSERT_NO_FATAL_FAILURE(start({.ops = &x_short}));
  ASSERT_TRUE(eventually([this] { return x_short.refused > 1; }, kDeadline));
  x_loader.reset();
}

TEST_F(MemoryLoaderTest, races_of_touch_drop_and_load_show_the_page_or_zeros) {
  for (int round = 0; round < 10; ++round) {
    x_memory = test_memory();
    ASSERT_NO_FATAL_FAILURE(start());
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> wrong{0};
    std::thread toucher([&] {
      for (uint64_t i = 0; !stop; i += 11)
        if (!is_right(i % kTestPages) && !is_zero(i % kTestPages)) ++wrong;
    });
    for (uint64_t page = 0; page < kTestPages; page += 5) {
      // The guest, which returned it, does not look at it meanwhile: only later.
      x_loader->drop(page_of(*x_memory, page), kPageBytes);
      ASSERT_EQ(::madvise(page_of(*x_memory, page), kPageBytes, MADV_DONTNEED), 0);
    }
    stop = true;
    toucher.join();
    EXPECT_EQ(wrong, 0u);
    for (uint64_t page = 0; page < kTestPages; page += 5) EXPECT_TRUE(is_zero(page)) << page;
    x_loader.reset();
  }
}

}  // namespace
}  // namespace lethe
