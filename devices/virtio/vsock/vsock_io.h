// The I/O thread's side of virtio-vsock (virtio 1.2, 5.10): packets of the guest's queues on one
// side, Unix sockets on the other.
//
//   vsock_io.cc          queues, and the loop that serves them
//   vsock_from_guest.cc  what a packet of the guest's does
//   vsock_to_guest.cc    packets for the guest
//   vsock_host.cc        the host's sockets: clients that connect, listeners, ends
//
// No allocation per packet: payload goes straight between the guest's buffers and the socket. What
// a socket does not take at once is copied into its stream's buffer, which is as large as the
// credit that the guest has.
#pragma once

#include <linux/virtio_vsock.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_fd.h"
#include "base/event_loop.h"
#include "base/unique_fd.h"
#include "devices/virtio/device.h"
#include "devices/virtio/spinner.h"
#include "devices/virtio/vsock/stream.h"

namespace lethe {

inline constexpr uint64_t kVsockHostCid = 2;                 // 5.10.4
inline constexpr uint32_t kVsockPacketBytesMax = 64 * 1024;  // payload; Linux's limit
inline constexpr uint32_t kVsockFirstHostPort = uint32_t{1}
                                                << 30;  // of host clients; as in Firecracker
enum VsockQueue : uint16_t { kVsockRx, kVsockTx, kVsockEvent, kVsockQueues };

struct VsockCounters {                      // any thread
  std::atomic<uint64_t> streams{0};         // now, hellos and draining ones too
  std::atomic<uint64_t> from_host{0};       // connections that were opened
  std::atomic<uint64_t> from_guest{0};      //
  std::atomic<uint64_t> refused{0};         // of either side, by the other one or a limit
  std::atomic<uint64_t> bad_hellos{0};      // host clients that did not say CONNECT
  std::atomic<uint64_t> timeouts{0};        // of any of the deadlines
  std::atomic<uint64_t> bytes_to_host{0};   // payload
  std::atomic<uint64_t> bytes_to_guest{0};  //
  std::atomic<uint64_t> malformed{0};       // packets of the guest's: lengths, CIDs, type, op
  std::atomic<uint64_t> stray{0};           // packets for no stream, or of the wrong time
  std::atomic<uint64_t> credit_broken{0};   // streams reset because the guest ignored credit
  std::atomic<uint64_t> small_buffers{0};   // of the guest's that hold no packet, or no event
  std::atomic<uint64_t> resets_sent{0};
  std::atomic<uint64_t> resets_lost{0};  // beyond the bound on those that wait
};

struct VsockLimits {
  size_t streams_max = 1024;  // hellos and draining ones too
  size_t hellos_max = 64;     // host clients that have not said CONNECT yet
  size_t resets_max = 256;    // that wait for the guest's buffers: no packet is taken meanwhile
  std::chrono::milliseconds hello_max{2000};
  std::chrono::milliseconds connect_max{2000};  // either side's; Linux gives up after as long
  std::chrono::milliseconds close_max{8000};    // for the guest's RST; as in Linux
};

struct VsockIoOptions {
  uint32_t cid = 3;       // the guest's
  std::string path = {};  // of `listener`; the guest's port P is `path`_P
  int listener = -1;      // a listening Unix stream socket, non-blocking; the caller's
  VsockLimits limits = {};
};

// Threading: everything on `loop`'s thread, the constructor too; counters on any.
class VsockIo {
 public:
  VsockIo(EventLoop& loop, VsockIoOptions options, VsockCounters& counters);
  ~VsockIo();

  // To be called once after construction.
  [[nodiscard]] Result<> watch();

  void start(VirtioHost& host);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick);
  void stop_queue(uint16_t index);  // streams stay
  void stop_all();                  // and no stream is left
  // The guest comes out of a snapshot: it is told that its streams are no more (5.10.6.7).
  void restored();

 private:
  struct LiveQueue {
    std::unique_ptr<Queue> queue;
    const EventFd* kick = nullptr;
    std::unique_ptr<EventLoop::Watch> watch;
    bool reported = false;  // its breaking
    [[nodiscard]] bool usable() const { return queue != nullptr && !reported; }
  };
  // A RST that waits for a buffer of the guest's.
  struct Reset {
    VsockPorts ports;
    uint16_t type = VIRTIO_VSOCK_TYPE_STREAM;
  };
  static constexpr size_t kStagedMax = 16;
  static constexpr size_t kSlicesMax = 64;  // that one system call reads into
  // Where a read puts payload: in the first staged buffers, behind their headers.
  struct Layout {
    std::array<iovec, kSlicesMax> slices;
    std::array<uint32_t, kStagedMax> rooms;  // of each buffer
    size_t slice_count = 0;
    size_t room = 0;
  };
  enum class Served : uint8_t { kDone, kMore, kStarved };

