// What a network card costs: bytes per second between a guest's rings and a stream socket, as passt
// has it, and between memory and the same kind of socket in a bare copy loop.
//
// Four figures, each the median of the ratios of rounds that take turns: frames of 1500 bytes and
// of 64 KiB, sent and received. `net.vs_bare` is the least of them.
//
// The host's program is this thread in both: it reads, or writes, without blocking, and is the
// driver's vCPU besides. So the driver's work counts against the device. The card's thread, and
// the bare loop's, have the other processor. Sent: the driver keeps the ring full of frames. Bare:
// the same frames of the same memory, as many with one system call as the device sends. Received:
// the program writes as many frames with one call as go into one buffer of the kernel's; the
// device puts them into the guest's buffers, which the driver gives again. Bare: the same stream
// is read, as much as there is up to 64 KiB at a time, into as much memory.
//
// The driver polls, as Linux's does (NAPI) while there is work. What KVM takes to deliver an
// interrupt is in neither figure.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/part_threads.h"
#include "bench/report.h"
#include "bench/worker.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/net/net.h"
#include "devices/virtio/net/stream_port.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 31;
constexpr uint64_t kRoundBytes = 64 * kMiB;  // some 20 ms, so that both meet the same noise
constexpr uint16_t kRing = 256;
constexpr uint32_t kSmall = 1514;  // with its Ethernet header
constexpr uint32_t kLarge = 65534;
constexpr uint32_t kHeader = sizeof(virtio_net_hdr_v1);
constexpr uint32_t kGroupBytes = 72'000;  // as the device sends with one call
constexpr size_t kReadBytes = 64 * 1024;
constexpr int kPauses = 20;      // of who finds nothing: to look again locks the socket
constexpr uint32_t kSlots = 47;  // frames in memory: as many small ones as in a group
constexpr std::chrono::seconds kPatience{20};
constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 128 * kMiB};

[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "bench_net: %s\n", what.c_str());
  std::exit(1);
}

struct Stream {
  Stream() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) give_up("socketpair");
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
  }
  UniqueFd ours;    // the reader's or writer's
  UniqueFd theirs;  // the device's, or the bare loop's
};

// The host's program reads what there is, without waiting.
class Reader {
 public:
  explicit Reader(int socket) : x_socket(socket) {}
  uint64_t read() {
    const ssize_t got = ::recv(x_socket, x_buffer.data(), x_buffer.size(), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) give_up("the stream ended");
    if (got >= 0) return static_cast<uint64_t>(got);
    for (int i = 0; i < kPauses; ++i) __builtin_ia32_pause();
    return 0;
  }

 private:
  const int x_socket;
  std::vector<uint8_t> x_buffer = std::vector<uint8_t>(kReadBytes);
};

// Frames with their lengths, of one memory in turn, sent in groups.
class Writer {
 public:
  Writer(int socket, uint32_t frame, const uint8_t* memory)
      : x_socket(socket),
        x_prefix(htonl(frame)),
        x_frames(std::max(1U, kGroupBytes / (frame + kStreamPrefixBytes))) {
    for (uint64_t i = 0; i < kSlots; ++i) {
      // Only read.
      auto* const data = const_cast<uint8_t*>(memory) + i * frame;
      x_vectors.push_back({.iov_base = &x_prefix, .iov_len = sizeof x_prefix});
      x_vectors.push_back({.iov_base = data, .iov_len = frame});
    }
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  [[nodiscard]] uint64_t frames_a_call() const { return x_frames; }

  // Some or all of the next group; returns how many frames are through. `flags`: MSG_DONTWAIT.
  uint64_t write(int flags) {
    if (x_left.empty()) {
      if (x_next + x_frames > kSlots) x_next = 0;
      const auto first = x_vectors.begin() + static_cast<ptrdiff_t>(2 * x_next);
      x_left.assign(first, first + static_cast<ptrdiff_t>(2 * x_frames));
      x_next += x_frames;
      x_first = 0;
    }
    msghdr message{};
    message.msg_iov = x_left.data() + x_first;
    message.msg_iovlen = x_left.size() - x_first;
    const ssize_t result = ::sendmsg(x_socket, &message, flags | MSG_NOSIGNAL);
    if (result < 0 && errno != EAGAIN) give_up("the stream ended");
    for (auto done = static_cast<size_t>(std::max<ssize_t>(result, 0)); done > 0;) {
      iovec& vector = x_left[x_first];
      const size_t part = std::min(done, vector.iov_len);
      vector.iov_base = static_cast<uint8_t*>(vector.iov_base) + part;
      vector.iov_len -= part;
      done -= part;
      if (vector.iov_len == 0) ++x_first;
    }
    if (x_first < x_left.size()) return 0;
    x_left.clear();
    return x_frames;
  }

 private:
  const int x_socket;
  uint32_t x_prefix;
  const uint64_t x_frames;
  std::vector<iovec> x_vectors;
  uint64_t x_next = 0;
  std::vector<iovec> x_left;  // of the group under way
  size_t x_first = 0;
};

// A guest's memory with a card on a stream.
class Guest {
 public:
  explicit Guest(UniqueFd socket)
      : x_device(make(std::move(socket))), x_guest(*x_memory, *x_device) {
    x_guest.start(~uint64_t{0}, kRing);
  }
  FakeTransport& transport() { return x_guest; }
  GuestAddr alloc(uint64_t bytes) { return x_guest.heap().alloc(bytes, 4096); }
  uint8_t* host(GuestAddr at, uint64_t bytes) { return x_memory->slice(at, bytes)->data; }

