// The balloon against a hostile driver: chains of any shape on any queue, any configuration writes,
// resets at any time, while the host sets targets, asks for statistics and pulls.
//
// The input is a program of such steps. Whatever happens, the process goes on; at the end nothing
// is isolated, and each byte that was taken is accounted for once.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "base/log.h"
#include "devices/virtio/balloon/balloon.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr uint64_t kRings = 64 * kKiB;     // from 0: rings and tables
constexpr uint64_t kRingSpace = 2 * kKiB;  // of a queue
constexpr uint16_t kSize = 16;
constexpr size_t kStepsMax = 200;

class NoInterrupt : public Interrupt {
 public:
  void signal() override {}
};

// One guest for the whole run: making one costs more than fuzzing it.
struct Guest : VirtioHost {
  Guest() {
    constexpr GuestMemory::Range kRam[] = {{.start = GuestAddr{0}, .size = 5 * kMiB},
                                           {.start = GuestAddr{8 * kMiB}, .size = 4 * kMiB}};
    memory = GuestMemory::create(kRam, {}).value();
    pipeline = std::make_unique<ReturnPipeline>(
        *memory, ReturnPipelineOptions{.isolated_max = 2 * kMiB, .wake_bytes_max = 1 * kMiB});
    device = BalloonDevice::create(*memory, *pipeline, {});
    for (size_t i = 0; i < BalloonDevice::kQueues; ++i) kicks.push_back(EventFd::create().value());
    (void)set_log_levels("off");
  }
  void needs_reset(const char*) override {}
  void config_changed() override {}

  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<ReturnPipeline> pipeline;
  std::unique_ptr<BalloonDevice> device;
  std::vector<EventFd> kicks;
  NoInterrupt interrupt;
  std::array<QueueCounters, BalloonDevice::kQueues> counters;
};

class Run {
 public:
  Run(Guest& guest, FuzzInput input) : x_guest(guest), x_input(input) {}

  void run() {
    start();
    for (size_t step = 0; step < kStepsMax && !x_input.empty(); ++step) one_step();
    x_guest.device->reset();
    const ReturnCounters& c = x_guest.pipeline->counters();
    LETHE_ASSERT(c.isolated == 0);
    const uint64_t taken = c.taken[0] + c.taken[1] + c.taken[2];
    LETHE_ASSERT(c.moved + c.freed + c.lazy + c.overwritten + c.absent + c.repeated == taken);
    LETHE_ASSERT(x_guest.device->target() <= x_guest.memory->total_bytes());
  }

 private:
  [[nodiscard]] static QueueLayout layout(uint16_t index) {
    const uint64_t at = index * kRingSpace;
    return {.size = kSize,
            .desc = GuestAddr{at},
            .driver = GuestAddr{at + 512},
            .device = GuestAddr{at + 1024}};
  }
  void start() {
    std::vector<uint8_t> zero(kRings, 0);
    LETHE_ASSERT(x_guest.memory->write(GuestAddr{0}, zero));
    x_features = x_input.take<uint8_t>() & 0x3f;
    x_ring = (x_input.take<uint8_t>() & 3) * (uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC);
    x_guest.device->start(x_features | x_ring, x_guest);
    for (uint16_t i = 0; i < BalloonDevice::kQueues; ++i) start_queue(i);
  }
  void start_queue(uint16_t index) {
    x_next[index] = 0;
    LETHE_ASSERT(x_guest.memory->store(GuestAddr{layout(index).driver.value + 2}, uint16_t{0}));
    auto queue = Queue::create(*x_guest.memory, layout(index), x_ring, x_guest.interrupt,
                               x_guest.counters[index]);
    LETHE_ASSERT(queue.has_value());
    x_guest.device->start_queue(index, std::move(*queue), x_guest.kicks[index]);
  }
  void kick(uint16_t index) {
    if (x_guest.device->serves_kicks(index))
      x_guest.device->kicked(index);
    else
      x_guest.kicks[index].signal();
  }

