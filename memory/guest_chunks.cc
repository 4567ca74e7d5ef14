#include "memory/guest_chunks.h"

#include <algorithm>

#include "base/assert.h"
#include "memory/return_pipeline.h"

namespace lethe {
namespace {

constexpr uint64_t kPages = kChunkBytes / kPageBytes;

}  // namespace

GuestChunks::GuestChunks(const GuestMemory& memory) {
  for (const MemoryRegion& region : memory.regions()) {
    if (region.removable) continue;
    if (region.fd >= 0) {
      x_all = false;
      continue;
    }
    const auto begin = reinterpret_cast<uintptr_t>(region.host);
    const uint64_t skip = std::min((kChunkBytes - begin % kChunkBytes) % kChunkBytes, region.size);
    const size_t count = (region.size - skip) / kChunkBytes;
    // SAFETY: skip <= size, so the pointer is inside the region or at its end.
    x_regions.push_back({.host = region.host,
                         .size = region.size,
                         .chunks = region.host + skip,
                         .chunk_count = count,
                         .first_chunk = x_chunk_count,
                         .first_page = x_page_count});
    x_chunk_count += count;
    x_page_count += region.size / kPageBytes;
  }
}

const GuestChunks::Region* GuestChunks::find(const uint8_t* at) const {
  for (const Region& region : x_regions)
    if (at >= region.host && static_cast<uint64_t>(at - region.host) < region.size) return &region;
  return nullptr;
}

std::optional<size_t> GuestChunks::chunk_at(const uint8_t* at) const {
  const Region* const region = find(at);
  if (region == nullptr || at < region->chunks) return std::nullopt;
  const size_t n = static_cast<uint64_t>(at - region->chunks) / kChunkBytes;
  if (n >= region->chunk_count) return std::nullopt;
  return region->first_chunk + n;
}

uint8_t* GuestChunks::host(size_t chunk) const {
  for (const Region& region : x_regions)
    if (chunk >= region.first_chunk && chunk - region.first_chunk < region.chunk_count)
      return region.chunks + (chunk - region.first_chunk) * kChunkBytes;
  LETHE_ASSERT(false);
  return nullptr;
}

bool GuestChunks::same_region(size_t chunk, size_t other) const {
  for (const Region& region : x_regions)
    if (chunk >= region.first_chunk && chunk - region.first_chunk < region.chunk_count)
      return other >= region.first_chunk && other - region.first_chunk < region.chunk_count;
  return false;
}

uint64_t GuestChunks::page_number(const Region& region, const uint8_t* at) const {
  return region.first_page + static_cast<uint64_t>(at - region.host) / kPageBytes;
}

bool GuestChunks::remember_pages(const PageMap& pages) {
  // Known to set_there() first: a page that comes to be while we look is seen by one or the other.
  if (!x_there_owner) {
    x_there_owner.reset(new std::atomic<uint64_t>[(x_page_count + 63) / 64]());
    x_there.store(x_there_owner.get(), std::memory_order_release);
  }
  for (const Region& region : x_regions) {
    for (uint64_t offset = 0; offset < region.size; offset += kChunkBytes) {
      const auto count =
          static_cast<uint32_t>(std::min(kPages, (region.size - offset) / kPageBytes));
      uint64_t bits[8];
      if (!pages.read_pages(region.host + offset, count, bits)) return false;
      for (uint32_t i = 0; i < count; ++i)
        if ((bits[i / 64] >> i % 64 & 1) != 0)
          set_there(region.host + offset + i * kPageBytes, kPageBytes);
    }
  }
  return true;
}

GuestChunks::There GuestChunks::was_there(const uint8_t* at, uint64_t size) const {
  const Region* const region = find(at);
  const std::atomic<uint64_t>* const bits = x_there.load(std::memory_order_acquire);
  if (region == nullptr || bits == nullptr) return There::kNone;
  const uint64_t begin = page_number(*region, at);
  const uint64_t count = size / kPageBytes;
  uint64_t there = 0;
  for (uint64_t page = begin; page < begin + count; ++page)
    there += bits[page / 64].load(std::memory_order_relaxed) >> page % 64 & 1;
  return there == 0 ? There::kNone : there == count ? There::kAll : There::kSome;
}

void GuestChunks::set_there(const uint8_t* at, uint64_t size) {
  const Region* const region = find(at);
  std::atomic<uint64_t>* const bits = x_there.load(std::memory_order_acquire);
  if (region == nullptr || bits == nullptr) return;
  const uint64_t begin = page_number(*region, at);
  for (uint64_t page = begin; page < begin + size / kPageBytes; ++page)
    bits[page / 64].fetch_or(uint64_t{1} << page % 64, std::memory_order_relaxed);
}

}  // namespace lethe
