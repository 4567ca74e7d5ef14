// virtio-vsock against a hostile driver and hostile host programs: any packets with any fields, in
// any buffers, any lines and bytes on the host's sockets, queue and device resets at any time.
//
// The input is a program of such steps. Ports are few, so that packets often meet a stream.
// Whatever happens, the device goes on, and a reset leaves nothing.
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "base/log.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/vsock/vsock.h"

namespace lethe {
namespace {

constexpr uint64_t kMemory = 64 * kMiB;
constexpr size_t kStepsMax = 200;
constexpr size_t kHostsMax = 8;
constexpr uint32_t kPayloadMax = 8192;
constexpr std::chrono::milliseconds kBriefly{2};

sockaddr_un address(const std::string& path) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  path.copy(to.sun_path, sizeof to.sun_path - 1);
  return to;
}
UniqueFd listen_at(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const sockaddr_un at = address(path);
  ::unlink(path.c_str());
  LETHE_ASSERT(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0);
  LETHE_ASSERT(::listen(fd.get(), 4) == 0);
  return fd;
}

// One device for the whole run: making one costs more than fuzzing it.
struct Guest {
  Guest() {
    (void)set_log_levels("off");
    const GuestMemory::Range ram{GuestAddr{0}, kMemory};
    memory = GuestMemory::create({&ram, 1}, {.thp = false}).value();
    listener = listen_at(path);
    port_52 = listen_at(path + "_52");
    device = VsockDevice::create({.cid = 3,
                                  .path = path,
                                  .listener = listener.get(),
                                  .limits = {.streams_max = 12,
                                             .hellos_max = 3,
                                             .resets_max = 8,
                                             .hello_max = kBriefly,
                                             .connect_max = kBriefly,
                                             .close_max = kBriefly}})
                 .value();
  }
  const std::string path = fmt::format("/tmp/lethe-vsock-fuzz-{}", ::getpid());
  std::unique_ptr<GuestMemory> memory;
  UniqueFd listener;
  UniqueFd port_52;
  std::unique_ptr<VsockDevice> device;
};

class Run {
 public:
  Run(Guest& guest, FuzzInput input)
      : x_guest(guest), x_input(input), x_transport(*guest.memory, *guest.device) {
    x_transport.start(~uint64_t{0}, 16);
    x_tx = x_transport.heap().alloc(kPayloadMax + 64, 64);
    x_rx = x_transport.heap().alloc(16 * 8192, 64);
    x_event = x_transport.heap().alloc(64, 64);
  }

  void run() {
    for (size_t step = 0; step < kStepsMax && !x_input.empty(); ++step) one_step();
    x_transport.reset();
    // Nothing of the guest's is left but clients that come now.
    LETHE_ASSERT(x_guest.device->counters().streams == 0);
    LETHE_ASSERT(x_guest.device->counters().resets_lost == 0);
    for (;;) {
      UniqueFd left(::accept(x_guest.port_52.get(), nullptr, nullptr));
      if (!left.valid()) break;
    }
  }

 private:
  void one_step() {
    const auto kind = x_input.take<uint8_t>();
    if (kind < 120) return packet();
    if (kind < 160) return buffers();
    if (kind < 220) return host();
    if (kind < 235) return take_used();
    if (kind < 240) {
      const uint16_t queue = kind % kVsockQueues;
      x_transport.stop_queue(queue);
      x_transport.restart_queue(queue);
      return;
    }
    if (kind < 244) {
      x_transport.freeze();
      x_transport.thaw();
      return;
    }
    if (kind < 248) {
      x_transport.freeze();
      const std::vector<uint8_t> state = x_transport.save();
      (void)x_transport.move_to(*x_guest.device, state);
      x_transport.thaw();
      return;
    }
    if (kind < 250) x_transport.driver(kind % kVsockQueues).raw_publish(x_input.take<uint16_t>());
  }

  uint32_t port() {
    const auto kind = x_input.take<uint8_t>();
    if (kind < 100) return kind % 4;
    if (kind < 160) return 52;
    if (kind < 250) return kVsockFirstHostPort + kind % 16;
    return x_input.take<uint32_t>();
  }
  uint32_t size(uint32_t max) {
    const auto kind = x_input.take<uint8_t>();
    if (kind < 150) return kind % 64;
    if (kind < 250) return kind * 77 % (max + 1);
    return x_input.take<uint32_t>();
  }

