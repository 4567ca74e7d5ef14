#include "devices/virtio/gpu/backing.h"

#include <linux/virtio_gpu.h>

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace lethe {

void Backing::add(const IoSlice& slice) {
  const uint64_t before = bytes();
  if (!x_pieces.empty()) {
    Piece& last = x_pieces.back();
    const uint64_t start = x_pieces.size() < 2 ? 0 : x_pieces[x_pieces.size() - 2].end;
    if (last.data + (last.end - start) == slice.data) {
      last.end += slice.size;
      return;
    }
  }
  x_pieces.push_back({slice.data, before + slice.size});
}

std::optional<Backing> Backing::read(const GuestMemory& memory, const Chain& chain, uint64_t offset,
                                     uint32_t count, std::span<uint8_t> scratch) {
  if (count > kEntriesMax ||
      offset + uint64_t{count} * sizeof(virtio_gpu_mem_entry) > chain.readable_bytes())
    return std::nullopt;
  Backing backing;
  const auto map = memory.map();
  const size_t at_once = scratch.size() / sizeof(virtio_gpu_mem_entry);
  for (uint32_t done = 0; done < count;) {
    const size_t entries = std::min<size_t>(at_once, count - done);
    const auto part = scratch.first(entries * sizeof(virtio_gpu_mem_entry));
    if (chain.copy_from_readable(offset + done * sizeof(virtio_gpu_mem_entry), part) != part.size())
      return std::nullopt;
    for (size_t i = 0; i < entries; ++i) {
      virtio_gpu_mem_entry entry;
      std::memcpy(&entry, part.data() + i * sizeof entry, sizeof entry);
      if (entry.length == 0) continue;
      const auto slice = map->slice(GuestAddr{entry.addr}, entry.length);
      if (!slice) return std::nullopt;
      backing.add(*slice);
    }
    done += static_cast<uint32_t>(entries);
  }
  backing.x_pieces.shrink_to_fit();
  return backing;
}

// Returns the piece that it ended in.
size_t Backing::copy(size_t piece, uint64_t offset, uint64_t size, uint8_t* to) const {
  while (x_pieces[piece].end <= offset) ++piece;
  for (;; ++piece) {
    const uint64_t start = piece == 0 ? 0 : x_pieces[piece - 1].end;
    const uint64_t part = std::min(size, x_pieces[piece].end - offset);
    std::memcpy(to, x_pieces[piece].data + (offset - start), part);
    offset += part;
    to += part;
    size -= part;
    if (size == 0) return piece;
  }
}

void Backing::copy_lines(uint64_t offset, uint32_t stride, uint64_t line_bytes, uint32_t lines,
                         uint8_t* to) const {
  if (lines == 0 || line_bytes == 0) return;
  if (line_bytes == stride) {
    line_bytes *= lines;
    lines = 1;
  }
  LETHE_ASSERT(offset + uint64_t{stride} * (lines - 1) + line_bytes <= bytes());
  const auto first = std::ranges::upper_bound(x_pieces, offset, {}, &Piece::end);
  auto piece = static_cast<size_t>(first - x_pieces.begin());
  for (uint32_t line = 0; line < lines; ++line, offset += stride, to += stride)
    piece = copy(piece, offset, line_bytes, to);
}

// A piece may run on from one region into the next, if the host has put them side by side.
void Backing::save(const GuestMemory& memory, StateWriter& to) const {
  const std::vector<MemoryRegion> regions = memory.regions();
  uint64_t start = 0;
  for (const Piece& piece : x_pieces) {
    const uint8_t* at = piece.data;
    for (uint64_t left = piece.end - start; left > 0;) {
      const auto region = std::ranges::find_if(regions, [&](const MemoryRegion& candidate) {
        return !candidate.removable && at >= candidate.host && at < candidate.host + candidate.size;
      });
      LETHE_ASSERT(region != regions.end());
      const auto offset = static_cast<uint64_t>(at - region->host);
      const uint64_t part = std::min(left, region->size - offset);
      to.number(region->start.value + offset);
      to.number(part);
      at += part;
      left -= part;
    }
    start = piece.end;
  }
  to.number(uint64_t{0});
  to.number(uint64_t{0});  // the end
}

std::optional<Backing> Backing::restore(const GuestMemory& memory, StateReader& from) {
  Backing backing;
  const auto map = memory.map();
  for (uint32_t entries = 0;; ++entries) {
    const GuestAddr address{from.number<uint64_t>()};
    const auto length = from.number<uint64_t>();
    if (length == 0) break;
    const auto slice = map->slice(address, length);
    if (!slice || entries >= kEntriesMax) {
      from.fail("a backing is not in guest memory, or too long");
      break;
    }
    backing.add(*slice);
  }
  if (!from.ok()) return std::nullopt;
  return backing;
}

}  // namespace lethe
