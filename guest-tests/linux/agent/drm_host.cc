#include "guest-tests/linux/agent/drm_host.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "guest-tests/linux/agent/drm_uapi.h"

namespace lethe::agent {
namespace {

constexpr int kRenderNodeFirst = 128;  // DRM's numbers of render nodes: 128 to 191
constexpr int kRenderNodeLast = 191;

int drm_ioctl(int fd, unsigned long request, void* argument) {
  int result = 0;
  do result = ioctl(fd, request, argument);
  while (result != 0 && (errno == EINTR || errno == EAGAIN));
  return result;
}

// SAFETY: DRM passes pointers as 64-bit numbers.
uint64_t as_number(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

bool is_virtio_gpu(int fd) {
  std::array<char, 32> name{};
  drm::drm_version version{};
  version.name = name.data();
  version.name_len = name.size() - 1;
  return drm_ioctl(fd, drm::kVersion, &version) == 0 &&
         std::string_view(name.data()) == "virtio_gpu";
}

Result<UniqueFd> open_node(const std::string& device) {
  if (!device.empty()) {
    UniqueFd fd(::open(device.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) return host_error("{}: {}", device, errno_text(errno));
    if (!is_virtio_gpu(fd.get())) return host_error("{}: this is no virtio-gpu", device);
    return fd;
  }
  for (int node = kRenderNodeFirst; node <= kRenderNodeLast; ++node) {
    UniqueFd fd(
        ::open(fmt::format("/dev/dri/renderD{}", node).c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (fd.valid() && is_virtio_gpu(fd.get())) return fd;
  }
  return host_error(
      "no virtio-gpu in /dev/dri: has the VM `[gui] enabled = true`, is the module virtio-gpu "
      "loaded, and may you open /dev/dri/renderD*?");
}

// A HOST3D blob, mapped.
class DrmBuffer final : public Buffer {
 public:
  static Result<std::unique_ptr<Buffer>> create(int fd, uint64_t bytes) {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    drm::drm_virtgpu_resource_create_blob blob{};
    blob.blob_mem = drm::VIRTGPU_BLOB_MEM_HOST3D;
    blob.blob_flags = drm::VIRTGPU_BLOB_FLAG_USE_MAPPABLE | drm::VIRTGPU_BLOB_FLAG_USE_SHAREABLE;
    blob.size = (bytes + page - 1) / page * page;
    if (drm_ioctl(fd, drm::kVirtgpuCreateBlob, &blob) != 0)
      return host_error("a buffer of {} bytes: {}", blob.size, errno_text(errno));
    std::unique_ptr<DrmBuffer> buffer(new DrmBuffer);
    buffer->x_device = fd;
    buffer->x_handle = blob.bo_handle;
    buffer->x_resource_id = blob.res_handle;
    buffer->x_bytes = blob.size;
    LETHE_TRY(buffer->map());
    return buffer;
  }

  ~DrmBuffer() override {
    if (x_data != nullptr) munmap(x_data, x_bytes);
    drm::drm_gem_close close{};
    close.handle = x_handle;
    drm_ioctl(x_device, drm::kGemClose, &close);
  }

  [[nodiscard]] uint32_t resource_id() const override { return x_resource_id; }
  [[nodiscard]] uint8_t* data() const override { return x_data; }
  [[nodiscard]] uint64_t bytes() const override { return x_bytes; }
  [[nodiscard]] int fd() const override { return x_shared.get(); }

 private:
  DrmBuffer() = default;

  Result<> map() {
    // The host refused the blob if the driver has no map for it: that is told here (EINVAL), since
    // creating it does not wait for an answer.
    drm::drm_virtgpu_map map{};
    map.handle = x_handle;
    if (drm_ioctl(x_device, drm::kVirtgpuMap, &map) != 0)
      return host_error("a buffer's map: {}", errno_text(errno));
    void* data = mmap(nullptr, x_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, x_device,
                      static_cast<off_t>(map.offset));
    if (data == MAP_FAILED)
      return host_error("a buffer of {} bytes cannot be mapped: {}", x_bytes, errno_text(errno));
    x_data = static_cast<uint8_t*>(data);
    // A dma-buf, which the X server maps so as to draw into it itself. Without one we copy.
    drm::drm_prime_handle share{};
    share.handle = x_handle;
    share.flags = O_CLOEXEC | O_RDWR;
    share.fd = -1;
    if (drm_ioctl(x_device, drm::kPrimeHandleToFd, &share) == 0) x_shared.reset(share.fd);
    return {};
  }

  int x_device = -1;
  uint32_t x_handle = 0;
  uint32_t x_resource_id = 0;
  uint64_t x_bytes = 0;
  uint8_t* x_data = nullptr;
  UniqueFd x_shared;
};

}  // namespace

Result<std::unique_ptr<DrmHost>> DrmHost::open(const std::string& device) {
  LETHE_TRY_ASSIGN(UniqueFd fd, open_node(device));
  std::unique_ptr<DrmHost> host(new DrmHost(std::move(fd)));
  LETHE_TRY(host->init());
  return host;
}

Result<> DrmHost::init() {
  window::Capset capset{};
  drm::drm_virtgpu_get_caps caps{};
  caps.cap_set_id = window::kWindowCapset;
  caps.cap_set_ver = window::kVersion;
  caps.addr = as_number(&capset);
  caps.size = sizeof(capset);
  if (drm_ioctl(x_fd.get(), drm::kVirtgpuGetCaps, &caps) != 0)
    return host_error("the virtio-gpu shows no windows (no capset {}: {}): is this Lethe?",
                      window::kWindowCapset, errno_text(errno));
  if (capset.version != window::kVersion || capset.event_bytes != sizeof(window::Event))
    return host_error("the host speaks version {} of the window commands, not {}", capset.version,
                      window::kVersion);

  std::array<drm::drm_virtgpu_context_set_param, 3> parameters{{
      {drm::VIRTGPU_CONTEXT_PARAM_CAPSET_ID, window::kWindowCapset},
      {drm::VIRTGPU_CONTEXT_PARAM_NUM_RINGS, window::kEventRing + 1},
      {drm::VIRTGPU_CONTEXT_PARAM_POLL_RINGS_MASK, 1u << window::kEventRing},
  }};
  drm::drm_virtgpu_context_init init{};
  init.num_params = parameters.size();
  init.ctx_set_params = as_number(parameters.data());
  if (drm_ioctl(x_fd.get(), drm::kVirtgpuContextInit, &init) != 0)
    return host_error("a context for windows: {}", errno_text(errno));

  LETHE_TRY_ASSIGN(x_ring, make_buffer(kEventRingBytes));
  window::SetEventRing ring{};
  ring.header = {.command = window::kSetEventRing, .bytes = sizeof(ring)};
  ring.resource_id = x_ring->resource_id();
  LETHE_TRY(execute(&ring, sizeof(ring), 0, 0));
  return wait_for_events();
}

Result<std::unique_ptr<Buffer>> DrmHost::make_buffer(uint64_t bytes) {
  return DrmBuffer::create(x_fd.get(), bytes);
}

Result<> DrmHost::execute(const void* commands, size_t bytes, uint32_t flags, uint32_t ring) {
  drm::drm_virtgpu_execbuffer exec{};
  exec.flags = flags;
  exec.size = static_cast<uint32_t>(bytes);
  exec.command = as_number(commands);
  exec.fence_fd = -1;
  exec.ring_idx = ring;
  if (drm_ioctl(x_fd.get(), drm::kVirtgpuExecbuffer, &exec) != 0)
    return host_error("window commands: {}", errno_text(errno));
  return {};
}

Result<> DrmHost::submit(std::span<const uint8_t> commands) {
  return execute(commands.data(), commands.size(), 0, 0);
}

Result<> DrmHost::wait_for_events() {
  window::Poll poll{};
  poll.header = {.command = window::kPoll, .bytes = sizeof(poll)};
  poll.tail = x_tail;
  // Ring 1 is in the mask of polled rings: the fence makes the descriptor readable.
  return execute(&poll, sizeof(poll), drm::VIRTGPU_EXECBUF_RING_IDX, window::kEventRing);
}

uint32_t DrmHost::lost_events() const {
  // SAFETY: as in take_events().
  const auto* header = reinterpret_cast<const window::EventRingHeader*>(x_ring->data());
  return __atomic_load_n(&header->lost, __ATOMIC_RELAXED);
}

Result<> DrmHost::take_events(const EventHandler& handler) {
  std::array<uint8_t, 256> events;
  const ssize_t got = read(x_fd.get(), events.data(), events.size());
  if (got < 0) {
    if (errno == EAGAIN || errno == EINTR) return {};
    return host_error("virtio-gpu's events: {}", errno_text(errno));
  }
  if (got == 0) return {};
  // SAFETY: the ring is a mapping of kEventRingBytes, page aligned, that lives as long as we do.
  // The host writes entries and then `head`, with release order; the acquire below makes the
  // entries before it visible. What was read is told by the next kPoll, an ioctl, which orders
  // our reads before the host's next writes.
  const uint8_t* data = x_ring->data();
  const auto* header = reinterpret_cast<const window::EventRingHeader*>(data);
  constexpr uint32_t kCapacity = window::ring_capacity(kEventRingBytes);
  const uint32_t head = __atomic_load_n(&header->head, __ATOMIC_ACQUIRE);
  while (x_tail != head) {
    window::Event event;
    std::memcpy(&event, data + sizeof(*header) + (x_tail % kCapacity) * sizeof(event),
                sizeof(event));
    ++x_tail;
    handler(event);
  }
  return wait_for_events();
}

}  // namespace lethe::agent
