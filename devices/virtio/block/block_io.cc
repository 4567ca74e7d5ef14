#include "devices/virtio/block/block_io.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <optional>

#include "base/log.h"

namespace lethe {
namespace {

constexpr unsigned kRoundsMax = 64;                   // of a pump before other work has its turn
constexpr uint64_t kTransferMax = uint64_t{1} << 30;  // bytes of one operation; more goes on
constexpr uint16_t kRetriesMax = 16;                  // of EINTR and EAGAIN
constexpr size_t kBatch = 16;                         // requests taken before they are started
constexpr size_t kZeroBytes = 64 * 1024;

// Not const, so that it takes no room in the program's file. Nothing writes to it.
alignas(4096) uint8_t zeroes[kZeroBytes];

void prefetch(const Chain& chain) {
  if (!chain.writable().empty()) {
    const IoSlice& last = chain.writable().back();
    __builtin_prefetch(last.data + last.size - 1, 1);  // first: drivers keep both in one line
  }
  if (!chain.readable().empty()) __builtin_prefetch(chain.readable().front().data);
}

// This thread alone counts. A locked addition would wait for the stores before it, into lines that
// the guest's processor has: a noticeable part of a small read's time.
void add(std::atomic<uint64_t>& counter, uint64_t amount) {
  counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

}  // namespace

BlockIo::BlockIo(EventLoop& loop, DiskFile& disk, BlockGeometry geometry, BlockIoOptions options,
                 BlockCounters& counters, std::unique_ptr<IoRing> ring, size_t queues)
    : x_loop(loop),
      x_disk(disk),
      x_geometry(geometry),
      x_options(std::move(options)),
      x_counters(counters),
      x_ring(std::move(ring)),
      x_timer(loop.make_timer([this] { release_held(); })),
      // The shrinker's registration has ended before this is destroyed, on the loop's thread: what
      // it posted has run by then.
      x_bounce([this] { x_loop.post([this] { x_bounce.purge_as_asked(); }); }),
      x_rates(x_options.rates),
      x_requests(x_rates.iops_max),
      x_bytes(x_rates.bandwidth_max),
      x_queues(queues) {}

BlockIo::~BlockIo() { stop_all(); }

Result<> BlockIo::watch() {
  LETHE_TRY_ASSIGN(x_ring_watch, x_loop.watch_event(x_ring->event().fd(), [this] { pump(); }));
  return {};
}

void BlockIo::start(VirtioHost& host, bool write_through) {
  x_host = &host;
  x_write_through = write_through;
}

void BlockIo::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  LiveQueue& live = x_queues[index];
  live = LiveQueue{};
  live.requests = std::make_unique<BlockRequest[]>(queue->size());
  for (uint16_t i = 0; i < queue->size(); ++i) live.requests[i].queue = index;
  live.queue = std::move(queue);
  auto watch = x_loop.watch_event(kick.fd(), [this] { pump(); });
  if (watch) {
    live.watch = std::move(*watch);
  } else {
    LETHE_LOG_LIMITED(LogModule::kBlock, "a queue is not served: {}", watch.error().text);
  }
  pump();  // once without a kick
}

void BlockIo::stop_queue(uint16_t index) {
  LiveQueue& live = x_queues[index];
  if (!live.queue) return;
  live.watch.reset();
  live.stopping = true;
  if (x_held != nullptr && x_held->queue == index) {
    x_timer->cancel();
    x_held->drop();
    x_held = nullptr;
  }
  BlockRequest* waiting = x_bounce_first;
  x_bounce_first = x_bounce_last = nullptr;
  while (waiting != nullptr) {
    BlockRequest& request = *waiting;
    waiting = request.next;
    if (request.queue == index) {
      request.drop();
      --live.in_flight;
    } else {
      wait_for_bounce(request);
    }
  }
  for (uint16_t i = 0; live.in_flight > 0 && i < live.queue->size(); ++i) {
    // SAFETY: only compared by the kernel.
    if (live.requests[i].in_use()) x_ring->cancel(reinterpret_cast<uint64_t>(&live.requests[i]));
  }
  while (live.in_flight > 0) {
    x_ring->wait();
    reap();
  }
  live = LiveQueue{};
  pump();  // for the other queues
}

void BlockIo::stop_all() {
  for (size_t i = 0; i < x_queues.size(); ++i) stop_queue(static_cast<uint16_t>(i));
  x_host = nullptr;
}

// Works until there is nothing left to do, then asks for kicks and for the ring's wakings.
void BlockIo::pump() {
  x_ring->disarm();
  x_spinner.woke();
  for (LiveQueue& live : x_queues) {
    if (live.queue) live.queue->disable_kicks();
  }
  for (unsigned round = 0; round < kRoundsMax; ++round) {
    const bool took = take_available();
    x_ring->submit();
    for (LiveQueue& live : x_queues) {
      if (live.queue) live.queue->look_ahead();  // comes while the completions are looked at
    }
    const bool reaped = reap() > 0;
    end_round();
    if (took || reaped || found_by_spinning() || want_kicks()) continue;
    if (!x_ring->arm()) {
      x_spinner.sleeps();
      return;
    }
    x_ring->disarm();
  }
  // Wakes itself: the loop serves whatever else is ready, then comes back here. Not a posted call,
  // which could outlive this object; and a timer that is due at once takes some 30 us.
  x_ring->event().signal();
}

bool BlockIo::found_by_spinning() {
  return x_held == nullptr && x_spinner.finds([this] { return take_available(); });
}

bool BlockIo::take_available() {
  bool took = false;
  x_first_queue = (x_first_queue + 1) % x_queues.size();
  for (size_t i = 0; i < x_queues.size() && x_held == nullptr; ++i)
    took |= take(static_cast<uint16_t>((x_first_queue + i) % x_queues.size()));
  return took;
}

// Takes a batch, in two passes: the header and the status of each request lie in lines that the
// guest's processor has, and fetching them all at once takes little longer than fetching one.
bool BlockIo::take(uint16_t index) {
  LiveQueue& live = x_queues[index];
  if (!live.queue || live.reported) return false;
  // Not all there is: the guest gets answers and adds requests while the next batch is read. And
  // one by one under a rate limit: what is held back stays in the queue.
  std::array<std::optional<Chain>, kBatch> chains;
  const size_t batch_max = limited() ? 1 : kBatch;
  size_t count = 0;
  {
    const GuestMemory::MapGuard map = live.queue->map();
    while (count < batch_max) {
      chains[count] = live.queue->pop(*map);
      if (!chains[count]) break;
      prefetch(*chains[count]);
      ++count;
    }
  }
  if (live.queue->broken()) {
    live.reported = true;
    x_host->needs_reset(live.queue->broken_reason());
  }
  for (size_t i = 0; i < count; ++i) begin(index, std::move(*chains[i]));
  return count > 0;
}

void BlockIo::begin(uint16_t index, Chain chain) {
  LiveQueue& live = x_queues[index];
  BlockRequest& request = live.requests[chain.head()];
  uint8_t status = VIRTIO_BLK_S_OK;
  const auto verdict = request.begin(std::move(chain), x_geometry, status);
  if (verdict != BlockRequest::Verdict::kStart) {
    const bool malformed = verdict == BlockRequest::Verdict::kMalformed;
    ++(malformed ? x_counters.malformed : x_counters.refused);
    LETHE_LOG_LIMITED(LogModule::kBlock, "{} request refused: type {}, status {}",
                      malformed ? "malformed" : "bad", request.type(), status);
    request.finish(status);
    return;
  }
  if (request.type() == VIRTIO_BLK_T_GET_ID) {
    request.answer_id(x_options.id);
    request.finish(VIRTIO_BLK_S_OK);
    return;
  }
  if (!held_back(request)) run_admitted(request);
}

void BlockIo::run_admitted(BlockRequest& request) {
  ++x_queues[request.queue].in_flight;
  run(request);
}

void BlockIo::run(BlockRequest& request) {
  switch (request.type()) {
    case VIRTIO_BLK_T_FLUSH:
      if (io_uring_sqe* const entry = next_entry(request)) {
        io_uring_prep_fsync(entry, 0, IORING_FSYNC_DATASYNC);
        hand_over(request, entry);
      }
      return;
    case VIRTIO_BLK_T_DISCARD:
      // A hint: where the host can't punch holes, nothing happens.
      if (request.bytes() == 0 || !x_punch_hole_works) return finish(request, VIRTIO_BLK_S_OK);
      return run_fallocate(request, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    case VIRTIO_BLK_T_WRITE_ZEROES:
      return run_write_zeroes(request);
    default:
      return run_transfer(request);
  }
}

io_uring_sqe* BlockIo::next_entry(BlockRequest& request) {
  io_uring_sqe* const entry = x_ring->next_entry();
  if (entry == nullptr) fail(request, ENOMEM);
  return entry;
}

void BlockIo::hand_over(BlockRequest& request, io_uring_sqe* entry) {
  entry->flags |= IOSQE_FIXED_FILE;
  // SAFETY: the slot stays where it is until its queue is stopped, which waits for this.
  io_uring_sqe_set_data64(entry, reinterpret_cast<uint64_t>(&request));
}

void BlockIo::run_fallocate(BlockRequest& request, int mode) {
  io_uring_sqe* const entry = next_entry(request);
  if (entry == nullptr) return;
  io_uring_prep_fallocate(entry, 0, mode, static_cast<off_t>(request.offset()),
                          static_cast<off_t>(request.bytes()));
  hand_over(request, entry);
}

// Whether zeroes can only be written: 5.2.6.2 forbids to deallocate unless unmap is set; and a
// write-through disk's zeroes must be stable, which fallocate() alone does not make them.
bool BlockIo::must_write(const BlockRequest& request) const {
  return x_write_through || !(request.unmap() ? x_punch_hole_works : x_zero_range_works);
}

void BlockIo::run_write_zeroes(BlockRequest& request) {
  if (request.left() == 0) return finish(request, VIRTIO_BLK_S_OK);
  request.zeroes_written = must_write(request);
  if (!request.zeroes_written) {
    const int how = request.unmap() ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    return run_fallocate(request, how | FALLOC_FL_KEEP_SIZE);
  }
  io_uring_sqe* const entry = next_entry(request);
  if (entry == nullptr) return;
  io_uring_prep_write(entry, 0, zeroes,
                      static_cast<unsigned>(std::min<uint64_t>(request.left(), kZeroBytes)),
                      request.offset() + request.done());
  entry->rw_flags = x_write_through ? RWF_DSYNC : 0;
  hand_over(request, entry);
}

void BlockIo::run_transfer(BlockRequest& request) {
  if (request.left() == 0) return finish(request, VIRTIO_BLK_S_OK);
  const IoVector data = request.data_left(kTransferMax);
  if (!aligned(data)) return run_bounced(request);
  io_uring_sqe* const entry = next_entry(request);
  if (entry == nullptr) return;
  const uint64_t at = request.offset() + request.done();
  const auto bytes = static_cast<unsigned>(std::min(data.vectors[0].iov_len, kTransferMax));
  if (request.is_write() && data.count == 1) {
    io_uring_prep_write(entry, 0, data.vectors[0].iov_base, bytes, at);
  } else if (request.is_write()) {
    io_uring_prep_writev(entry, 0, data.vectors, data.count, at);
  } else if (data.count == 1) {
    io_uring_prep_read(entry, 0, data.vectors[0].iov_base, bytes, at);
  } else {
    io_uring_prep_readv(entry, 0, data.vectors, data.count, at);
  }
  if (request.is_write() && x_write_through) entry->rw_flags = RWF_DSYNC;
  hand_over(request, entry);
}

// What O_DIRECT asks of each piece: the address and the length.
bool BlockIo::aligned(const IoVector& data) const {
  if (x_disk.memory_alignment == 1 && x_disk.offset_alignment == 1) return true;
  for (unsigned i = 0; i < data.count; ++i) {
    // SAFETY: the address is only looked at.
    const auto address = reinterpret_cast<uint64_t>(data.vectors[i].iov_base);
    if (address % x_disk.memory_alignment != 0) return false;
    if (data.vectors[i].iov_len % x_disk.offset_alignment != 0) return false;
  }
  return true;
}

void BlockIo::wait_for_bounce(BlockRequest& request) {
  request.next = nullptr;
  (x_bounce_last != nullptr ? x_bounce_last->next : x_bounce_first) = &request;
  x_bounce_last = &request;
}

void BlockIo::run_bounced(BlockRequest& request) {
  if (request.bounce == nullptr) request.bounce = x_bounce.take();
  if (request.bounce == nullptr) {
    if (x_bounce.all_free()) return fail(request, ENOMEM);
    return wait_for_bounce(request);
  }
  const size_t bytes = std::min<uint64_t>(request.left(), BouncePool::kBytes);
  if (request.is_write()) request.copy_data_out({request.bounce, bytes});
  io_uring_sqe* const entry = next_entry(request);
  if (entry == nullptr) return;
  ++x_counters.bounced;
  const uint64_t at = request.offset() + request.done();
  if (request.is_write()) {
    io_uring_prep_write(entry, 0, request.bounce, static_cast<unsigned>(bytes), at);
    entry->rw_flags = x_write_through ? RWF_DSYNC : 0;
  } else {
    io_uring_prep_read(entry, 0, request.bounce, static_cast<unsigned>(bytes), at);
  }
  hand_over(request, entry);
}

unsigned BlockIo::reap() {
  return x_ring->reap([this](uint64_t user_data, int result) {
    // SAFETY: hand_over() put it there.
    BlockRequest& request = *reinterpret_cast<BlockRequest*>(user_data);
    if (x_options.tamper) result = x_options.tamper(request, result);
    completed(request, result);
  });
}

void BlockIo::completed(BlockRequest& request, int result) {
  const bool stopping = x_queues[request.queue].stopping;
  const bool interrupted = result == -EINTR || result == -EAGAIN;
  if (stopping && (interrupted || result == -ECANCELED || result == -EOPNOTSUPP))
    return abandon(request);
  if (interrupted && request.retries++ < kRetriesMax) return run(request);
  const bool transfer = request.type() == VIRTIO_BLK_T_IN || request.is_write();
  if (transfer || (request.zeroes_written && result != -EOPNOTSUPP))
    return transferred(request, result);
  if (result == -EOPNOTSUPP && request.type() != VIRTIO_BLK_T_FLUSH) {
    const bool punched = request.type() == VIRTIO_BLK_T_DISCARD || request.unmap();
    (punched ? x_punch_hole_works : x_zero_range_works) = false;
    return run(request);
  }
  if (result < 0) return fail(request, -result);
  finish(request, VIRTIO_BLK_S_OK);
}

void BlockIo::transferred(BlockRequest& request, int result) {
  // Nothing moved and no error: a read beyond the end of a file that shrank.
  if (result <= 0) return fail(request, result == 0 ? EIO : -result);
  const auto bytes = std::min<uint64_t>(static_cast<uint64_t>(result), request.left());
  if (request.bounce != nullptr && !request.is_write())
    request.copy_data_in({request.bounce, bytes});
  request.advance(bytes);
  if (request.left() == 0) return finish(request, VIRTIO_BLK_S_OK);
  if (x_queues[request.queue].stopping) return abandon(request);
  run(request);  // the rest of a short one
}

void BlockIo::fail(BlockRequest& request, int error) {
  ++x_counters.io_errors;
  LETHE_LOG_LIMITED(LogModule::kBlock, "request of type {} at byte {} failed: {}", request.type(),
                    request.offset() + request.done(), errno_text(error));
  finish(request, VIRTIO_BLK_S_IOERR);
}

// Its queue stops: nothing was done, or a part.
void BlockIo::abandon(BlockRequest& request) {
  if (request.bounce != nullptr) give_back_bounce(request);
  request.drop();
  --x_queues[request.queue].in_flight;
}

void BlockIo::finish(BlockRequest& request, uint8_t status) {
  if (status == VIRTIO_BLK_S_OK) count(request);
  if (request.bounce != nullptr) give_back_bounce(request);
  request.finish(status);
  --x_queues[request.queue].in_flight;
}

void BlockIo::count(const BlockRequest& request) {
  switch (request.type()) {
    case VIRTIO_BLK_T_IN:
      add(x_counters.reads, 1);
      return add(x_counters.bytes_read, request.bytes());
    case VIRTIO_BLK_T_OUT:
      add(x_counters.writes, 1);
      return add(x_counters.bytes_written, request.bytes());
    case VIRTIO_BLK_T_FLUSH:
      return add(x_counters.flushes, 1);
    case VIRTIO_BLK_T_DISCARD:
      return add(x_counters.discards, 1);
    default:
      return add(x_counters.write_zeroes, 1);
  }
}

void BlockIo::give_back_bounce(BlockRequest& request) {
  x_bounce.give_back(request.bounce);
  request.bounce = nullptr;
  BlockRequest* const next = x_bounce_first;
  if (next == nullptr) return;
  x_bounce_first = next->next;
  if (x_bounce_first == nullptr) x_bounce_last = nullptr;
  run_bounced(*next);
}

void BlockIo::end_round() {
  for (LiveQueue& live : x_queues) {
    if (live.queue) live.queue->interrupt_if_needed();
  }
}

bool BlockIo::want_kicks() {
  if (x_held != nullptr) return false;
  bool more = false;
  for (LiveQueue& live : x_queues) {
    if (live.queue && !live.reported) more |= live.queue->enable_kicks();
  }
  return more;
}

}  // namespace lethe
