#include "devices/virtio/console/console.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/log.h"

namespace lethe {
namespace {

constexpr std::array<uint16_t, 2> kQueueSizes = {128, 128};
constexpr size_t kCopyBytes = 4096;
constexpr size_t kChainCostMin = 64;  // bytes that even an empty buffer counts for

}  // namespace

ConsoleDevice::ConsoleDevice(EventLoop& loop, ByteSink& output)
    : x_loop(loop), x_output(output), x_room_listener(std::make_shared<std::function<void()>>()) {
  x_output.add_room_listener([this] {
    MutexLock lock(x_mutex);
    serve_transmit();
  });
}

ConsoleDevice::~ConsoleDevice() { reset(); }

uint64_t ConsoleDevice::device_features() const { return uint64_t{1} << VIRTIO_CONSOLE_F_SIZE; }

std::span<const uint16_t> ConsoleDevice::queue_sizes_max() const { return kQueueSizes; }

void ConsoleDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  MutexLock lock(x_mutex);
  virtio_console_config config = x_config;
  config.max_nr_ports = 1;
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&config) + offset, to.size());
}

// Only emerg_wr is writable, and only with VIRTIO_CONSOLE_F_EMERG_WRITE, which is not on offer.
void ConsoleDevice::write_config(uint32_t /*offset*/, std::span<const uint8_t> /*from*/) {}

void ConsoleDevice::start(uint64_t /*features*/, VirtioHost& host) {
  MutexLock lock(x_mutex);
  x_host = &host;
}

void ConsoleDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  MutexLock lock(x_mutex);
  x_frozen = false;
  Port& port = x_ports[index];
  port.queue = std::move(queue);
  port.kick = &kick;
  port.kick_watch = std::make_unique<KickWatch>(
      x_loop, kick,
      [this, index] {
        MutexLock serving(x_mutex);
        index == kReceiveQueue ? serve_receive() : serve_transmit();
      },
      [this] {
        MutexLock failing(x_mutex);
        if (x_host != nullptr) x_host->needs_reset(KickWatch::kFailure);
      });
}

void ConsoleDevice::stop_queue(uint16_t index) {
  MutexLock lock(x_mutex);
  stop(index);
}

void ConsoleDevice::stop(uint16_t index) {
  if (index == kTransmitQueue) {
    if (!x_frozen)
      x_sent_before = 0;
    else if (x_sending)
      x_sent_before = x_sent;
    x_sending.reset();  // the queue must outlive its chains
  }
  x_ports[index] = Port{};
}

void ConsoleDevice::reset() {
  MutexLock lock(x_mutex);
  x_frozen = false;
  stop(kReceiveQueue);
  stop(kTransmitQueue);
  x_host = nullptr;
}

void ConsoleDevice::freeze() {
  MutexLock lock(x_mutex);
  x_frozen = true;
}

// What the sink has taken is the sink's: it writes it out in its own time.
void ConsoleDevice::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.number(x_config.cols);
  to.number(x_config.rows);
  to.number(x_sent_before);
  std::vector<uint8_t> waiting;
  for (auto input = x_input; !input.empty(); input.pop(input.front().size()))
    waiting.insert(waiting.end(), input.front().begin(), input.front().end());
  to.bytes(waiting);
}

Result<> ConsoleDevice::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  const auto columns = from.number<uint16_t>();
  const auto rows = from.number<uint16_t>();
  const auto sent = from.number<uint64_t>();
  const auto waiting = from.bytes(kInputMax);
  LETHE_TRY(from.check());
  // The terminal here, if there is one, has said its size.
  if (x_config.cols == 0 && x_config.rows == 0) {
    x_config.cols = columns;
    x_config.rows = rows;
  }
  x_sent_before = sent;
  x_counters.bytes_in += x_input.push(waiting);
  return {};
}

