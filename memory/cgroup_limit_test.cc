// The scrub pool in a memory cgroup with a real limit: as long as guest memory alone fits, the pool
// beside it neither gets the process killed nor makes it hang.
//
// A test puts a process of its own into a group under its own one, made for that; it runs this
// program with the one "At" test that plays the guest.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "memory/pressure.h"
#include "memory/scrub_pool_test_util.h"

namespace lethe {
namespace {

constexpr uint64_t kLimit = 64 * kMiB;
constexpr uint64_t kUsed = 48 * kMiB;     // by the guest, at most
constexpr uint64_t kPoolMax = 32 * kMiB;  // together: more than the limit
constexpr size_t kUsedChunks = kUsed / kChunkBytes;
constexpr size_t kPoolChunks = kPoolMax / kChunkBytes;
// A sanitizer's own memory counts, and would not fit.
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kShadowMemory = true;
#else
constexpr bool kShadowMemory = false;
#endif
constexpr const char* kInside = "LETHE_TEST_IN_GROUP";

bool write_text(const std::string& path, const std::string& text) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd.valid() &&
         ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// A group with the limit, removed at the end. cgroups(7)
class LimitedGroup {
 public:
  LimitedGroup() {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line) && path_.empty();) {
      const size_t path = line.find(':', line.find(':') + 1);
      if (path == std::string::npos) continue;
      const std::string own = line.substr(path + 1);
      if (line.find(":memory:") != std::string::npos)
        make("/sys/fs/cgroup/memory" + own, "memory.limit_in_bytes");
      else if (line.starts_with("0::"))
        make("/sys/fs/cgroup" + own, "memory.max");
    }
  }
  ~LimitedGroup() {
    // A process that has just ended may still be there for a moment.
    if (!path_.empty()) EXPECT_TRUE(eventually([&] { return ::rmdir(path_.c_str()) == 0; }));
  }
  LimitedGroup(const LimitedGroup&) = delete;
  LimitedGroup& operator=(const LimitedGroup&) = delete;

  // Empty: there is none.
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::string& why() const { return why_; }

 private:
  void make(const std::string& own, const std::string& limit) {
    const std::string path = own + "/lethe-test-" + std::to_string(::getpid());
    if (::mkdir(path.c_str(), 0755) != 0) {
      why_ += path + ": " + std::strerror(errno) + "; ";
      return;
    }
    if (write_text(path + "/" + limit, std::to_string(kLimit))) {
      path_ = path;
      // Or the group would swap, and not be short of memory.
      (void)write_text(path + "/memory.swap.max", "0");
      return;
    }
    why_ += path + "/" + limit + ": " + std::strerror(errno) + "; ";
    (void)::rmdir(path.c_str());
  }
  std::string path_;
  std::string why_;
};

