#include "vmm/console_host.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/unix_socket.h"

namespace lethe {
namespace {

constexpr size_t kKeysChunk = 4096;
constexpr int kAcceptsAtOnce = 16;
constexpr std::chrono::milliseconds kAcceptRetry{100};  // the host is out of descriptors

}  // namespace

Result<> ConsoleHub::attach(EventLoop& loop, const std::string& path, Keys keys) {
  if (!x_listener.valid()) {
    LETHE_TRY_ASSIGN(x_listener, listen_unix(path));
  }
  x_loop = &loop;
  x_keys = std::move(keys);
  x_keys_paused = false;
  x_stuck_timer = loop.make_timer([this] { look_for_stuck(); });
  x_accept_timer = loop.make_timer([this] {
    if (!watch_listener()) x_accept_timer->start(kAcceptRetry);
  });
  LETHE_TRY(watch_listener());
  for (auto client = x_clients.begin(); client != x_clients.end();) {
    const auto current = client++;
    watch_keys(current);
    (void)send(current);
  }
  return {};
}

Result<> ConsoleHub::watch_listener() {
  LETHE_TRY_ASSIGN(x_accepting, x_loop->watch_readable(x_listener.get(), [this] { accept(); }));
  return {};
}

void ConsoleHub::detach() {
  x_accepting.reset();
  x_accept_timer.reset();
  x_stuck_timer.reset();
  x_stuck_timer_runs = false;
  for (Client& client : x_clients) {
    client.input.reset();
    client.output.reset();
  }
  x_loop = nullptr;
  x_keys = nullptr;
}

void ConsoleHub::on_output(std::span<const uint8_t> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const size_t at = (x_printed + done) % kKeptBytes;
    const size_t count = std::min(bytes.size() - done, kKeptBytes - at);
    std::memcpy(x_kept.get() + at, bytes.data() + done, count);
    done += count;
  }
  x_printed += bytes.size();
  for (auto client = x_clients.begin(); client != x_clients.end();) {
    const auto current = client++;
    if (!current->output) (void)send(current);
  }
}

std::string ConsoleHub::kept() const {
  const size_t size = std::min<uint64_t>(x_printed, kKeptBytes);
  const size_t start = (x_printed - size) % kKeptBytes;
  const size_t first = std::min(size, kKeptBytes - start);
  // SAFETY: bytes, as characters; those below x_printed were written.
  const auto* const bytes = reinterpret_cast<const char*>(x_kept.get());
  return std::string(bytes + start, first) + std::string(bytes, size - first);
}

void ConsoleHub::accept() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    UniqueFd fd(::accept4(x_listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
      // Out of descriptors, say. Who waits stays readable: watched on, the loop would spin.
      LETHE_LOG_LIMITED(LogModule::kConsole, "the console can't take a connection: {}",
                        errno_text(errno));
      x_accepting.reset();
      x_accept_timer->start(kAcceptRetry);
      return;
    }
    if (x_clients.size() >= x_limits.clients_max) remove_gone();
    if (x_clients.size() >= x_limits.clients_max) {
      ++x_counters.refused;
      const std::string text =
          fmt::format("lethe: this console has {} clients already\r\n", x_clients.size());
      (void)::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      continue;
    }
    ++x_counters.clients;
    x_clients.push_back({.fd = std::move(fd), .next = x_printed, .took = Clock::now()});
    const auto client = std::prev(x_clients.end());
    client->next -= std::min<uint64_t>(x_printed, kKeptBytes);
    watch_keys(client);
    (void)send(client);
  }
}

// One that only listens (its end is shut) is not seen to go before something is sent.
void ConsoleHub::remove_gone() {
  for (auto client = x_clients.begin(); client != x_clients.end();) {
    pollfd state{client->fd.get(), 0, 0};
    const bool gone = ::poll(&state, 1, 0) > 0 && (state.revents & (POLLHUP | POLLERR)) != 0;
    client = gone ? x_clients.erase(client) : std::next(client);
  }
}

void ConsoleHub::watch_keys(Position client) {
  if (client->ended || x_keys_paused || client->input) return;
  auto watch = x_loop->watch_readable(client->fd.get(), [this, client] { read_keys(client); });
  if (watch)
    client->input = std::move(*watch);
  else
    log_warn(LogModule::kConsole, "a console client's keys are not read: {}", watch.error().text);
}

