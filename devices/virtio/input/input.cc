#include "devices/virtio/input/input.h"

#include <linux/input-event-codes.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"
#include "base/mutex.h"
#include "devices/virtio/kick_watch.h"

namespace lethe {
namespace {

// Linux keeps at most 64 event buffers in its ring (virtinput_fill_evt).
constexpr std::array<uint16_t, 2> kQueueSizes = {64, 64};
constexpr int32_t kNotchesMax = 100;  // of the wheel at a time, as in the GUI channel
// Of the structure, the driver writes select and subsel only (5.8.5).
constexpr uint32_t kWritableBytes = offsetof(virtio_input_config, size);

}  // namespace

class InputDevice::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(EventLoop& loop, InputKind kind) : x_loop(loop), x_kind(kind) {}

  [[nodiscard]] InputKind kind() const { return x_kind; }
  [[nodiscard]] const InputCounters& counters() const { return x_counters; }

  void edge(uint32_t code, bool down);
  void motion(uint32_t x, uint32_t y);
  void wheel(int32_t vertical, int32_t horizontal);

  void read_config(uint32_t offset, std::span<uint8_t> to);
  void write_config(uint32_t offset, std::span<const uint8_t> from);
  void start(VirtioHost& host);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick);
  void stop_queue(uint16_t index);
  void reset();
  void freeze();
  void save(StateWriter& to);
  Result<> restore(StateReader& from);

 private:
  struct Port {
    std::unique_ptr<Queue> queue;
    const EventFd* kick = nullptr;  // valid while there is a queue
    std::unique_ptr<KickWatch> kick_watch;
  };
  bool driver_reads() LETHE_REQUIRES(x_mutex);
  void count(InputBacklog::Taken taken) LETHE_REQUIRES(x_mutex);
  void serve(uint16_t index);
  void deaf();
  void serve_events() LETHE_REQUIRES(x_mutex);
  void serve_status() LETHE_REQUIRES(x_mutex);
  void finish_batch(uint16_t index, bool again) LETHE_REQUIRES(x_mutex);
  void stop(uint16_t index) LETHE_REQUIRES(x_mutex);

  EventLoop& x_loop;
  const InputKind x_kind;
  InputCounters x_counters;
  Mutex x_mutex;
  VirtioHost* x_host LETHE_GUARDED_BY(x_mutex) = nullptr;
  std::array<Port, 2> x_ports LETHE_GUARDED_BY(x_mutex);
  InputBacklog x_backlog LETHE_GUARDED_BY(x_mutex);
  uint8_t x_select LETHE_GUARDED_BY(x_mutex) = VIRTIO_INPUT_CFG_UNSET;
  uint8_t x_subsel LETHE_GUARDED_BY(x_mutex) = 0;
  bool x_frozen LETHE_GUARDED_BY(x_mutex) = false;  // the event queue will go on
};

// --- the host's events

bool InputDevice::Core::driver_reads() {
  if (x_ports[kEventQueue].queue || x_frozen) return true;
  ++x_counters.ignored;
  return false;
}

void InputDevice::Core::count(InputBacklog::Taken taken) {
  switch (taken) {
    case InputBacklog::Taken::kNew:
      ++x_counters.frames;
      break;
    case InputBacklog::Taken::kMerged:
      ++x_counters.merged;
      break;
    case InputBacklog::Taken::kSame:
      break;
    case InputBacklog::Taken::kFull:
      ++x_counters.lost;
      LETHE_LOG_LIMITED(LogModule::kGui, "the guest does not read its input: an event was lost");
      break;
  }
}

void InputDevice::Core::edge(uint32_t code, bool down) {
  MutexLock lock(x_mutex);
  if (!has_key(x_kind, code)) {
    ++x_counters.unknown;
    return;
  }
  if (!driver_reads()) return;
  count(x_backlog.edge(code, down));
  serve_events();
}

void InputDevice::Core::motion(uint32_t x, uint32_t y) {
  MutexLock lock(x_mutex);
  if (!driver_reads()) return;
  count(x_backlog.motion(std::min(x, ScreenInput::kPointerMax),
                         std::min(y, ScreenInput::kPointerMax)));
  serve_events();
}

