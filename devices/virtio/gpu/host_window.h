// What is behind the device's shared memory BAR (virtio 1.2, 5.7.3): one range of reserved
// addresses, in which blobs are mapped and unmapped. Where no blob is, there is anonymous memory
// that nobody else sees, so that no access of the guest's finds nothing (KVM would fail the vCPU).
// The guest may fill it: the window's size bounds what that costs.
//
// Threading: the gui thread changes mappings, while vCPUs use them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/result.h"
#include "devices/gui/shared_buffer.h"

namespace lethe {

class HostWindow {
 public:
  // Well below what a process may have of mappings by default (vm.max_map_count, 65530): a blob
  // takes two with the gap behind it.
  static constexpr size_t kMappingsMax = 8192;

  // `bytes`: a power of two, at least a page.
  [[nodiscard]] static Result<std::unique_ptr<HostWindow>> create(uint64_t bytes);
  ~HostWindow();
  HostWindow(const HostWindow&) = delete;
  HostWindow& operator=(const HostWindow&) = delete;

  [[nodiscard]] uint8_t* data() const { return x_data; }
  [[nodiscard]] uint64_t bytes() const { return x_bytes; }
  [[nodiscard]] size_t mappings() const { return x_mappings.size(); }

  // Whether [offset, offset + bytes) is in the window, of whole pages, and free.
  [[nodiscard]] bool free(uint64_t offset, uint64_t bytes) const;
  // Maps the buffer where free() says so. Fails when the host has no mappings left.
  [[nodiscard]] Result<> map(uint64_t offset, const SharedBuffer& buffer);
  // Ends the mapping that starts at `offset`: when it returns, the guest does not reach the
  // buffer's memory any more. Fails, and the mapping stays, when the host refuses.
  [[nodiscard]] Result<> unmap(uint64_t offset);
  // Ends all of them.
  [[nodiscard]] Result<> clear();

 private:
  HostWindow(uint8_t* data, uint64_t bytes) : x_data(data), x_bytes(bytes) {}
  [[nodiscard]] Result<> put_anonymous(uint64_t offset, uint64_t bytes) const;

  uint8_t* const x_data;
  const uint64_t x_bytes;
  std::map<uint64_t, uint64_t> x_mappings;  // offset, bytes
};

}  // namespace lethe
