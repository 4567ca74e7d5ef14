// What a network card costs: bytes per second between a guest's rings and a stream socket, as passt
// has it, and between memory and the same kind of socket in a bare copy loop.
//
// Four figures, each the median of the ratios of rounds that take turns: frames of 1500 bytes and
// of 64 KiB, sent and received. `net.vs_bare` is the least of them.
//
// Sent: the driver (this thread) keeps the ring full of frames; the device's thread sends them; a
// third thread reads and forgets. Bare: this thread sends the same frames of the same memory, as
// many with one system call as the device does, to the same reader. Received: a second thread
// writes frames without end, as many with one call as go into one buffer of the kernel's; the
// device puts them into the guest's buffers, which the driver gives again. Bare: this thread reads
// the same stream, as much as there is up to 64 KiB at a time, into as much memory. So the device
// has one thread more than the bare loop, and on two processors they share.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/net/net.h"
#include "devices/virtio/net/stream_port.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 21;
constexpr uint64_t kSmallBytes = 24 * kMiB;   // a round
constexpr uint64_t kLargeBytes = 192 * kMiB;  // the same, of large frames
constexpr uint16_t kRing = 256;
constexpr uint32_t kSmall = 1514;  // with its Ethernet header
constexpr uint32_t kLarge = 65534;
constexpr uint32_t kHeader = sizeof(virtio_net_hdr_v1);
constexpr uint32_t kGroupBytes = 47 * 1024;
constexpr size_t kReadBytes = 64 * 1024;
constexpr uint32_t kSlots = 64;  // frames in memory
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

// Reads `bytes` and forgets them.
void sink(int socket, uint64_t bytes) {
  std::vector<uint8_t> buffer(256 * 1024);
  while (bytes > 0) {
    const ssize_t got = ::recv(socket, buffer.data(), buffer.size(), 0);
    if (got <= 0) give_up("the stream ended");
    bytes -= std::min(bytes, static_cast<uint64_t>(got));
  }
}

// Frames with their lengths, of one memory in turn, sent in groups.
class Groups {
 public:
  Groups(uint32_t frame, const uint8_t* memory)
      : x_frame(frame),
        x_memory(memory),
        x_prefix(htonl(frame)),
        x_frames(std::max(1U, kGroupBytes / (frame + kStreamPrefixBytes))) {}
  // Sends at least `frames`; returns how many.
  uint64_t send(int socket, uint64_t frames) const {
    uint64_t sent = 0;
    for (; sent < frames; sent += x_frames) {
      std::vector<iovec> left;
      for (uint64_t i = sent; i < sent + x_frames; ++i) {
        // Only read.
        left.push_back({.iov_base = const_cast<uint32_t*>(&x_prefix), .iov_len = sizeof x_prefix});
        left.push_back({.iov_base = const_cast<uint8_t*>(x_memory) + i % kSlots * x_frame,
                        .iov_len = x_frame});
      }
      if (!send_all(socket, left)) return sent;  // the reader has enough
    }
    return sent;
  }
  [[nodiscard]] uint64_t frames_a_call() const { return x_frames; }

 private:
  static bool send_all(int socket, std::vector<iovec>& left) {
    for (size_t first = 0; first < left.size();) {
      msghdr message{};
      message.msg_iov = left.data() + first;
      message.msg_iovlen = left.size() - first;
      const ssize_t result = ::sendmsg(socket, &message, MSG_NOSIGNAL);
      if (result <= 0) return false;
      for (auto done = static_cast<size_t>(result); done > 0;) {
        iovec& vector = left[first];
        const size_t part = std::min(done, vector.iov_len);
        vector.iov_base = static_cast<uint8_t*>(vector.iov_base) + part;
        vector.iov_len -= part;
        done -= part;
        if (vector.iov_len == 0) ++first;
      }
    }
    return true;
  }
  const uint32_t x_frame;
  const uint8_t* const x_memory;
  const uint32_t x_prefix;
  const uint64_t x_frames;
};

