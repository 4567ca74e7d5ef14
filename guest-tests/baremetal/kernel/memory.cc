#include "kernel/memory.h"

#include "kernel/check.h"

// String instructions: one instruction for the whole copy, where each emulated one is dear.
extern "C" void* memcpy(void* to, const void* from, size_t size) {
  void* d = to;
  asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(size)::"memory");
  return to;
}

extern "C" void* memmove(void* to, const void* from, size_t size) {
  if (reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from) >= size) {
    return memcpy(to, from, size);
  }
  auto* d = static_cast<volatile char*>(to);
  auto* s = static_cast<const char*>(from);
  while (size-- > 0) d[size] = s[size];
  return to;
}

extern "C" void* memset(void* to, int value, size_t size) {
  void* d = to;
  asm volatile("rep stosb" : "+D"(d), "+c"(size) : "a"(value) : "memory");
  return to;
}

extern "C" int memcmp(const void* a, const void* b, size_t size) {
  auto* x = static_cast<const volatile unsigned char*>(a);
  auto* y = static_cast<const volatile unsigned char*>(b);
  for (size_t i = 0; i < size; ++i) {
    if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
  }
  return 0;
}

extern "C" size_t strlen(const char* text) {
  auto* p = static_cast<const volatile char*>(text);
  while (*p != 0) ++p;
  return static_cast<size_t>(p - text);
}

extern "C" uint64_t boot_pml4[512];

namespace kernel {
namespace {

constexpr uint64_t kPresentWritable = 0x3;
constexpr uint64_t kLargePage = 0x80;
constexpr uint64_t kUncached = 0x18;
constexpr uint64_t k2MiB = 0x200000;
constexpr uint64_t kAddressMask = 0x000f'ffff'ffff'f000;

uint64_t next_page;
uint64_t last_page;

uint64_t* table_below(uint64_t* table, uint64_t index) {
  if ((table[index] & kPresentWritable) == 0) {
    void* page = alloc_pages(1);
    memset(page, 0, kPageSize);
    table[index] = physical(page) | kPresentWritable;
  }
  return reinterpret_cast<uint64_t*>(table[index] & kAddressMask);
}

}  // namespace

void memory_init(uint64_t begin, uint64_t end) {
  next_page = (begin + kPageSize - 1) & ~(kPageSize - 1);
  last_page = end & ~(kPageSize - 1);
}

void* alloc_pages(size_t count, uint64_t align) {
  const uint64_t begin = (next_page + align - 1) & ~(align - 1);
  CHECK(begin + count * kPageSize <= last_page);
  next_page = begin + count * kPageSize;
  return reinterpret_cast<void*>(begin);
}

void take_memory(uint64_t keep, uint64_t* begin, uint64_t* end) {
  CHECK(keep < last_page - next_page);
  *begin = (next_page + keep + kPageSize - 1) & ~(kPageSize - 1);
  *end = last_page;
  last_page = *begin;
}

void map_identity(uint64_t address, uint64_t size, bool uncached) {
  const uint64_t flags = kPresentWritable | kLargePage | (uncached ? kUncached : 0);
  for (uint64_t at = address & ~(k2MiB - 1); at < address + size; at += k2MiB) {
    if (at < k4GiB) continue;
    uint64_t* pdpt = table_below(boot_pml4, (at >> 39) & 511);
    uint64_t* pd = table_below(pdpt, (at >> 30) & 511);
    pd[(at >> 21) & 511] = at | flags;  // not present before, or the same: nothing to flush
  }
}

}  // namespace kernel
