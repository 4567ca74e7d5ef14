// The GUI channel: what a VM and its frontends (lethe-view, lethe-vnc, lethe-shot) say to each
// other over gui.sock. docs/gui.md explains it.
//
// Transport: a Unix socket of type SOCK_SEQPACKET. One message is one packet: a MessageHeader, then
// the fields of its type; all little endian, of fixed size, no padding that is not named. A packet
// whose size is not that of its type, whose type is unknown, or that carries descriptors it should
// not, ends the connection: the VM says Bye with the reason first.
//
// Order: the frontend speaks first (Hello); the VM answers Welcome, or Bye if it can't serve it.
// Then the VM describes all there is, and goes on with what changes. What it sends is always the
// newest state: a frontend that reads slowly gets fewer Frames, of larger damage, but every
// SurfaceGone and every BufferGone.
//
// Both sides check each field (`valid()`), with one copy, before they use any.
#pragma once

#include <linux/virtio_gpu.h>

#include <cstddef>
#include <cstdint>

namespace lethe::gui {

inline constexpr uint32_t kMagic = 0x4548'544c;  // "LTHE"
inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kNoBuffer = 0xFFFF'FFFF;

// What a peer may make of these numbers at most.
inline constexpr uint32_t kSidePixelsMax = 16384;      // width and height of anything
inline constexpr uint64_t kBufferBytesMax = 1u << 30;  // one buffer
inline constexpr uint32_t kBuffersMax = 65536;         // slots: Buffer::buffer is below it
inline constexpr uint32_t kSurfacesMax = 1024;         // alive at one time
inline constexpr uint32_t kOutputsMax = 16;            // screens
inline constexpr uint32_t kCursorPixelsMax = 256;
inline constexpr size_t kMessageBytesMax = 512;

enum class Type : uint32_t {
  // VM to frontend.
  kWelcome = 1,
  kSurface = 2,
  kSurfaceGone = 3,
  kBuffer = 4,  // the one message with a descriptor: exactly one
  kBufferGone = 5,
  kFrame = 6,
  kCursor = 7,
  kBye = 8,
  // Frontend to VM.
  kHello = 64,
  kDoneReading = 65,
  kUnmapped = 66,
  kKey = 67,
  kMotion = 68,
  kButton = 69,
  kWheel = 70,
  kFocus = 71,
  kConfigure = 72,
  kClose = 73,
};

struct MessageHeader {
  uint32_t type;  // Type
  uint32_t size;  // bytes of the whole message: sizeof of its struct
};

// --- VM to frontend ---

struct Welcome {
  MessageHeader header;
  uint32_t magic;
  uint32_t version;
  char vm_name[64];  // zero terminated
};

enum class SurfaceKind : uint32_t {
  kScreen = 0,  // one output of the guest's display
  kWindow = 1,  // a window of the guest's
};
inline constexpr uint32_t kSurfaceVisible = 1u << 0;
inline constexpr uint32_t kSurfaceDialog = 1u << 1;     // transient for `parent`
inline constexpr uint32_t kSurfacePopup = 1u << 2;      // menu, tooltip: no decoration, no focus
inline constexpr uint32_t kSurfaceResizable = 1u << 3;  // Configure may change its size
inline constexpr uint32_t kSurfaceFlags = 0xF;

// A surface is there, or has changed: the whole of its state each time.
struct Surface {
  MessageHeader header;
  uint64_t surface;  // never used for another one, 0 is none
  uint64_t parent;   // a surface, or 0
  uint32_t kind;     // SurfaceKind
  uint32_t flags;    // kSurface...
  int32_t x;         // in the guest's desktop, pixels
  int32_t y;
  uint32_t width;  // pixels; what Frames will have
  uint32_t height;
  uint32_t output;  // of a screen: which one, from 0
  uint32_t reserved;
  char title[256];  // UTF-8, zero terminated
};

struct SurfaceGone {
  MessageHeader header;
  uint64_t surface;
};

// Memory to be mapped read only (MAP_SHARED); the descriptor comes with it. From now until the
// frontend's Unmapped the VM counts it as held.
struct Buffer {
  MessageHeader header;
  uint32_t buffer;  // a slot: slots are used again, with another generation
  uint32_t reserved;
  uint64_t generation;
  uint64_t bytes;
};

// The guest has given the buffer up: unmap it, close its descriptor, answer Unmapped. No Frame that
// names it follows.
struct BufferGone {
  MessageHeader header;
  uint32_t buffer;
  uint32_t revoked;  // 1: its memory is gone already, reading it raises SIGBUS
  uint64_t generation;
};

// What a surface shows now. Damage is relative to the last Frame that this frontend got of the
// surface. No further Frame of the surface comes before DoneReading.
struct Frame {
  MessageHeader header;
  uint64_t surface;
  uint64_t frame;   // counts up, a surface for itself
  uint32_t buffer;  // kNoBuffer: nothing to show, all fields below are 0
  uint32_t format;  // VIRTIO_GPU_FORMAT_* (linux/virtio_gpu.h)
  uint64_t generation;
  uint64_t offset;  // of the first pixel, bytes
  uint32_t stride;  // bytes from line to line
  uint32_t width;   // pixels
  uint32_t height;
  uint32_t damage_x;  // within width and height; an empty damage is 0, 0, 0, 0
  uint32_t damage_y;
  uint32_t damage_width;
  uint32_t damage_height;
  uint32_t reserved;
};

// What Frame::format may be: virtio-gpu's eight (virtio 1.2, 5.7.6.8), all of 32 bits.
[[nodiscard]] constexpr bool known_format(uint32_t format) {
  switch (format) {
    case VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM:
    case VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM:
    case VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM:
    case VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM:
    case VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM:
    case VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM:
    case VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM:
    case VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM:
      return true;
    default:
      return false;
  }
}

struct Cursor {
  MessageHeader header;
  uint64_t surface;
  uint32_t buffer;  // kNoBuffer: no cursor is shown; B8G8R8A8, lines of width * 4 bytes
  uint32_t width;
  uint32_t height;
  uint32_t hot_x;
  uint32_t hot_y;
  uint32_t reserved;
  uint64_t generation;
  uint64_t offset;
};

enum class ByeReason : uint32_t {
  kVmEnded = 0,
  kWrongVersion = 1,
  kBadMessage = 2,
  kTooMany = 3,  // frontends, or descriptors
  kTooSlow = 4,  // did not read for too long
};
struct Bye {
  MessageHeader header;
  uint32_t reason;  // ByeReason
  uint32_t reserved;
};

// --- Frontend to VM ---

inline constexpr uint32_t kHelloViewOnly = 1u << 0;  // its input messages are refused
struct Hello {
  MessageHeader header;
  uint32_t magic;
  uint32_t version;
  uint32_t flags;
  uint32_t reserved;
  char name[32];  // of the program, for logs; zero terminated
};

// The frame has been read (copied, drawn): the guest may draw into the buffer again.
struct DoneReading {
  MessageHeader header;
  uint64_t surface;
  uint64_t frame;
};

// The frontend has no mapping and no descriptor of the buffer any more. It may say so of a buffer
// that is not gone, too: it is sent again when it is next shown.
struct Unmapped {
  MessageHeader header;
  uint32_t buffer;
  uint32_t reserved;
  uint64_t generation;
};

struct Key {
  MessageHeader header;
  uint64_t surface;
  uint32_t code;  // evdev KEY_*, 1 to 0x2FF
  uint32_t down;  // 0, 1; no repeats, the guest makes its own
};
struct Motion {
  MessageHeader header;
  uint64_t surface;
  int32_t x;  // pixels of the surface; clamped to it
  int32_t y;
};
struct Button {
  MessageHeader header;
  uint64_t surface;
  uint32_t code;  // evdev BTN_LEFT to BTN_TASK
  uint32_t down;
};
struct Wheel {
  MessageHeader header;
  uint64_t surface;
  int32_t vertical;    // notches, up is positive; -100 to 100
  int32_t horizontal;  // right is positive
};
struct Focus {
  MessageHeader header;
  uint64_t surface;
  uint32_t focused;
  uint32_t reserved;
};
// The user wants the surface so: a screen changes its mode, a window its place and size. The guest
// decides; a Surface tells what came of it.
struct Configure {
  MessageHeader header;
  uint64_t surface;
  int32_t x;  // ignored for a screen
  int32_t y;
  uint32_t width;  // 1 to kSidePixelsMax
  uint32_t height;
};
struct Close {
  MessageHeader header;
  uint64_t surface;
};

static_assert(sizeof(Welcome) == 80 && sizeof(Surface) == 312 && sizeof(SurfaceGone) == 16);
static_assert(sizeof(Buffer) == 32 && sizeof(BufferGone) == 24 && sizeof(Frame) == 80);
static_assert(sizeof(Cursor) == 56 && sizeof(Bye) == 16 && sizeof(Hello) == 56);
static_assert(sizeof(DoneReading) == 24 && sizeof(Unmapped) == 24 && sizeof(Key) == 24);
static_assert(sizeof(Motion) == 24 && sizeof(Button) == 24 && sizeof(Wheel) == 24);
static_assert(sizeof(Focus) == 24 && sizeof(Configure) == 32 && sizeof(Close) == 16);

}  // namespace lethe::gui
