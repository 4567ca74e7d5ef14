// What a disk costs: 4 KiB random reads at queue depth 32 of a file in the page cache, through the
// block device (FakeDriver on this thread, the device on its own), and the same reads, of the same
// file into the same memory, straight through io_uring on this thread.
//
// The two take turns, in short rounds; the ratio is the median of the pairs' ratios. Both keep 32
// requests out: the driver adds a request for each that came back, publishes what it added in a
// batch and kicks if the device wants it; then it waits for an interrupt, and takes all that is in
// the used ring. It sleeps only when none comes for long (a vCPU with work is running, and waking a
// sleeping thread costs ten reads). What KVM takes to deliver an interrupt is in neither figure.
// The bare loop submits what it added in a batch, waits for at least one, and reaps all there are.
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/part_threads.h"
#include "bench/report.h"
#include "devices/virtio/block/block.h"
#include "devices/virtio/fake_transport.h"
#include "memory/guest_memory.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kFileBytes = 256 * kMiB;
constexpr uint32_t kReadBytes = 4096;
constexpr unsigned kDepth = 32;
constexpr unsigned kReads = 30'000;  // a round: some 20 ms, so that both meet the same noise
constexpr int kRounds = 51;
constexpr uint64_t kRequestBytes = 448;  // from one request to the next in Linux, about
constexpr int kPauses = 10'000;          // of the driver, before it sleeps: some 100 us
constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 64 * kMiB};

[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "bench_block: %s\n", what.c_str());
  std::exit(1);
}

// The file, each of whose blocks starts with its own number, in the page cache.
class File {
 public:
  File() {
    char path[] = "/var/tmp/lethe-bench-XXXXXX";
    x_fd.reset(::mkstemp(path));
    if (!x_fd.valid()) give_up(std::string(path) + ": " + errno_text(errno));
    x_path = path;
    std::vector<uint64_t> chunk(kMiB / sizeof(uint64_t));
    for (uint64_t at = 0; at < kFileBytes; at += kMiB) {
      for (uint64_t i = 0; i < chunk.size(); i += kReadBytes / sizeof(uint64_t))
        chunk[i] = (at + i * sizeof(uint64_t)) / kReadBytes;
      if (::write(x_fd.get(), chunk.data(), kMiB) != static_cast<ssize_t>(kMiB))
        give_up(x_path + ": " + errno_text(errno));
    }
    (void)::fsync(x_fd.get());
  }
  ~File() { ::unlink(x_path.c_str()); }
  [[nodiscard]] const std::string& path() const { return x_path; }

 private:
  UniqueFd x_fd;
  std::string x_path;
};

std::vector<uint32_t> random_blocks() {
  std::mt19937 random(1);
  std::vector<uint32_t> blocks(kReads);
  for (uint32_t& block : blocks) block = random() % (kFileBytes / kReadBytes);
  return blocks;
}

double thousands_a_second(Clock::time_point start) {
  return kReads / std::chrono::duration<double>(Clock::now() - start).count() / 1000;
}

class Device {
 public:
  explicit Device(const std::string& path) : x_device(open(path)), x_guest(*x_memory, *x_device) {
    x_guest.start(~uint64_t{0}, 256);
    // Header and status side by side, and those of all requests in one array, as Linux has them
    // (struct virtblk_req, behind struct request).
    const GuestAddr array = x_guest.heap().alloc(kDepth * kRequestBytes, 64);
    for (unsigned i = 0; i < kDepth; ++i) {
      Request& request = x_requests[i];
      request.header = GuestAddr{array.value + i * kRequestBytes};
      request.status = GuestAddr{request.header.value + sizeof(virtio_blk_outhdr)};
      request.data = x_guest.heap().alloc(kReadBytes, 4096);
      request.buffers = {{{request.header, sizeof(virtio_blk_outhdr), false},
                          {request.data, kReadBytes, true},
                          {request.status, 1, true}}};
      // SAFETY: aligned by the heap; the device only reads it.
      request.header_in_host = reinterpret_cast<virtio_blk_outhdr*>(
          x_memory->slice(request.header, sizeof(virtio_blk_outhdr))->data);
      request.data_in_host = x_memory->slice(request.data, kReadBytes)->data;
      request.status_in_host = x_memory->slice(request.status, 1)->data;
    }
  }
  uint8_t* buffer(unsigned index) { return x_requests[index].data_in_host; }

  double round(const std::vector<uint32_t>& blocks) {
    FakeDriver& driver = x_guest.driver(0);
    std::array<Request*, 256> by_head{};
    std::array<Request*, kDepth> free{};
    unsigned free_count = 0;
    for (Request& request : x_requests) free[free_count++] = &request;
    const auto start = Clock::now();
    unsigned added = 0;
    unsigned done = 0;
    while (done < kReads) {
      const unsigned added_before = added;
      while (free_count > 0 && added < kReads) {
        Request& request = *free[--free_count];
        request.block = blocks[added++];
        *request.header_in_host = {.type = VIRTIO_BLK_T_IN,
                                   .ioprio = 0,
                                   .sector = uint64_t{request.block} * (kReadBytes / 512)};
        const auto head = driver.prepare(request.buffers, FakeDriver::Table::kDirect);
        by_head[head.value()] = &request;
      }
      if (added != added_before) {
        driver.publish();
        x_guest.kick_if_wanted(0);
      }
      auto used = wait(driver);
      if (!used) give_up("the device does not answer");
      for (; used; used = driver.poll_used()) {
        Request& request = *by_head[used->head];
        check(request);
        free[free_count++] = &request;
        ++done;
      }
    }
    return thousands_a_second(start);
  }