 private:
  static std::unique_ptr<NetDevice> make(UniqueFd socket) {
    NetPorts ports;
    ports.push_back(std::make_unique<StreamPort>(std::move(socket)));
    auto device = NetDevice::create({.mtu = kNetMtuMax, .queue_size = kRing}, std::move(ports));
    if (!device) give_up(device.error().text);
    return std::move(*device);
  }
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<NetDevice> x_device;
  FakeTransport x_guest;
};

// A round's time, with a limit.
class Round {
 public:
  void check() const {
    if (Clock::now() - x_start > kPatience) give_up("the device does not go on");
  }
  [[nodiscard]] double mib_a_second(uint64_t bytes) const {
    return static_cast<double>(bytes) / static_cast<double>(kMiB) /
           std::chrono::duration<double>(Clock::now() - x_start).count();
  }

 private:
  Clock::time_point x_start = Clock::now();
};

class Sending {
 public:
  explicit Sending(uint32_t frame) : x_frame(frame), x_frames(kRoundBytes / frame) {
    x_data = x_guest.alloc(uint64_t{x_frame} * kSlots);
    x_header = x_guest.alloc(kHeader);
    std::memset(x_guest.host(x_data, uint64_t{x_frame} * kSlots), 1, uint64_t{x_frame} * kSlots);
  }

  double device() {
    const Round round;
    FakeDriver& driver = x_guest.transport().driver(1);
    uint64_t added = 0;
    uint64_t left = x_frames * (x_frame + kStreamPrefixBytes);
    while (left > 0) {
      const uint64_t before = added;
      while (added < x_frames && driver.free_descriptors() >= 2) {
        const FakeBuffer buffers[] = {
            {x_header, kHeader, false},
            {GuestAddr{x_data.value + added % kSlots * x_frame}, x_frame, false}};
        if (!driver.prepare(buffers, FakeDriver::Table::kDirect)) break;
        ++added;
      }
      if (added > before) {
        driver.publish();
        x_guest.transport().kick_if_wanted(1);
      }
      left -= x_reader.read();
      while (driver.poll_used()) {
      }
      round.check();
    }
    return round.mib_a_second(x_frames * x_frame);
  }
  double bare(Worker& worker) {
    Writer writer(x_bare.theirs.get(), x_frame, x_guest.host(x_data, uint64_t{x_frame} * kSlots));
    Reader reader(x_bare.ours.get());
    const uint64_t each = writer.frames_a_call();
    const uint64_t frames = x_frames / each * each;
    const Round round;
    worker.start([&writer, frames] {
      for (uint64_t sent = 0; sent < frames;) sent += writer.write(0);
    });
    for (uint64_t left = frames * (x_frame + kStreamPrefixBytes); left > 0;) {
      left -= reader.read();
      round.check();
    }
    const double rate = round.mib_a_second(frames * x_frame);
    worker.wait();
    return rate;
  }

