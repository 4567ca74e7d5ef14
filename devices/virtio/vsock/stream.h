// One stream between a socket of the guest's and a Unix socket of the host's; and the table of
// them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/unique_fd.h"
#include "devices/byte_ring.h"
#include "devices/virtio/vsock/credit.h"

namespace lethe {

// What we hold of one stream's bytes to the host: the buf_alloc that the guest is told.
inline constexpr uint32_t kVsockBufferBytes = 256 * 1024;
inline constexpr size_t kVsockHelloMax = 32;  // bytes of "CONNECT PORT\n", as in Firecracker

// Sockets' two addresses; the CIDs are always the host's and the guest's.
struct VsockPorts {
  uint32_t host = 0;
  uint32_t guest = 0;
  bool operator==(const VsockPorts&) const = default;
};

struct VsockStream {
  enum class State : uint8_t {
    kFree,
    kHello,       // a host client that has not said CONNECT yet: no ports
    kRequested,   // the guest is asked, the host client waits for OK
    kConnecting,  // the guest asked, the host listener's backlog is full: tried again
    kOpen,
    kDraining,  // the guest is through with it: what is buffered still goes to the host; no ports
  };
  // What is to be told to the guest, in this order.
  enum Due : uint8_t {
    kRequest = 1,
    kResponse = 2,
    kCreditUpdate = 4,
    kCreditRequest = 8,
    kShutdown = 16,
  };
  using Clock = std::chrono::steady_clock;

  State state = State::kFree;
  uint32_t index = 0;       // its slot
  uint32_t generation = 0;  // of the slot's use
  VsockPorts ports{};
  VsockStream* next_in_bucket = nullptr;

  UniqueFd socket{};
  bool readable = false;  // as far as we know: only a read can tell
  bool hung_up = false;   // the host has closed, or shut down both ways; data may be left
  bool ended = false;     // the host sends no more: a read will find the end
  bool wants_writable = false;
  VsockCredit credit{kVsockBufferBytes};
  bool asked_for_credit = false;
  std::unique_ptr<ByteRing<kVsockBufferBytes>> buffer{};  // made when the host first stalls

  uint8_t due = 0;
  uint8_t shut_by_guest = 0;  // VIRTIO_VSOCK_SHUTDOWN_*: what the guest will not do any more
  uint8_t shut_by_host = 0;   // the same of the host; told to the guest, or due
  bool known_to_guest = false;

  bool scheduled = false;
  VsockStream* next_scheduled = nullptr;

  std::optional<Clock::time_point> deadline{};
  std::array<char, kVsockHelloMax> hello{};
  size_t hello_size = 0;

  [[nodiscard]] bool buffered() const { return buffer && !buffer->empty(); }
};

// Threading: one. Streams are made when they are first needed and kept for the next one; a pointer
// to one stays valid.
class VsockTable {
 public:
  explicit VsockTable(size_t streams_max) : x_streams_max(streams_max) {}

  // A stream in a state of the caller's; null if there are streams_max.
  [[nodiscard]] VsockStream* add(VsockStream::State state);
  // Makes it findable. Ports that another stream has are a programmer error.
  void bind(VsockStream& stream, VsockPorts ports);
  void unbind(VsockStream& stream);
  [[nodiscard]] VsockStream* find(VsockPorts ports);
  // Its socket is closed, it is free. It must not be scheduled.
  void remove(VsockStream& stream);
  [[nodiscard]] bool full() const { return x_used == x_streams_max; }
  [[nodiscard]] size_t used() const { return x_used; }
  // The stream of a slot, if that is still the same use of it.
  [[nodiscard]] VsockStream* at(uint32_t index, uint32_t generation);
  // Calls `visit` with each stream in use; it may remove the one it is given.
  void for_each(const std::function<void(VsockStream&)>& visit);

 private:
  static constexpr size_t kBuckets = 1024;
  [[nodiscard]] VsockStream*& bucket(VsockPorts ports);
  const size_t x_streams_max;
  size_t x_used = 0;
  std::vector<std::unique_ptr<VsockStream>> x_slots;
  std::vector<uint32_t> x_free;  // slots made and not used
  std::array<VsockStream*, kBuckets> x_buckets{};
};

// Streams that have something for the guest, first come, first served.
class VsockSchedule {
 public:
  [[nodiscard]] VsockStream* front() const { return x_first; }
  void add(VsockStream& stream);  // nothing, if it is there
  void pop_front();
  void remove(VsockStream& stream);  // nothing, if it is not there

 private:
  VsockStream* x_first = nullptr;
  VsockStream* x_last = nullptr;
};

}  // namespace lethe
