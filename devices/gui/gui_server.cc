// Frontends come and go.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "devices/gui/channel_client.h"
#include "devices/gui/gui_core.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5
#endif

namespace lethe {
namespace {

// Connections taken in one go, before others have their turn.
constexpr int kAcceptsATurn = 16;

// A descriptor of the process at the other end (of the one that connected). By its number, where
// the kernel can't do better: that process could have ended and its number be in use again.
Result<UniqueFd> peer_process(int socket) {
  int pidfd = -1;
  socklen_t size = sizeof pidfd;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return UniqueFd(pidfd);
  ucred peer{};
  size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) {
    pidfd = static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0));
    if (pidfd >= 0) return UniqueFd(pidfd);
  }
  return host_error("cannot watch a frontend's process: {}", errno_text(errno));
}

void say_bye(int socket, gui::ByeReason reason) {
  auto message = make_message<gui::Bye>(gui::Type::kBye);
  message.reason = static_cast<uint32_t>(reason);
  (void)::send(socket, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

Result<> GuiCore::listen(UniqueFd socket) {
  x_socket = std::move(socket);
  const int flags = ::fcntl(x_socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(x_socket.get(), F_SETFL, flags | O_NONBLOCK) != 0)
    return host_error("cannot listen for frontends: {}", errno_text(errno));
  LETHE_TRY_ASSIGN(x_accept_watch,
                   x_loop.watch_readable(x_socket.get(), [this] { accept_frontends(); }));
  return {};
}

void GuiCore::watch_listener() {
  if (auto watch = x_loop.watch_readable(x_socket.get(), [this] { accept_frontends(); })) {
    x_accept_watch = std::move(*watch);
  } else {
    x_accept_timer->start(kAcceptPause);
  }
}

void GuiCore::accept_frontends() {
  for (int i = 0; i < kAcceptsATurn; ++i) {
    UniqueFd client(::accept4(x_socket.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (client.valid()) {
      add_client(std::move(client));
      continue;
    }
    if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return;
    // Out of descriptors or memory: the frontend stays in the queue, and the socket readable. To
    // look again at once would only burn time.
    LETHE_LOG_LIMITED(LogModule::kGui, "cannot accept a frontend: {}", errno_text(errno));
    x_counters.refused_frontends.fetch_add(1, std::memory_order_relaxed);
    x_accept_watch.reset();
    x_accept_timer->start(kAcceptPause);
    return;
  }
}

void GuiCore::add_client(UniqueFd socket) {
  unsigned connected = 0;
  for (const Holder& other : x_holders) connected += other.client && !other.client->ended() ? 1 : 0;
  Holder* const holder = connected < x_options.frontends_max ? free_holder() : nullptr;
  auto pidfd = peer_process(socket.get());
  if (holder == nullptr || !pidfd) {
    LETHE_LOG_LIMITED(LogModule::kGui, "a frontend is refused: {}",
                      pidfd ? "there are too many" : pidfd.error().text);
    x_counters.refused_frontends.fetch_add(1, std::memory_order_relaxed);
    return say_bye(socket.get(), gui::ByeReason::kTooMany);
  }
  const auto bit = static_cast<unsigned>(holder - x_holders.data());
  auto watch = x_loop.watch_readable(pidfd->get(), [this, bit] { holder_exited(bit); });
  const int raw = socket.get();
  auto client = std::make_unique<ChannelClient>(*this, std::move(socket), bit);
  if (const auto started = watch ? client->start() : Result<>(); !watch || !started) {
    LETHE_LOG_LIMITED(LogModule::kGui, "a frontend is refused: {}",
                      watch ? started.error().text : watch.error().text);
    x_counters.refused_frontends.fetch_add(1, std::memory_order_relaxed);
    return say_bye(raw, gui::ByeReason::kTooMany);
  }
  holder->client = std::move(client);
  holder->pidfd = std::move(*pidfd);
  holder->exit_watch = std::move(*watch);
  x_counters.frontends_total.fetch_add(1, std::memory_order_relaxed);
  count_frontend(true);
}

void GuiCore::count_frontend(bool came) {
  const uint64_t now = x_counters.frontends.load(std::memory_order_relaxed) + (came ? 1 : -1);
  x_counters.frontends.store(now, std::memory_order_relaxed);
  if (x_frontend_listener) x_frontend_listener(came, now);
}

// One that is not used; else that of the process that departed first. What it may still map is not
// counted any more, but pins no memory: release() sees to that.
GuiCore::Holder* GuiCore::free_holder() {
  Holder* oldest = nullptr;
  for (Holder& holder : x_holders) {
    if (!holder.used()) return &holder;
    if (!holder.client && (oldest == nullptr || holder.departed < oldest->departed))
      oldest = &holder;
  }
  if (oldest == nullptr) return nullptr;
  x_ledger.holder_gone(static_cast<unsigned>(oldest - x_holders.data()));
  *oldest = {};
  schedule_pass();
  return oldest;
}

void GuiCore::holder_exited(unsigned bit) {
  Holder& holder = x_holders[bit];
  holder.exit_watch.reset();
  holder.exited = true;
  x_ledger.holder_gone(bit);
  schedule_pass();
  if (holder.client) {
    holder.client->exited();
  } else {
    holder = {};
  }
}

void GuiCore::remove_client(Holder& holder) {
  const std::unique_ptr<ChannelClient> client = std::move(holder.client);
  count_frontend(false);
  holder.departed = ++x_departures;
  if (holder.exited) holder = {};
  for (const SurfaceRecord& surface : x_surfaces)
    if (surface.id != 0) x_done_checks.add(slot_of(surface.id));
  client->let_go();
  check_focus();
}

}  // namespace lethe
