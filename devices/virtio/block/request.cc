#include "devices/virtio/block/request.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "devices/virtio/block/disk_file.h"

namespace lethe {
namespace {

// SAFETY: data_left() hands slices to the kernel as iovecs; nothing here reads them as such.
static_assert(sizeof(IoSlice) == sizeof(iovec));
static_assert(offsetof(IoSlice, data) == offsetof(iovec, iov_base));
static_assert(offsetof(IoSlice, size) == offsetof(iovec, iov_len));

constexpr uint32_t kRangeBytes = sizeof(virtio_blk_discard_write_zeroes);

}  // namespace

BlockRequest::Verdict BlockRequest::begin(Chain chain, const BlockGeometry& geometry,
                                          uint8_t& status) {
  x_chain.emplace(std::move(chain));
  x_unmap = false;
  x_offset = x_bytes = x_done = 0;
  next = nullptr;
  bounce = nullptr;
  zeroes_written = false;
  retries = 0;
  status = VIRTIO_BLK_S_IOERR;
  virtio_blk_outhdr header;
  const bool whole = x_chain->copy_front(header);
  x_type = whole ? header.type : ~uint32_t{0};
  if (!whole || x_chain->writable_bytes() == 0) return Verdict::kMalformed;
  x_sector = header.sector;
  switch (x_type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
      return begin_transfer(geometry, status);
    case VIRTIO_BLK_T_FLUSH:
      return Verdict::kStart;
    case VIRTIO_BLK_T_GET_ID:
      return x_chain->writable_bytes() == 1 ? Verdict::kMalformed : Verdict::kStart;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
      return begin_range(geometry, status);
    default:
      status = VIRTIO_BLK_S_UNSUPP;
      return Verdict::kAnswer;
  }
}

// The range within the disk? Written so that nothing can overflow.
bool BlockRequest::set_range(uint64_t sector, uint64_t sectors, const BlockGeometry& geometry) {
  if (sector > geometry.sectors || sectors > geometry.sectors - sector) return false;
  x_offset = sector * kSectorBytes;
  x_bytes = sectors * kSectorBytes;
  return x_offset % geometry.block_bytes == 0 && x_bytes % geometry.block_bytes == 0;
}

BlockRequest::Verdict BlockRequest::begin_transfer(const BlockGeometry& geometry,
                                                   uint8_t& /*status*/) {
  const uint64_t readable = x_chain->readable_bytes() - kBlockHeaderBytes;
  const uint64_t writable = x_chain->writable_bytes() - 1;
  if ((is_write() ? writable : readable) != 0) return Verdict::kMalformed;
  const uint64_t bytes = is_write() ? readable : writable;
  if (bytes % kSectorBytes != 0) return Verdict::kMalformed;
  if (is_write() && geometry.read_only) return Verdict::kAnswer;
  return set_range(x_sector, bytes / kSectorBytes, geometry) ? Verdict::kStart : Verdict::kAnswer;
}

BlockRequest::Verdict BlockRequest::begin_range(const BlockGeometry& geometry, uint8_t& status) {
  virtio_blk_discard_write_zeroes range;
  // One range, as max_discard_seg and max_write_zeroes_seg say.
  if (x_chain->readable_bytes() != kBlockHeaderBytes + kRangeBytes) return Verdict::kMalformed;
  // SAFETY: the range is trivially copyable, and this is its size.
  (void)x_chain->copy_from_readable(kBlockHeaderBytes,
                                    {reinterpret_cast<uint8_t*>(&range), sizeof range});
  if (geometry.read_only) return Verdict::kAnswer;
  // 5.2.6.2: unknown flags, and unmap on a discard, are not supported.
  const uint32_t known =
      x_type == VIRTIO_BLK_T_WRITE_ZEROES ? uint32_t{VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP} : 0;
  if ((range.flags & ~known) != 0) {
    status = VIRTIO_BLK_S_UNSUPP;
    return Verdict::kAnswer;
  }
  x_unmap = (range.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
  if (range.num_sectors > kDiscardSectorsMax) return Verdict::kAnswer;
  return set_range(range.sector, range.num_sectors, geometry) ? Verdict::kStart : Verdict::kAnswer;
}

IoVector BlockRequest::data_left(uint64_t limit) {
  const std::span<const IoSlice> slices = is_write() ? x_chain->readable() : x_chain->writable();
  uint64_t skip = x_done + (is_write() ? kBlockHeaderBytes : 0);
  size_t first = 0;
  while (first < slices.size() && skip >= slices[first].size) skip -= slices[first++].size;
  const uint64_t wanted = std::min(limit, left());
  uint64_t bytes = skip == 0 ? 0 : slices[first].size - skip;
  size_t end = skip == 0 ? first : first + 1;
  while (end < slices.size() && bytes < wanted) bytes += slices[end++].size;
  if (skip == 0 && bytes == wanted) {
    // The usual layout: header and status have slices of their own.
    // SAFETY: same layout (above), and the slices stay where they are until the chain completes.
    return {reinterpret_cast<const iovec*>(slices.data() + first),
            static_cast<unsigned>(end - first), bytes};
  }
  if (x_scratch_size < end - first) {
    x_scratch_size = static_cast<uint16_t>(slices.size());
    x_scratch = std::make_unique_for_overwrite<iovec[]>(slices.size());
  }
  for (size_t i = first; i < end; ++i) {
    const uint64_t cut = i == first ? skip : 0;
    x_scratch[i - first] = {slices[i].data + cut, slices[i].size - cut};
  }
  if (end > first && bytes > wanted) x_scratch[end - first - 1].iov_len -= bytes - wanted;
  return {x_scratch.get(), static_cast<unsigned>(end - first), wanted};
}

void BlockRequest::copy_data_out(std::span<uint8_t> to) const {
  (void)x_chain->copy_from_readable(kBlockHeaderBytes + x_done, to);
}

void BlockRequest::copy_data_in(std::span<const uint8_t> from) const {
  (void)x_chain->copy_to_writable(x_done, from);
}

void BlockRequest::answer_id(std::span<const uint8_t, kBlockIdBytes> id) {
  const uint64_t room = x_chain->writable_bytes() - 1;
  x_done = x_bytes = std::min<uint64_t>(room, id.size());
  (void)x_chain->copy_to_writable(0, id.first(x_done));
}

void BlockRequest::finish(uint8_t status) {
  if (x_chain->writable().empty()) return drop();
  // SAFETY: writable() has no empty slices.
  const IoSlice& last = x_chain->writable().back();
  last.data[last.size - 1] = status;
  // 2.7.8.2: only what was written from the start on counts. The status is at the end, so it counts
  // when all before it was written.
  const uint64_t before = x_chain->writable_bytes() - 1;
  const uint64_t data = is_write() ? 0 : std::min(x_done, before);
  const uint64_t written = data == before ? before + 1 : data;
  x_chain->complete(static_cast<uint32_t>(std::min<uint64_t>(written, UINT32_MAX)));
  drop();
}

void BlockRequest::drop() {
  x_chain.reset();
  if (x_scratch_size > Queue::kKeptSlices) [[unlikely]] {
    x_scratch.reset();
    x_scratch_size = 0;
  }
}

}  // namespace lethe
