// Resources, written down for a snapshot and made again by the commands that made them.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>

#include "devices/virtio/gpu/resources.h"

namespace lethe {
namespace {

constexpr uint64_t kRunMax = uint64_t{1} << 20;  // bytes of content in one piece
constexpr uint64_t kNoMore = UINT64_MAX;

bool all_zero(std::span<const uint8_t> bytes) {
  return std::ranges::all_of(bytes, [](uint8_t byte) { return byte == 0; });
}

// Where the buffer's next memory begins and ends. Looking at a hole would make it memory.
struct Run {
  uint64_t begin = 0;
  uint64_t end = 0;
};
std::optional<Run> next_run(const SharedBuffer& buffer, uint64_t at) {
  const int fd = buffer.read_only_fd();
  const off_t begin = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
  if (begin < 0) return std::nullopt;
  const off_t end = ::lseek(fd, begin, SEEK_HOLE);
  const uint64_t last = end < 0 ? buffer.bytes() : static_cast<uint64_t>(end);
  return Run{static_cast<uint64_t>(begin), std::min(last, buffer.bytes())};
}

void save_bytes(const SharedBuffer& buffer, StateWriter& to) {
  uint64_t at = 0;
  while (const auto run = next_run(buffer, at)) {
    for (at = run->begin; at < run->end;) {
      if (to.too_long()) return;  // there may be gigabytes
      const std::span<const uint8_t> rest{buffer.data() + at, run->end - at};
      uint64_t bytes = 0;
      while (bytes < std::min<uint64_t>(rest.size(), kRunMax)) {
        const auto page = rest.subspan(bytes, std::min<uint64_t>(kPageBytes, rest.size() - bytes));
        if (all_zero(page)) break;
        bytes += page.size();
      }
      if (bytes > 0) {
        to.number(at);
        to.bytes(rest.first(bytes));
        at += bytes;
      } else {
        at += std::min<uint64_t>(kPageBytes, rest.size());
      }
    }
  }
  to.number(kNoMore);
}

void restore_bytes(const SharedBuffer& buffer, StateReader& from) {
  for (;;) {
    const auto at = from.number<uint64_t>();
    if (at == kNoMore || !from.ok()) return;
    const auto bytes = from.bytes(kRunMax);
    if (at > buffer.bytes() || bytes.size() > buffer.bytes() - at)
      return from.fail("pixels outside their buffer");
    std::ranges::copy(bytes, buffer.data() + at);
  }
}

}  // namespace

void Resources::save(const GuestMemory& memory, StateWriter& to) const {
  to.number(static_cast<uint32_t>(x_resources.size()));
  for (const auto& [id, resource] : x_resources) {
    to.number(id);
    to.number(static_cast<uint8_t>(resource.kind));
    to.boolean(resource.mappable);
    to.number(resource.format);
    to.number(resource.width);
    to.number(resource.height);
    to.number(resource.bytes);
    resource.backing.save(memory, to);
    to.boolean(resource.memory != nullptr);
    to.boolean(resource.mapped_at.has_value());
    to.number(resource.mapped_at.value_or(0));
    to.number(resource.home);
    to.number(static_cast<uint32_t>(resource.attached.size()));
    for (const uint64_t context : resource.attached) to.number(context);
  }
  // Given up, and held by frontends, of which a new process has none.
  to.number(static_cast<uint32_t>(x_leaving.size()));
  for (const auto& [generation, leaving] : x_leaving) {
    to.number(leaving.home);
    to.number(leaving.id);
  }
}

void Resources::restore_one(const GuestMemory& memory, const std::set<uint64_t>& contexts,
                            StateReader& from) {
  const auto id = from.number<uint32_t>();
  const auto kind = from.number<uint8_t>();
  const bool mappable = from.boolean();
  const auto format = from.number<uint32_t>();
  const auto width = from.number<uint32_t>();
  const auto height = from.number<uint32_t>();
  const auto bytes = from.number<uint64_t>();
  auto backing = Backing::restore(memory, from);
  const bool has_memory = from.boolean();
  const bool mapped = from.boolean();
  const auto mapped_at = from.number<uint64_t>();
  const auto home = from.number<uint64_t>();
  if (!from.ok() || !backing) return;
  const auto done = [&](uint32_t answer) {
    const bool good = answer == VIRTIO_GPU_RESP_OK_NODATA || answer == VIRTIO_GPU_RESP_OK_MAP_INFO;
    if (!good) from.fail(fmt::format("resource {} can't be made: {:#x}", id, answer));
    return good;
  };
  if (kind == static_cast<uint8_t>(Resource::Kind::k2d)) {
    if (!done(create_2d(
            {.hdr = {}, .resource_id = id, .format = format, .width = width, .height = height})))
      return;
    if (!backing->empty() && !done(attach(*find(id), std::move(*backing)))) return;
  } else {
    const bool host = kind == static_cast<uint8_t>(Resource::Kind::kHostBlob);
    if ((host && !backing->empty()) ||
        (!host && kind != static_cast<uint8_t>(Resource::Kind::kGuestBlob)))
      return from.fail(fmt::format("resource {} is of no kind there is", id));
    const uint32_t memory_kind = host ? VIRTIO_GPU_BLOB_MEM_HOST3D : VIRTIO_GPU_BLOB_MEM_GUEST;
    const uint32_t flags = mappable ? VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE : 0;
    if (!done(create_blob({.hdr = {},
                           .resource_id = id,
                           .blob_mem = memory_kind,
                           .blob_flags = flags,
                           .nr_entries = 0,
                           .blob_id = 0,
                           .size = bytes},
                          std::move(*backing), home)))
      return;
  }
  Resource& resource = *find(id);
  resource.home = home;
  if (has_memory && show(resource) == nullptr) return from.fail("no room for its buffer");
  if (mapped && !done(map(resource, mapped_at))) return;
  const auto attachments = from.number<uint32_t>();
  for (uint32_t i = 0; i < attachments && from.ok(); ++i) {
    const auto context = from.number<uint64_t>();
    if (!contexts.contains(context))
      return from.fail("it is attached to a context that is not there");
    if (!done(attach_to(context, resource))) return;
  }
}

void Resources::restore(const GuestMemory& memory, const std::set<uint64_t>& contexts,
                        StateReader& from) {
  const auto count = from.number<uint32_t>();
  for (uint32_t i = 0; i < count && from.ok(); ++i) restore_one(memory, contexts, from);
  const auto leaving = from.number<uint32_t>();
  for (uint32_t i = 0; i < leaving && from.ok(); ++i) {
    const auto home = from.number<uint64_t>();
    x_released_before.push_back({home, from.number<uint32_t>()});
    if (i >= kResourcesMax) from.fail("too many resources were given up");
  }
}

void Resources::save_content(StateWriter& to) const {
  for (const auto& [id, resource] : x_resources) {
    if (resource.memory == nullptr) continue;
    to.number(id);
    save_bytes(*resource.memory, to);
  }
  to.number(uint32_t{0});
}

void Resources::restore_content(StateReader& from) {
  for (;;) {
    const auto id = from.number<uint32_t>();
    if (id == 0 || !from.ok()) break;
    const Resource* const resource = find(id);
    if (resource == nullptr || resource->memory == nullptr)
      return from.fail("content of a resource that is not there");
    restore_bytes(*resource->memory, from);
  }
  // After the content: an event ring gets these.
  for (const Leaving& leaving : std::exchange(x_released_before, {}))
    if (on_released && from.ok()) on_released(leaving.home, leaving.id);
}

}  // namespace lethe
