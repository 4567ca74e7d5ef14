// What it costs to show what a guest has drawn.
//
// present.p50_vs_ping, p99_vs_ping: the time from the guest's damage (the control queue's index is
// published, then the kick) to a frontend's wake-up, in its own process, with the Frame in its
// hands. Beside it the same for a bare SEQPACKET message of a Frame's size, from before send() in
// this process to after recvmsg() in another one: one way, so one wake-up where ours has two (the
// gui thread's, the frontend's). So present.relay_p50_us is there too, the least that two wake-ups
// take: an eventfd whose thread does nothing but send the message on. In turn, from an idle host
// each time, since a frame of a guest comes every few milliseconds. Who sent goes on running for a
// while, as a vCPU does after a kick that does not leave the guest. It has a processor, and all
// others have another one: where the kernel wakes somebody, which takes 2 us here and 50 there, is
// the same for all.
//
// present.resolution_ratio: the same median for windows of 640x480 to 3840x2160 in blobs, all of
// them damaged: the largest by the smallest.
//
// present.copy_vs_memcpy: TRANSFER_TO_HOST_2D of a whole picture against memcpy() of guest memory
// to another memfd of the same kind: bandwidth by bandwidth, the lowest of three sizes. In CPU time
// of the thread that copies, for ours with all it does for the command;
// present.copy_wall_vs_memcpy_* is the same by the clock, from the kick to the used ring, so with
// the hand-over of threads. Both have their own source and their own target, touched once before,
// and take turns, so none has warmer memory.
//
// present.cpu_vs_ping: CPU time of the gui thread and of the frontend, the receiving half of the
// channel, for a 4K frame that is shown and acknowledged, against that of the relay's send() and
// the other process' recvmsg().
#include <sched.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "bench/gui_bench.h"
#include "bench/gui_frontend.h"
#include "bench/gui_guest.h"
#include "bench/report.h"

namespace lethe {
namespace {

struct Size {
  uint32_t width;
  uint32_t height;
};
constexpr Size kSizes[] = {{640, 480}, {1280, 800}, {1920, 1080}, {3840, 2160}};
constexpr size_t kLargest = 3;
constexpr int kLatencyRounds = 1500;
constexpr int kWarmUp = 50;
constexpr int kCpuBlocks = 10;
constexpr int kCpuFrames = 200;  // of a block
constexpr int kCopyRounds = 20;
constexpr int kCopiesARound = 4;  // reading the clock of another thread costs, too
constexpr unsigned kRunOnUs = 200;
constexpr unsigned kPauseUs = 200;
constexpr uint64_t kPictureBytes = 3840ull * 2160 * 4;

// The other process of the ping.
void ping_peer(int socket, Stamps& stamps) {
  gui::Frame frame;
  iovec io{&frame, sizeof frame};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  while (recvmsg(socket, &message, 0) == sizeof frame) stamps.mark();
}

// A thread that sends a Frame for each kick, and that is all.
class Relay {
 public:
  explicit Relay(int socket)
      : x_kick(eventfd(0, EFD_CLOEXEC)), x_thread([this, socket] { serve(socket); }) {}
  ~Relay() {
    x_ending = true;
    kick();
    x_thread.join();
  }
  void kick() const {
    if (eventfd_write(x_kick.get(), 1) != 0) give_up("eventfd");
  }

 private:
  void serve(int socket) const {
    const gui::Frame frame{};
    for (eventfd_t count; eventfd_read(x_kick.get(), &count) == 0 && !x_ending;) {
      if (send(socket, &frame, sizeof frame, 0) != sizeof frame) give_up("send");
    }
  }
  const UniqueFd x_kick;
  std::atomic<bool> x_ending{false};
  std::thread x_thread;
};

// This thread, and who it makes from now on: to the nth processor that there is for us, if so many
// are.
void move_to_processor(int nth) {
  static const cpu_set_t kAll = [] {
    cpu_set_t all;
    if (sched_getaffinity(0, sizeof all, &all) != 0) give_up("sched_getaffinity");
    return all;
  }();
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &kAll) && nth-- == 0) CPU_SET(cpu, &one);
  if (CPU_COUNT(&one) == 1 && sched_setaffinity(0, sizeof one, &one) != 0)
    give_up("sched_setaffinity");
}

void run_on() {
  for (const uint64_t end = now_ns() + kRunOnUs * 1000; now_ns() < end;) {
  }
  sleep_us(kPauseUs);
}

class Bench {
 public:
  // Forks, and makes its threads, on one processor, and then goes to another one.
  Bench()
      : x_dir((move_to_processor(1), make_dir())),
        x_peer([this](Stamps& stamps) { ping_peer(x_ping.other.get(), stamps); }),
        x_frontend([this](Stamps& stamps) { BareFrontend(x_dir + "/gui.sock").serve(stamps); }),
        x_gui(options()) {
    if (const auto listening = x_gui.listen(listen_at(x_dir + "/gui.sock")); !listening)
      give_up(listening.error().text.c_str());
    x_guest.emplace(x_gui, 2 * kPictureBytes);
    move_to_processor(0);
  }
  ~Bench() {
    x_guest.reset();
    std::remove((x_dir + "/gui.sock").c_str());
    rmdir(x_dir.c_str());
  }

