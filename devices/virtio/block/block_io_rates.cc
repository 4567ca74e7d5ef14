// BlockIo's rate limits: which request has to wait, and for how long.
#include <algorithm>

#include "devices/virtio/block/block_io.h"

namespace lethe {

bool BlockIo::limited() const { return x_rates.iops_max != 0 || x_rates.bandwidth_max != 0; }

// Whether the rate limit has the request wait: then it is what x_held is.
bool BlockIo::held_back(BlockRequest& request) {
  if (!limited()) return false;
  const auto now = std::chrono::steady_clock::now();
  const auto wait = std::max(x_requests.wait(now), x_bytes.wait(now));
  if (wait.count() > 0) {
    x_held = &request;
    ++x_counters.throttled;
    x_timer->start(wait);
    return true;
  }
  const bool moves_bytes = request.type() == VIRTIO_BLK_T_IN || request.is_write() ||
                           (request.type() == VIRTIO_BLK_T_WRITE_ZEROES && must_write(request));
  x_requests.take(1);
  x_bytes.take(moves_bytes ? request.bytes() : 0);
  return false;
}

void BlockIo::set_rates(const BlockRates& rates) {
  x_rates = rates;
  x_requests = TokenBucket(rates.iops_max);
  x_bytes = TokenBucket(rates.bandwidth_max);
  release_held();
}

void BlockIo::release_held() {
  if (x_held == nullptr) return;
  BlockRequest& request = *x_held;
  x_held = nullptr;
  if (held_back(request)) return;
  run_admitted(request);
  pump();
}

}  // namespace lethe