  // vsock_io.cc
  void pump();
  bool work();
  bool take_sent();
  bool take_events();
  bool want_kicks();
  void report_if_broken(LiveQueue& live);
  void end_round();

  // vsock_from_guest.cc
  void from_guest(const Chain& chain);
  void on_packet(const Chain& chain, const virtio_vsock_hdr& header);
  void on_request(const virtio_vsock_hdr& header);
  void on_response(VsockStream& stream);
  void on_data(VsockStream& stream, const Chain& chain, uint32_t bytes);
  void on_shutdown(VsockStream& stream, uint32_t flags);
  size_t write_through(VsockStream& stream, const Chain& chain, uint32_t bytes);
  void keep(VsockStream& stream, const Chain& chain, uint64_t from, uint64_t bytes);

  // vsock_to_guest.cc
  bool give();
  Served serve(VsockStream& stream);
  Served send_due(VsockStream& stream);
  Served send_data(VsockStream& stream);
  bool send_reset();
  size_t stage(size_t count);
  size_t lay_out(size_t room_max, Layout& to) const;
  void send_filled(VsockStream& stream, const Layout& layout, size_t bytes);
  void send_staged(const virtio_vsock_hdr& header);
  static void send_in(Chain& chain, const virtio_vsock_hdr& header);
  void unstage(size_t count);
  void forget_staged(size_t count);
  [[nodiscard]] bool can_read(const VsockStream& stream) const;
  virtio_vsock_hdr header_for(VsockStream& stream, uint16_t op);
  void answer_reset(VsockPorts ports, uint16_t type = VIRTIO_VSOCK_TYPE_STREAM);
  void forget_resets(VsockPorts ports);
  void tell(VsockStream& stream, uint8_t due);
  void schedule_if_readable(VsockStream& stream);

  // vsock_host.cc
  bool poll_sockets();
  void on_socket(VsockStream& stream, uint32_t events);
  void accept_clients();
  void on_hello(VsockStream& stream);
  void connect_guest(VsockStream& stream, uint32_t port);
  void connect_host(VsockStream& stream);
  bool watch_socket(VsockStream& stream);
  void want_writable(VsockStream& stream, bool wanted);
  void flush(VsockStream& stream);
  void host_ended(VsockStream& stream);
  void host_gone(VsockStream& stream);
  void finish(VsockStream& stream);
  void reset(VsockStream& stream);
  void drop(VsockStream& stream);
  void set_deadline(VsockStream& stream, std::chrono::milliseconds time);
  void arm_tick();
  void tick();
  void listen(bool wanted);
  void listen_if_room();

  EventLoop& x_loop;
  const VsockIoOptions x_options;
  VsockCounters& x_counters;
  VirtioHost* x_host = nullptr;
  std::array<LiveQueue, kVsockQueues> x_queues;
  // Buffers of the guest's, taken and not filled yet, each with room for a header: so many are read
  // into at once.
  std::array<std::optional<Chain>, kStagedMax> x_staged;
  size_t x_staged_count = 0;
  Spinner x_spinner{std::chrono::microseconds{20}};
  bool x_starved = false;    // something waits for buffers of the guest's
  bool x_event_due = false;  // TRANSPORT_RESET

  VsockTable x_table;
  VsockSchedule x_schedule;
  std::vector<Reset> x_resets;  // a ring
  size_t x_reset_first = 0;
  size_t x_reset_count = 0;
  size_t x_hellos = 0;
  uint32_t x_next_port;

  // All sockets in one epoll, edge triggered: one descriptor a stream, and no call when one is
  // waited for again.
  UniqueFd x_epoll;
  std::unique_ptr<EventLoop::Watch> x_epoll_watch;
  std::optional<EventFd> x_again;  // wakes ourselves: other work of the loop has its turn first
  std::unique_ptr<EventLoop::Watch> x_again_watch;
  std::unique_ptr<EventLoop::Timer> x_timer;  // runs while a stream has a deadline
  bool x_ticking = false;
  bool x_listening = false;
  bool x_out_of_descriptors = false;  // until the next tick
};

}  // namespace lethe