 private:
  struct Request {
    GuestAddr header;
    GuestAddr data;
    GuestAddr status;
    std::array<FakeBuffer, 3> buffers;
    virtio_blk_outhdr* header_in_host = nullptr;
    uint8_t* data_in_host = nullptr;
    uint8_t* status_in_host = nullptr;
    uint32_t block = 0;
  };
  // As Linux's driver does: when the used ring is empty it wants interrupts, looks once more, then
  // not before one has come. So it finds a batch, and does not pull at the ring's cache lines while
  // the device fills it. A vCPU that is running is interrupted without having slept: this thread
  // waits for the interrupt awake for a while.
  std::optional<FakeDriver::Used> wait(FakeDriver& driver) {
    FakeInterrupt& interrupt = x_guest.interrupt(0);
    const uint64_t seen = interrupt.count();
    auto used = driver.poll_used();
    if (!used && !driver.enable_interrupts()) {
      for (int i = 0; i < kPauses && interrupt.count() == seen; ++i) __builtin_ia32_pause();
    }
    if (!used) used = driver.wait_used(interrupt, deadline_in(FakeTransport::kPatience));
    driver.disable_interrupts();
    return used;
  }
  static std::unique_ptr<BlockDevice> open(const std::string& path) {
    auto device = BlockDevice::open({.path = path, .read_only = true});
    if (!device) give_up(device.error().text);
    return std::move(*device);
  }
  static void check(const Request& request) {
    uint64_t block = 0;
    std::memcpy(&block, request.data_in_host, sizeof block);
    if (*request.status_in_host != VIRTIO_BLK_S_OK || block != request.block)
      give_up("the device read something else");
  }

  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<BlockDevice> x_device;
  FakeTransport x_guest;
  std::array<Request, kDepth> x_requests;
};

class Bare {
 public:
  explicit Bare(const std::string& path, Device& device) : x_fd(::open(path.c_str(), O_RDONLY)) {
    for (unsigned i = 0; i < kDepth; ++i) x_buffers[i] = device.buffer(i);
    io_uring_params params{};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (io_uring_queue_init_params(kDepth, &x_ring, &params) != 0 &&
        io_uring_queue_init(kDepth, &x_ring, 0) != 0)
      give_up("no io_uring");
    const int fd = x_fd.get();
    if (io_uring_register_files(&x_ring, &fd, 1) != 0) give_up("no registered file");
  }
  ~Bare() { io_uring_queue_exit(&x_ring); }

  double round(const std::vector<uint32_t>& blocks) {
    std::array<unsigned, kDepth> free{};
    std::array<uint32_t, kDepth> reading{};
    unsigned free_count = 0;
    for (unsigned i = 0; i < kDepth; ++i) free[free_count++] = i;
    const auto start = Clock::now();
    unsigned added = 0;
    unsigned done = 0;
    while (done < kReads) {
      while (free_count > 0 && added < kReads) {
        const unsigned index = free[--free_count];
        io_uring_sqe* const entry = io_uring_get_sqe(&x_ring);
        reading[index] = blocks[added++];
        io_uring_prep_read(entry, 0, x_buffers[index], kReadBytes,
                           uint64_t{reading[index]} * kReadBytes);
        entry->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(entry, index);
      }
      if (io_uring_submit_and_wait(&x_ring, 1) < 0) give_up("io_uring_enter");
      std::array<io_uring_cqe*, kDepth> entries{};
      const unsigned count = io_uring_peek_batch_cqe(&x_ring, entries.data(), kDepth);
      for (unsigned i = 0; i < count; ++i) {
        const auto index = static_cast<unsigned>(entries[i]->user_data);
        uint64_t block = 0;
        std::memcpy(&block, x_buffers[index], sizeof block);
        if (entries[i]->res != kReadBytes || block != reading[index])
          give_up("io_uring read something else");
        free[free_count++] = index;
      }
      io_uring_cq_advance(&x_ring, count);
      done += count;
    }
    return thousands_a_second(start);
  }

 private:
  UniqueFd x_fd;
  io_uring x_ring{};
  std::array<uint8_t*, kDepth> x_buffers{};
};

}  // namespace

int run(int argc, char** argv) {
  BenchReport report(argc, argv);
  const File file;
  const std::vector<uint32_t> blocks = random_blocks();
  Device device(file.path());
  Bare bare(file.path(), device);
  part_threads();
  std::vector<double> through_device;
  std::vector<double> through_bare;
  std::vector<double> ratios;
  for (int round = -1; round < kRounds; ++round) {  // the first one is not counted
    const double device_kiops = device.round(blocks);
    const double bare_kiops = bare.round(blocks);
    if (round < 0) continue;
    through_device.push_back(device_kiops);
    through_bare.push_back(bare_kiops);
    ratios.push_back(device_kiops / bare_kiops);
  }
  report.add("block.device_kiops", median(through_device), "kiops");
  report.add("block.bare_io_uring_kiops", median(through_bare), "kiops");
  report.add("block.vs_bare_io_uring", median(ratios), "ratio");
  return report.finish();
}

}  // namespace lethe

int main(int argc, char** argv) { return lethe::run(argc, argv); }
