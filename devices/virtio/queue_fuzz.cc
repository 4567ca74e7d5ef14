// The queue against arbitrary bytes in the guest's rings, tables and registers.
//
// The input is the guest's memory image, and a program of what device and driver do in turn. Memory
// lies between pages nobody may touch; every slice must lie inside it; whatever happens, the queue
// ends broken or goes on, and nothing outside the used ring and the writable slices changes.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/fuzz_input.h"
#include "devices/virtio/queue.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

constexpr uint64_t kMemory = 8192;
constexpr uint64_t kPage = 4096;
constexpr size_t kStepsMax = 256;

class NoInterrupt : public Interrupt {
 public:
  void signal() override {}
};

// One guest for the whole run: making one costs more than fuzzing it.
struct Guest {
  Guest() {
    constexpr GuestMemory::Range kRange{GuestAddr{0}, kMemory};
    memory = GuestMemory::create({&kRange, 1}, {.thp = false}).value();
    base = memory->regions()[0].host;
    for (uint8_t* const at : {base - kPage, base + kMemory})
      (void)::mmap(at, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  }
  std::unique_ptr<GuestMemory> memory;
  uint8_t* base = nullptr;
};

class Run {
 public:
  Run(Guest& guest, FuzzInput& input) : x_guest(guest), x_input(input) {}

  void run() {
    const uint8_t shape = x_input.take<uint8_t>();
    const auto size = static_cast<uint16_t>(1U << (shape & 7));
    const uint64_t features = (shape & 8 ? uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC : 0) |
                              (shape & 16 ? uint64_t{1} << VIRTIO_RING_F_EVENT_IDX : 0);
    // Rings at the end of memory, where one byte too many hits the guard; or anywhere.
    const uint64_t used_bytes = (6U + 8U * size + 3U) & ~3U;
    const uint64_t avail_bytes = 6U + 2U * size;
    x_used_at = kMemory - used_bytes;
    QueueLayout layout{.size = size,
                       .desc = GuestAddr{0},
                       .driver = GuestAddr{(x_used_at - avail_bytes) & ~uint64_t{1}},
                       .device = GuestAddr{x_used_at}};
    if (shape & 32) std::swap(layout.driver, layout.desc);  // mostly misaligned: refused
    x_avail_at = layout.driver.value;
    auto queue = Queue::create(*x_guest.memory, layout, features, x_interrupt, x_counters);
    if (!queue) return;
    x_used_bytes = 6U + 8U * size;
    x_queue = std::move(*queue);
    fill_memory();
    for (size_t step = 0; step < kStepsMax && x_input.left() > 0; ++step) one_step();
    x_held.clear();
    LETHE_ASSERT(x_queue->in_flight() == 0);
    LETHE_ASSERT(x_counters.rejected == (x_queue->broken() ? 1U : 0U));
  }

 private:
  // The first input bytes are the descriptor table and what follows it, then the available ring.
  void fill_memory() {
    std::memset(x_guest.base, 0, kMemory);
    const size_t low = std::min<size_t>(x_input.left() / 2, x_avail_at);
    (void)x_input.take(x_guest.base, low);
    const size_t ring = std::min<size_t>(x_input.left() / 2, 64);
    (void)x_input.take(x_guest.base + x_avail_at, std::min<uint64_t>(ring, kMemory - x_avail_at));
  }

  void one_step() {
    switch (x_input.take<uint8_t>() % 8) {
      case 0:
      case 1:
        pop();
        break;
      case 2:
        finish(x_input.take<uint8_t>());
        break;
      case 3:
        x_queue->interrupt_if_needed();
        break;
      case 4:
        (void)x_queue->enable_kicks();
        break;
      case 5:
        x_queue->disable_kicks();
        break;
      case 6: {  // the driver moves on
        const uint16_t index = x_input.take<uint8_t>();
        std::memcpy(x_guest.base + x_avail_at + 2, &index, sizeof index);
        break;
      }
      default: {  // the driver writes 16 bytes somewhere
        uint16_t at = 0;
        std::array<uint8_t, 16> bytes{};
        if (!x_input.take(&at, sizeof at) || !x_input.take(bytes.data(), bytes.size())) break;
        (void)x_guest.memory->write(GuestAddr{at}, bytes);
      }
    }
  }

  void pop() {
    const std::vector<uint8_t> before(x_guest.base, x_guest.base + kMemory);
    auto chain = x_queue->pop();
    LETHE_ASSERT(std::memcmp(before.data(), x_guest.base, kMemory) == 0);
    if (!chain) return;
    const uint8_t* const end = x_guest.base + kMemory;
    uint64_t total = 0;
    for (const auto slices : {chain->readable(), chain->writable()}) {
      LETHE_ASSERT(slices.size() <= x_queue->size());
      for (const IoSlice& slice : slices) {
        LETHE_ASSERT(slice.size > 0 && slice.data >= x_guest.base && slice.data < end);
        LETHE_ASSERT(slice.size <= static_cast<size_t>(end - slice.data));
        total += slice.size;
      }
    }
    LETHE_ASSERT(total == chain->readable_bytes() + chain->writable_bytes());
    x_held.push_back(std::move(*chain));
  }

  // Completes one of the chains, after writing all of it, as a device would.
  void finish(uint8_t which) {
    if (x_held.empty()) return;
    std::swap(x_held[which % x_held.size()], x_held.back());
    Chain chain = std::move(x_held.back());
    x_held.pop_back();
    std::vector<uint8_t> scratch(std::min<uint64_t>(chain.readable_bytes(), 4096));
    LETHE_ASSERT(chain.copy_from_readable(0, scratch) == scratch.size());
    scratch.assign(std::min<uint64_t>(chain.writable_bytes(), 4096), which);
    const std::vector<uint8_t> before(x_guest.base, x_guest.base + kMemory);
    LETHE_ASSERT(chain.copy_to_writable(0, scratch) == scratch.size());
    std::vector<bool> allowed(kMemory, false);
    for (const IoSlice& slice : chain.writable()) {
      std::fill_n(allowed.begin() + (slice.data - x_guest.base), slice.size, true);
    }
    std::fill_n(allowed.begin() + static_cast<ptrdiff_t>(x_used_at), x_used_bytes, true);
    chain.complete(static_cast<uint32_t>(scratch.size()));
    for (size_t i = 0; i < kMemory; ++i) LETHE_ASSERT(allowed[i] || before[i] == x_guest.base[i]);
  }

  Guest& x_guest;
  FuzzInput& x_input;
  NoInterrupt x_interrupt;
  QueueCounters x_counters;
  uint64_t x_avail_at = 0;
  uint64_t x_used_at = 0;
  uint64_t x_used_bytes = 0;
  std::unique_ptr<Queue> x_queue;  // before the chains: it must outlive them
  std::vector<Chain> x_held;
};

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static lethe::Guest guest;
  lethe::FuzzInput input(data, size);
  lethe::Run(guest, input).run();
  return 0;
}
