#include "devices/virtio/queue.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace lethe {
namespace {

// virtio's integers are little-endian (1.4); so is the only host this is built for.
static_assert(std::endian::native == std::endian::little);

constexpr size_t kAvailFlags = 0;  // positions in the rings, in uint16_t
constexpr size_t kAvailIndex = 1;
constexpr size_t kAvailRing = 2;
constexpr size_t kUsedFlags = 0;
constexpr size_t kUsedIndex = 1;
constexpr size_t kUsedRing = 2;
constexpr size_t kUsedElementWords = sizeof(vring_used_elem) / sizeof(uint16_t);

constexpr uint16_t kPrefetchMax = 32;                            // chains
constexpr size_t kChainBytesUsual = sizeof(vring_desc) * 3 - 1;  // a block request's descriptors

constexpr uint64_t kAvailAlign = 2;  // 2.7
constexpr uint64_t kUsedAlign = 4;
constexpr uint64_t kDescAlign = 16;

// Sizes with the event word at the end, which is there with or without EVENT_IDX (2.7).
constexpr uint64_t desc_bytes(uint16_t size) { return sizeof(vring_desc) * size; }
constexpr uint64_t avail_bytes(uint16_t size) { return 6 + sizeof(uint16_t) * size; }
constexpr uint64_t used_bytes(uint16_t size) { return 6 + sizeof(vring_used_elem) * size; }

// SAFETY: ring words are 2-byte aligned (create() checks the rings) and shared with vCPUs, which
// store and load them whole; atomic_ref makes each access here one access too.
uint16_t load(uint16_t& word, std::memory_order order) {
  return std::atomic_ref<uint16_t>(word).load(order);
}
void store(uint16_t& word, uint16_t value, std::memory_order order) {
  std::atomic_ref<uint16_t>(word).store(value, order);
}

// Copies a descriptor out of memory that the guest may be writing: each byte is read once.
vring_desc fetch_descriptor(const uint8_t* at) {
  uint64_t words[2];
  std::memcpy(words, at, sizeof words);
  // SAFETY: the empty asm makes the two values opaque, so the compiler can't read them a second
  // time from guest memory in place of the copy. (atomic_ref won't do: an indirect table may be
  // unaligned.)
  asm("" : "+r"(words[0]), "+r"(words[1]));
  vring_desc desc;
  std::memcpy(&desc, words, sizeof desc);
  return desc;
}

// One writer, many readers: no need for an atomic read-modify-write.
void count(std::atomic<uint64_t>& counter) {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// 2.7.7.2: whether an event at `event` lies in what happened from `from` up to `to`. Each
// difference is taken modulo 2^16: without the casts, ints would go negative and compare wrong.
bool event_wanted(uint16_t event, uint16_t to, uint16_t from) {
  return static_cast<uint16_t>(to - event - 1) < static_cast<uint16_t>(to - from);
}

Result<uint8_t*> find_ring(const GuestMemory& memory, const char* name, GuestAddr address,
                           uint64_t bytes, uint64_t alignment) {
  if (address.value % alignment != 0)
    return host_error("{} at {:#x} is not {}-byte aligned", name, address.value, alignment);
  const auto slice = memory.slice(address, bytes);
  if (!slice) return host_error("{} at {:#x} is not wholly in guest memory", name, address.value);
  return slice->data;
}

size_t copy_across(std::span<const IoSlice> slices, uint64_t offset, size_t size,
                   auto&& copy_piece) {
  size_t done = 0;
  for (const IoSlice& slice : slices) {
    if (done == size) break;
    if (offset >= slice.size) {
      offset -= slice.size;
      continue;
    }
    const size_t piece = std::min<size_t>(slice.size - offset, size - done);
    copy_piece(slice.data + offset, done, piece);
    done += piece;
    offset = 0;
  }
  return done;
}

}  // namespace

size_t Chain::copy_from_readable(uint64_t offset, std::span<uint8_t> to) const {
  return copy_across(readable(), offset, to.size(),
                     [&](const uint8_t* guest, size_t done, size_t size) {
                       std::memcpy(to.data() + done, guest, size);
                     });
}

size_t Chain::copy_to_writable(uint64_t offset, std::span<const uint8_t> from) const {
  return copy_across(writable(), offset, from.size(),
                     [&](uint8_t* guest, size_t done, size_t size) {
                       std::memcpy(guest, from.data() + done, size);
                     });
}

void Chain::complete(uint32_t written) {
  LETHE_ASSERT(x_queue != nullptr);
  std::exchange(x_queue, nullptr)->complete(x_head, written);
}

Result<> check_position(const QueuePosition& position, uint16_t size) {
  const auto wrong = [](const char* what) {
    return config_error("the position of a queue is wrong: {}", what);
  };
  if (position.unfinished.size() > size) return wrong("more chains than descriptors");
  std::vector<bool> seen(size);
  for (const uint16_t head : position.unfinished) {
    if (head >= size) return wrong("a head lies outside the descriptor table");
    if (seen[head]) return wrong("a head is there twice");
    seen[head] = true;
  }
  // Each chain moves the one index when it is popped, and the other when it is completed; in a
  // broken queue only the first.
  const auto distance = static_cast<uint16_t>(position.next_avail - position.next_used);
  if (!position.broken && distance != position.unfinished.size())
    return wrong("its indices do not go with its chains");
  return {};
}

Queue::Queue(const GuestMemory& memory, uint64_t features, Interrupt& interrupt,
             QueueCounters& counters)
    : x_memory(memory),
      x_interrupt(interrupt),
      x_counters(counters),
      x_indirect((features >> VIRTIO_RING_F_INDIRECT_DESC & 1) != 0),
      x_event_idx((features >> VIRTIO_RING_F_EVENT_IDX & 1) != 0) {}

Result<std::unique_ptr<Queue>> Queue::create(const GuestMemory& memory, const QueueLayout& layout,
                                             uint64_t features, Interrupt& interrupt,
                                             QueueCounters& counters, QueueKeeper* keeper) {
  const uint16_t size = layout.size;
  if (!std::has_single_bit(size) || size > kQueueSizeMax)
    return host_error("queue size {} is not a power of two up to {}", size, kQueueSizeMax);
  if (keeper != nullptr) LETHE_TRY(check_position(keeper->position, size));
  std::unique_ptr<Queue> queue(new Queue(memory, features, interrupt, counters));
  uint8_t* avail = nullptr;
  uint8_t* used = nullptr;
  LETHE_TRY_ASSIGN(queue->x_desc, find_ring(memory, "descriptor table", layout.desc,
                                            desc_bytes(size), kDescAlign));
  LETHE_TRY_ASSIGN(
      avail, find_ring(memory, "available ring", layout.driver, avail_bytes(size), kAvailAlign));
  LETHE_TRY_ASSIGN(used,
                   find_ring(memory, "used ring", layout.device, used_bytes(size), kUsedAlign));
  // SAFETY: host and guest addresses are congruent modulo 4096, so the guest's alignment holds
  // here.
  queue->x_avail = reinterpret_cast<uint16_t*>(avail);
  queue->x_used = reinterpret_cast<uint16_t*>(used);
  queue->x_size = size;
  queue->x_mask = static_cast<uint16_t>(size - 1);
  queue->x_slots = std::make_unique_for_overwrite<Slot[]>(size);
  queue->x_long_slices = std::make_unique<LongSlices[]>(size);
  queue->x_head_in_flight = std::make_unique<bool[]>(size);
  if (keeper != nullptr) queue->go_on_from(*keeper);
  return Result<std::unique_ptr<Queue>>(std::move(queue));
}

void Queue::go_on_from(QueueKeeper& keeper) {
  x_keeper = &keeper;
  QueuePosition position = std::exchange(keeper.position, {});
  x_next_avail = x_avail_index = position.next_avail;
  x_used_index = x_signalled_used = position.next_used;
  x_kept = std::move(position.unfinished);
  x_kept_left = static_cast<uint16_t>(x_kept.size());
  for (const uint16_t head : x_kept) x_head_in_flight[head] = true;
  if (position.broken) {
    x_broken = x_look_closer = true;
    x_broken_reason = "it was broken before the machine was frozen";
  }
}

Queue::~Queue() {
  LETHE_ASSERT(x_in_flight == 0);
  if (x_keeper == nullptr) return;
  QueuePosition& position = x_keeper->position;
  position = {.next_avail = x_next_avail,
              .next_used = x_used_index,
              .broken = x_broken,
              .unfinished = std::move(x_dropped)};
  position.unfinished.insert(position.unfinished.end(), x_kept.end() - x_kept_left, x_kept.end());
}

bool Queue::fail(const char* reason) {
  x_broken = x_look_closer = true;
  x_broken_reason = reason;
  count(x_counters.rejected);
  return false;
}

// Looks how far the driver is; true if there is something to pop.
bool Queue::fetch_avail_index() {
  // SAFETY: acquire pairs with the driver's release of idx (2.7.13.3 has it put a barrier there):
  // ring entries and descriptors up to idx are visible after it.
  x_avail_index = load(x_avail[kAvailIndex], std::memory_order_acquire);
  const auto pending = static_cast<uint16_t>(x_avail_index - x_next_avail);
  if (pending > x_size) return fail("the available index is ahead by more than the queue's size");
  prefetch_descriptors(std::min(pending, kPrefetchMax));
  return pending != 0;
}

void Queue::look_ahead() {
  if (x_broken) return;
  // SAFETY: only a hint; create() checked the ring, to its event word.
  __builtin_prefetch(&x_avail[kAvailRing + x_size]);
  if (x_next_avail == x_avail_index) (void)fetch_avail_index();
}

// The driver's processor has the descriptors' lines: fetching those of a batch at once takes little
// longer than fetching one. Nothing but a hint: pop() looks at the entries again.
void Queue::prefetch_descriptors(uint16_t count) const {
  for (uint16_t i = 0; i < count; ++i) {
    const auto position = static_cast<uint16_t>(x_next_avail + i) & x_mask;
    const uint16_t head = load(x_avail[kAvailRing + position], std::memory_order_relaxed);
    const uint8_t* const entry = x_desc + sizeof(vring_desc) * (head & x_mask);
    __builtin_prefetch(entry);
    __builtin_prefetch(entry + kChainBytesUsual);
  }
}

std::optional<Chain> Queue::pop(const MemoryMap& map) {
  if (x_broken) return std::nullopt;
  if (x_kept_left > 0) [[unlikely]]
    return pop_kept(map);
  if (x_next_avail == x_avail_index && !fetch_avail_index()) return std::nullopt;
  const uint16_t head =
      load(x_avail[kAvailRing + (x_next_avail & x_mask)], std::memory_order_relaxed);
  if (head >= x_size) {
    fail("a head index lies outside the descriptor table");
    return std::nullopt;
  }
  if (x_head_in_flight[head]) {
    fail("a chain was made available again before it was used");
    return std::nullopt;
  }
  if (!walk(map, head)) return std::nullopt;
  ++x_next_avail;
  ++x_in_flight;
  x_head_in_flight[head] = true;
  count(x_counters.chains);
  return Chain(*this, head);
}

// What was popped once already: x_next_avail is past it.
std::optional<Chain> Queue::pop_kept(const MemoryMap& map) {
  const uint16_t head = x_kept[x_kept.size() - x_kept_left];
  if (!walk(map, head)) return std::nullopt;
  --x_kept_left;
  ++x_in_flight;
  return Chain(*this, head);
}

// A chain that its owner lets go of without a word.
void Queue::drop(uint16_t head) {
  if (x_keeper == nullptr || !x_keeper->keeps_chains.load(std::memory_order_acquire))
    return complete(head, 0);
  LETHE_ASSERT(x_in_flight > 0 && x_head_in_flight[head]);
  --x_in_flight;
  x_dropped.push_back(head);
}

// A walk along a chain: the table it is in, and where its slices go.
struct Queue::Walk {
  const MemoryMap& map;
  const uint8_t* table;
  uint32_t table_size;  // entries
  uint16_t head;
  bool indirect = false;
  uint32_t buffers = 0;  // descriptors that describe buffers, empty ones too
  uint64_t readable_bytes = 0;
  uint64_t writable_bytes = 0;
  uint16_t readable_count = 0;
  uint16_t count = 0;
};

bool Queue::walk(const MemoryMap& map, uint16_t head) {
  Walk walk{.map = map, .table = x_desc, .table_size = x_size, .head = head};
  uint32_t index = head;
  for (;;) {
    if (index >= walk.table_size) return fail("a descriptor's next lies outside its table");
    const vring_desc desc = fetch_descriptor(walk.table + sizeof(vring_desc) * index);
    if ((desc.flags & VRING_DESC_F_INDIRECT) != 0) {
      if (!enter_indirect(walk, desc)) return false;
      index = 0;
      continue;
    }
    // This is also what ends a loop: 2.7.5.3.1 allows no chain longer than the queue.
    if (++walk.buffers > x_size) return fail("a chain is longer than the queue");
    if (!take_buffer(walk, desc)) return false;
    if ((desc.flags & VRING_DESC_F_NEXT) == 0) break;
    index = desc.next;
  }
  Slot& slot = x_slots[head];
  slot.readable_bytes = walk.readable_bytes;
  slot.writable_bytes = walk.writable_bytes;
  slot.readable_count = walk.readable_count;
  slot.count = walk.count;
  return true;
}

// 2.7.5.3: an indirect descriptor ends the chain in the main table and goes on in a table of its
// own. Its WRITE flag means nothing (2.7.5.3.2).
bool Queue::enter_indirect(Walk& walk, const vring_desc& desc) {
  if (!x_indirect) return fail("an indirect descriptor without the feature negotiated");
  if (walk.indirect) return fail("an indirect descriptor inside an indirect table");
  if ((desc.flags & VRING_DESC_F_NEXT) != 0) return fail("an indirect descriptor with a next");
  if (desc.len == 0 || desc.len % sizeof(vring_desc) != 0)
    return fail("an indirect table's length is no multiple of 16 above 0");
  const uint32_t entries = desc.len / sizeof(vring_desc);
  if (entries > x_size) return fail("an indirect table is larger than the queue");
  const auto table = walk.map.slice(GuestAddr{desc.addr}, desc.len);
  if (!table) return fail("an indirect table lies outside guest memory");
  walk.table = table->data;
  walk.table_size = entries;
  walk.indirect = true;
  return true;
}

inline bool Queue::take_buffer(Walk& walk, const vring_desc& desc) {
  const bool writable = (desc.flags & VRING_DESC_F_WRITE) != 0;
  if (!writable && walk.count > walk.readable_count)
    return fail("a readable descriptor follows a writable one");
  if (desc.len == 0) return true;
  if (walk.readable_bytes + walk.writable_bytes + desc.len > kChainBytesMax)
    return fail("a chain describes more than 4 GiB");
  const auto slice = walk.map.slice(GuestAddr{desc.addr}, desc.len);
  if (!slice) return fail("a buffer lies outside guest memory");
  next_slice(walk.head, walk.count) = *slice;
  ++walk.count;
  if (writable) {
    walk.writable_bytes += desc.len;
  } else {
    ++walk.readable_count;
    walk.readable_bytes += desc.len;
  }
  return true;
}

// Room for one more slice behind the first `used` ones.
inline IoSlice& Queue::next_slice(uint16_t head, uint16_t used) {
  if (used < kInlineSlices) [[likely]]
    return x_slots[head].slices[used];
  return next_long_slice(head, used);
}

// The same beyond the slot.
IoSlice& Queue::next_long_slice(uint16_t head, uint16_t used) {
  Slot& slot = x_slots[head];
  LongSlices& overflow = x_long_slices[head];
  if (used >= overflow.capacity) {
    // Two sizes; x_size is enough for any: walk() has bounded the chain.
    const uint16_t capacity = used < kKeptSlices ? std::min(kKeptSlices, x_size) : x_size;
    auto grown = std::make_unique_for_overwrite<IoSlice[]>(capacity);
    std::copy_n(overflow.slices.get(), overflow.capacity, grown.get());
    overflow = {.slices = std::move(grown), .capacity = capacity};
    x_look_closer |= capacity > kKeptSlices;
  }
  if (used == kInlineSlices)
    std::copy(slot.slices.begin(), slot.slices.end(), overflow.slices.get());
  return overflow.slices[used];
}

void Queue::complete(uint16_t head, uint32_t written) {
  LETHE_ASSERT(x_in_flight > 0 && x_head_in_flight[head]);
  LETHE_ASSERT(written <= x_slots[head].writable_bytes);
  x_head_in_flight[head] = false;
  --x_in_flight;
  if (x_look_closer) [[unlikely]] {
    if (x_slots[head].count > kKeptSlices) x_long_slices[head] = {};
    // The driver gets nothing more from a broken queue: it has to reset the device.
    if (x_broken) return;
  }
  const vring_used_elem element{.id = head, .len = written};
  uint16_t* const entry = x_used + kUsedRing + kUsedElementWords * (x_used_index & x_mask);
  // SAFETY: the entry lies in the ring (masked index), which create() checked; the driver does not
  // read it before the store of idx below.
  std::memcpy(entry, &element, sizeof element);
  ++x_used_index;
  // SAFETY: release pairs with the driver's acquire of idx (2.7.8.2 and 2.7.14): whoever sees the
  // index sees the entry and the buffers' content.
  store(x_used[kUsedIndex], x_used_index, std::memory_order_release);
  ++x_completed;
}

size_t Queue::long_slice_bytes() const {
  size_t bytes = 0;
  for (uint16_t head = 0; head < x_size; ++head)
    bytes += x_long_slices[head].capacity * sizeof(IoSlice);
  return bytes;
}

void Queue::disable_kicks() {
  if (x_broken) return;
  // With EVENT_IDX there is nothing to say: avail_event stays behind, where the driver's index
  // does not come by again before enable_kicks() has set a new one (unless it goes once around
  // 2^16, which costs a kick for nothing).
  if (!x_event_idx) store(x_used[kUsedFlags], VRING_USED_F_NO_NOTIFY, std::memory_order_relaxed);
}

bool Queue::enable_kicks() {
  if (x_broken) return false;
  if (x_event_idx) {
    uint16_t& avail_event = x_used[kUsedRing + kUsedElementWords * x_size];
    store(avail_event, x_next_avail, std::memory_order_relaxed);
  } else {
    store(x_used[kUsedFlags], 0, std::memory_order_relaxed);
  }
  // SAFETY: store-load order. The driver stores idx, fences, loads our wish; we store our wish,
  // fence, load idx. Without both fences each could miss the other's store: a chain without a kick.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return x_kept_left > 0 || fetch_avail_index() || x_broken;
}

void Queue::interrupt_if_needed() {
  if (x_broken || x_completed == 0) return;
  // SAFETY: store-load order, as in enable_kicks(): used idx stored before, the driver's wish
  // loaded after; the driver stores its wish, fences, and looks at idx again (2.7.7.1, 2.7.14).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  bool wanted = false;
  if (x_event_idx) {
    uint16_t& used_event = x_avail[kAvailRing + x_size];
    const uint16_t event = load(used_event, std::memory_order_relaxed);
    // A batch of 2^16 or more has passed every index.
    wanted = x_completed > UINT16_MAX || event_wanted(event, x_used_index, x_signalled_used);
  } else {
    const uint16_t flags = load(x_avail[kAvailFlags], std::memory_order_relaxed);
    wanted = (flags & VRING_AVAIL_F_NO_INTERRUPT) == 0;
  }
  x_signalled_used = x_used_index;
  x_completed = 0;
  if (!wanted) return;
  count(x_counters.interrupts);
  x_interrupt.signal();
}

}  // namespace lethe
