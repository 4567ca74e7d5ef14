// A pair of queues and the control queue against a hostile driver: rings, headers and commands of
// any content, and an other end that sends what it likes.
//
// The input is a program of steps. What the port is given must be a frame that check_frame() takes,
// in guest memory and behind the header; what it gives must fit the room.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "base/log.h"
#include "devices/virtio/net/net_control.h"
#include "devices/virtio/net/net_pair.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr uint64_t kRam = 1 * kMiB;
constexpr uint64_t kRingSpace = 2 * kKiB;  // of a queue
constexpr uint16_t kSize = 16;
constexpr uint16_t kQueues = 3;
constexpr size_t kStepsMax = 200;

class NoInterrupt : public Interrupt {
 public:
  void signal() override {}
};

class FuzzPort final : public NetPort {
 public:
  FuzzPort(const GuestMemory& memory, FuzzInput& input)
      : x_first(memory.slice(GuestAddr{0}, kRam)->data), x_input(input) {}
  [[nodiscard]] int fd() const override { return -1; }
  [[nodiscard]] uint64_t offloads() const override { return 0; }
  [[nodiscard]] bool has_header() const override { return header; }
  [[nodiscard]] uint32_t frame_bytes_max() const override { return kNetFrameBytesMax; }
  void set_guest_offloads(uint64_t) override {}
  void set_active(bool) override {}
  [[nodiscard]] Sent send(std::span<NetFrame> frames) override {
    for (const NetFrame& frame : frames) {
      LETHE_ASSERT(check_frame(frame.header, frame.bytes, features, kNetFrameBytesMax) == nullptr);
      LETHE_ASSERT(check_room(frame.vectors.subspan(1)) == frame.bytes);
    }
    const auto verdict = x_input.take<uint8_t>();
    const size_t taken = verdict % 4 == 0 ? 0 : frames.size();
    return {.taken = taken,
            .failed = 0,
            .state = taken == 0 ? NetIoState::kWouldBlock : NetIoState::kDone};
  }
  [[nodiscard]] Next next() override {
    if (pending == 0) pending = x_input.take<uint16_t>();
    if (pending == 0) return {.state = NetIoState::kWouldBlock, .bytes = 0};
    return {.state = NetIoState::kDone, .bytes = header ? 0U : pending};
  }
  [[nodiscard]] Received receive(std::span<const iovec> room) override {
    const uint64_t bytes = check_room(room);
    if (x_input.take<uint8_t>() % 8 == 0)
      return {.state = NetIoState::kWouldBlock, .bytes = 0, .truncated = false};
    const uint64_t whole = pending + (header ? sizeof(virtio_net_hdr_v1) : 0);
    pending = 0;
    if (!header) LETHE_ASSERT(bytes >= whole);
    for (const iovec& vector : room) std::memset(vector.iov_base, 0x5A, vector.iov_len);
    return {.state = NetIoState::kDone, .bytes = whole, .truncated = whole > bytes};
  }
  [[nodiscard]] NetIoState skip() override {
    pending = 0;
    return NetIoState::kDone;
  }

  bool header = false;
  uint64_t features = 0;
  uint32_t pending = 0;

 private:
  uint64_t check_room(std::span<const iovec> vectors) const {
    uint64_t bytes = 0;
    LETHE_ASSERT(vectors.size() < 1024);
    for (const iovec& vector : vectors) {
      const auto* const at = static_cast<const uint8_t*>(vector.iov_base);
      LETHE_ASSERT(at >= x_first && vector.iov_len <= kRam &&
                   at + vector.iov_len <= x_first + kRam);
      bytes += vector.iov_len;
    }
    return bytes;
  }
  const uint8_t* x_first;
  FuzzInput& x_input;
};

struct Guest : VirtioHost, NetCommands {
  Guest() {
    constexpr GuestMemory::Range kRange{.start = GuestAddr{0}, .size = kRam};
    memory = GuestMemory::create({&kRange, 1}, {}).value();
    (void)set_log_levels("off");
  }
  void needs_reset(const char*) override {}
  void config_changed() override {}
  void set_mac(const MacAddress& mac) override { LETHE_ASSERT((mac[0] & 1) == 0); }
  void set_pairs(uint16_t pairs) override { LETHE_ASSERT(pairs >= 1 && pairs <= 4); }
  void set_guest_offloads(uint64_t offloads) override { LETHE_ASSERT((offloads & ~features) == 0); }
  void announced() override {}

  std::unique_ptr<GuestMemory> memory;
  NoInterrupt interrupt;
  std::array<QueueCounters, kQueues> counters;
  uint64_t features = 0;
};

class Run {
 public:
  Run(Guest& guest, FuzzInput input) : x_guest(guest), x_input(input) {}