// A guest's memory with a card on a stream.
class Guest {
 public:
  explicit Guest(UniqueFd socket)
      : x_device(make(std::move(socket))), x_guest(*x_memory, *x_device) {
    x_guest.start(~uint64_t{0}, kRing);
  }
  FakeTransport& transport() { return x_guest; }
  FakeDriver& driver(uint16_t queue) { return x_guest.driver(queue); }
  GuestAddr alloc(uint64_t bytes) { return x_guest.heap().alloc(bytes, 4096); }
  uint8_t* host(GuestAddr at, uint64_t bytes) { return x_memory->slice(at, bytes)->data; }
  FakeDriver::Used wait(uint16_t queue) {
    const auto used =
        driver(queue).wait_used(x_guest.interrupt(queue), deadline_in(FakeTransport::kPatience));
    if (!used) give_up("the device does not answer");
    return *used;
  }

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

double mib_a_second(uint64_t bytes, Clock::time_point start) {
  return static_cast<double>(bytes) / static_cast<double>(kMiB) /
         std::chrono::duration<double>(Clock::now() - start).count();
}

struct Pair {
  double device;
  double bare;
};

class Sending {
 public:
  Sending(uint32_t frame, uint64_t bytes) : x_frame(frame), x_frames(bytes / frame) {
    x_data = x_guest.alloc(uint64_t{x_frame} * kSlots);
    x_header = x_guest.alloc(kHeader);
    std::memset(x_guest.host(x_data, uint64_t{x_frame} * kSlots), 1, uint64_t{x_frame} * kSlots);
  }
  Pair round() { return {device(), bare()}; }

 private:
  double device() {
    const uint64_t bytes = x_frames * (x_frame + kStreamPrefixBytes);
    std::thread reader([&] { sink(x_stream.ours.get(), bytes); });
    const auto start = Clock::now();
    FakeDriver& driver = x_guest.driver(1);
    uint64_t added = 0;
    uint64_t done = 0;
    while (done < x_frames) {
      bool more = false;
      while (added < x_frames && driver.free_descriptors() >= 2) {
        const FakeBuffer buffers[] = {
            {x_header, kHeader, false},
            {GuestAddr{x_data.value + added % kSlots * x_frame}, x_frame, false}};
        if (!driver.prepare(buffers, FakeDriver::Table::kDirect)) break;
        ++added;
        more = true;
      }
      if (more) {
        driver.publish();
        x_guest.transport().kick_if_wanted(1);
      }
      done += wait_for_most(added - done, done);
    }
    reader.join();
    x_before = static_cast<uint16_t>(x_before + x_frames);
    return mib_a_second(x_frames * x_frame, start);
  }
  // As Linux's driver does (virtqueue_enable_cb_delayed): an interrupt is wanted when three
  // quarters of what is out has come back. Returns how many have. `done`: before.
  uint64_t wait_for_most(uint64_t out, uint64_t done) {
    FakeDriver& driver = x_guest.driver(1);
    const auto wanted = static_cast<uint16_t>(out - out / 4);
    driver.raw_used_event(static_cast<uint16_t>(x_before + done + wanted - 1));
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const auto back = [&] {
      return static_cast<uint16_t>(driver.raw_used_index() - x_before - done) >= wanted;
    };
    while (!back()) {
      if (!x_guest.transport().interrupt(1).wait_until(deadline_in(FakeTransport::kPatience)))
        give_up("the device does not answer");
    }
    uint64_t count = 0;
    while (driver.poll_used()) ++count;
    return count;
  }
  double bare() {
    const Groups groups(x_frame, x_guest.host(x_data, uint64_t{x_frame} * kSlots));
    const uint64_t frames = x_frames / groups.frames_a_call() * groups.frames_a_call();
    std::thread reader([&] { sink(x_bare.ours.get(), frames * (x_frame + kStreamPrefixBytes)); });
    const auto start = Clock::now();
    (void)groups.send(x_bare.theirs.get(), frames);
    reader.join();
    return mib_a_second(frames * x_frame, start);
  }

  const uint32_t x_frame;
  const uint64_t x_frames;
  Stream x_stream;
  Stream x_bare;
  Guest x_guest{std::move(x_stream.theirs)};
  GuestAddr x_data;
  GuestAddr x_header;
  uint16_t x_before = 0;  // the used index when the round began
};

class Receiving {
 public:
  Receiving(uint32_t frame, uint64_t bytes)
      : x_frame(frame),
        x_frames(bytes / frame),
        x_source(size_t{kSlots} * kLarge, 1),
        x_groups(frame, x_source.data()) {
    for (uint32_t i = 0; i < kRing; ++i) {
      const uint32_t size = frame > 4096 ? 4096 : 2048;  // as Linux's driver has them
      const FakeBuffer buffer{x_guest.alloc(size), size, true};
      const auto head = x_guest.driver(0).add({&buffer, 1});
      if (!head) give_up("the ring is full");
      x_buffers[*head] = buffer;
    }
    x_guest.transport().kick_if_wanted(0);
    // As much as the ring's buffers.
    x_memory_bytes = uint64_t{kRing} * (frame > 4096 ? 4096 : 2048);
    x_memory = x_guest.host(x_guest.alloc(x_memory_bytes), x_memory_bytes);
  }
  Pair round() { return {device(), bare()}; }

