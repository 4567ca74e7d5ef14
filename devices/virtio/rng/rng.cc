#include "devices/virtio/rng/rng.h"

#include <fcntl.h>
#include <sys/random.h>

#include <algorithm>

#include "base/assert.h"
#include "base/log.h"

namespace lethe {
namespace {

constexpr std::array<uint16_t, 1> kQueueSizes = {64};
constexpr size_t kRequestCostMin = 1024;  // bytes that even an empty request counts for

}  // namespace

Result<std::unique_ptr<RngDevice>> RngDevice::open(EventLoop& loop, const std::string& source) {
  UniqueFd fd;
  if (!source.empty() && source != "/dev/urandom") {
    fd.reset(::open(source.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (!fd.valid())
      return host_error("cannot open the random source '{}': {}", source, errno_text(errno));
  }
  return std::unique_ptr<RngDevice>(new RngDevice(loop, std::move(fd)));
}

RngDevice::~RngDevice() { reset(); }

std::span<const uint16_t> RngDevice::queue_sizes_max() const { return kQueueSizes; }

void RngDevice::start(uint64_t /*features*/, VirtioHost& host) {
  MutexLock lock(x_mutex);
  x_host = &host;
}

void RngDevice::start_queue(uint16_t /*index*/, std::unique_ptr<Queue> queue, const EventFd& kick) {
  MutexLock lock(x_mutex);
  x_queue = std::move(queue);
  x_kick = &kick;
  x_kick_watch = std::make_unique<KickWatch>(
      x_loop, kick, [this] { serve(); },
      [this] {
        MutexLock failing(x_mutex);
        if (x_host != nullptr) x_host->needs_reset(KickWatch::kFailure);
      });
}

void RngDevice::stop_queue(uint16_t /*index*/) {
  MutexLock lock(x_mutex);
  x_kick_watch.reset();
  x_kick = nullptr;
  x_queue.reset();
}

void RngDevice::reset() {
  stop_queue(0);
  MutexLock lock(x_mutex);
  x_host = nullptr;
}

void RngDevice::serve() {
  MutexLock lock(x_mutex);
  if (!x_queue) return;
  size_t budget = kWakeBytesMax;
  do {
    while (budget > 0) {
      auto chain = x_queue->pop();
      if (!chain) break;
      const uint32_t written = fill(*chain);
      chain->complete(written);
      budget -= std::min(budget, std::max<size_t>(written, kRequestCostMin));
    }
  } while (budget > 0 && !x_queue->broken() && x_queue->enable_kicks());
  x_queue->interrupt_if_needed();
  if (x_queue->broken()) {
    x_host->needs_reset(x_queue->broken_reason());
    x_queue.reset();
  } else if (budget == 0) {
    x_kick->signal();  // come back after the loop's other work
  }
}

// 5.4.6.2: the buffers must be writable, and get at least one byte.
uint32_t RngDevice::fill(const Chain& chain) {
  if (chain.writable_bytes() == 0) {
    ++x_counters.refused;
    LETHE_LOG_LIMITED(LogModule::kRng, "request without a writable buffer");
    return 0;
  }
  size_t done = 0;
  for (const IoSlice& slice : chain.writable()) {
    const size_t size = std::min(slice.size, kRequestBytesMax - done);
    fill_bytes({slice.data, size});
    done += size;
  }
  x_counters.bytes += done;
  return static_cast<uint32_t>(done);
}

void RngDevice::fill_bytes(std::span<uint8_t> to) {
  while (x_source.valid() && !to.empty()) {
    const ssize_t count = ::read(x_source.get(), to.data(), to.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      ++x_counters.source_short;
      LETHE_LOG_LIMITED(LogModule::kRng, "the source gave nothing ({}): used getrandom",
                        count == 0 ? "it ended" : errno_text(errno));
      break;
    }
    to = to.subspan(static_cast<size_t>(count));
  }
  while (!to.empty()) {
    const ssize_t count = ::getrandom(to.data(), to.size(), 0);
    // It can only be interrupted: the buffer is mapped, the flags are good.
    LETHE_ASSERT(count > 0 || errno == EINTR);
    if (count > 0) to = to.subspan(static_cast<size_t>(count));
  }
}

}  // namespace lethe
