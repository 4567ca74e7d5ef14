// What the share ledger costs, and how soon memory comes back from it.
//
// A million buffers are shared with a frontend, given up by the guest (so all are orphans), and
// acknowledged by the frontend in shuffled order. Each goes through four transitions: unused, LIVE,
// ORPHAN, FREE, unused. First all of them are acknowledged before any pass, the worst backlog there
// can be: drain_ms is from the last acknowledgement until the last release. Then once more, with
// passes in between, as the GUI thread has them: churn_drain_ms.
//
// Real are the ledger, and the memory of every 244th buffer: a sealed memfd of 64 KiB, mapped,
// written, and opened for reading, as many and as large together as the default limits let orphans
// be (4096, 256 MiB). Releasing one truncates, unmaps and closes. The others are entries only.
//
// Beside it a model of what Linux did before and after the report that the ledger answers (Xen's
// grant-table deferred reclaim, 2023): a list, of which 10, then 10,000 entries are looked at each
// second; what is still mapped goes to its end. There is no other hardware in it than the second.
#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <numeric>
#include <random>
#include <vector>

#include "bench/allocations.h"
#include "bench/report.h"
#include "devices/gui/ledger.h"
#include "devices/gui/shared_buffer.h"

namespace lethe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kBuffers = 1'000'000;
constexpr uint32_t kReal = 4096;
constexpr uint64_t kRealBytes = 64 << 10;
constexpr uint32_t kStep = kBuffers / kReal;
constexpr unsigned kHolder = 3;
constexpr double kAckSeconds = 60;  // in the model of the kernel: the frontend's answers

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "bench_ledger: %s\n", what);
  std::exit(1);
}

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Gives back real memory for the slots that have it.
class Owner : public ShareLedger::Owner {
 public:
  Owner() : x_real(kReal) {}
  void make_real() {
    for (SharedBuffer& buffer : x_real) {
      auto made = SharedBuffer::create(kRealBytes);
      if (!made) give_up(made.error().text.c_str());
      buffer = std::move(*made);
      std::memset(buffer.data(), 0x5A, kRealBytes);
    }
  }
  Release release(BufferId id, uint64_t bytes, bool) override {
    released_bytes += bytes;
    if (id.slot % kStep != 0 || id.slot / kStep >= kReal) return Release::kDone;
    SharedBuffer& buffer = x_real[id.slot / kStep];
    const bool released = buffer.revoke();
    buffer = {};
    return released ? Release::kDone : Release::kRefused;
  }
  bool revoke(BufferId, uint64_t, uint32_t) override { give_up("nothing is over a limit"); }
  uint64_t released_bytes = 0;

 private:
  std::vector<SharedBuffer> x_real;
};

struct Figures {
  double transitions_per_s = 0;
  double drain_ms = 0;
};

class Run {
 public:
  Run() : x_ids(kBuffers), x_order(kBuffers) {
    std::iota(x_order.begin(), x_order.end(), 0U);
    std::shuffle(x_order.begin(), x_order.end(), std::mt19937(1));
  }

  // `acks_a_turn`: how many acknowledgements come before each pass.
  Figures measure(uint32_t acks_a_turn) {
    x_owner.make_real();
    x_owner.released_bytes = 0;
    uint64_t bytes = 0;
    const uint64_t before = allocations();
    const size_t in_use = ::mallinfo2().uordblks;
    const auto begin = Clock::now();
    for (BufferId& id : x_ids) {
      id = x_ledger.add(kRealBytes).value();
      (void)x_ledger.hold(id, kHolder);
      bytes += kRealBytes;
    }
    for (const BufferId id : x_ids) (void)x_ledger.guest_gone(id, begin);
    uint32_t turn = 0;
    for (const uint32_t i : x_order) {
      (void)x_ledger.unmapped(x_ids[i], kHolder);
      if (++turn == acks_a_turn) {
        (void)x_ledger.run_pass();
        turn = 0;
      }
    }
    const auto acknowledged = Clock::now();
    while (x_ledger.run_pass()) continue;
    Figures figures;
    figures.drain_ms = ms_since(acknowledged);
    figures.transitions_per_s = 4.0 * kBuffers / ms_since(begin) * 1e3;
    x_allocations += allocations() - before;
    if (::mallinfo2().uordblks > in_use) ++x_allocations;  // by malloc() itself
    if (x_owner.released_bytes != bytes || x_ledger.counters().orphan.buffers != 0)
      give_up("memory is missing");
    return figures;
  }
  [[nodiscard]] uint64_t allocated() const { return x_allocations; }
  [[nodiscard]] double pass_ms_max() const {
    return static_cast<double>(x_ledger.counters().pass_ns_max) * 1e-6;
  }

