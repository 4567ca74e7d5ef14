#include "devices/gui/shared_buffer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <string>

#include "devices/gui/fake_frontend.h"

namespace lethe {
namespace {

constexpr uint64_t kPage = 4096;

// A frontend that is allowed more than it should be: it opens its descriptor again for writing.
UniqueFd reopened_for_writing(const SharedBuffer& buffer) {
  const std::string path = "/proc/self/fd/" + std::to_string(buffer.read_only_fd());
  return UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
}

int error_of_mapping(int fd, int protection) {
  void* const at = ::mmap(nullptr, kPage, protection, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return errno;
  ::munmap(at, kPage);
  return 0;
}

bool dies_of_sigbus_reading(const uint8_t* at) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGBUS, SIG_DFL);
    const uint8_t value = *const_cast<const volatile uint8_t*>(at);
    ::_exit(value == 0 ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

int64_t allocated_bytes(const SharedBuffer& buffer) {
  struct stat info{};
  EXPECT_EQ(::fstat(buffer.read_only_fd(), &info), 0);
  return info.st_blocks * 512;
}

size_t mapped_buffers() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);)
    if (line.find("memfd:lethe-gui") != std::string::npos) ++count;
  return count;
}

TEST(GuiSharedBufferTest, is_whole_pages_of_zeroes_and_allocates_none_before_use) {
  const auto buffer = SharedBuffer::create(kPage + 1).value();
  EXPECT_EQ(buffer.bytes(), 2 * kPage);
  EXPECT_EQ(allocated_bytes(buffer), 0);
  EXPECT_EQ(buffer.data()[2 * kPage - 1], 0);
  buffer.data()[0] = 1;
  EXPECT_GE(allocated_bytes(buffer), static_cast<int64_t>(kPage));
}

TEST(GuiSharedBufferTest, frontends_descriptor_cannot_be_mapped_writable) {
  const auto buffer = SharedBuffer::create(kPage).value();
  const int fd = buffer.read_only_fd();
  EXPECT_EQ(::fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_EQ(error_of_mapping(fd, PROT_READ), 0);
  EXPECT_EQ(error_of_mapping(fd, PROT_READ | PROT_WRITE), EACCES);
  void* const at = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_NE(::mprotect(at, kPage, PROT_READ | PROT_WRITE), 0);
  ::munmap(at, kPage);
  EXPECT_EQ(::write(fd, "x", 1), -1);
}

TEST(GuiSharedBufferTest, is_sealed_even_for_who_opens_it_for_writing) {
  const auto buffer = SharedBuffer::create(kPage).value();
  const UniqueFd fd = reopened_for_writing(buffer);
  if (!fd.valid()) {  // not root: the file's mode has stopped it already
    EXPECT_EQ(errno, EACCES);
    return;
  }
  EXPECT_EQ(error_of_mapping(fd.get(), PROT_READ | PROT_WRITE), EPERM);
  EXPECT_EQ(::write(fd.get(), "x", 1), -1);
  EXPECT_EQ(errno, EPERM);
  void* const at = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(at, MAP_FAILED);
  EXPECT_NE(::mprotect(at, kPage, PROT_READ | PROT_WRITE), 0);
  ::munmap(at, kPage);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK), -1) << "revocation must stay possible";
}

TEST(GuiSharedBufferTest, frontends_descriptor_cannot_be_grown) {
  const auto buffer = SharedBuffer::create(kPage).value();
  EXPECT_NE(::ftruncate(buffer.read_only_fd(), 2 * kPage), 0);
  const UniqueFd fd = reopened_for_writing(buffer);
  if (fd.valid()) {
    EXPECT_NE(::ftruncate(fd.get(), 2 * kPage), 0);
    EXPECT_EQ(errno, EPERM);
    EXPECT_NE(::fallocate(fd.get(), 0, 0, 2 * kPage), 0);
    EXPECT_EQ(errno, EPERM);
  }
}

