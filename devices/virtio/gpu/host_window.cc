#include "devices/virtio/gpu/host_window.h"

#include <sys/mman.h>

#include <bit>

#include "base/assert.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

}  // namespace

Result<std::unique_ptr<HostWindow>> HostWindow::create(uint64_t bytes) {
  LETHE_ASSERT(std::has_single_bit(bytes) && bytes >= kPageBytes);
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kAnonymous, -1, 0);
  if (data == MAP_FAILED)
    return host_error("cannot reserve {} MiB of addresses for windows: {}", bytes / kMiB,
                      errno_text(errno));
  (void)::madvise(data, bytes, MADV_DONTDUMP);  // advice
  return std::unique_ptr<HostWindow>(new HostWindow(static_cast<uint8_t*>(data), bytes));
}

HostWindow::~HostWindow() { ::munmap(x_data, x_bytes); }

bool HostWindow::free(uint64_t offset, uint64_t bytes) const {
  if (bytes == 0 || (offset | bytes) % kPageBytes != 0 || bytes > x_bytes ||
      offset > x_bytes - bytes)
    return false;
  const auto next = x_mappings.lower_bound(offset);
  if (next != x_mappings.end() && next->first < offset + bytes) return false;
  if (next == x_mappings.begin()) return true;
  const auto before = std::prev(next);
  return before->first + before->second <= offset;
}

Result<> HostWindow::map(uint64_t offset, const SharedBuffer& buffer) {
  LETHE_ASSERT(free(offset, buffer.bytes()));
  if (x_mappings.size() >= kMappingsMax)
    return host_error("no room for a mapping: the limit is {}", kMappingsMax);
  if (auto mapped = buffer.map_at(x_data + offset); !mapped) {
    // mremap() may have unmapped what was there before it failed. A hole would fail the vCPU that
    // touches it, and whatever the process maps next could end up in it: better no VM.
    LETHE_ASSERT(put_anonymous(offset, buffer.bytes()));
    return mapped;
  }
  x_mappings.emplace(offset, buffer.bytes());
  return {};
}

Result<> HostWindow::put_anonymous(uint64_t offset, uint64_t bytes) const {
  // SAFETY: the range is within the reserved one, which is ours; what was mapped there is replaced
  // at once, so that a vCPU finds one or the other.
  void* const at =
      ::mmap(x_data + offset, bytes, PROT_READ | PROT_WRITE, kAnonymous | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED)
    return host_error("cannot unmap {} bytes from the guest: {}", bytes, errno_text(errno));
  (void)::madvise(at, bytes, MADV_DONTDUMP);
  return {};
}

Result<> HostWindow::unmap(uint64_t offset) {
  const auto found = x_mappings.find(offset);
  LETHE_ASSERT(found != x_mappings.end());
  LETHE_TRY(put_anonymous(found->first, found->second));
  x_mappings.erase(found);
  return {};
}

Result<> HostWindow::clear() {
  // The whole range: what the guest wrote where nothing was mapped goes as well.
  LETHE_TRY(put_anonymous(0, x_bytes));
  x_mappings.clear();
  return {};
}

}  // namespace lethe