  void one_step() {
    const auto what = x_input.take<uint8_t>();
    const auto index = static_cast<uint16_t>(x_input.take<uint8_t>() % BalloonDevice::kQueues);
    switch (what % 12) {
      case 0: {  // anything, anywhere in the rings
        const auto at = x_input.take<uint16_t>();
        (void)x_guest.memory->write(GuestAddr{at}, x_input.take<std::array<uint8_t, 16>>());
        break;
      }
      case 1: {
        const auto value = x_input.take<uint32_t>();
        // SAFETY: an integer, seen as its bytes.
        x_guest.device->write_config(index * 4U % 16,
                                     {reinterpret_cast<const uint8_t*>(&value), sizeof value});
        break;
      }
      case 2:
        x_guest.device->set_target(x_input.take<uint32_t>() * uint64_t{kKiB});
        break;
      case 3:
        x_guest.device->pull(x_input.take<uint32_t>(), [](uint64_t) {}, [](PullResult) {});
        break;
      case 4:
        x_guest.device->request_statistics([](const BalloonStatistics&) {});
        break;
      case 5:
        x_guest.device->stop_queue(index);
        start_queue(index);
        break;
      case 6:
        x_guest.device->reset();
        start();
        break;
      case 7:
        x_guest.pipeline->set_policy(static_cast<ReturnPolicy>(x_input.take<uint8_t>() % 3));
        break;
      case 8:
        answer_hint_command();
        break;
      default:
        add_chain(index);
        kick(index);
    }
  }

  // A driver that knows the command id, so that hints get past it.
  void answer_hint_command() {
    virtio_balloon_config config{};
    // SAFETY: the structure, seen as its bytes.
    x_guest.device->read_config(0, {reinterpret_cast<uint8_t*>(&config), sizeof config});
    constexpr GuestAddr kAt{kRings - 4};
    LETHE_ASSERT(x_guest.memory->store(kAt, uint32_t{config.free_page_hint_cmd_id}));
    for (uint16_t index = 0; index < BalloonDevice::kQueues; ++index) {
      if (!x_guest.device->serves_kicks(index)) continue;
      put_descriptor(index, 0, {.addr = kAt.value, .len = 4, .flags = 0, .next = 0});
      publish(index, 0);
      kick(index);
    }
  }
  void put_descriptor(uint16_t index, uint16_t slot, const vring_desc& desc) {
    LETHE_ASSERT(
        x_guest.memory->store(GuestAddr{layout(index).desc.value + slot * sizeof desc}, desc));
  }
  void publish(uint16_t index, uint16_t head) {
    const uint64_t ring = layout(index).driver.value;
    LETHE_ASSERT(x_guest.memory->store(GuestAddr{ring + 4 + 2U * (x_next[index] % kSize)}, head));
    LETHE_ASSERT(x_guest.memory->store(GuestAddr{ring + 2}, ++x_next[index]));
  }
  // Mostly valid: what the queue itself refuses is queue_fuzz's subject.
  void add_chain(uint16_t index) {
    const auto count = static_cast<uint16_t>(1 + x_input.take<uint8_t>() % 4);
    const auto flavour = x_input.take<uint8_t>();
    for (uint16_t i = 0; i < count; ++i) {
      vring_desc desc{};
      if ((flavour & 1) != 0) {  // whole pages to write: a report, a hint
        desc.addr = uint64_t{x_input.take<uint16_t>()} % 3072 * 4096;
        desc.len = uint32_t{x_input.take<uint8_t>()} * 4096;
        desc.flags = VRING_DESC_F_WRITE;
      } else if ((flavour & 2) != 0) {  // an array to read, in memory that the input writes
        desc.addr = x_input.take<uint16_t>();
        desc.len = x_input.take<uint16_t>();
      } else {
        desc.addr = x_input.take<uint32_t>() % (14 * kMiB);
        desc.len = x_input.take<uint32_t>() % (8 * kMiB);
        desc.flags = x_input.take<uint8_t>() & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT);
      }
      if (i + 1 < count) desc.flags |= VRING_DESC_F_NEXT;
      desc.next = static_cast<uint16_t>(i + 1);
      put_descriptor(index, i, desc);
    }
    publish(index, 0);
  }

  Guest& x_guest;
  FuzzInput x_input;
  uint64_t x_features = 0;
  uint64_t x_ring = 0;
  std::array<uint16_t, BalloonDevice::kQueues> x_next{};
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static lethe::Guest guest;
  lethe::Run(guest, lethe::FuzzInput(data, size)).run();
  return 0;
}
