#include "bench/allocations.h"

#include <cstdlib>
#include <new>

namespace {
thread_local uint64_t made = 0;
}  // namespace

namespace lethe {
uint64_t allocations() { return made; }
}  // namespace lethe

void* operator new(size_t size) {
  ++made;
  if (void* const p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void* operator new(size_t size, std::align_val_t alignment) {
  ++made;
  const auto align = static_cast<size_t>(alignment);
  if (void* const p = std::aligned_alloc(align, (size + align - 1) / align * align)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