void InputDevice::Core::wheel(int32_t vertical, int32_t horizontal) {
  MutexLock lock(x_mutex);
  if ((vertical == 0 && horizontal == 0) || !driver_reads()) return;
  count(x_backlog.wheel(std::clamp(vertical, -kNotchesMax, kNotchesMax),
                        std::clamp(horizontal, -kNotchesMax, kNotchesMax)));
  serve_events();
}

// --- queues

void InputDevice::Core::serve(uint16_t index) {
  MutexLock lock(x_mutex);
  index == kEventQueue ? serve_events() : serve_status();
}

// A queue's kicks can't be heard.
void InputDevice::Core::deaf() {
  MutexLock lock(x_mutex);
  if (x_host != nullptr) x_host->needs_reset(KickWatch::kFailure);
}

void InputDevice::Core::serve_events() {
  Queue* const queue = x_ports[kEventQueue].queue.get();
  if (queue == nullptr) return;
  size_t useless = queue->size();  // buffers that take no event, and could go on for ever
  do {
    while (useless > 0 && !x_backlog.empty()) {
      auto chain = queue->pop();
      if (!chain) break;
      if (chain->writable_bytes() < sizeof(virtio_input_event)) {
        ++x_counters.refused;
        --useless;
        LETHE_LOG_LIMITED(LogModule::kGui, "an input event's buffer is too small");
        continue;  // completed with 0 bytes
      }
      const virtio_input_event event = x_backlog.take();
      // SAFETY: the object's own bytes.
      (void)chain->copy_to_writable(0, {reinterpret_cast<const uint8_t*>(&event), sizeof event});
      chain->complete(sizeof event);
    }
    // Kicks are needed only while events wait; a broken ring is noticed then.
  } while (useless > 0 && !x_backlog.empty() && !queue->broken() && queue->enable_kicks());
  if (x_backlog.empty()) queue->disable_kicks();
  x_counters.waiting.store(x_backlog.frames(), std::memory_order_relaxed);
  finish_batch(kEventQueue, useless == 0 && !x_backlog.empty());
}

void InputDevice::Core::serve_status() {
  Queue* const queue = x_ports[kStatusQueue].queue.get();
  if (queue == nullptr) return;
  size_t budget = queue->size();
  do {
    for (; budget > 0; --budget) {
      auto chain = queue->pop();
      if (!chain) break;
      virtio_input_event event{};
      if (!chain->copy_front(event)) {
        ++x_counters.refused;
        LETHE_LOG_LIMITED(LogModule::kGui, "an input status buffer is too small");
        continue;
      }
      ++x_counters.status;
      if (event.type == EV_LED && event.code < LED_CNT) {
        const uint32_t bit = 1u << event.code;
        const uint32_t leds = x_counters.leds.load(std::memory_order_relaxed);
        x_counters.leds.store(event.value != 0 ? leds | bit : leds & ~bit,
                              std::memory_order_relaxed);
      }
    }
  } while (budget > 0 && !queue->broken() && queue->enable_kicks());
  finish_batch(kStatusQueue, budget == 0);
}

// Interrupt, a broken queue's end, another turn if there was too much for this one.
void InputDevice::Core::finish_batch(uint16_t index, bool again) {
  Port& port = x_ports[index];
  port.queue->interrupt_if_needed();
  if (port.queue->broken()) {
    x_host->needs_reset(port.queue->broken_reason());
    stop(index);
  } else if (again) {
    port.kick->signal();
  }
}

// --- the transport's calls

void InputDevice::Core::read_config(uint32_t offset, std::span<uint8_t> to) {
  MutexLock lock(x_mutex);
  const virtio_input_config config = describe_input(x_kind, x_select, x_subsel);
  // SAFETY: the transport has clipped the range to the structure.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&config) + offset, to.size());
}

void InputDevice::Core::write_config(uint32_t offset, std::span<const uint8_t> from) {
  MutexLock lock(x_mutex);
  for (const uint8_t byte : from) {
    if (offset >= kWritableBytes) return;
    (offset++ == offsetof(virtio_input_config, select) ? x_select : x_subsel) = byte;
  }
}

void InputDevice::Core::start(VirtioHost& host) {
  MutexLock lock(x_mutex);
  x_host = &host;
}