 private:
  const uint32_t x_frame;
  const uint64_t x_frames;
  Stream x_stream;
  Stream x_bare;
  Reader x_reader{x_stream.ours.get()};
  Guest x_guest{std::move(x_stream.theirs)};
  GuestAddr x_data;
  GuestAddr x_header;
};

class Receiving {
 public:
  explicit Receiving(uint32_t frame)
      : x_frame(frame),
        x_source(size_t{kSlots} * frame, 1),
        x_writer(x_stream.ours.get(), frame, x_source.data()) {
    const uint64_t each = x_writer.frames_a_call();
    x_frames = kRoundBytes / frame / each * each;
    const uint32_t size = frame > 4096 ? 4096 : 2048;  // as Linux's driver has them
    x_memory_bytes = uint64_t{kRing} * size;
    const GuestAddr memory = x_guest.alloc(x_memory_bytes);
    x_memory = x_guest.host(memory, x_memory_bytes);
    for (uint32_t i = 0; i < kRing; ++i)
      add({GuestAddr{memory.value + uint64_t{i} * size}, size, true});
    x_guest.transport().driver(0).publish();
    x_guest.transport().kick_if_wanted(0);
  }

  double device() {
    const Round round;
    FakeDriver& driver = x_guest.transport().driver(0);
    uint64_t written = 0;
    // A buffer with a frame's beginning has the header.
    for (uint64_t left = x_frames * (x_frame + uint64_t{kHeader}); left > 0;) {
      if (written < x_frames) written += x_writer.write(MSG_DONTWAIT);
      bool any = false;
      while (const auto used = driver.poll_used()) {
        left -= used->written;
        add(x_buffers[used->head]);
        any = true;
      }
      if (any) {
        driver.publish();
        x_guest.transport().kick_if_wanted(0);
      }
      round.check();
    }
    return round.mib_a_second(x_frames * x_frame);
  }
  double bare(Worker& worker) {
    Writer writer(x_bare.ours.get(), x_frame, x_source.data());
    const Round round;
    worker.start([this] {
      uint64_t at = 0;
      for (uint64_t left = x_frames * (x_frame + kStreamPrefixBytes); left > 0;) {
        const ssize_t got = ::recv(x_bare.theirs.get(), x_memory + at, kReadBytes, 0);
        if (got <= 0) give_up("the stream ended");
        left -= static_cast<uint64_t>(got);
        at = (at + kReadBytes) % x_memory_bytes;
      }
    });
    for (uint64_t written = 0; written < x_frames; round.check())
      written += writer.write(MSG_DONTWAIT);
    worker.wait();
    return round.mib_a_second(x_frames * x_frame);
  }

 private:
  void add(const FakeBuffer& buffer) {
    const auto head =
        x_guest.transport().driver(0).prepare({&buffer, 1}, FakeDriver::Table::kDirect);
    if (!head) give_up("the ring is full");
    x_buffers[*head] = buffer;
  }

  const uint32_t x_frame;
  uint64_t x_frames = 0;  // of a round: whole groups
  std::vector<uint8_t> x_source;
  Stream x_stream;
  Stream x_bare;
  Writer x_writer;
  Guest x_guest{std::move(x_stream.theirs)};
  std::vector<FakeBuffer> x_buffers = std::vector<FakeBuffer>(kRing);  // by head
  uint8_t* x_memory = nullptr;
  uint64_t x_memory_bytes = 0;
};

template <typename Case>
double measure(BenchReport& report, const std::string& name, Case& bench, Worker& worker) {
  std::vector<double> device;
  std::vector<double> bare;
  std::vector<double> ratios;
  for (int round = -1; round < kRounds; ++round) {  // the first one is not counted
    const double through_device = bench.device();
    const double through_bare = bench.bare(worker);
    if (round < 0) continue;
    device.push_back(through_device);
    bare.push_back(through_bare);
    ratios.push_back(through_device / through_bare);
  }
  report.add("net." + name + "_mib_per_s", median(device), "MiB/s");
  report.add("net." + name + "_bare_mib_per_s", median(bare), "MiB/s");
  report.add("net." + name + "_vs_bare", median(ratios), "ratio");
  return median(ratios);
}

}  // namespace

int run(int argc, char** argv) {
  BenchReport report(argc, argv);
  Sending send_small(kSmall);
  Sending send_large(kLarge);
  Receiving receive_small(kSmall);
  Receiving receive_large(kLarge);
  Worker worker;
  part_threads();  // all of them are there
  const double least = std::min({measure(report, "send_1500", send_small, worker),
                                 measure(report, "send_64k", send_large, worker),
                                 measure(report, "receive_1500", receive_small, worker),
                                 measure(report, "receive_64k", receive_large, worker)});
  report.add("net.vs_bare", least, "ratio");
  return report.finish();
}

}  // namespace lethe

int main(int argc, char** argv) { return lethe::run(argc, argv); }