void ConsoleDevice::resize(uint16_t columns, uint16_t rows) {
  MutexLock lock(x_mutex);
  if (x_config.cols == columns && x_config.rows == rows) return;
  x_config.cols = columns;
  x_config.rows = rows;
  if (x_host != nullptr) x_host->config_changed();
}

void ConsoleDevice::set_room_listener(std::function<void()> listener) {
  *x_room_listener = std::move(listener);
}

size_t ConsoleDevice::receive(std::span<const uint8_t> bytes) {
  MutexLock lock(x_mutex);
  const size_t taken = x_input.push(bytes);
  x_counters.bytes_in += taken;
  if (taken < bytes.size()) x_input_refused = true;
  serve_receive();
  return taken;
}

// Ends a batch on one queue: interrupt, a broken queue's end, another turn if the budget ran out.
void ConsoleDevice::finish_batch(uint16_t index, bool again) {
  Port& port = x_ports[index];
  port.queue->interrupt_if_needed();
  if (port.queue->broken()) {
    x_host->needs_reset(port.queue->broken_reason());
    if (index == kTransmitQueue) x_sending.reset();
    port.queue.reset();
  } else if (again) {
    port.kick->signal();
  }
}

void ConsoleDevice::serve_receive() {
  Queue* const queue = x_ports[kReceiveQueue].queue.get();
  if (queue == nullptr) return;
  size_t budget = queue->size();  // chains: useless ones take no input, and could go on for ever
  // Kicks are needed only while input waits; a broken ring is noticed then.
  do {
    for (; budget > 0 && !x_input.empty(); --budget) {
      auto chain = queue->pop();
      if (!chain) break;
      uint64_t written = 0;
      while (!x_input.empty()) {
        const size_t count = chain->copy_to_writable(written, x_input.front());
        if (count == 0) break;
        written += count;
        x_input.pop(count);
      }
      if (written == 0) {
        ++x_counters.refused;
        LETHE_LOG_LIMITED(LogModule::kConsole, "receive buffer without writable bytes");
      }
      chain->complete(static_cast<uint32_t>(written));
    }
  } while (budget > 0 && !x_input.empty() && !queue->broken() && queue->enable_kicks());
  finish_batch(kReceiveQueue, budget == 0 && !x_input.empty());
  ask_for_input();
}

void ConsoleDevice::ask_for_input() {
  if (!x_input_refused || x_input.room() < kInputMax / 2) return;
  x_input_refused = false;
  x_loop.post([listener = x_room_listener] {
    if (*listener) (*listener)();
  });
}

void ConsoleDevice::serve_transmit() {
  Queue* const queue = x_ports[kTransmitQueue].queue.get();
  if (queue == nullptr) return;
  size_t budget = kWakeBytesMax;
  bool sink_full = false;
  do {
    while (budget > 0 && !sink_full) {
      if (!x_sending) {
        x_sending = queue->pop();
        if (!x_sending) break;
        x_sent = std::exchange(x_sent_before, 0);
      }
      sink_full = !send(budget);
    }
  } while (budget > 0 && !sink_full && !queue->broken() && queue->enable_kicks());
  finish_batch(kTransmitQueue, budget == 0);
}

// Hands x_sending to the sink and completes it; false if the sink took only a part. Stops early,
// with true, when the budget is used up.
bool ConsoleDevice::send(size_t& budget) {
  std::array<uint8_t, kCopyBytes> bytes;
  budget -= std::min(budget, kChainCostMin);
  for (;;) {
    const size_t count = x_sending->copy_from_readable(x_sent, bytes);
    if (count == 0) break;
    const size_t taken = x_output.write(std::span(bytes).first(count));
    x_sent += taken;
    x_counters.bytes_out += taken;
    budget -= std::min(budget, taken);
    if (taken < count) return false;
    if (budget == 0 && x_sent < x_sending->readable_bytes()) return true;
  }
  x_sending->complete(0);
  x_sending.reset();
  return true;
}

}  // namespace lethe
