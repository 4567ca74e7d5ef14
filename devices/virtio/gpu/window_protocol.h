// The window commands: how a program in the guest (lethe-agent, the bare-metal guest) shows its
// windows on the host. Carried by virtio-gpu contexts of one capset: VIRTIO_GPU_CMD_CTX_CREATE with
// context_init = kWindowCapset, then VIRTIO_GPU_CMD_SUBMIT_3D with commands of this file, one after
// the other. docs/gui.md explains it. Host and guests include this file: it needs nothing else.
//
// Pixels are in blob resources (VIRTIO_GPU_BLOB_MEM_HOST3D, blob_id 0, mappable: no copy; or
// BLOB_MEM_GUEST: damage is copied). Commands have no answer of their own: a bad one fails the
// whole SUBMIT_3D with VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER, those before it stay done.
//
// Events come back through an event ring: a blob of the guest's that the host writes and never
// reads. The guest waits with kPoll in a fenced SUBMIT_3D on ring 1 (VIRTIO_GPU_FLAG_FENCE and
// _INFO_RING_IDX, ring_idx 1): it completes when there are events past `tail`.
//
// All little endian.
#ifndef LETHE_WINDOW_PROTOCOL_H
#define LETHE_WINDOW_PROTOCOL_H

#include <stdint.h>

namespace lethe::window {

// virtio 1.2, 5.7.6.8 leaves capset ids to their users. The driver of Linux 6.1 knows ids up to 63,
// but keeps them in a mask that it shifts as a 32-bit int (virtgpu_kms.c), so above 31 it refuses
// its own; upstream's count from 1.
inline constexpr uint32_t kWindowCapset = 28;
inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kWindowsMax = 512;             // of one context
inline constexpr uint32_t kCommandBytesMax = 64 * 1024;  // one SUBMIT_3D
inline constexpr uint32_t kSidePixelsMax = 16384;
inline constexpr uint32_t kTitleBytes = 256;  // with its final zero
inline constexpr uint32_t kEventRing = 1;     // ring_idx of kPoll

// What VIRTIO_GPU_CMD_GET_CAPSET returns.
struct Capset {
  uint32_t version;
  uint32_t windows_max;
  uint32_t command_bytes_max;
  uint32_t event_bytes;  // sizeof(Event)
};

enum Command : uint32_t {
  kSetEventRing = 1,
  kWindowCreate = 2,
  kWindowTitle = 3,
  kWindowGeometry = 4,
  kWindowAttach = 5,
  kWindowDamage = 6,
  kWindowDestroy = 7,
  kPoll = 8,
};

struct CommandHeader {
  uint32_t command;
  uint32_t bytes;  // with this header; a multiple of 4
};

// The event ring is the blob `resource_id` (HOST3D): EventRingHeader, then ring_capacity() Events,
// at least 16. Set it once, before any window; resource 0 ends it.
struct SetEventRing {
  CommandHeader header;
  uint32_t resource_id;
  uint32_t reserved;
};

inline constexpr uint32_t kWindowVisible = 1u << 0;
inline constexpr uint32_t kWindowDialog = 1u << 1;
inline constexpr uint32_t kWindowPopup = 1u << 2;
inline constexpr uint32_t kWindowResizable = 1u << 3;
inline constexpr uint32_t kWindowFlags = 0xF;

// `window` is the guest's own number, not 0, not in use in this context. kWindowGeometry has the
// same fields and changes them.
struct WindowCreate {
  CommandHeader header;
  uint32_t window;
  uint32_t parent;  // a window of this context, or 0
  uint32_t flags;   // kWindow...
  int32_t x;        // in the guest's desktop
  int32_t y;
  uint32_t width;  // 1 to kSidePixelsMax
  uint32_t height;
  uint32_t reserved;
};
struct WindowTitle {
  CommandHeader header;
  uint32_t window;
  uint32_t reserved;
  char title[kTitleBytes];  // UTF-8, zero terminated
};
// What the window shows from now on, all of it damaged. resource_id 0: nothing.
struct WindowAttach {
  CommandHeader header;
  uint32_t window;
  uint32_t resource_id;
  uint64_t offset;  // bytes; a multiple of 4
  uint32_t stride;  // bytes; a multiple of 4, at least width * 4
  uint32_t format;  // VIRTIO_GPU_FORMAT_*
  uint32_t width;   // pixels
  uint32_t height;
};
// This part of the attached buffer has changed. `serial`: what kDone will say when the frontends
// have read it.
struct WindowDamage {
  CommandHeader header;
  uint32_t window;
  uint32_t x;
  uint32_t y;
  uint32_t width;
  uint32_t height;
  uint32_t serial;
};
struct WindowDestroy {
  CommandHeader header;
  uint32_t window;
  uint32_t reserved;
};
// Completes when the ring has events past `tail`; tells the host that those before it were read.
// The last command of its SUBMIT_3D. One waits at a time: a second one completes the first.
struct Poll {
  CommandHeader header;
  uint32_t tail;  // counts events, wraps at 2^32
  uint32_t reserved;
};

struct EventRingHeader {
  uint32_t head;  // events written so far (release order); entry number modulo capacity
  uint32_t lost;  // events that found the ring full; motion is merged before that
  uint32_t reserved[14];
};

enum EventType : uint32_t {
  kEventKey = 1,        // a: evdev code, b: down
  kEventMotion = 2,     // a, b: x, y in the window
  kEventButton = 3,     // a: evdev code, b: down
  kEventWheel = 4,      // a: vertical, b: horizontal notches
  kEventFocus = 5,      // a: focused
  kEventConfigure = 6,  // a, b: x, y (int32), c, d: width, height that the user wants
  kEventClose = 7,
  kEventDone = 8,      // a: serial of the last kWindowDamage that was read
  kEventReleased = 9,  // a: resource id that was unreferenced: no frontend maps it any more
};

struct Event {
  uint32_t type;
  uint32_t window;  // 0 for kEventReleased
  uint32_t a;
  uint32_t b;
  uint32_t c;
  uint32_t d;
  uint32_t reserved[2];
};

static_assert(sizeof(EventRingHeader) == 64 && sizeof(Event) == 32);

// Events that a ring of so many bytes (2^30 at most) has room for: a power of two, so that entries
// follow one another where their number wraps. 0: too small.
constexpr uint32_t ring_capacity(uint64_t bytes) {
  if (bytes < sizeof(EventRingHeader) + sizeof(Event)) return 0;
  uint64_t fit = (bytes - sizeof(EventRingHeader)) / sizeof(Event);
  while ((fit & (fit - 1)) != 0) fit &= fit - 1;
  return static_cast<uint32_t>(fit);
}
static_assert(ring_capacity(95) == 0 && ring_capacity(96) == 1 && ring_capacity(4096) == 64);

}  // namespace lethe::window

#endif