 private:
  Owner x_owner;
  // The limits are not what is measured: nothing is revoked.
  ShareLedger x_ledger{kBuffers,
                       {.orphan_bytes_max = ~uint64_t{0},
                        .orphans_max = kBuffers,
                        .orphan_age_max = std::chrono::hours(1)},
                       x_owner};
  std::vector<BufferId> x_ids;
  std::vector<uint32_t> x_order;
  uint64_t x_allocations = 0;
};

// Seconds from the last acknowledgement until the kernel's list is empty.
double kernel_drain_s(uint32_t entries_a_tick) {
  std::vector<uint32_t> order(kBuffers);
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  std::vector<double> unmapped_at(kBuffers);
  for (uint32_t i = 0; i < kBuffers; ++i) unmapped_at[order[i]] = kAckSeconds * i / kBuffers;
  std::deque<uint32_t> list(kBuffers);
  std::iota(list.begin(), list.end(), 0U);
  double now = 0;
  while (!list.empty()) {
    now += 1;
    const size_t looks = std::min<size_t>(entries_a_tick, list.size());
    for (size_t i = 0; i < looks; ++i) {
      const uint32_t entry = list.front();
      list.pop_front();
      if (unmapped_at[entry] > now) list.push_back(entry);
    }
  }
  return now - kAckSeconds;
}

void allow_descriptors() {
  rlimit limit{};
  constexpr rlim_t kNeeded = 2 * kReal + 64;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max < kNeeded)
    give_up("needs 8300 descriptors (ulimit -Hn)");
  limit.rlim_cur = std::max(limit.rlim_cur, kNeeded);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) give_up("cannot raise the limit of descriptors");
}

}  // namespace
}  // namespace lethe

int main(int argc, char** argv) {
  using namespace lethe;
  BenchReport report(argc, argv);
  allow_descriptors();
  Run run;
  std::vector<double> rate;
  std::vector<double> drain;
  std::vector<double> churn_drain;
  (void)run.measure(0);  // first touch of the entries is the start's, not a transition's
  for (int round = 0; round < 5; ++round) {
    const Figures backlog = run.measure(0);
    const Figures churn = run.measure(64);
    rate.push_back(std::min(backlog.transitions_per_s, churn.transitions_per_s));
    drain.push_back(backlog.drain_ms);
    churn_drain.push_back(churn.drain_ms);
  }
  report.add("ledger.real_buffers", kReal, "count");
  report.add("ledger.real_mib", kReal * kRealBytes / (1 << 20), "MiB");
  report.add("ledger.kernel_10_drain_s", kernel_drain_s(10), "s");
  report.add("ledger.kernel_10000_drain_s", kernel_drain_s(10'000), "s");
  report.add("ledger.churn_drain_ms", quantile(churn_drain, 1), "ms");
  report.add("ledger.transitions_per_s", median(rate), "1/s");
  report.add("ledger.allocations", static_cast<double>(run.allocated()), "count");
  report.add("ledger.pass_ms_max", run.pass_ms_max(), "ms");
  report.add("ledger.drain_ms", quantile(drain, 1), "ms");
  return report.finish();
}
