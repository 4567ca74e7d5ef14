// A read-only mapping of a VM's buffer, whose memory the VM may take away at any time.
//
// A VM revokes a buffer by cutting its file to nothing; reading what was there raises SIGBUS. The
// first SharedMapping of the process installs a handler for it, which puts zero pages in the place
// of the whole mapping that faulted: whoever reads sees black, and goes on. A SIGBUS elsewhere
// kills the process as it would without us.
//
// Mappings may be made, read and destroyed by any thread, each by one at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe::gui {

class SharedMapping {
 public:
  // Maps all of `file`, which must be a memfd of exactly `bytes` bytes (or of none: it has been
  // revoked already, and is read as zeros); the descriptor is closed.
  // Errors (kHost): it is something else, or its size is another one. When there is no room for a
  // mapping (address space, max_map_count, kMappingsMax) what is returned is not valid().
  [[nodiscard]] static Result<SharedMapping> map(UniqueFd file, uint64_t bytes);

  SharedMapping() = default;
  SharedMapping(SharedMapping&& other) noexcept;
  SharedMapping& operator=(SharedMapping&& other) noexcept;
  ~SharedMapping() { reset(); }

  [[nodiscard]] bool valid() const { return x_start != nullptr; }
  [[nodiscard]] const std::byte* data() const { return x_start; }
  [[nodiscard]] uint64_t size() const { return x_size; }
  // Whether the handler has put zero pages there.
  [[nodiscard]] bool lost() const;
  void reset();

 private:
  const std::byte* x_start = nullptr;
  uint64_t x_size = 0;
  size_t x_slot = 0;  // in the handler's table
};

// Mappings that may be there at one time in this process.
inline constexpr size_t kMappingsMax = 65536 + 64;

}  // namespace lethe::gui
