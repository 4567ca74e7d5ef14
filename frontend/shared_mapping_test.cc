#include "frontend/shared_mapping.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "frontend/fake_vm.h"

namespace lethe::gui {
namespace {

constexpr size_t kBytes = 4 << 20;

SharedMapping map(const FakeBuffer& buffer) {
  auto mapping = SharedMapping::map(UniqueFd(::dup(buffer.fd())), buffer.bytes());
  EXPECT_TRUE(mapping) << mapping.error().text;
  return mapping ? std::move(*mapping) : SharedMapping();
}

uint32_t sum(const SharedMapping& mapping) {
  uint32_t total = 0;
  for (size_t i = 0; i + 4 <= mapping.size(); i += 4096) {
    uint32_t word;
    std::memcpy(&word, mapping.data() + i, sizeof word);
    total += word;
  }
  return total;
}

TEST(SharedMapping, shows_what_the_vm_writes) {
  FakeBuffer buffer(kBytes);
  const SharedMapping mapping = map(buffer);
  buffer.pixels()[1024] = 7;
  EXPECT_EQ(sum(mapping), 7U);
  EXPECT_FALSE(mapping.lost());
}

TEST(SharedMapping, reads_zeros_where_memory_was_revoked) {
  FakeBuffer buffer(kBytes);
  buffer.pixels()[0] = 7;
  const SharedMapping mapping = map(buffer);
  buffer.revoke();
  EXPECT_EQ(sum(mapping), 0U);
  EXPECT_TRUE(mapping.lost());
}

TEST(SharedMapping, maps_what_was_revoked_on_its_way_as_zeros) {
  FakeBuffer buffer(kBytes);
  const int copy = ::dup(buffer.fd());
  buffer.revoke();
  const auto mapping = SharedMapping::map(UniqueFd(copy), kBytes);
  ASSERT_TRUE(mapping) << mapping.error().text;
  EXPECT_EQ(sum(*mapping), 0U);
}

TEST(SharedMapping, leaves_other_mappings_alone_when_one_is_revoked) {
  std::vector<std::unique_ptr<FakeBuffer>> buffers;
  std::vector<SharedMapping> mappings;
  for (uint32_t i = 0; i < 8; ++i) {
    buffers.push_back(std::make_unique<FakeBuffer>(kBytes));
    buffers.back()->pixels()[0] = i + 1;
    mappings.push_back(map(*buffers.back()));
  }
  mappings[2].reset();
  buffers[5]->revoke();
  for (uint32_t i = 0; i < 8; ++i) {
    if (i == 2) continue;
    EXPECT_EQ(sum(mappings[i]), i == 5 ? 0 : i + 1) << i;
    EXPECT_EQ(mappings[i].lost(), i == 5) << i;
  }
}

TEST(SharedMapping, survives_revocation_in_the_middle_of_reading) {
  for (int round = 0; round < 20; ++round) {
    FakeBuffer buffer(kBytes);
    std::memset(buffer.pixels(), 1, kBytes);
    const SharedMapping mapping = map(buffer);
    std::atomic<bool> reading = false;
    std::thread reader([&] {
      std::vector<std::byte> copy(kBytes);
      while (!mapping.lost()) {
        // The last byte, too: the copy must get to its end.
        std::memcpy(copy.data(), mapping.data(), kBytes);
        reading = true;
      }
      EXPECT_EQ(copy.back(), std::byte{0});
    });
    while (!reading) std::this_thread::yield();
    buffer.revoke();
    reader.join();
  }
}

TEST(SharedMapping, readers_of_many_mappings_do_not_disturb_each_other) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (int round = 0; round < 100; ++round) {
        FakeBuffer buffer(1 << 16);
        buffer.pixels()[0] = 9;
        SharedMapping mapping = map(buffer);
        EXPECT_EQ(sum(mapping), 9U);
        if (round % 2 == 0) buffer.revoke();
        EXPECT_EQ(sum(mapping), round % 2 == 0 ? 0U : 9U);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

TEST(SharedMapping, moves_without_unmapping) {
  FakeBuffer buffer(kBytes);
  buffer.pixels()[0] = 3;
  SharedMapping first = map(buffer);
  SharedMapping second = std::move(first);
  EXPECT_EQ(sum(second), 3U);
  buffer.revoke();
  EXPECT_EQ(sum(second), 0U);
  EXPECT_TRUE(second.lost());
}

TEST(SharedMapping, refuses_what_is_no_memfd_or_of_another_size) {
  FakeBuffer buffer(kBytes);
  EXPECT_FALSE(SharedMapping::map(UniqueFd(::dup(buffer.fd())), kBytes + 1));
  EXPECT_FALSE(SharedMapping::map(UniqueFd(::dup(buffer.fd())), kBytes - 1));
  EXPECT_FALSE(SharedMapping::map(UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), 1));
  EXPECT_FALSE(SharedMapping::map(UniqueFd(), 1));
}

TEST(SharedMapping, says_so_when_there_is_no_room) {
  FakeBuffer buffer(kBytes);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  const rlimit little{.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
  const int copy = ::dup(buffer.fd());
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &little), 0);
  const auto mapping = SharedMapping::map(UniqueFd(copy), kBytes);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  ASSERT_TRUE(mapping) << mapping.error().text;
  EXPECT_FALSE(mapping->valid());
}

using SharedMappingDeathTest = testing::Test;

TEST(SharedMappingDeathTest, another_sigbus_kills_as_ever) {
  FakeBuffer ours(kBytes);
  const SharedMapping mapping = map(ours);
  EXPECT_EXIT(
      {
        FakeBuffer other(4096);
        other.revoke();
        other.pixels()[0] = 1;
        std::_Exit(0);
      },
      // By the signal; a sanitizer's handler was there before ours, and exits.
      [](int status) { return !WIFEXITED(status) || WEXITSTATUS(status) != 0; }, "");
}

}  // namespace
}  // namespace lethe::gui
