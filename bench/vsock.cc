// What a stream through virtio-vsock costs: bytes per second between a host program's Unix socket
// and the guest's memory through the device (its driver on this thread, the device on its own), and
// through a bare loop that copies between the same kind of socket and the same memory by read() and
// write(), on a thread of its own.
//
// The host program is this thread in both: it reads, or writes, 64 KiB at a time without blocking,
// and is the driver's vCPU besides. So the driver's work counts against the device. The two take
// turns in short rounds; a ratio is the median of the pairs' ratios. `vsock.vs_bare` is the lower
// one of both directions.
//
// Packets are as Linux's driver makes them: up to 64 KiB to the host, 4 KiB buffers from it,
// 256 KiB of credit. What KVM takes to deliver an interrupt is in neither figure.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "bench/part_threads.h"
#include "bench/report.h"
#include "bench/worker.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/vsock/vsock.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kRoundBytes = 64 * kMiB;  // some 20 ms, so that both meet the same noise
constexpr int kRounds = 31;
constexpr uint32_t kPiece = 64 * 1024;
constexpr uint32_t kRxPayload = 4096;
constexpr uint32_t kCredit = 256 * 1024;
constexpr uint16_t kQueueSize = 256;
constexpr uint32_t kHeader = sizeof(virtio_vsock_hdr);
constexpr uint32_t kCid = 3;
constexpr uint32_t kPort = 5000;
constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 64 * kMiB};
constexpr std::chrono::seconds kPatience{20};

[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "bench_vsock: %s: %s\n", what.c_str(), errno_text(errno).c_str());
  std::exit(1);
}

double mib_a_second(Clock::time_point start) {
  return static_cast<double>(kRoundBytes) / kMiB /
         std::chrono::duration<double>(Clock::now() - start).count();
}

void check_time(Clock::time_point start) {
  if (Clock::now() - start > kPatience) give_up("nothing goes on");
}

// The host program: writes or reads what there is room or data for, without waiting.
class HostProgram {
 public:
  explicit HostProgram(int socket) : x_socket(socket), x_buffer(kPiece) {}
  uint64_t write(uint64_t left) {
    const ssize_t done = ::send(x_socket, x_buffer.data(), std::min<uint64_t>(left, kPiece),
                                MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN) give_up("the host's write");
    return done < 0 ? 0 : static_cast<uint64_t>(done);
  }
  uint64_t read() {
    const ssize_t done = ::recv(x_socket, x_buffer.data(), kPiece, MSG_DONTWAIT);
    if (done == 0 || (done < 0 && errno != EAGAIN)) give_up("the host's read");
    return done < 0 ? 0 : static_cast<uint64_t>(done);
  }

 private:
  const int x_socket;
  std::vector<uint8_t> x_buffer;
};

class Device {
 public:
  Device() : x_path(fmt::format("/tmp/lethe-bench-vsock-{}", ::getpid())), x_listener(listen()) {
    auto device = VsockDevice::create({.cid = kCid, .path = x_path, .listener = x_listener.get()});
    if (!device) give_up(device.error().text);
    x_device = std::move(*device);
    x_guest = std::make_unique<FakeTransport>(*x_memory, *x_device);
    x_guest->start(~uint64_t{0}, kQueueSize);
    for (uint16_t i = 0; i < kQueueSize; ++i) {
      const GuestAddr at = x_guest->heap().alloc(kHeader + kRxPayload, 64);
      x_rx[i] = {.address = at,
                 .header = host<virtio_vsock_hdr>(at, kHeader),
                 .buffer = {{{at, kHeader + kRxPayload, true}}}};
      add_rx(x_rx[i]);
    }
    x_guest->driver(kVsockRx).publish();
    x_guest->kick_if_wanted(kVsockRx);
    for (Tx& tx : x_tx) {
      const GuestAddr at = x_guest->heap().alloc(kHeader, 64);
      const GuestAddr payload = x_guest->heap().alloc(kPiece, 4096);
      tx = {.header = host<virtio_vsock_hdr>(at, kHeader),
            .buffers = {{{at, kHeader, false}, {payload, kPiece, false}}}};
      x_tx_free.push_back(&tx);
    }
    connect();
  }
  ~Device() { ::unlink(x_path.c_str()); }

  // Memory of the guest's for the bare loop: the same as the device's packets have.
  uint8_t* payload(unsigned index) {
    return host<uint8_t>(x_tx[index % kTxMax].buffers[1].address, kPiece);
  }