 private:
  double device() {
    std::thread writer([&] { (void)x_groups.send(x_stream.ours.get(), x_frames); });
    const uint64_t frames = whole(x_frames);
    const auto start = Clock::now();
    FakeDriver& driver = x_guest.driver(0);
    // A buffer with a frame's beginning has the header.
    uint64_t bytes = 0;
    while (bytes < frames * (x_frame + uint64_t{kHeader})) {
      std::optional<FakeDriver::Used> used = x_guest.wait(0);
      for (; used; used = driver.poll_used()) {
        bytes += used->written;
        const FakeBuffer buffer = x_buffers[used->head];
        const auto head = driver.prepare({&buffer, 1}, FakeDriver::Table::kDirect);
        x_buffers[*head] = buffer;
      }
      driver.publish();
      x_guest.transport().kick_if_wanted(0);
    }
    const double rate = mib_a_second(frames * x_frame, start);
    writer.join();
    return rate;
  }
  double bare() {
    std::thread writer([&] { (void)x_groups.send(x_bare.ours.get(), x_frames); });
    uint64_t left = whole(x_frames) * (x_frame + kStreamPrefixBytes);
    const auto start = Clock::now();
    for (uint64_t at = 0; left > 0; at = (at + kReadBytes) % x_memory_bytes) {
      const ssize_t got = ::recv(x_bare.theirs.get(), x_memory + at, kReadBytes, 0);
      if (got <= 0) give_up("the stream ended");
      left -= std::min(left, static_cast<uint64_t>(got));
    }
    const double rate = mib_a_second(whole(x_frames) * x_frame, start);
    writer.join();
    return rate;
  }
  // As many as whole groups have.
  [[nodiscard]] uint64_t whole(uint64_t frames) const {
    const uint64_t each = x_groups.frames_a_call();
    return (frames + each - 1) / each * each;
  }

  const uint32_t x_frame;
  const uint64_t x_frames;
  std::vector<uint8_t> x_source;
  const Groups x_groups;
  Stream x_stream;
  Stream x_bare;
  Guest x_guest{std::move(x_stream.theirs)};
  std::vector<FakeBuffer> x_buffers = std::vector<FakeBuffer>(kRing);  // by head
  uint8_t* x_memory = nullptr;
  uint64_t x_memory_bytes = 0;
};

template <typename Case>
double measure(BenchReport& report, const std::string& name, Case&& bench) {
  std::vector<double> device;
  std::vector<double> bare;
  std::vector<double> ratios;
  for (int round = -1; round < kRounds; ++round) {  // the first one is not counted
    const Pair pair = bench.round();
    if (round < 0) continue;
    device.push_back(pair.device);
    bare.push_back(pair.bare);
    ratios.push_back(pair.device / pair.bare);
  }
  report.add("net." + name + "_mib_per_s", median(device), "MiB/s");
  report.add("net." + name + "_bare_mib_per_s", median(bare), "MiB/s");
  report.add("net." + name + "_vs_bare", median(ratios), "ratio");
  return median(ratios);
}

}  // namespace

int run(int argc, char** argv) {
  BenchReport report(argc, argv);
  double least = measure(report, "send_1500", Sending(kSmall, kSmallBytes));
  least = std::min(least, measure(report, "send_64k", Sending(kLarge, kLargeBytes)));
  least = std::min(least, measure(report, "receive_1500", Receiving(kSmall, kSmallBytes)));
  least = std::min(least, measure(report, "receive_64k", Receiving(kLarge, kLargeBytes)));
  report.add("net.vs_bare", least, "ratio");
  return report.finish();
}

}  // namespace lethe

int main(int argc, char** argv) { return lethe::run(argc, argv); }