  void run() {
    x_guest.features = x_input.take<uint64_t>() | net_bit(VIRTIO_F_VERSION_1);
    x_port.header = (x_input.take<uint8_t>() & 1) != 0;
    x_port.features = x_guest.features;
    x_shared.host = &x_guest;
    x_shared.features = x_guest.features;
    x_shared.link_up = true;
    const std::vector<uint8_t> zero(kQueues * kRingSpace, 0);
    LETHE_ASSERT(x_guest.memory->write(GuestAddr{0}, zero));
    x_pair.set_port(&x_port);
    x_pair.start_receive(make_queue(0));
    x_pair.start_send(make_queue(1));
    x_control = make_queue(2);
    for (size_t step = 0; step < kStepsMax && !x_input.empty(); ++step) one_step();
    x_pair.stop_receive();
    x_pair.stop_send();
    x_pair.set_port(nullptr);
  }

 private:
  std::unique_ptr<Queue> make_queue(uint16_t index) {
    const uint64_t at = index * kRingSpace;
    auto queue = Queue::create(*x_guest.memory,
                               {.size = kSize,
                                .desc = GuestAddr{at},
                                .driver = GuestAddr{at + 512},
                                .device = GuestAddr{at + 1024}},
                               x_guest.features, x_guest.interrupt, x_guest.counters[index]);
    LETHE_ASSERT(queue.has_value());
    return std::move(*queue);
  }
  // One more chain of up to four buffers on a queue, with any content.
  void add_chain() {
    const uint16_t queue = x_input.take<uint8_t>() % kQueues;
    const auto count = static_cast<uint16_t>(x_input.take<uint8_t>() % 4 + 1);
    const auto first = static_cast<uint16_t>(x_input.take<uint8_t>() % kSize);
    for (uint16_t i = 0; i < count; ++i) {
      vring_desc desc{};
      const bool last = i + 1 == count;
      desc.addr = x_input.take<uint32_t>() % (kRam + 64);
      desc.len = x_input.take<uint16_t>() * (x_input.take<uint8_t>() % 4);
      desc.flags = x_input.take<uint8_t>() & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT);
      if (queue == 0 && x_input.take<uint8_t>() % 8 != 0) desc.flags = VRING_DESC_F_WRITE;
      if (!last) desc.flags |= VRING_DESC_F_NEXT;
      desc.next = static_cast<uint16_t>((first + i + 1) % kSize);
      const uint64_t at = queue * kRingSpace + (first + i) % kSize * sizeof desc;
      LETHE_ASSERT(x_guest.memory->store(GuestAddr{at}, desc));
    }
    const uint64_t ring = queue * kRingSpace + 512;
    const uint16_t index = *x_guest.memory->load<uint16_t>(GuestAddr{ring + 2});
    LETHE_ASSERT(x_guest.memory->store(GuestAddr{ring + 4 + 2 * (index % kSize)}, first));
    LETHE_ASSERT(x_guest.memory->store(GuestAddr{ring + 2}, static_cast<uint16_t>(index + 1)));
  }
  void write_anywhere() {
    std::array<uint8_t, 64> bytes{};
    const auto at = x_input.take<uint32_t>() % (kRam - bytes.size());
    const size_t size = x_input.take<uint8_t>() % bytes.size();
    for (size_t i = 0; i < size; ++i) bytes[i] = x_input.take<uint8_t>();
    LETHE_ASSERT(x_guest.memory->write(GuestAddr{at}, std::span(bytes).first(size)));
  }
  void run_commands() {
    for (unsigned i = 0; i < kSize; ++i) {
      auto chain = x_control->pop();
      if (!chain) break;
      uint32_t written = 0;
      (void)run_command(*chain, x_guest.features, 4, x_guest, written);
      chain->complete(written);
    }
    if (x_control->broken()) x_control = make_queue(2);
  }
  void one_step() {
    switch (x_input.take<uint8_t>() % 8) {
      case 0:
      case 1:
        return add_chain();
      case 2:
        return write_anywhere();
      case 3:
        (void)x_pair.send();
        return;
      case 4:
        (void)x_pair.receive();
        (void)x_pair.want_kicks();
        return;
      case 5:
        return run_commands();
      case 6:
        x_shared.link_up = !x_shared.link_up;
        return;
      default:
        x_pair.stop_receive();
        x_pair.stop_send();
        x_pair.start_receive(make_queue(0));
        x_pair.start_send(make_queue(1));
        return;
    }
  }

  Guest& x_guest;
  FuzzInput x_input;
  NetCounters x_counters;
  NetShared x_shared{.counters = x_counters};
  FuzzPort x_port{*x_guest.memory, x_input};
  NetPair x_pair{x_shared};
  std::unique_ptr<Queue> x_control;
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static lethe::Guest guest;
  lethe::Run(guest, lethe::FuzzInput(data, size)).run();
  return 0;
}
