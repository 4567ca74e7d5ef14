// One pair of queues of a network device, and the port behind it (virtio 1.2, 5.1.6).
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "devices/virtio/block/token_bucket.h"
#include "devices/virtio/device.h"
#include "devices/virtio/net/frame_check.h"
#include "devices/virtio/net/net_port.h"

namespace lethe {

struct NetCounters {  // any thread
  std::atomic<uint64_t> tx_frames{0};
  std::atomic<uint64_t> tx_bytes{0};    // of frames, without virtio's header
  std::atomic<uint64_t> tx_refused{0};  // frames that break a rule: not sent
  std::atomic<uint64_t> tx_failed{0};   // frames that the other end did not take
  std::atomic<uint64_t> tx_dropped{0};  // frames sent while the link was down or going
  std::atomic<uint64_t> rx_frames{0};
  std::atomic<uint64_t> rx_bytes{0};
  std::atomic<uint64_t> rx_too_large{0};  // frames for which the guest's buffers are too small
  std::atomic<uint64_t> rx_dropped{0};    // frames that came while the link was down
  std::atomic<uint64_t> rx_refused{0};    // buffers without room for the header
  std::atomic<uint64_t> throttled{0};     // times a rate limit held frames back
  std::atomic<uint64_t> commands{0};      // on the control queue
  std::atomic<uint64_t> commands_refused{0};
  std::atomic<uint64_t> lost{0};  // times the other end went away
};

// The limits of one direction, of all pairs together.
struct NetRate {
  TokenBucket bytes{0};
  TokenBucket packets{0};

  [[nodiscard]] std::chrono::nanoseconds wait() {
    const auto now = std::chrono::steady_clock::now();
    return std::max(bytes.wait(now), packets.wait(now));
  }
  void take(uint64_t cost) {
    bytes.take(cost);
    packets.take(1);
  }
};

// What all pairs of a device share; the device's thread's.
struct NetShared {
  NetCounters& counters;
  VirtioHost* host = nullptr;
  uint64_t features = 0;
  uint32_t mtu = 1500;
  bool link_up = false;
  bool limited = false;
  NetRate tx{};
  NetRate rx{};

  // How long until a direction that is held back may go on.
  [[nodiscard]] std::chrono::nanoseconds next_allowed() {
    const auto send = tx.wait();
    const auto receive = rx.wait();
    if (send.count() == 0 || receive.count() == 0) return std::max(send, receive);
    return std::min(send, receive);
  }
};

// Threading: one thread.
//
// Limits: frames of kNetFrameBytesMax; kTxBatch frames a system call, kTurnFrames a turn.
class NetPair {
 public:
  // What a turn ended with.
  enum class Turn : uint8_t {
    kIdle,       // nothing to do, until a kick (see want_kicks()), or until the port is ready
    kMore,       // there is more: call again, after other work
    kThrottled,  // again when the rate limit lets
    kLost,       // the port is of no use any more
  };

  explicit NetPair(NetShared& shared);

  void set_port(NetPort* port);  // null: none
  [[nodiscard]] NetPort* port() { return x_port; }

  void start_receive(std::unique_ptr<Queue> queue);
  void start_send(std::unique_ptr<Queue> queue);
  void stop_receive();
  void stop_send();
  [[nodiscard]] bool started() const { return x_rx || x_tx; }

  // From guest to port.
  Turn send();
  // From port to guest.
  Turn receive();
  // What the port has to become ready for, for send() or receive() to go on.
  [[nodiscard]] bool wants_readable() const { return x_rx && !x_starved && !x_rx_throttled; }
  [[nodiscard]] bool wants_writable() const;
  // Whether the last turns moved or dropped frames; asked once.
  [[nodiscard]] bool take_worked() { return std::exchange(x_worked, false); }
  // After turns that ended with kIdle: has the driver kick for what they lacked. True if that came
  // meanwhile: the turns are to be taken again.
  [[nodiscard]] bool want_kicks();

 private:
  static constexpr size_t kTxBatch = 64;
  static constexpr unsigned kTurnFrames = 256;
  static constexpr size_t kRoomVectors = 1000;  // IOV_MAX, less what a port adds
  // The iovecs of a batch, whose last chain may have as many as its queue has entries.
  static constexpr size_t kTxVectors = 2 * kQueueSizeMax + kTxBatch;
  static constexpr size_t kTxFrameVectors = 1024;  // of one frame: IOV_MAX

  struct Held {  // a receive buffer
    Chain chain;
    uint64_t bytes = 0;
  };
  enum class Gathered : uint8_t {
    kEnough,
    kTooSmall,  // and there will never be enough
    kStarved,
  };

  [[nodiscard]] size_t batch_left() const { return x_batch.size() - x_batch_sent; }
  bool fill_batch();
  void add_to_batch(Chain chain);
  bool take_frame(const Chain& chain, NetFrame& frame);
  NetIoState send_batch();
  void drop_batch();
  Turn end_send(Turn turn);
  Turn end_receive(Turn turn);
  bool broken(std::unique_ptr<Queue>& queue);

  [[nodiscard]] size_t held() const { return x_held.size() - x_first_held; }
  [[nodiscard]] bool has(unsigned feature) const {
    return (x_shared.features & net_bit(feature)) != 0;
  }
  [[nodiscard]] uint64_t room_wanted(uint32_t frame_bytes) const;
  Gathered gather(uint64_t wanted);
  bool hold_one(const MemoryMap& map);
  void make_room(uint64_t wanted);
  // Nothing: the next frame may be looked at.
  std::optional<Turn> receive_one();
  std::optional<Turn> drop_next(std::atomic<uint64_t>& counter);
  void deliver(uint64_t bytes);

  NetShared& x_shared;
  NetPort* x_port = nullptr;

  std::unique_ptr<Queue> x_tx;
  std::vector<Chain> x_batch;      // popped
  std::vector<NetFrame> x_frames;  // of the same chains
  size_t x_batch_sent = 0;         // how many of them are done with
  std::unique_ptr<iovec[]> x_tx_vectors;
  size_t x_tx_vectors_used = 0;
  bool x_tx_empty = false;  // the ring was

  std::unique_ptr<Queue> x_rx;
  std::vector<Held> x_held;  // popped receive buffers, from x_first_held on
  size_t x_first_held = 0;
  uint64_t x_held_bytes = 0;
  size_t x_held_vectors = 0;
  bool x_starved = false;  // waits for buffers
  bool x_rx_throttled = false;
  bool x_worked = false;
  bool x_receiving = false;  // the port has a part of a frame in the room
  std::vector<iovec> x_room;
};

}  // namespace lethe