void InputDevice::Core::start_queue(uint16_t index, std::unique_ptr<Queue> queue,
                                    const EventFd& kick) {
  MutexLock lock(x_mutex);
  if (index == kEventQueue) x_frozen = false;
  Port& port = x_ports[index];
  port.queue = std::move(queue);
  port.kick = &kick;
  port.kick_watch = std::make_unique<KickWatch>(
      x_loop, kick, [core = shared_from_this(), index] { core->serve(index); },
      [core = shared_from_this()] { core->deaf(); });
}

void InputDevice::Core::stop(uint16_t index) {
  x_ports[index] = Port{};
  if (index != kEventQueue || x_frozen) return;
  x_backlog.clear();
  x_counters.waiting.store(0, std::memory_order_relaxed);
}

void InputDevice::Core::stop_queue(uint16_t index) {
  MutexLock lock(x_mutex);
  stop(index);
}

void InputDevice::Core::reset() {
  MutexLock lock(x_mutex);
  x_frozen = false;
  stop(kEventQueue);
  stop(kStatusQueue);
  x_host = nullptr;
  x_select = VIRTIO_INPUT_CFG_UNSET;
  x_subsel = 0;
  x_counters.leds.store(0, std::memory_order_relaxed);
}

void InputDevice::Core::freeze() {
  MutexLock lock(x_mutex);
  x_frozen |= x_ports[kEventQueue].queue != nullptr;
}

void InputDevice::Core::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.number(x_select);
  to.number(x_subsel);
  to.number(x_counters.leds.load(std::memory_order_relaxed));
  x_backlog.save(to);
}

Result<> InputDevice::Core::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  x_select = from.number<uint8_t>();
  x_subsel = from.number<uint8_t>();
  x_counters.leds.store(from.number<uint32_t>(), std::memory_order_relaxed);
  x_backlog.restore(from, [this](uint32_t code) { return has_key(x_kind, code); });
  x_backlog.release_all();
  return from.check();
}

// --- what others see

InputDevice::InputDevice(EventLoop& loop, InputKind kind)
    : x_core(std::make_shared<Core>(loop, kind)) {}
InputDevice::~InputDevice() { x_core->reset(); }

std::unique_ptr<InputDevice> InputDevice::make_keyboard(EventLoop& loop) {
  return std::unique_ptr<InputDevice>(new InputDevice(loop, InputKind::kKeyboard));
}
std::unique_ptr<InputDevice> InputDevice::make_tablet(EventLoop& loop) {
  return std::unique_ptr<InputDevice>(new InputDevice(loop, InputKind::kTablet));
}

const char* InputDevice::name() const {
  return x_core->kind() == InputKind::kKeyboard ? "keyboard" : "tablet";
}
std::span<const uint16_t> InputDevice::queue_sizes_max() const { return kQueueSizes; }
void InputDevice::read_config(uint32_t offset, std::span<uint8_t> to) {
  x_core->read_config(offset, to);
}
void InputDevice::write_config(uint32_t offset, std::span<const uint8_t> from) {
  x_core->write_config(offset, from);
}
void InputDevice::start(uint64_t /*features*/, VirtioHost& host) { x_core->start(host); }
void InputDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_core->start_queue(index, std::move(queue), kick);
}
void InputDevice::stop_queue(uint16_t index) { x_core->stop_queue(index); }
void InputDevice::reset() { x_core->reset(); }
void InputDevice::freeze() { x_core->freeze(); }
void InputDevice::save(StateWriter& to) { x_core->save(to); }
Result<> InputDevice::restore(StateReader& from) { return x_core->restore(from); }
const InputCounters& InputDevice::counters() const { return x_core->counters(); }

InputDevices::InputDevices(InputDevice* keyboard, InputDevice* tablet)
    : x_keyboard(keyboard == nullptr ? nullptr : keyboard->x_core),
      x_tablet(tablet == nullptr ? nullptr : tablet->x_core) {}
InputDevices::~InputDevices() = default;

void InputDevices::key(uint32_t code, bool down) {
  if (x_keyboard) x_keyboard->edge(code, down);
}
void InputDevices::motion(uint32_t x, uint32_t y) {
  if (x_tablet) x_tablet->motion(x, y);
}
void InputDevices::button(uint32_t code, bool down) {
  if (x_tablet) x_tablet->edge(code, down);
}
void InputDevices::wheel(int32_t vertical, int32_t horizontal) {
  if (x_tablet) x_tablet->wheel(vertical, horizontal);
}

}  // namespace lethe
