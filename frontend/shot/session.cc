#include "frontend/shot/session.h"

#include <fmt/format.h>
#include <poll.h>

#include <charconv>
#include <memory>

namespace lethe::gui {

std::optional<Selector> Selector::parse(const std::string& text) {
  Selector selector;
  if (text.starts_with("window:")) {
    selector.kind = SurfaceKind::kWindow;
    selector.title = text.substr(7);
    return selector;
  }
  if (!text.starts_with("screen:")) return std::nullopt;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + 7, end, selector.output);
  if (error != std::errc() || at != end || selector.output >= kOutputsMax) return std::nullopt;
  return selector;
}

std::string Selector::text() const {
  return kind == SurfaceKind::kScreen ? fmt::format("screen:{}", output) : "window:" + title;
}

Result<std::unique_ptr<Session>> Session::connect(UniqueFd socket) {
  LETHE_TRY_ASSIGN(Client client, Client::connect(std::move(socket), {.name = "lethe-shot"}));
  return std::unique_ptr<Session>(new Session(std::move(client)));
}

Result<bool> Session::wait(const std::function<bool()>& done, std::chrono::milliseconds patience) {
  const auto deadline = Clock::now() + patience;
  for (bool first = true;; first = false) {
    if ((first || std::exchange(x_changed, false)) && done()) return true;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return false;
    pollfd waiting{.fd = x_client.fd(), .events = x_client.events(), .revents = 0};
    if (::poll(&waiting, 1, static_cast<int>(left.count())) < 0 && errno != EINTR)
      return host_error("poll: {}", errno_text(errno));
    LETHE_TRY(x_client.process(*this));
  }
}

Result<bool> Session::flush(std::chrono::milliseconds patience) {
  const auto sent = [this] {
    x_changed = true;  // ask again after each round
    return (x_client.events() & POLLOUT) == 0;
  };
  LETHE_TRY(x_client.process(*this));
  return wait(sent, patience);
}

std::optional<uint64_t> Session::find(const Selector& selector) const {
  std::optional<uint64_t> partly;
  for (const auto& [id, surface] : x_client.surfaces()) {
    if (surface.kind != selector.kind) continue;
    if (surface.kind == SurfaceKind::kScreen && surface.output == selector.output) return id;
    if (surface.kind == SurfaceKind::kScreen) continue;
    if (surface.title == selector.title) return id;
    if (!partly && surface.title.find(selector.title) != std::string::npos) partly = id;
  }
  return partly;
}

const Picture* Session::picture(const Selector& selector) const {
  const auto id = find(selector);
  const auto found = id ? x_pictures.find(*id) : x_pictures.end();
  return found == x_pictures.end() || found->second.empty() ? nullptr : &found->second;
}

std::string Session::surfaces_text() const {
  std::string text;
  for (const auto& [id, surface] : x_client.surfaces()) {
    text += text.empty() ? "" : ", ";
    text += surface.kind == SurfaceKind::kScreen ? fmt::format("screen:{}", surface.output)
                                                 : "window:" + surface.title;
    text += fmt::format(" {}x{}", surface.width, surface.height);
  }
  return text.empty() ? "none" : text;
}

void Session::on_surface(const SurfaceState&) { x_changed = true; }

void Session::on_surface_gone(uint64_t surface) {
  x_pictures.erase(surface);
  x_changed = true;
}

void Session::on_frame(uint64_t surface, const FrameView& frame) {
  x_pictures[surface].update(frame);
  x_changed = true;
}

}  // namespace lethe::gui
