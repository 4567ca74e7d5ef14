// The console of a running VM for other processes: console.sock in the run-time directory, which
// `lethe console` and `lethe log` (or socat) connect to.
//
// The socket is a plain stream of bytes. A client first gets the console's last 64 KiB, then what
// the guest prints; what it sends are keys, whoever of the clients sends them. Nobody holds the
// guest up: a client that lags more than 64 KiB behind loses what it missed (it is told how much),
// and one that takes nothing for stuck_max is cut off. Clients stay connected over the guest's
// reboots, until the VM ends.
//
// Threading: the main thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/event_loop.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

struct ConsoleHubLimits {
  size_t clients_max = 32;                      // one more is told so, and closed
  std::chrono::milliseconds stuck_max{10'000};  // for a client to take something
};

struct ConsoleHubCounters {
  uint64_t clients = 0;        // that ever connected
  uint64_t refused = 0;        // one too many
  uint64_t cut_off = 0;        // took nothing for stuck_max
  uint64_t skipped_bytes = 0;  // not told to clients that lagged
};

class ConsoleHub {
 public:
  static constexpr size_t kKeptBytes = 64 * 1024;
  // Takes what was typed. False: no more for now, until resume_keys().
  using Keys = std::function<bool(std::string_view)>;

  explicit ConsoleHub(const ConsoleHubLimits& limits = {}) : x_limits(limits) {}
  ConsoleHub(const ConsoleHub&) = delete;
  ConsoleHub& operator=(const ConsoleHub&) = delete;

  // Serves clients on `loop` until detach(); the first call makes the socket at `path`. The loop
  // must not be destroyed before detach().
  [[nodiscard]] Result<> attach(EventLoop& loop, const std::string& path, Keys keys);
  void detach();

  // What the consoles printed, in order.
  void on_output(std::span<const uint8_t> bytes);
  void resume_keys();

  // The last bytes that were printed, the oldest first.
  [[nodiscard]] std::string kept() const;
  [[nodiscard]] size_t clients() const { return x_clients.size(); }
  [[nodiscard]] const ConsoleHubCounters& counters() const { return x_counters; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Client {
    UniqueFd fd{};
    uint64_t next = 0;      // of all that was printed, the first byte it has not got
    std::string note = {};  // goes before that
    Clock::time_point took{};
    bool ended = false;  // sends nothing more
    std::unique_ptr<EventLoop::Watch> input{};
    std::unique_ptr<EventLoop::Watch> output{};  // while it takes nothing
  };
  using Position = std::list<Client>::iterator;
  enum class Sent : uint8_t { kAll, kBlocked, kGone };

  [[nodiscard]] Result<> watch_listener();
  void accept();
  void watch_keys(Position client);
  void read_keys(Position client);
  // False: the client is gone.
  bool send(Position client);
  Sent send_pieces(Client& client);
  static Sent send_piece(Client& client, std::string_view piece, size_t& count);
  void look_for_stuck();
  void remove_gone();

  const ConsoleHubLimits x_limits;
  EventLoop* x_loop = nullptr;  // null: detached
  Keys x_keys;
  bool x_keys_paused = false;
  UniqueFd x_listener;
  std::unique_ptr<EventLoop::Watch> x_accepting;     // null: out of descriptors
  std::unique_ptr<EventLoop::Timer> x_accept_timer;  // runs then
  std::unique_ptr<EventLoop::Timer> x_stuck_timer;   // runs while a client is blocked
  bool x_stuck_timer_runs = false;
  std::list<Client> x_clients;
  ConsoleHubCounters x_counters;
  uint64_t x_printed = 0;  // bytes ever
  // The byte number n is at n % kKeptBytes. Not cleared: pages that no output needed stay
  // untouched.
  std::unique_ptr<uint8_t[]> x_kept = std::make_unique_for_overwrite<uint8_t[]>(kKeptBytes);
};

}  // namespace lethe