TEST(GuiSharedBufferTest, map_at_gives_the_same_pages_writable_and_leaves_the_first_mapping) {
  const auto buffer = SharedBuffer::create(2 * kPage).value();
  void* const area =
      ::mmap(nullptr, 4 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(area, MAP_FAILED);
  uint8_t* const at = static_cast<uint8_t*>(area) + kPage;
  ASSERT_TRUE(buffer.map_at(at));
  at[kPage] = 7;
  EXPECT_EQ(buffer.data()[kPage], 7);
  buffer.data()[0] = 9;
  EXPECT_EQ(at[0], 9);
  ::munmap(area, 4 * kPage);
  EXPECT_EQ(buffer.data()[kPage], 7);
}

TEST(GuiSharedBufferTest, revoke_frees_the_memory_and_every_reader_gets_sigbus) {
  auto buffer = SharedBuffer::create(64 * kPage).value();
  std::memset(buffer.data(), 1, buffer.bytes());
  void* const at = ::mmap(nullptr, buffer.bytes(), PROT_READ, MAP_SHARED, buffer.read_only_fd(), 0);
  ASSERT_NE(at, MAP_FAILED);
  const auto* const frontend = static_cast<const uint8_t*>(at);
  EXPECT_FALSE(dies_of_sigbus_reading(frontend + 5 * kPage));
  EXPECT_EQ(allocated_bytes(buffer), static_cast<int64_t>(64 * kPage));
  ASSERT_TRUE(buffer.revoke(16 * kPage));
  EXPECT_EQ(allocated_bytes(buffer), static_cast<int64_t>(16 * kPage));
  EXPECT_FALSE(dies_of_sigbus_reading(frontend + 15 * kPage));
  EXPECT_TRUE(dies_of_sigbus_reading(frontend + 16 * kPage));
  ASSERT_TRUE(buffer.revoke());
  EXPECT_EQ(allocated_bytes(buffer), 0);
  EXPECT_TRUE(dies_of_sigbus_reading(frontend));
  EXPECT_TRUE(dies_of_sigbus_reading(frontend + 63 * kPage));
  EXPECT_TRUE(dies_of_sigbus_reading(buffer.data()));
  EXPECT_EQ(allocated_bytes(buffer), 0) << "a reader does not fill it again";
  ::munmap(at, 64 * kPage);
}

TEST(GuiSharedBufferTest, a_host_out_of_descriptors_gives_an_error_and_leaks_nothing) {
  // UBSan wants descriptors of its own when it first sees the type of an object.
  EXPECT_FALSE(host_error("soon: {}", errno_text(EMFILE)).value().text.empty());
  const size_t before = open_descriptors();
  const size_t mapped_before = mapped_buffers();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  // The lowest free number tells what the limit has to be for 0 or 1 more.
  const int lowest = UniqueFd(::dup(0)).get();
  for (const unsigned more : {0U, 1U}) {
    rlimit tight = limit;
    tight.rlim_cur = static_cast<rlim_t>(lowest) + more;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
    const auto made = SharedBuffer::create(kPage);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    ASSERT_FALSE(made) << more;
    EXPECT_NE(made.error().text.find("Too many open files"), std::string::npos);
    EXPECT_EQ(open_descriptors(), before);
    EXPECT_EQ(mapped_buffers(), mapped_before);
  }
}

TEST(GuiSharedBufferTest, its_end_closes_and_unmaps_everything) {
  const size_t before = open_descriptors();
  const size_t mapped_before = mapped_buffers();
  {
    auto buffer = SharedBuffer::create(kPage).value();
    EXPECT_EQ(open_descriptors(), before + 2);
    SharedBuffer moved = std::move(buffer);
    EXPECT_TRUE(moved.valid());
    moved = SharedBuffer::create(kPage).value();
  }
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_EQ(mapped_buffers(), mapped_before);
}

}  // namespace
}  // namespace lethe
