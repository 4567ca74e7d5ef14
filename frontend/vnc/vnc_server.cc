#include "frontend/vnc/vnc_server.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "frontend/vnc/listeners.h"

namespace lethe::gui {
namespace {

// After a wrong password nobody is let in for so long: each connection that was taken before has
// one guess, which bounds how many there are in a second.
constexpr std::chrono::milliseconds kWrongPasswordPause{1000};

Result<UniqueFd> watch_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // libvncserver writes to clients that have gone
  UniqueFd fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd.valid()) return host_error("signalfd: {}", errno_text(errno));
  return fd;
}

}  // namespace

VncServer::~VncServer() {
  // Clients go with it, and what they held is released: the rest of this object is used.
  x_screen.reset();
  if (!x_unlink.empty()) ::unlink(x_unlink.c_str());
}

Result<> VncServer::start() {
  LETHE_TRY_ASSIGN(x_signals, watch_signals());
  LETHE_TRY_ASSIGN(UniqueFd socket, connect_socket(x_options.target));
  LETHE_TRY_ASSIGN(
      Client client,
      Client::connect(std::move(socket), {.name = "lethe-vnc", .view_only = x_options.view_only}));
  x_client.emplace(std::move(client));
  const std::string name =
      x_options.target.name.empty() ? x_options.target.socket : x_options.target.name;
  LETHE_TRY_ASSIGN(x_screen, VncScreen::create(name, x_options.password, *this));
  return listen();
}

Result<> VncServer::listen() {
  if (!x_options.unix_path.empty()) {
    LETHE_TRY_ASSIGN(x_unix, listen_unix(x_options.unix_path));
    x_unlink = x_options.unix_path;
    fmt::print("VNC on {}\n", x_options.unix_path);
  }
  if (x_options.port) {
    LETHE_TRY_ASSIGN(x_tcp, listen_loopback(*x_options.port));
    fmt::print("VNC on 127.0.0.1:{}\n", port_of(x_tcp.get()));
  }
  if (x_options.web_port) {
    LETHE_TRY_ASSIGN(x_web, listen_loopback(*x_options.web_port));
    const uint16_t port = port_of(x_web.get());
    x_gate.emplace(port, x_options.web,
                   [this](UniqueFd socket) { x_screen->add_client(std::move(socket), true); });
    fmt::print("Browsers on http://127.0.0.1:{}/\n", port);
  }
  std::fflush(stdout);
  return {};
}

Result<> VncServer::run() {
  LETHE_TRY(start());
  while (serve_once()) {
    if (x_ended) continue;
    if (!x_ended.error().text.starts_with("the VM has ended")) return x_ended;
    fmt::print(stderr, "lethe-vnc: {}\n", x_ended.error().text);
    return {};
  }
  return {};
}

int VncServer::patience_ms(bool held_back) const {
  auto until = x_gate ? x_gate->deadline() : WebGate::Clock::time_point::max();
  if (held_back) until = std::min(until, x_screen->wrong_password_at() + kWrongPasswordPause);
  if (until == WebGate::Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - WebGate::Clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
}

bool VncServer::serve_once() {
  const bool held_back =
      WebGate::Clock::now() - x_screen->wrong_password_at() < kWrongPasswordPause;
  std::vector<pollfd> waiting = {
      {.fd = x_signals.get(), .events = POLLIN, .revents = 0},
      {.fd = x_client->fd(), .events = x_client->events(), .revents = 0},
      {.fd = x_unix.get(), .events = POLLIN, .revents = 0},
      {.fd = held_back ? -1 : x_tcp.get(), .events = POLLIN, .revents = 0},
      {.fd = held_back ? -1 : x_web.get(), .events = POLLIN, .revents = 0}};
  if (x_gate) x_gate->add_to(waiting);
  x_screen->add_to(waiting);
  if (::poll(waiting.data(), waiting.size(), patience_ms(held_back)) < 0 && errno != EINTR)
    return false;
  if (waiting[0].revents != 0) return false;
  for (const pollfd& listener : {waiting[2], waiting[3], waiting[4]})
    if (listener.revents != 0) accept_all(listener.fd);
  if (x_gate) x_gate->process();
  // Nothing follows the drawing that may hear of new damage: it would stay until the next wake-up.
  // What clients typed goes out at once all the same: events() then has POLLOUT.
  x_ended = x_client->process(*this);
  show_damage();
  x_screen->process();
  return true;
}

void VncServer::accept_all(int listener) {
  while (true) {
    UniqueFd socket = accept_from(listener);
    if (!socket.valid()) return;
    if (listener == x_web.get())
      x_gate->add(std::move(socket));
    else
      x_screen->add_client(std::move(socket), false);
  }
}

void VncServer::show_damage() {
  const Rect damage = x_desktop.take_damage();
  if (damage.empty()) return;
  (void)x_screen->resize(x_desktop.width(), x_desktop.height());
  x_desktop.draw(damage, x_screen->pixels() + damage.y * x_screen->stride() + damage.x,
                 x_screen->stride());
  x_screen->damage(damage);
}

// --- What the VM says ---

void VncServer::on_surface(const SurfaceState& surface) { x_desktop.set_surface(surface); }

void VncServer::on_surface_gone(uint64_t surface) {
  x_desktop.remove_surface(surface);
  if (x_focus == surface) x_focus = 0;
  if (x_drag == surface) x_drag = 0;
}

void VncServer::on_frame(uint64_t surface, const FrameView& frame) {
  x_desktop.set_frame(surface, frame);
}

void VncServer::on_cursor(uint64_t surface, const CursorView& cursor) {
  const auto hit = x_desktop.at(x_last_x, x_last_y);
  if (x_desktop.screen() == surface || (hit && hit->surface == surface))
    x_screen->set_cursor(&cursor);
}

}  // namespace lethe::gui