// What the guest plays, each in a group of its own.
class PoolInLimitedGroup : public testing::TestWithParam<const char*> {
 protected:
  // How the process ended, in words.
  static std::string run(const std::string& group, const std::string& name) {
    const std::string filter = "--gtest_filter=AtTheLimit." + name;
    const pid_t child = ::fork();
    if (child == 0) {
      // Only calls that a process with threads may make after fork().
      if (!write_text(group + "/cgroup.procs", "0")) ::_exit(100);
      (void)::setenv(kInside, "1", 1);
      ::execl("/proc/self/exe", "lethe_memory_tests", filter.c_str(), nullptr);
      ::_exit(101);
    }
    int status = 0;
    const auto deadline = steady_clock::now() + milliseconds(60'000);
    while (::waitpid(child, &status, WNOHANG) == 0) {
      if (steady_clock::now() > deadline) {
        (void)::kill(child, SIGKILL);
        (void)::waitpid(child, &status, 0);
        return "hangs";
      }
      std::this_thread::sleep_for(milliseconds(5));
    }
    if (WIFSIGNALED(status)) return "killed by signal " + std::to_string(WTERMSIG(status));
    return "exit code " + std::to_string(WEXITSTATUS(status));
  }
};

TEST_P(PoolInLimitedGroup, is_no_reason_to_be_killed) {
  if (kShadowMemory) GTEST_SKIP() << "SKIPPED: a sanitizer's shadow memory does not fit the limit";
  const LimitedGroup group;
  if (group.path().empty())
    GTEST_SKIP() << "SKIPPED: no memory cgroup can be made: " << group.why();
  if (probe_chunk_mover().mover == ChunkMover::kNone)
    GTEST_SKIP() << "SKIPPED: " << probe_chunk_mover().why;
  const std::string end = run(group.path(), GetParam());
  if (end == "exit code 100") GTEST_SKIP() << "SKIPPED: can't move into " << group.path();
  EXPECT_EQ(end, "exit code 0");
}

INSTANTIATE_TEST_SUITE_P(, PoolInLimitedGroup,
                         testing::Values("limit_and_headroom_are_seen",
                                         "pool_and_new_memory_take_turns",
                                         "small_pages_do_not_come_on_top"),
                         [](const auto& param) { return std::string(param.param); });

class AtTheLimit : public testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv(kInside) == nullptr)
      GTEST_SKIP() << "SKIPPED: PoolInLimitedGroup runs this in a group of its own";
    memory_ = make_memory(4 * kUsed);
    ScrubPoolOptions options;
    options.bytes_max = kPoolMax;
    pool_ = ScrubPool::create(*memory_, options);
    pipeline_ =
        std::make_unique<ReturnPipeline>(*memory_, ReturnPipelineOptions{.taker = pool_.get()});
    pipeline_->set_policy(ReturnPolicy::kPool);
  }
  void touch(size_t first, size_t count) {
    for (size_t n = first; n < first + count; ++n)
      fill(host_at_offset(*memory_, n * kChunkBytes), 1);
  }
  void give_back(uint64_t offset, uint64_t bytes, ReturnSource source) {
    while (pipeline_->add(GuestAddr{offset}, bytes, source) == ReturnPipeline::Added::kFull)
      pipeline_->flush_all();
    pipeline_->flush_all();
    pipeline_->given_back(bytes);
  }
  void report(size_t first, size_t count) {
    for (size_t n = first; n < first + count; ++n)
      give_back(n * kChunkBytes, kChunkBytes, ReturnSource::kReport);
  }
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<ScrubPool> pool_;
  std::unique_ptr<ReturnPipeline> pipeline_;
};

TEST_F(AtTheLimit, limit_and_headroom_are_seen) {
  const Pressure pressure;
  const MemoryState before = pressure.read();
  EXPECT_EQ(before.limit, kLimit);
  EXPECT_LT(before.headroom, kLimit);
  touch(0, kUsedChunks / 2);
  const MemoryState after = pressure.read();
  EXPECT_LE(after.headroom + kUsed / 2, before.headroom + kMiB);
  EXPECT_GE(after.headroom + kUsed / 2 + 8 * kMiB, before.headroom);
  // In the pool it is still this process's.
  report(0, kPoolChunks / 2);
  ASSERT_GT(pool_->stats().moved_bytes, 0U);
  EXPECT_LE(pressure.read().headroom, after.headroom + kMiB);
  pool_->set_bytes_max(0);
  EXPECT_TRUE(
      eventually([&] { return pressure.read().headroom + kMiB >= after.headroom + kPoolMax / 2; }));
}

// The guest walks through more memory than its limit, and never uses more than fits.
TEST_F(AtTheLimit, pool_and_new_memory_take_turns) {
  touch(0, kUsedChunks);
  size_t first = 0;
  for (int round = 0; round < 60; ++round) {
    report(first, kPoolChunks);
    touch(first + kUsedChunks, kPoolChunks);
    first = (first + kPoolChunks) % (2 * kUsedChunks);
    report(0, 4 * kUsedChunks);
    touch(first, kUsedChunks);
  }
  EXPECT_GT(pool_->stats().refaulted_bytes, kUsed);
}

// 4 KiB pages that were ballooned away come back one by one, while the pool is full.
TEST_F(AtTheLimit, small_pages_do_not_come_on_top) {
  for (int round = 0; round < 4; ++round) {
    touch(0, kUsedChunks);
    for (size_t n = 0; n < kPoolChunks; ++n)
      give_back(n * kChunkBytes + 4096, kChunkBytes - 4096, ReturnSource::kInflate);
    touch(kUsedChunks, kPoolChunks);
    report(kUsedChunks, kPoolChunks);
    ASSERT_GT(pool_->stats().moved_bytes, 0U);
    touch(0, kPoolChunks);
    report(0, kUsedChunks);
  }
  EXPECT_GT(pool_->stats().small_bytes, kPoolMax);
}

}  // namespace
}  // namespace lethe
