#include "kernel/virtio/windows.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr uint32_t kRingBytes = kPageSize;

template <typename T>
T command_of(window::Command command) {
  T c;
  memset(&c, 0, sizeof(c));
  c.header = {command, sizeof(T)};
  return c;
}

}  // namespace

void Windows::open(GpuDriver& gpu, uint32_t ring_id) {
  gpu_ = &gpu;
  if (batch_ == nullptr) batch_ = static_cast<uint8_t*>(alloc_pages(1));
  used_ = 0;
  tail_ = 0;
  polling_ = false;
  CHECK_EQ(gpu.context_create(kContext, window::kWindowCapset), kGpuOk);
  ring_ = make_buffer(ring_id, 0, kRingBytes);
  auto c = command_of<window::SetEventRing>(window::kSetEventRing);
  c.resource_id = ring_id;
  raw(&c, sizeof(c));
  CHECK_EQ(commit(), kGpuOk);
}

WindowBuffer Windows::make_buffer(uint32_t id, uint64_t offset, uint32_t bytes) {
  WindowBuffer b;
  b.id = id;
  b.offset = offset;
  b.bytes = bytes;
  b.pixels = reinterpret_cast<volatile uint32_t*>(gpu_->shared() + offset);
  CHECK_EQ(gpu_->create_blob({.id = id, .context = kContext, .size = bytes}), kGpuOk);
  CHECK_EQ(gpu_->context_attach(kContext, id), kGpuOk);
  CHECK_EQ(gpu_->map_blob(id, offset), VIRTIO_GPU_RESP_OK_MAP_INFO);
  return b;
}

void Windows::drop_buffer(const WindowBuffer& buffer) {
  CHECK_EQ(gpu_->unmap_blob(buffer.id), kGpuOk);
  CHECK_EQ(gpu_->context_detach(kContext, buffer.id), kGpuOk);
  CHECK_EQ(gpu_->unref(buffer.id), kGpuOk);
}

void Windows::raw(const void* command, size_t bytes) {
  CHECK(used_ + bytes <= kPageSize);
  memcpy(batch_ + used_, command, bytes);
  used_ += bytes;
}

uint32_t Windows::commit() {
  const uint32_t type = gpu_->submit(kContext, batch_, used_);
  used_ = 0;
  return type;
}

void Windows::place(uint32_t command, const window::WindowCreate& state) {
  auto c = state;
  c.header = {command, sizeof(c)};
  raw(&c, sizeof(c));
}

void Windows::create(uint32_t id, int32_t x, int32_t y, uint32_t width, uint32_t height,
                     uint32_t flags, uint32_t parent) {
  place(window::kWindowCreate, {{}, id, parent, flags, x, y, width, height, 0});
}

void Windows::geometry(uint32_t id, int32_t x, int32_t y, uint32_t width, uint32_t height,
                       uint32_t flags) {
  place(window::kWindowGeometry, {{}, id, 0, flags, x, y, width, height, 0});
}

void Windows::title(uint32_t id, const char* text) {
  auto c = command_of<window::WindowTitle>(window::kWindowTitle);
  c.window = id;
  const size_t length = strlen(text);
  CHECK(length < sizeof(c.title));
  memcpy(c.title, text, length);
  raw(&c, sizeof(c));
}

void Windows::attach(uint32_t id, const WindowBuffer& buffer, uint32_t width, uint32_t height) {
  auto c = command_of<window::WindowAttach>(window::kWindowAttach);
  c.window = id;
  c.resource_id = buffer.id;
  if (buffer.id != 0) {
    c.stride = width * 4;
    c.format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
    c.width = width;
    c.height = height;
  }
  raw(&c, sizeof(c));
}

void Windows::damage(uint32_t id, uint32_t x, uint32_t y, uint32_t width, uint32_t height,
                     uint32_t serial) {
  auto c = command_of<window::WindowDamage>(window::kWindowDamage);
  c.window = id;
  c.x = x;
  c.y = y;
  c.width = width;
  c.height = height;
  c.serial = serial;
  raw(&c, sizeof(c));
}

void Windows::destroy(uint32_t id) {
  auto c = command_of<window::WindowDestroy>(window::kWindowDestroy);
  c.window = id;
  raw(&c, sizeof(c));
}

uint32_t Windows::capacity() const { return window::ring_capacity(ring_.bytes); }

bool Windows::next(window::Event& event) {
  auto* header = reinterpret_cast<volatile window::EventRingHeader*>(ring_.pixels);
  const uint32_t head = __atomic_load_n(&header->head, __ATOMIC_ACQUIRE);
  if (head == tail_) return false;
  CHECK(head - tail_ <= capacity());
  CHECK_EQ(header->lost, 0);
  const auto* events = reinterpret_cast<const window::Event*>(
      reinterpret_cast<uint64_t>(ring_.pixels) + sizeof(window::EventRingHeader));
  event = events[tail_ % capacity()];
  ++tail_;
  return true;
}

window::Event Windows::wait_for(uint32_t type) {
  window::Event event = {};
  CHECK_SOON([&] {
    // One waits at a time: a poll tells the host what was read, and fetches what is new.
    if (!polling_) start_poll();
    while (next(event)) {
      if (event.type == type) return true;
    }
    (void)poll_done();
    return false;
  }());
  return event;
}

void Windows::start_poll() {
  CHECK(!polling_);
  poll_ = command_of<window::Poll>(window::kPoll);
  poll_.tail = tail_;
  poll_slot_ = gpu_->submit_fenced(kContext, &poll_, sizeof(poll_), window::kEventRing, ++fence_);
  polling_ = true;
}

bool Windows::poll_done() {
  if (!polling_ || !gpu_->answered(poll_slot_)) return false;
  virtio_gpu_ctrl_hdr header = {};
  CHECK_EQ(gpu_->collect(poll_slot_, &header), kGpuOk);
  // Section 5.7.6.7: the response of a fenced request has the flag, the fence and the ring.
  CHECK((header.flags & VIRTIO_GPU_FLAG_FENCE) != 0);
  CHECK_EQ(header.fence_id, fence_);
  CHECK_EQ(header.ring_idx, window::kEventRing);
  polling_ = false;
  return true;
}

}  // namespace kernel
