// Pages and mappings. There is no free(): a guest lives for a second or two.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {
void* memcpy(void* to, const void* from, size_t size);
void* memmove(void* to, const void* from, size_t size);
void* memset(void* to, int value, size_t size);
int memcmp(const void* a, const void* b, size_t size);
size_t strlen(const char* text);
}

namespace kernel {

inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t k4GiB = uint64_t{1} << 32;

// `count` pages next to each other, aligned to `align` (a power of two, at least a page), whose
// address is also their physical address, below 4 GiB. Not zeroed beyond what the VMM gives: the
// VMM's memory starts as zeroes. Fails a CHECK when memory is out.
void* alloc_pages(size_t count, uint64_t align = kPageSize);

// Takes all that alloc_pages() has left but the first `keep` bytes: [begin, end), whole pages.
void take_memory(uint64_t keep, uint64_t* begin, uint64_t* end);

template <typename T>
T* alloc_page_as() {
  static_assert(sizeof(T) <= kPageSize);
  return static_cast<T*>(alloc_pages(1));
}

// Maps [address, address + size) to itself with 2 MiB pages, uncached if asked. Addresses below 4
// GiB are mapped from the start. Needed for RAM and BARs above it, up to 2^47.
void map_identity(uint64_t address, uint64_t size, bool uncached);

inline uint64_t physical(const volatile void* pointer) {
  return reinterpret_cast<uint64_t>(pointer);
}

// Called once by kernel_main: pages come from [begin, end).
void memory_init(uint64_t begin, uint64_t end);

}  // namespace kernel
