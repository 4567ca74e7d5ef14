#include "devices/virtio/vsock/vsock_io.h"

#include <sys/epoll.h>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr unsigned kRoundsMax = 16;    // of a pump before other work has its turn
constexpr unsigned kPacketBatch = 16;  // taken from the guest before the other way has its turn

}  // namespace

VsockIo::VsockIo(EventLoop& loop, VsockIoOptions options, VsockCounters& counters)
    : x_loop(loop),
      x_options(std::move(options)),
      x_counters(counters),
      x_table(x_options.limits.streams_max),
      // A stream is reset by the guest's packets, which are not taken beyond resets_max, or by what
      // happens on the host, once.
      x_resets(x_options.limits.resets_max + x_options.limits.streams_max),
      x_next_port(kVsockFirstHostPort),
      x_timer(loop.make_timer([this] { tick(); })) {}

VsockIo::~VsockIo() { stop_all(); }

Result<> VsockIo::watch() {
  x_epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!x_epoll.valid()) return host_error("vsock: epoll_create1: {}", errno_text(errno));
  LETHE_TRY_ASSIGN(x_again, EventFd::create());
  LETHE_TRY_ASSIGN(x_again_watch, x_loop.watch_readable(x_again->fd(), [this] {
    x_again->take();
    pump();
  }));
  LETHE_TRY_ASSIGN(x_epoll_watch, x_loop.watch_readable(x_epoll.get(), [this] { pump(); }));
  listen(true);
  return {};
}

void VsockIo::start(VirtioHost& host) { x_host = &host; }

void VsockIo::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  LiveQueue& live = x_queues[index];
  live = LiveQueue{};
  live.queue = std::move(queue);
  live.kick = &kick;
  auto watch = x_loop.watch_readable(kick.fd(), [this, &live] {
    live.kick->take();
    pump();
  });
  if (watch) {
    live.watch = std::move(*watch);
  } else {
    x_host->needs_reset("the host is out of descriptors");
    live.reported = true;
  }
  pump();  // once without a kick
}

void VsockIo::stop_queue(uint16_t index) {
  // What was taken goes back unused; or, in a freeze, waits for the next queue.
  if (index == kVsockRx) forget_staged(x_staged_count);
  x_queues[index] = LiveQueue{};
}

void VsockIo::stop_all() {
  for (uint16_t i = 0; i < kVsockQueues; ++i) stop_queue(i);
  x_host = nullptr;
  x_table.for_each([this](VsockStream& stream) { drop(stream); });
  x_reset_count = 0;
  x_event_due = false;
  x_timer->cancel();
  x_ticking = false;
  x_out_of_descriptors = false;  // the timer would have tried again
  listen_if_room();
}

void VsockIo::restored() {
  if (x_host == nullptr) return;  // there was no driver
  x_event_due = true;
  pump();
}

// Works until there is nothing left to do, then asks for kicks.
void VsockIo::pump() {
  x_spinner.woke();
  for (LiveQueue& live : x_queues)
    if (live.queue) live.queue->disable_kicks();
  for (unsigned round = 0; round < kRoundsMax; ++round) {
    if (work() || x_spinner.finds([this] { return work(); }) || want_kicks()) continue;
    x_spinner.sleeps();
    return;
  }
  x_again->signal();
}

bool VsockIo::work() {
  bool worked = poll_sockets();
  worked |= take_sent();
  worked |= give();
  worked |= take_events();
  end_round();
  return worked;
}

bool VsockIo::take_sent() {
  LiveQueue& live = x_queues[kVsockTx];
  if (!live.usable()) return false;
  unsigned taken = 0;
  // As many as have an answer's place (5.10.6.1.1 has the device do so): whoever sends without
  // giving buffers for answers waits for itself.
  while (taken < kPacketBatch && x_reset_count < x_options.limits.resets_max) {
    auto chain = live.queue->pop();
    if (!chain) break;
    ++taken;
    from_guest(*chain);
    chain->complete(0);
  }
  report_if_broken(live);
  return taken > 0;
}

bool VsockIo::take_events() {
  LiveQueue& live = x_queues[kVsockEvent];
  if (!x_event_due || !live.usable()) return false;
  auto chain = live.queue->pop();
  report_if_broken(live);
  if (!chain) return false;
  const virtio_vsock_event event{.id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET};
  if (chain->writable_bytes() < sizeof event) {
    ++x_counters.small_buffers;
    chain->complete(0);
    return true;
  }
  // SAFETY: the event's bytes.
  (void)chain->copy_to_writable(0, {reinterpret_cast<const uint8_t*>(&event), sizeof event});
  chain->complete(sizeof event);
  x_event_due = false;
  return true;
}

// Whether something came meanwhile that would not be kicked for.
bool VsockIo::want_kicks() {
  bool more = false;
  LiveQueue& sent = x_queues[kVsockTx];
  if (sent.usable() && x_reset_count < x_options.limits.resets_max)
    more |= sent.queue->enable_kicks();
  LiveQueue& received = x_queues[kVsockRx];
  if (received.usable() && x_starved) more |= received.queue->enable_kicks();
  LiveQueue& events = x_queues[kVsockEvent];
  if (events.usable() && x_event_due) more |= events.queue->enable_kicks();
  return more;
}

void VsockIo::report_if_broken(LiveQueue& live) {
  if (live.reported || !live.queue->broken()) return;
  live.reported = true;
  x_host->needs_reset(live.queue->broken_reason());
}

void VsockIo::end_round() {
  for (LiveQueue& live : x_queues)
    if (live.queue) live.queue->interrupt_if_needed();
}

}  // namespace lethe