  double to_host() {
    HostProgram program(x_socket.get());
    const auto start = Clock::now();
    uint64_t sent = 0;
    uint64_t received = 0;
    while (received < kRoundBytes) {
      while (sent < kRoundBytes && send_data()) sent += kPiece;
      const uint64_t got = program.read();
      received += got;
      take_used();
      check_time(start);
    }
    return mib_a_second(start);
  }

  double to_guest() {
    HostProgram program(x_socket.get());
    const auto start = Clock::now();
    uint64_t sent = 0;
    const uint64_t end = x_received + kRoundBytes;
    while (x_received < end) {
      if (sent < kRoundBytes) sent += program.write(kRoundBytes - sent);
      take_used();
      check_time(start);
    }
    return mib_a_second(start);
  }

 private:
  static constexpr unsigned kTxMax = 16;
  struct Rx {
    GuestAddr address;
    virtio_vsock_hdr* header = nullptr;
    std::array<FakeBuffer, 1> buffer;
  };
  struct Tx {
    virtio_vsock_hdr* header = nullptr;
    std::array<FakeBuffer, 2> buffers;
  };

  UniqueFd listen() {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const sockaddr_un to = address();
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0 ||
        ::listen(fd.get(), 1) != 0)
      give_up(x_path);
    return fd;
  }
  [[nodiscard]] sockaddr_un address() const {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    x_path.copy(to.sun_path, sizeof to.sun_path - 1);
    return to;
  }
  template <typename T>
  T* host(GuestAddr at, uint64_t bytes) {
    // SAFETY: aligned by the heap.
    return reinterpret_cast<T*>(x_memory->slice(at, bytes)->data);
  }

  void connect() {
    x_socket.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un to = address();
    if (::connect(x_socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0)
      give_up("connect");
    const std::string hello = fmt::format("CONNECT {}\n", kPort);
    if (::write(x_socket.get(), hello.data(), hello.size()) < 0) give_up("hello");
    const auto start = Clock::now();
    while (x_host_port == 0) {
      take_used();
      check_time(start);
    }
    send_op(VIRTIO_VSOCK_OP_RESPONSE);
    std::string ok(64, '\0');
    if (::read(x_socket.get(), ok.data(), ok.size()) <= 0 || !ok.starts_with("OK "))
      give_up("no OK");
  }

  void add_rx(Rx& rx) {
    const auto head = x_guest->driver(kVsockRx).prepare(rx.buffer, FakeDriver::Table::kDirect);
    x_rx_by_head[head.value()] = &rx;
  }

  bool send(Tx& tx, uint16_t op, uint32_t bytes) {
    *tx.header = {.src_cid = kCid,
                  .dst_cid = kVsockHostCid,
                  .src_port = kPort,
                  .dst_port = x_host_port,
                  .len = bytes,
                  .type = VIRTIO_VSOCK_TYPE_STREAM,
                  .op = op,
                  .flags = 0,
                  .buf_alloc = kCredit,
                  .fwd_cnt = static_cast<uint32_t>(x_received)};
    x_told = x_received;
    FakeDriver& driver = x_guest->driver(kVsockTx);
    const auto head = driver.add({tx.buffers.data(), bytes > 0 ? size_t{2} : size_t{1}},
                                 FakeDriver::Table::kDirect);
    if (!head) give_up("the transmit queue is full");
    x_tx_by_head[*head] = &tx;
    x_guest->kick_if_wanted(kVsockTx);
    return true;
  }
  void send_op(uint16_t op) {
    if (x_tx_free.empty()) return;
    Tx& tx = *x_tx_free.front();
    x_tx_free.pop_front();
    send(tx, op, 0);
  }
  bool send_data() {
    if (x_tx_free.empty() || x_peer_alloc - (x_sent - x_peer_forwarded) < kPiece) return false;
    Tx& tx = *x_tx_free.front();
    x_tx_free.pop_front();
    x_sent += kPiece;
    return send(tx, VIRTIO_VSOCK_OP_RW, kPiece);
  }

  void take_used() {
    FakeDriver& sent = x_guest->driver(kVsockTx);
    while (const auto used = sent.poll_used()) x_tx_free.push_back(x_tx_by_head[used->head]);
    FakeDriver& received = x_guest->driver(kVsockRx);
    bool any = false;
    while (const auto used = received.poll_used()) {
      Rx& rx = *x_rx_by_head[used->head];
      if (used->written >= kHeader) take_packet(*rx.header);
      add_rx(rx);
      any = true;
    }
    if (any) {
      received.publish();
      x_guest->kick_if_wanted(kVsockRx);
    }
    if (x_received - x_told >= kCredit / 2) send_op(VIRTIO_VSOCK_OP_CREDIT_UPDATE);
  }
  void take_packet(const virtio_vsock_hdr& header) {
    x_peer_alloc = header.buf_alloc;
    x_peer_forwarded = header.fwd_cnt;
    if (header.op == VIRTIO_VSOCK_OP_REQUEST) x_host_port = header.src_port;
    if (header.op == VIRTIO_VSOCK_OP_RW) x_received += header.len;
    if (header.op == VIRTIO_VSOCK_OP_RST) give_up("the stream was reset");
  }

  const std::string x_path;
  UniqueFd x_listener;
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<VsockDevice> x_device;
  std::unique_ptr<FakeTransport> x_guest;
  UniqueFd x_socket;
  std::array<Rx, kQueueSize> x_rx;
  std::array<Tx, kTxMax> x_tx;
  std::deque<Tx*> x_tx_free;
  std::array<Rx*, kQueueSize> x_rx_by_head{};
  std::array<Tx*, kQueueSize> x_tx_by_head{};
  uint32_t x_host_port = 0;
  uint32_t x_peer_alloc = 0;
  uint32_t x_peer_forwarded = 0;
  uint32_t x_sent = 0;
  uint64_t x_received = 0;
  uint64_t x_told = 0;
};

