// A vsock driver (virtio 1.2, section 5.10) that echoes: what the host connects to port 5000. When
// that stream has ended it connects to the host's port 6000, says a line, and ends by what comes
// back. ../../vsock_test.cc is the host's side.
#include <linux/virtio_ids.h>
#include <linux/virtio_vsock.h>

#include "guests/virtio.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/print.h"
#include "kernel/virtio/interrupts.h"
#include "kernel/virtio/queue.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr uint64_t kHostCid = 2;
constexpr uint32_t kEchoPort = 5000;
constexpr uint32_t kHostPort = 6000;
constexpr uint32_t kOwnPort = 7000;
constexpr uint32_t kHeader = sizeof(virtio_vsock_hdr);
constexpr uint32_t kPayload = 1024;
constexpr unsigned kBuffers = 8;
constexpr uint32_t kCredit = kBuffers * kPayload;

struct Packet {
  virtio_vsock_hdr header;
  uint8_t payload[kPayload];
};

class Socket {
 public:
  void open() {
    CHECK(device_.open(VIRTIO_ID_VSOCK));
    device_.start(0);
    CHECK_EQ(device_.queue_count(), 3);
    cid_ = device_.config64(0);
    CHECK_EQ(cid_, 3);
    rx_.open(device_, 0, kBuffers, kNoVector, false);
    tx_.open(device_, 1, 4, kNoVector, false);
    device_.driver_ok();
    for (Packet& packet : packets_) give(packet);
    rx_.kick();
  }

  // The next packet, which stays valid until done().
  Packet& receive() {
    Used used;
    CHECK_SOON(rx_.pop(used));
    Packet& packet = *by_head_[used.head];
    CHECK_EQ(used.length, kHeader + packet.header.len);
    CHECK_EQ(packet.header.src_cid, kHostCid);
    CHECK_EQ(packet.header.dst_cid, cid_);
    CHECK_EQ(packet.header.type, VIRTIO_VSOCK_TYPE_STREAM);
    peer_alloc_ = packet.header.buf_alloc;
    peer_forwarded_ = packet.header.fwd_cnt;
    return packet;
  }
  void done(Packet& packet) {
    give(packet);
    rx_.kick();
  }

  // What is said of ports from here on: a new stream.
  void begin(uint32_t host_port, uint32_t own_port) {
    host_port_ = host_port;
    own_port_ = own_port;
    sent_ = forwarded_ = peer_forwarded_ = 0;
  }
  void send(uint16_t op, uint32_t flags = 0, const void* payload = nullptr, uint32_t length = 0) {
    CHECK(length <= peer_alloc_ - (sent_ - peer_forwarded_));
    sent_ += length;
    out_ = {.src_cid = cid_,
            .dst_cid = kHostCid,
            .src_port = own_port_,
            .dst_port = host_port_,
            .len = length,
            .type = VIRTIO_VSOCK_TYPE_STREAM,
            .op = op,
            .flags = flags,
            .buf_alloc = kCredit,
            .fwd_cnt = forwarded_};
    const Buffer pieces[] = {readable(&out_, kHeader), readable(payload, length)};
    CHECK_EQ(tx_.submit_and_wait(pieces, length > 0 ? 2 : 1), 0);
  }
  void forwarded(uint32_t bytes) { forwarded_ += bytes; }

 private:
  void give(Packet& packet) {
    const Buffer room = writable(&packet, sizeof(packet));
    const uint16_t head = rx_.add(&room, 1);
    by_head_[head] = &packet;
    rx_.publish(head);
  }

  VirtioDevice device_;
  Virtqueue rx_;
  Virtqueue tx_;
  uint64_t cid_ = 0;
  Packet packets_[kBuffers];
  Packet* by_head_[kBuffers] = {};
  virtio_vsock_hdr out_{};
  uint32_t host_port_ = 0;
  uint32_t own_port_ = 0;
  uint32_t sent_ = 0;
  uint32_t forwarded_ = 0;
  uint32_t peer_alloc_ = 0;
  uint32_t peer_forwarded_ = 0;
};

Socket socket;

// Answers until the host has closed.
void echo() {
  for (;;) {
    Packet& packet = socket.receive();
    const uint32_t length = packet.header.len;
    switch (packet.header.op) {
      case VIRTIO_VSOCK_OP_REQUEST:
        CHECK_EQ(packet.header.dst_port, kEchoPort);
        socket.begin(packet.header.src_port, kEchoPort);
        socket.send(VIRTIO_VSOCK_OP_RESPONSE);
        break;
      case VIRTIO_VSOCK_OP_RW:
        socket.forwarded(length);
        socket.send(VIRTIO_VSOCK_OP_RW, 0, packet.payload, length);
        break;
      case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
      case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        break;
      case VIRTIO_VSOCK_OP_SHUTDOWN:
        socket.send(VIRTIO_VSOCK_OP_SHUTDOWN,
                    VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
        break;
      default:
        CHECK_EQ(packet.header.op, VIRTIO_VSOCK_OP_RST);
        return;
    }
    socket.done(packet);
  }
}

void expect(uint16_t op) {
  Packet& packet = socket.receive();
  CHECK_EQ(packet.header.op, op);
  socket.done(packet);
}

}  // namespace

void vsock_echo() {
  socket.open();
  print("vsock: ready\n");
  echo();
  print("vsock: echoed\n");
  socket.begin(kHostPort, kOwnPort);
  socket.send(VIRTIO_VSOCK_OP_REQUEST);
  expect(VIRTIO_VSOCK_OP_RESPONSE);
  static const char text[] = "hello from the guest\n";
  socket.send(VIRTIO_VSOCK_OP_RW, 0, text, sizeof(text) - 1);
  Packet& answer = socket.receive();
  CHECK_EQ(answer.header.op, VIRTIO_VSOCK_OP_RW);
  CHECK_EQ(answer.header.len, 4);
  CHECK(memcmp(answer.payload, "bye\n", 4) == 0);
  socket.send(VIRTIO_VSOCK_OP_SHUTDOWN, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
  expect(VIRTIO_VSOCK_OP_RST);
}

}  // namespace virtio