void ConsoleHub::resume_keys() {
  if (!x_keys_paused) return;
  x_keys_paused = false;
  for (auto client = x_clients.begin(); client != x_clients.end(); ++client) watch_keys(client);
}

void ConsoleHub::read_keys(Position client) {
  std::array<char, kKeysChunk> chunk;
  const ssize_t got = ::recv(client->fd.get(), chunk.data(), chunk.size(), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    client->input.reset();
    client->ended = true;
    pollfd state{client->fd.get(), 0, 0};
    const bool gone = ::poll(&state, 1, 0) > 0 && (state.revents & (POLLHUP | POLLERR)) != 0;
    if (got < 0 || gone) x_clients.erase(client);
    return;
  }
  if (x_keys(std::string_view(chunk.data(), static_cast<size_t>(got)))) return;
  x_keys_paused = true;
  for (Client& each : x_clients) each.input.reset();
}

bool ConsoleHub::send(Position client) {
  switch (send_pieces(*client)) {
    case Sent::kAll:
      client->output.reset();
      return true;
    case Sent::kGone:
      x_clients.erase(client);
      return false;
    case Sent::kBlocked:
      break;
  }
  if (client->output || x_loop == nullptr) return true;
  auto watch = x_loop->watch_writable(client->fd.get(), [this, client] { (void)send(client); });
  if (!watch) {
    log_warn(LogModule::kConsole, "a console client is cut off: {}", watch.error().text);
    x_clients.erase(client);
    return false;
  }
  client->output = std::move(*watch);
  client->took = Clock::now();
  if (!x_stuck_timer_runs) x_stuck_timer->start(x_limits.stuck_max);
  x_stuck_timer_runs = true;
  return true;
}

ConsoleHub::Sent ConsoleHub::send_pieces(Client& client) {
  for (;;) {
    if (const uint64_t lag = x_printed - client.next; client.note.empty() && lag > kKeptBytes) {
      const uint64_t skipped = lag - kKeptBytes;
      client.next += skipped;
      x_counters.skipped_bytes += skipped;
      client.note = fmt::format("\r\n[lethe: {} bytes skipped]\r\n", skipped);
    }
    size_t count = 0;
    if (!client.note.empty()) {
      const Sent sent = send_piece(client, client.note, count);
      client.note.erase(0, count);
      if (sent != Sent::kAll) return sent;
      continue;
    }
    if (client.next == x_printed) return Sent::kAll;
    const size_t at = client.next % kKeptBytes;
    const size_t size = std::min<uint64_t>(x_printed - client.next, kKeptBytes - at);
    // SAFETY: bytes, as characters; those from `next` to `x_printed` are kept.
    const auto* const bytes = reinterpret_cast<const char*>(x_kept.get()) + at;
    const Sent sent = send_piece(client, std::string_view(bytes, size), count);
    client.next += count;
    if (sent != Sent::kAll) return sent;
  }
}

// kAll: the piece or a part of it was sent.
ConsoleHub::Sent ConsoleHub::send_piece(Client& client, std::string_view piece, size_t& count) {
  for (;;) {
    const ssize_t sent =
        ::send(client.fd.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      count = static_cast<size_t>(sent);
      client.took = Clock::now();
      return Sent::kAll;
    }
    if (errno != EINTR) return errno == EAGAIN ? Sent::kBlocked : Sent::kGone;
  }
}

void ConsoleHub::look_for_stuck() {
  const auto now = Clock::now();
  auto next = Clock::time_point::max();
  for (auto client = x_clients.begin(); client != x_clients.end();) {
    const auto current = client++;
    if (!current->output) continue;
    if (now - current->took >= x_limits.stuck_max) {
      ++x_counters.cut_off;
      x_clients.erase(current);
    } else {
      next = std::min(next, current->took + x_limits.stuck_max);
    }
  }
  x_stuck_timer_runs = next != Clock::time_point::max();
  if (x_stuck_timer_runs) x_stuck_timer->start(next - now);
}

}  // namespace lethe