  void run(BenchReport& report) {
    x_guest->open_context(1);
    for (size_t i = 0; i < std::size(kSizes); ++i)
      x_guest->make_window(window_of(i), window_of(i) + 100, kSizes[i].width, kSizes[i].height);
    (void)x_frontend.stamps().wait_above(std::size(kSizes) - 1);  // each window's first frame
    settle();
    latency(report);
    cpu(report);
    copy(report);
  }

 private:
  static uint32_t window_of(size_t size) { return static_cast<uint32_t>(size + 1); }
  static std::string make_dir() {
    std::string path = "/tmp/lethe-bench-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) give_up("no directory");
    return path;
  }
  static GuiOptions options() {
    GuiOptions made;
    made.vm_name = "bench";
    return made;
  }

  // Until the frontend gets no more frames.
  void settle() const {
    for (uint64_t seen = ~uint64_t{0}; seen != x_frontend.stamps().count.load();) {
      seen = x_frontend.stamps().count.load();
      sleep_us(20'000);
    }
  }
  // One full damage of a window: ns from the guest's kick to the frontend's wake-up.
  double present(size_t size) {
    x_guest->prepare_submit(
        window::WindowDamage{{window::kWindowDamage, sizeof(window::WindowDamage)},
                             window_of(size),
                             0,
                             0,
                             kSizes[size].width,
                             kSizes[size].height,
                             ++x_serial});
    const uint64_t seen = x_frontend.stamps().count.load();
    const uint64_t begin = now_ns();
    x_guest->send();
    run_on();
    const uint64_t end = x_frontend.stamps().wait_above(seen);
    x_guest->finish();
    return static_cast<double>(end - begin);
  }
  // Adds the CPU time of sending, ns.
  double ping(uint64_t* sending = nullptr) {
    return time_to_peer([&] {
      const gui::Frame frame{};
      const uint64_t begin = sending != nullptr ? now_ns(CLOCK_THREAD_CPUTIME_ID) : 0;
      if (send(x_ping.one.get(), &frame, sizeof frame, 0) != sizeof frame) give_up("send");
      if (sending != nullptr) *sending += now_ns(CLOCK_THREAD_CPUTIME_ID) - begin;
    });
  }
  double relayed() {
    return time_to_peer([&] { x_relay.kick(); });
  }
  template <typename Send>
  double time_to_peer(Send&& send) {
    const uint64_t seen = x_peer.stamps().count.load();
    const uint64_t begin = now_ns();
    send();
    run_on();
    return static_cast<double>(x_peer.stamps().wait_above(seen) - begin);
  }

  void latency(BenchReport& report) {
    std::vector<double> ours;
    std::vector<double> bare;
    std::vector<double> least_of_two;
    std::vector<double> by_size[std::size(kSizes)];
    for (int round = -kWarmUp; round < kLatencyRounds; ++round) {
      for (size_t i = 0; i < std::size(kSizes); ++i) {
        const double shown = present(i);
        const double pinged = ping();
        const double relay = relayed();
        if (round < 0) continue;
        by_size[i].push_back(shown);
        ours.push_back(shown);
        bare.push_back(pinged);
        least_of_two.push_back(relay);
      }
    }
    std::vector<double> medians;
    for (const auto& times : by_size) medians.push_back(median(times));
    const auto [least, most] = std::ranges::minmax(medians);
    report.add("present.p50_us", median(ours) / 1e3, "us");
    report.add("present.p99_us", quantile(ours, 0.99) / 1e3, "us");
    report.add("present.ping_p50_us", median(bare) / 1e3, "us");
    report.add("present.ping_p99_us", quantile(bare, 0.99) / 1e3, "us");
    report.add("present.relay_p50_us", median(least_of_two) / 1e3, "us");
    report.add("present.relay_p99_us", quantile(least_of_two, 0.99) / 1e3, "us");
    report.add("present.p50_vs_relay", median(ours) / median(least_of_two), "ratio");
    report.add("present.p50_vs_ping", median(ours) / median(bare), "ratio");
    report.add("present.p99_vs_ping", quantile(ours, 0.99) / quantile(bare, 0.99), "ratio");
    report.add("present.resolution_ratio", most / least, "ratio");
  }

  uint64_t gui_thread_ns() {
    uint64_t ns = 0;
    x_gui.run_and_wait([&] { ns = now_ns(CLOCK_THREAD_CPUTIME_ID); });
    return ns;
  }

  // In blocks, in turn, so that both see the same host.
  void cpu(BenchReport& report) {
    std::vector<double> ratios;
    std::vector<double> frames_ns;
    std::vector<double> pings_ns;
    for (int block = 0; block < kCpuBlocks; ++block) {
      const uint64_t before = gui_thread_ns() + x_frontend.cpu_ns();
      for (int i = 0; i < kCpuFrames; ++i) (void)present(kLargest);
      const auto shown = static_cast<double>(gui_thread_ns() + x_frontend.cpu_ns() - before);
      const uint64_t peer_before = x_peer.cpu_ns();
      uint64_t sending = 0;
      for (int i = 0; i < kCpuFrames; ++i) (void)ping(&sending);
      const auto pinged = static_cast<double>(sending + x_peer.cpu_ns() - peer_before);
      frames_ns.push_back(shown / kCpuFrames);
      pings_ns.push_back(pinged / kCpuFrames);
      ratios.push_back(shown / pinged);
    }
    report.add("present.cpu_us", median(frames_ns) / 1e3, "us");
    report.add("present.ping_cpu_us", median(pings_ns) / 1e3, "us");
    report.add("present.cpu_vs_ping", median(ratios), "ratio");
  }

  void copy(BenchReport& report) {
    double lowest = INFINITY;
    uint32_t id = 1000;
    for (const Size& size : {kSizes[1], kSizes[2], kSizes[3]})
      lowest = std::min(lowest, copy_at(report, size, ++id));
    report.add("present.copy_vs_memcpy", lowest, "ratio");
  }
  double copy_at(BenchReport& report, Size size, uint32_t id) {
    const size_t bytes = size_t{size.width} * size.height * 4;
    virtio_gpu_resource_create_2d create{};
    create.hdr.type = VIRTIO_GPU_CMD_RESOURCE_CREATE_2D;
    create.resource_id = id;
    create.format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
    create.width = size.width;
    create.height = size.height;
    x_guest->must(create);
    struct {
      virtio_gpu_resource_attach_backing attach;
      virtio_gpu_mem_entry entry;
    } attach{};
    attach.attach.hdr.type = VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING;
    attach.attach.resource_id = id;
    attach.attach.nr_entries = 1;
    attach.entry = {0, static_cast<uint32_t>(bytes), 0};
    x_guest->must(attach);
    virtio_gpu_transfer_to_host_2d transfer{};
    transfer.hdr.type = VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D;
    transfer.resource_id = id;
    transfer.r = {0, 0, size.width, size.height};

    auto other = SharedBuffer::create(bytes);
    if (!other) give_up(other.error().text.c_str());
    std::vector<double> ours;
    std::vector<double> bare;
    std::vector<double> ours_wall;
    std::vector<double> bare_wall;
    uint8_t* const from = x_guest->picture() + kPictureBytes;  // ours is before
    // Both have been over all their memory once before.
    std::memset(x_guest->picture(), 1, 2 * kPictureBytes);
    std::memset(other->data(), 1, bytes);
    x_guest->must(transfer);
    for (int round = 0; round < kCopyRounds; ++round) {
      const uint64_t cpu_begin = gui_thread_ns();
      const uint64_t begin = now_ns();
      for (int i = 0; i < kCopiesARound; ++i) x_guest->must(transfer);
      const uint64_t end = now_ns();
      ours.push_back(static_cast<double>(gui_thread_ns() - cpu_begin));
      ours_wall.push_back(static_cast<double>(end - begin));
      const uint64_t bare_cpu_begin = now_ns(CLOCK_THREAD_CPUTIME_ID);
      const uint64_t bare_begin = now_ns();
      for (int i = 0; i < kCopiesARound; ++i) {
        std::memcpy(other->data(), from, bytes);
        // SAFETY: the empty asm keeps the copy, whose target nobody reads.
        asm volatile("" ::"r"(other->data()) : "memory");
      }
      bare_wall.push_back(static_cast<double>(now_ns() - bare_begin));
      bare.push_back(static_cast<double>(now_ns(CLOCK_THREAD_CPUTIME_ID) - bare_cpu_begin));
    }
    virtio_gpu_resource_unref unref{};
    unref.hdr.type = VIRTIO_GPU_CMD_RESOURCE_UNREF;
    unref.resource_id = id;
    x_guest->must(unref);
    const double ratio = median(bare) / median(ours);
    report.add("present.copy_gb_per_s_" + std::to_string(size.width),
               static_cast<double>(bytes) * kCopiesARound / median(ours), "GB/s");
    report.add("present.copy_vs_memcpy_" + std::to_string(size.width), ratio, "ratio");
    report.add("present.copy_wall_vs_memcpy_" + std::to_string(size.width),
               median(bare_wall) / median(ours_wall), "ratio");
    return ratio;
  }

  std::string x_dir;
  SocketPair x_ping;
  BenchProcess x_peer;
  BenchProcess x_frontend;
  Relay x_relay{x_ping.one.get()};
  Gui x_gui;
  std::optional<GuiGuest> x_guest;
  uint32_t x_serial = 0;
};

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  Bench().run(report);
  return report.finish();
}
