// Memory that guest and frontends share: one sealed memfd, mapped here for writing, handed out for
// reading.
//
// The order that the seals need: map for writing, then F_SEAL_FUTURE_WRITE | F_SEAL_GROW |
// F_SEAL_SEAL (memfd_create(2), fcntl(2)). Later writable mappings (a BAR) are made of the first
// one by mremap() with an old size of 0, which duplicates a shared mapping (mremap(2)). It is not
// sealed against shrinking: that is how it is revoked.
//
// Threading: one thread at a time.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

class SharedBuffer {
 public:
  // `bytes`: 1 to gui::kBufferBytesMax, rounded up to whole pages; zeroes, none of them allocated.
  // Fails when the host is out of descriptors, mappings or memory.
  [[nodiscard]] static Result<SharedBuffer> create(uint64_t bytes);
  SharedBuffer() = default;
  SharedBuffer(SharedBuffer&& other) noexcept;
  SharedBuffer& operator=(SharedBuffer&& other) noexcept;
  ~SharedBuffer();  // unmaps and closes; mappings made by map_at() are their owner's

  [[nodiscard]] bool valid() const { return x_data != nullptr; }
  [[nodiscard]] uint8_t* data() const { return x_data; }
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }  // whole pages
  // Opened O_RDONLY; what frontends get.
  [[nodiscard]] int read_only_fd() const { return x_read_only.get(); }

  // Maps the whole buffer, writable and shared, over [at, at + bytes()), page aligned.
  [[nodiscard]] Result<> map_at(uint8_t* at) const;
  // Frees all memory past the first `keep` bytes at once: every mapping of it, anywhere, raises
  // SIGBUS from now on. False if the host refuses. Takes about 0.1 ms for a MiB.
  bool revoke(uint64_t keep = 0);

 private:
  UniqueFd x_fd;
  UniqueFd x_read_only;
  uint8_t* x_data = nullptr;
  uint64_t x_bytes = 0;
};

}  // namespace lethe
