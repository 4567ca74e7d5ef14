// A token bucket that may go into debt: how a disk's rate limits hold over time without ever
// refusing a request larger than the bucket.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lethe {

// Holds a tenth of a second's worth of tokens, at least 1. A request may go when there is any token
// and takes its whole cost; the next one waits until the debt is paid. One thread.
class TokenBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `rate`: tokens per second; 0: no limit.
  explicit TokenBucket(uint64_t rate)
      : x_rate(static_cast<double>(rate)), x_size(std::max(1.0, x_rate / 10)), x_tokens(x_size) {}

  // How long until a request may go; 0 if it may now.
  [[nodiscard]] std::chrono::nanoseconds wait(Time now) {
    if (x_rate == 0) return {};
    refill(now);
    if (x_tokens >= 1) return {};
    // One more nanosecond: rounding must not make the caller come back too early for ever.
    return std::chrono::nanoseconds(static_cast<int64_t>((1 - x_tokens) / x_rate * 1e9) + 1);
  }
  void take(uint64_t cost) {
    if (x_rate != 0) x_tokens -= static_cast<double>(cost);
  }

  // Tokens owed at the last take() or wait(), for a snapshot. What it holds beyond none is not
  // kept.
  [[nodiscard]] uint64_t debt() const {
    return x_tokens < 0 ? static_cast<uint64_t>(std::min(-x_tokens, 1e18)) : 0;
  }
  void set_debt(uint64_t tokens) {
    if (x_rate != 0 && tokens > 0) x_tokens = -static_cast<double>(tokens);
  }

 private:
  void refill(Time now) {
    if (x_last != Time{}) {
      const std::chrono::duration<double> passed = now - x_last;
      x_tokens = std::min(x_size, x_tokens + passed.count() * x_rate);
    }
    x_last = now;
  }

  double x_rate;
  double x_size;
  double x_tokens;
  Time x_last{};
};

}  // namespace lethe
