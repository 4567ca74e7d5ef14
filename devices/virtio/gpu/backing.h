// The guest memory behind a resource: a list of pieces, checked once when it is attached.
//
// Threading: the gui thread. RAM stays mapped for the VM's life, so pieces stay good; what is in
// them is the guest's, who may write it at any time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/state.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace lethe {

class Backing {
 public:
  // Of one resource: 1 GiB in pages.
  static constexpr uint32_t kEntriesMax = 1u << 18;

  Backing() = default;
  // Reads `count` virtio_gpu_mem_entry from byte `offset` of the chain's readable part, piece by
  // piece through `scratch`. Nothing if there are more than kEntriesMax, the chain has fewer, or
  // one of them is not wholly in RAM. Neighbours that touch become one piece.
  [[nodiscard]] static std::optional<Backing> read(const GuestMemory& memory, const Chain& chain,
                                                   uint64_t offset, uint32_t count,
                                                   std::span<uint8_t> scratch);

  // Snapshots: as guest addresses; restore() checks them like read(). Nothing: from has failed.
  void save(const GuestMemory& memory, StateWriter& to) const;
  [[nodiscard]] static std::optional<Backing> restore(const GuestMemory& memory, StateReader& from);

  [[nodiscard]] bool empty() const { return x_pieces.empty(); }
  [[nodiscard]] uint64_t bytes() const { return x_pieces.empty() ? 0 : x_pieces.back().end; }
  [[nodiscard]] size_t pieces() const { return x_pieces.size(); }

  // Copies `lines` of `line_bytes` each; the first at byte `offset` here and at `to` there, the
  // next ones `stride` further on both sides. What is read must lie within bytes() (lines_fit()).
  // Each byte is read once; whole lines are copied as one.
  void copy_lines(uint64_t offset, uint32_t stride, uint64_t line_bytes, uint32_t lines,
                  uint8_t* to) const;

 private:
  struct Piece {
    const uint8_t* data = nullptr;
    uint64_t end = 0;  // offset behind its last byte
  };
  void add(const IoSlice& slice);
  size_t copy(size_t piece, uint64_t offset, uint64_t size, uint8_t* to) const;

  std::vector<Piece> x_pieces;  // by offset
};

}  // namespace lethe
