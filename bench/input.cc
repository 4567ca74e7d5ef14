// How long a key takes from a frontend's send() to the guest's used ring.
//
// input.p99_vs_eventfd: the frontend is a process of its own on the GUI channel; the clock stops
// when the device, having put the key's events into the used ring, raises the guest's interrupt.
// Beside it a bare eventfd between two threads: from before write() to after read(). Both senders
// were woken by a timer, and both receivers sleep, in turn within one run.
#include <sys/eventfd.h>

#include <optional>
#include <thread>

#include "bench/gui_bench.h"
#include "bench/gui_frontend.h"
#include "bench/gui_guest.h"
#include "bench/report.h"
#include "devices/virtio/input/input.h"

namespace lethe {
namespace {

constexpr int kRounds = 5000;
constexpr int kWarmUp = 100;
constexpr uint16_t kQueueSize = 64;
constexpr uint32_t kKey = 30;          // A
constexpr unsigned kEventsAFrame = 2;  // the key, SYN_REPORT

// Stops the clock.
class StampedInterrupt : public Interrupt {
 public:
  void signal() override { stamps.mark(); }
  Stamps stamps;
};

class NoHost : public VirtioHost {
 public:
  void needs_reset(const char* reason) override { give_up(reason); }
  void config_changed() override {}
};

// The keyboard with a driver that has buffers for what comes.
class Keyboard {
 public:
  explicit Keyboard(Gui& gui) : device(InputDevice::make_keyboard(gui.loop())) {
    constexpr GuestMemory::Range kRange{GuestAddr{0}, 16 * kMiB};
    x_memory = GuestMemory::create({&kRange, 1}, {}).value();
    x_heap.emplace(*x_memory, GuestAddr{0}, 16 * kMiB);
    x_driver.emplace(*x_heap, kQueueSize, 0);
    for (uint16_t i = 0; i < kQueueSize; ++i) give();
    x_driver->publish();
    device->start(0, x_host);
    device->start_queue(
        InputDevice::kEventQueue,
        Queue::create(*x_memory, x_driver->layout(), 0, interrupt, x_counters).value(), x_kick);
  }
  ~Keyboard() { device->reset(); }
  // Gives back the buffers of one frame.
  void take_frame() {
    for (unsigned i = 0; i < kEventsAFrame; ++i) {
      if (!x_driver->poll_used()) give_up("an event is missing in the used ring");
      give();
    }
    x_driver->publish();
    if (x_driver->kick_wanted()) x_kick.signal();
  }

  std::unique_ptr<InputDevice> device;
  StampedInterrupt interrupt;

 private:
  void give() {
    const FakeBuffer buffer{x_heap->alloc(8), 8, true};
    if (!x_driver->prepare({&buffer, 1}, FakeDriver::Table::kDirect)) give_up("the ring is full");
  }
  NoHost x_host;
  EventFd x_kick = EventFd::create().value();
  QueueCounters x_counters;
  std::unique_ptr<GuestMemory> x_memory;
  std::optional<GuestHeap> x_heap;
  std::optional<FakeDriver> x_driver;
};

// Presses and lets go of a key, one of them each time `go` is counted up.
void type_keys(const std::string& path, const Stamps& go, Stamps& sent) {
  BareFrontend frontend(path);
  if (!frontend.read_until(gui::Type::kSurface)) give_up("no screen");
  const uint64_t surface = frontend.as<gui::Surface>().surface;
  sent.mark();  // connected
  for (uint64_t done = 0;; ++done) {
    while (go.count.load() <= done) sleep_us(200);
    gui::Key key{};
    key.header = {static_cast<uint32_t>(gui::Type::kKey), sizeof key};
    key.surface = surface;
    key.code = kKey;
    key.down = done % 2 == 0 ? 1 : 0;
    sent.mark();
    frontend.send_message(key);
  }
}

class EventFdPair {
 public:
  EventFdPair() : x_fd(eventfd(0, EFD_CLOEXEC)), x_thread([this] { receive(); }) {}
  ~EventFdPair() {
    x_end = true;
    signal();
    x_thread.join();
  }
  // ns from one thread to the other.
  double measure() {
    const uint64_t seen = x_received.count.load();
    sleep_us(300);
    const uint64_t begin = now_ns();
    signal();
    sleep_us(400);
    return static_cast<double>(x_received.wait_above(seen) - begin);
  }

 private:
  void signal() const {
    const uint64_t one = 1;
    if (write(x_fd.get(), &one, sizeof one) != sizeof one) give_up("eventfd");
  }
  void receive() {
    uint64_t value = 0;
    while (!x_end && read(x_fd.get(), &value, sizeof value) == sizeof value) x_received.mark();
  }
  UniqueFd x_fd;
  std::atomic<bool> x_end{false};
  Stamps x_received;
  std::thread x_thread;
};

std::string make_dir() {
  std::string path = "/tmp/lethe-bench-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) give_up("no directory");
  return path;
}

void measure(BenchReport& report) {
  const std::string dir = make_dir();
  const std::string path = dir + "/gui.sock";
  const BenchProcess go([](Stamps&) {});  // only its memory, which both of us see
  const BenchProcess frontend([&](Stamps& sent) { type_keys(path, go.stamps(), sent); });
  GuiOptions options;
  options.vm_name = "bench";
  Gui gui(options);
  Keyboard keyboard(gui);
  InputDevices input(keyboard.device.get(), nullptr);
  const GuiGuest guest(gui, kMiB, &input);
  if (const auto listening = gui.listen(listen_at(path)); !listening)
    give_up(listening.error().text.c_str());
  (void)frontend.stamps().wait_above(0);
  sleep_us(50'000);
  EventFdPair bare;
  std::vector<double> ours;
  std::vector<double> theirs;
  for (int round = -kWarmUp; round < kRounds; ++round) {
    const uint64_t sent = frontend.stamps().count.load();
    const uint64_t seen = keyboard.interrupt.stamps.count.load();
    go.stamps().count.fetch_add(1);
    sleep_us(700);
    const uint64_t begin = frontend.stamps().wait_above(sent);
    const uint64_t end = keyboard.interrupt.stamps.wait_above(seen);
    keyboard.take_frame();
    const double eventfd = bare.measure();
    if (round < 0) continue;
    ours.push_back(static_cast<double>(end - begin));
    theirs.push_back(eventfd);
  }
  std::remove(path.c_str());
  rmdir(dir.c_str());
  report.add("input.p50_us", median(ours) / 1e3, "us");
  report.add("input.p99_us", quantile(ours, 0.99) / 1e3, "us");
  report.add("input.eventfd_p50_us", median(theirs) / 1e3, "us");
  report.add("input.eventfd_p99_us", quantile(theirs, 0.99) / 1e3, "us");
  report.add("input.p50_vs_eventfd", median(ours) / median(theirs), "ratio");
  report.add("input.p99_vs_eventfd", quantile(ours, 0.99) / quantile(theirs, 0.99), "ratio");
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  lethe::measure(report);
  return report.finish();
}
