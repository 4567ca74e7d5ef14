#include "vmm/detach.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>

#include "base/log.h"

namespace lethe {
namespace {

TEST(StartSignalTest, tells_who_waits_and_bounds_what_the_vm_says_from_then_on) {
  const std::string path = testing::TempDir() + "lethe-messages-" + std::to_string(::getpid());
  const UniqueFd before(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  std::array<int, 2> line{};
  ASSERT_EQ(::pipe2(line.data(), O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd waits(line[0]);
  StartSignal signal(UniqueFd(line[1]), {});
  ASSERT_TRUE(signal.send(path));
  const std::string text(1000, 'm');
  uintmax_t size_max = 0;
  for (size_t said = 0; said < 3 * kDetachedMessagesBytesMax; said += text.size()) {
    log_warn(LogModule::kVmm, "{}", text);
    size_max = std::max(size_max, std::filesystem::file_size(path));
  }
  ASSERT_GE(::dup2(before.get(), STDERR_FILENO), 0);
  set_log_bytes_max(0);
  std::filesystem::remove(path);
  EXPECT_LE(size_max, kDetachedMessagesBytesMax);
  EXPECT_GT(size_max, kDetachedMessagesBytesMax - 2000);
  char byte = 0;
  EXPECT_EQ(::read(waits.get(), &byte, 1), 1);
  EXPECT_EQ(::read(waits.get(), &byte, 1), 0) << "it is closed";
}

}  // namespace
}  // namespace lethe
