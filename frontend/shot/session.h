// A connection that keeps a copy of every surface's picture and waits for conditions. One thread.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "frontend/client.h"
#include "frontend/picture.h"

namespace lethe::gui {

// "screen:0", or "window:TITLE": the window with that title, else the first whose title has it.
struct Selector {
  SurfaceKind kind = SurfaceKind::kScreen;
  uint32_t output = 0;
  std::string title;
  // Nothing: it is neither.
  [[nodiscard]] static std::optional<Selector> parse(const std::string& text);
  [[nodiscard]] std::string text() const;
};

class Session final : private Listener {
 public:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] static Result<std::unique_ptr<Session>> connect(UniqueFd socket);

  // Receives until `done()` is true or `patience` is over (then false). It is asked first, and
  // after each change of what is shown. Error: the connection ended.
  [[nodiscard]] Result<bool> wait(const std::function<bool()>& done,
                                  std::chrono::milliseconds patience);
  // Until everything sent is with the VM.
  [[nodiscard]] Result<bool> flush(std::chrono::milliseconds patience);

  [[nodiscard]] std::optional<uint64_t> find(const Selector& selector) const;
  // Null while nothing was shown on it.
  [[nodiscard]] const Picture* picture(const Selector& selector) const;
  // "screen:0 1024x768, window:xterm 640x480"
  [[nodiscard]] std::string surfaces_text() const;
  [[nodiscard]] const Client& client() const { return x_client; }
  [[nodiscard]] Client& client() { return x_client; }

 private:
  explicit Session(Client client) : x_client(std::move(client)) {}
  void on_surface(const SurfaceState& surface) override;
  void on_surface_gone(uint64_t surface) override;
  void on_frame(uint64_t surface, const FrameView& frame) override;
  void on_cursor(uint64_t, const CursorView&) override {}

  Client x_client;
  std::map<uint64_t, Picture> x_pictures;
  bool x_changed = false;
};

}  // namespace lethe::gui