// Copies between a socket and the guest's memory on a thread of its own.
class Bare {
 public:
  explicit Bare(Device& device) {
    std::array<int, 2> pair{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0)
      give_up("socketpair");
    x_socket.reset(pair[0]);
    x_far.reset(pair[1]);
    for (unsigned i = 0; i < x_memory.size(); ++i) x_memory[i] = device.payload(i);
  }

  double to_host() {
    HostProgram program(x_socket.get());
    const auto start = Clock::now();
    x_worker.start([this] { copy(::write); });
    for (uint64_t received = 0; received < kRoundBytes; check_time(start))
      received += program.read();
    return mib_a_second(start);
  }
  double to_guest() {
    HostProgram program(x_socket.get());
    const auto start = Clock::now();
    x_worker.start([this] { copy(::read); });
    for (uint64_t sent = 0; sent < kRoundBytes; check_time(start))
      sent += program.write(kRoundBytes - sent);
    x_worker.wait();
    return mib_a_second(start);
  }

 private:
  template <typename Call>
  void copy(Call call) {
    unsigned at = 0;
    for (uint64_t done = 0; done < kRoundBytes;) {
      uint8_t* const memory = x_memory[at++ % x_memory.size()];
      const ssize_t count =
          call(x_far.get(), memory, std::min<uint64_t>(kPiece, kRoundBytes - done));
      if (count <= 0) give_up("the bare loop");
      done += static_cast<uint64_t>(count);
    }
  }
  UniqueFd x_socket;
  UniqueFd x_far;
  std::array<uint8_t*, 16> x_memory{};
  Worker x_worker;
};

struct Direction {
  std::vector<double> device;
  std::vector<double> bare;
  std::vector<double> ratios;
  void add(double through_device, double through_bare) {
    device.push_back(through_device);
    bare.push_back(through_bare);
    ratios.push_back(through_device / through_bare);
  }
  void report(BenchReport& report, const std::string& name) const {
    report.add("vsock." + name + "_mib_per_s", median(device), "MiB/s");
    report.add("vsock." + name + "_bare_mib_per_s", median(bare), "MiB/s");
    report.add("vsock." + name + "_vs_bare", median(ratios), "ratio");
  }
};

}  // namespace

int run(int argc, char** argv) {
  BenchReport report(argc, argv);
  Device device;
  Bare bare(device);
  part_threads();
  Direction to_host;
  Direction to_guest;
  for (int round = -1; round < kRounds; ++round) {  // the first one is not counted
    const double device_to_host = device.to_host();
    const double bare_to_host = bare.to_host();
    const double device_to_guest = device.to_guest();
    const double bare_to_guest = bare.to_guest();
    if (round < 0) continue;
    to_host.add(device_to_host, bare_to_host);
    to_guest.add(device_to_guest, bare_to_guest);
  }
  to_host.report(report, "to_host");
  to_guest.report(report, "to_guest");
  report.add("vsock.vs_bare", std::min(median(to_host.ratios), median(to_guest.ratios)), "ratio");
  return report.finish();
}

}  // namespace lethe

int main(int argc, char** argv) { return lethe::run(argc, argv); }
