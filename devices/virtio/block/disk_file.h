// A disk's file on the host: a raw image or a block device, opened, checked and locked.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

inline constexpr uint32_t kSectorBytes = 512;  // virtio's unit of addresses, whatever blk_size says

struct DiskFile {
  std::string path{};  // for messages
  UniqueFd fd{};
  uint64_t bytes = 0;          // a multiple of block_bytes
  uint32_t block_bytes = 512;  // logical block: what offsets and lengths should be multiples of
  // O_DIRECT only, else 1: what addresses of buffers, and offsets and lengths, must be multiples
  // of.
  uint32_t memory_alignment = 1;
  uint32_t offset_alignment = 1;

  // Fails, in one line that names the file and the way out, when it is missing, not permitted,
  // neither a regular file nor a block device, empty, no whole number of blocks (a truncated image:
  // better to say so than to hide its tail), on a file system without O_DIRECT, or locked.
  //
  // The lock is an open-file-description lock on the whole file, exclusive for writing and shared
  // for reading: two VMs never write one disk, nor reads one what the other writes. On a file
  // system without locks this is skipped, with a warning.
  [[nodiscard]] static Result<DiskFile> open(const std::string& path, bool read_only, bool direct);

  // The file's size as it is now becomes `bytes`; the same errors as open()'s.
  [[nodiscard]] Result<> take_over_size();
  // Makes a regular file larger. Fails when it would become smaller.
  [[nodiscard]] Result<> grow(uint64_t to_bytes, bool read_only);

  // For when all I/O is done. Closing alone does not do it at once: an io_uring holds the file.
  void unlock() const;
};

}  // namespace lethe
