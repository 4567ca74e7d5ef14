#include "devices/virtio/gpu/host_window.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>

#include "memory/guest_memory.h"

namespace {

bool mremap_fails = false;

}  // namespace

// In place of the C library's: Linux unmaps the destination before it may find that there is no
// memory for the rest, which can't be brought about at will.
extern "C" void* mremap(void* old, size_t old_bytes, size_t bytes, int flags, ...) noexcept {
  va_list more;
  va_start(more, flags);
  void* const at = (flags & MREMAP_FIXED) != 0 ? va_arg(more, void*) : nullptr;
  va_end(more);
  if (mremap_fails) {
    ::munmap(at, bytes);
    errno = ENOMEM;
    return MAP_FAILED;
  }
  // SAFETY: the system call returns an address as a number.
  return reinterpret_cast<void*>(::syscall(SYS_mremap, old, old_bytes, bytes, flags, at));
}

namespace lethe {
namespace {

TEST(HostWindowTest, what_can_not_be_mapped_leaves_no_hole) {
  constexpr uint64_t kBytes = 4 * kPageBytes;
  const auto window = HostWindow::create(16 * kPageBytes).value();
  const SharedBuffer buffer = SharedBuffer::create(kBytes).value();
  mremap_fails = true;
  const auto mapped = window->map(kPageBytes, buffer);
  mremap_fails = false;
  EXPECT_FALSE(mapped);
  EXPECT_EQ(window->mappings(), 0U);
  std::array<unsigned char, 16> resident{};
  ASSERT_EQ(::mincore(window->data(), window->bytes(), resident.data()), 0) << "there is a hole";
  for (uint64_t at = 0; at < window->bytes(); at += kPageBytes) window->data()[at] = 1;
  // It can be mapped later, in the same place.
  ASSERT_TRUE(window->map(kPageBytes, buffer));
  window->data()[kPageBytes] = 2;
  EXPECT_EQ(buffer.data()[0], 2);
}

}  // namespace
}  // namespace lethe
