// One block request (virtio 1.2, 5.2.6): a chain taken apart and checked.
#pragma once

#include <linux/virtio_blk.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "devices/virtio/queue.h"

namespace lethe {

inline constexpr uint32_t kBlockHeaderBytes = sizeof(virtio_blk_outhdr);
inline constexpr uint32_t kBlockIdBytes = VIRTIO_BLK_ID_BYTES;
// The most sectors of one discard or write-zeroes request (1 GiB): bounds what one may cost.
inline constexpr uint32_t kDiscardSectorsMax = 1u << 21;

// What a disk is, for the checks.
struct BlockGeometry {
  uint64_t sectors = 0;
  uint32_t block_bytes = 512;  // transfers are whole blocks
  bool read_only = false;
};

// A buffer of the request as the kernel takes it.
struct IoVector {
  const iovec* vectors = nullptr;
  unsigned count = 0;
  uint64_t bytes = 0;
};

// A slot, used again for each chain with the same head. What it points to is written before it is
// read: begin() sets all members but the scratch space.
class BlockRequest {
 public:
  // What to do with a chain after begin().
  enum class Verdict : uint8_t {
    kStart,      // checked: type(), offset() and bytes() are good
    kAnswer,     // finished with the status given
    kMalformed,  // the same, but the driver broke a rule of 5.2.6.1 (for the counter and the log)
  };

  // Copies the header, once, and checks everything.
  Verdict begin(Chain chain, const BlockGeometry& geometry, uint8_t& status);

  [[nodiscard]] uint32_t type() const { return x_type; }
  [[nodiscard]] uint64_t offset() const { return x_offset; }  // on the disk, bytes
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }    // to transfer, discard or zero
  [[nodiscard]] bool unmap() const { return x_unmap; }
  [[nodiscard]] bool is_write() const { return x_type == VIRTIO_BLK_T_OUT; }

  // Progress of the transfer.
  [[nodiscard]] uint64_t done() const { return x_done; }
  [[nodiscard]] uint64_t left() const { return x_bytes - x_done; }
  void advance(uint64_t bytes) { x_done += bytes; }

  // The data from done() on, at most `limit` bytes, as the kernel takes it; valid until the request
  // is finished or this is called again.
  [[nodiscard]] IoVector data_left(uint64_t limit);
  // The same through a buffer of the host.
  void copy_data_out(std::span<uint8_t> to) const;         // a write's, from done() on
  void copy_data_in(std::span<const uint8_t> from) const;  // a read's
  void answer_id(std::span<const uint8_t, kBlockIdBytes> id);

  // Writes the status byte, if there is room for one, and completes the chain.
  void finish(uint8_t status);
  // Completes it with nothing written: on a reset.
  void drop();
  [[nodiscard]] bool in_use() const { return x_chain.has_value(); }
  [[nodiscard]] size_t scratch_bytes() const { return x_scratch_size * sizeof(iovec); }

  // For the owner's lists.
  BlockRequest* next = nullptr;
  uint8_t* bounce = nullptr;
  bool zeroes_written = false;  // write-zeroes: by writing zeroes, for want of a better way
  uint16_t queue = 0;
  uint16_t retries = 0;

 private:
  Verdict begin_transfer(const BlockGeometry& geometry, uint8_t& status);
  Verdict begin_range(const BlockGeometry& geometry, uint8_t& status);
  bool set_range(uint64_t sector, uint64_t sectors, const BlockGeometry& geometry);

  std::optional<Chain> x_chain;
  uint32_t x_type = 0;
  bool x_unmap = false;
  uint64_t x_offset = 0;
  uint64_t x_bytes = 0;
  uint64_t x_done = 0;
  uint64_t x_sector = 0;
  // For chains whose slices are not the data's pieces; up to Queue::kKeptSlices kept for the next.
  std::unique_ptr<iovec[]> x_scratch;
  uint16_t x_scratch_size = 0;
};

}  // namespace lethe