  void packet() {
    const auto oddity = x_input.take<uint8_t>();
    virtio_vsock_hdr header{.src_cid = 3,
                            .dst_cid = 2,
                            .src_port = port(),
                            .dst_port = port(),
                            .len = 0,
                            .type = VIRTIO_VSOCK_TYPE_STREAM,
                            .op = static_cast<uint16_t>(x_input.take<uint8_t>() % 9),
                            .flags = static_cast<uint32_t>(x_input.take<uint8_t>() % 5),
                            .buf_alloc = size(1 << 20),
                            .fwd_cnt = size(4096)};
    uint32_t payload = 0;
    if (header.op == VIRTIO_VSOCK_OP_RW)
      header.len = payload = size(kPayloadMax) % (kPayloadMax + 1);
    if (oddity == 0) header.src_cid = x_input.take<uint64_t>();
    if (oddity == 1) header.dst_cid = x_input.take<uint64_t>();
    if (oddity == 2) header.type = x_input.take<uint16_t>();
    if (oddity == 3) header.len = x_input.take<uint32_t>();
    if (oddity == 4) header.op = x_input.take<uint16_t>();
    LETHE_ASSERT(x_guest.memory->store(x_tx, header));
    std::vector<FakeBuffer> pieces;
    uint32_t left = sizeof header + payload;
    if (oddity == 5) left = std::min<uint32_t>(left, x_input.take<uint8_t>() % 60 + 1);
    for (uint64_t at = x_tx.value; left > 0;) {
      uint32_t piece =
          oddity > 200 && pieces.size() < 10 ? x_input.take<uint8_t>() % 60U + 1 : left;
      piece = std::min(piece, left);
      pieces.push_back({GuestAddr{at}, piece, oddity == 6 && !pieces.empty()});
      at += piece;
      left -= piece;
    }
    (void)x_transport.driver(kVsockTx).add(pieces, FakeDriver::Table::kIndirect);
    x_transport.kick_if_wanted(kVsockTx);
  }

  void buffers() {
    const auto kind = x_input.take<uint8_t>();
    const std::array<FakeBuffer, 1> event{{{x_event, kind % 8U + 1, true}}};
    if (kind < 20) (void)x_transport.driver(kVsockEvent).add(event);
    for (unsigned i = 0; i < kind % 8U; ++i) {
      const uint32_t bytes = std::max<uint32_t>(1, size(4140) % 8192);
      const uint64_t at = x_rx.value + (i % 16) * 8192;
      const std::array<FakeBuffer, 2> room{{{GuestAddr{at}, std::max(1U, bytes / 3), true},
                                            {GuestAddr{at + 4096}, bytes % 4096 + 1, true}}};
      (void)x_transport.driver(kVsockRx).add(room, FakeDriver::Table::kIndirect);
    }
    x_transport.kick_if_wanted(kVsockRx);
    x_transport.kick_if_wanted(kVsockEvent);
  }

  void host() {
    const auto kind = x_input.take<uint8_t>();
    if (kind < 60 && x_hosts.size() < kHostsMax) {
      UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      const sockaddr_un to = address(x_guest.path);
      if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return;
      const std::string line = fmt::format("CONNECT {}\n", port());
      if (kind < 50) (void)::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL);
      x_hosts.push_back(std::move(fd));
      return;
    }
    if (kind < 90) {
      UniqueFd fd(::accept4(x_guest.port_52.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (fd.valid() && x_hosts.size() < kHostsMax) x_hosts.push_back(std::move(fd));
      return;
    }
    if (x_hosts.empty()) return;
    UniqueFd& fd = x_hosts[kind % x_hosts.size()];
    static std::array<uint8_t, 65536> bytes{};
    if (kind < 150)
      (void)::send(fd.get(), bytes.data(), std::min<size_t>(size(60'000), bytes.size()),
                   MSG_NOSIGNAL);
    else if (kind < 200)
      (void)::recv(fd.get(), bytes.data(), std::min<size_t>(size(60'000), bytes.size()), 0);
    else if (kind < 220)
      (void)::shutdown(fd.get(), kind % 3);
    else
      x_hosts.erase(x_hosts.begin() + kind % x_hosts.size());
  }

  void take_used() {
    for (uint16_t i = 0; i < kVsockQueues; ++i)
      while (x_transport.driver(i).poll_used()) continue;
  }

  Guest& x_guest;
  FuzzInput x_input;
  FakeTransport x_transport;
  GuestAddr x_tx;
  GuestAddr x_rx;
  GuestAddr x_event;
  std::deque<UniqueFd> x_hosts;
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static lethe::Guest guest;
  lethe::Run(guest, lethe::FuzzInput(data, size)).run();
  return 0;
}
