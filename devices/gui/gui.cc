#include "devices/gui/gui.h"

#include <fcntl.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "devices/gui/gui_core.h"

namespace lethe {

struct Gui::Impl {
  explicit Impl(const GuiOptions& options) : thread("gui"), core(thread.loop(), options) {
    thread.run_and_wait([this] { id = std::this_thread::get_id(); });
  }
  IoThread thread;
  GuiCore core;
  std::thread::id id;
};

Gui::Gui(const GuiOptions& options) : x_impl(std::make_unique<Impl>(options)) {}

Gui::~Gui() {
  x_impl->thread.run_and_wait([this] { x_impl->core.close(); });
  x_impl->thread.run_and_wait([] {});  // what was posted until then has run
}

EventLoop& Gui::loop() { return x_impl->thread.loop(); }

void Gui::run_and_wait(std::function<void()> work) { x_impl->thread.run_and_wait(std::move(work)); }

Result<> Gui::listen(UniqueFd socket) {
  if (std::this_thread::get_id() == x_impl->id) return x_impl->core.listen(std::move(socket));
  Result<> result;
  run_and_wait([&] { result = x_impl->core.listen(std::move(socket)); });
  return result;
}

LedgerLimits Gui::limits() const {
  LedgerLimits limits;
  x_impl->thread.run_and_wait([&] { limits = x_impl->core.ledger().limits(); });
  return limits;
}
void Gui::set_limits(const LedgerLimits& limits) {
  x_impl->thread.run_and_wait([&] { x_impl->core.set_limits(limits); });
}

void Gui::set_focus_listener(std::function<void(bool)> listener) {
  x_impl->thread.run_and_wait([&] { x_impl->core.set_focus_listener(std::move(listener)); });
}

void Gui::set_frontend_listener(std::function<void(bool, uint64_t)> listener) {
  x_impl->thread.run_and_wait([&] { x_impl->core.set_frontend_listener(std::move(listener)); });
}

ShareLedger& Gui::ledger() { return x_impl->core.ledger(); }

Result<BufferId> Gui::create_buffer(uint64_t bytes, SurfaceListener& listener) {
  return x_impl->core.create_buffer(bytes, listener);
}
const SharedBuffer* Gui::buffer(BufferId id) const { return x_impl->core.buffer(id); }
void Gui::release_buffer(BufferId id) { x_impl->core.release_buffer(id); }

Result<SurfaceId> Gui::add_surface(const SurfaceState& state, SurfaceListener& listener) {
  return x_impl->core.add_surface(state, listener);
}
void Gui::update_surface(SurfaceId id, const SurfaceState& state) {
  x_impl->core.update_surface(id, state);
}
uint64_t Gui::present(SurfaceId id, const SurfaceContent& content, const Rect& damage) {
  return x_impl->core.present(id, content, damage);
}
void Gui::set_cursor(SurfaceId id, const CursorContent& cursor) {
  x_impl->core.set_cursor(id, cursor);
}
void Gui::remove_surface(SurfaceId id) { x_impl->core.remove_surface(id); }
void Gui::forget_listener(SurfaceListener& listener) { x_impl->core.forget_listener(listener); }

std::vector<ScreenView> Gui::screens(bool with_pixels) const {
  std::vector<ScreenView> screens;
  GuiCore& core = x_impl->core;
  x_impl->thread.run_and_wait([&] {
    for (uint32_t slot = 0; slot < gui::kSurfacesMax; ++slot) {
      const SurfaceRecord& surface = core.surface_at(slot);
      if (surface.id == 0 || surface.state.kind != gui::SurfaceKind::kScreen) continue;
      ScreenView view{.output = surface.state.output,
                      .width = surface.state.width,
                      .height = surface.state.height,
                      .content = surface.content};
      const SharedBuffer* const buffer = core.buffer(surface.content.buffer);
      if (with_pixels && buffer != nullptr)
        view.pixels.reset(::fcntl(buffer->read_only_fd(), F_DUPFD_CLOEXEC, 0));
      screens.push_back(std::move(view));
    }
  });
  std::ranges::sort(screens, {}, &ScreenView::output);
  return screens;
}

bool Gui::resize_screen(uint32_t output, uint32_t width, uint32_t height) {
  bool found = false;
  GuiCore& core = x_impl->core;
  x_impl->thread.run_and_wait([&] {
    for (uint32_t slot = 0; slot < gui::kSurfacesMax && !found; ++slot) {
      const SurfaceRecord& surface = core.surface_at(slot);
      found = surface.id != 0 && surface.state.kind == gui::SurfaceKind::kScreen &&
              surface.state.output == output;
      if (found) surface.listener->configure(surface.id, 0, 0, width, height);
    }
  });
  return found;
}

void Gui::report_metrics(MetricSink& sink) const {
  const auto value = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  const LedgerCounters& ledger = x_impl->core.ledger().counters();
  const auto now = [&](const char* state, const LedgerCounters::Amount& amount) {
    sink.gauge("lethe_gui_buffers", "Buffers shared by guest and frontends.",
               static_cast<double>(value(amount.buffers)), {{"state", state}});
    sink.gauge("lethe_gui_buffer_bytes", "Their bytes.", static_cast<double>(value(amount.bytes)),
               {{"state", state}});
  };
  now("live", ledger.live);
  now("orphan", ledger.orphan);
  now("freeing", ledger.freeing);
  const auto total = [&](const char* end, const LedgerCounters::Amount& amount) {
    sink.counter("lethe_gui_buffers_ended_total", "Shared buffers that are no more, and how.",
                 value(amount.buffers), {{"end", end}});
    sink.counter("lethe_gui_buffer_bytes_ended_total", "Their bytes.", value(amount.bytes),
                 {{"end", end}});
  };
  total("freed", ledger.freed);
  total("revoked", ledger.revoked);
  total("leaked", ledger.leaked);
  sink.counter("lethe_gui_stale_answers_total", "Frontends' answers for buffers they do not hold.",
               value(ledger.stale));
  sink.counter("lethe_gui_passes_total", "Passes over buffers to be released.",
               value(ledger.passes));
  sink.gauge("lethe_gui_pass_max_seconds", "The longest of them.",
             static_cast<double>(value(ledger.pass_ns_max)) * 1e-9);
  const GuiCounters& gui = x_impl->core.counters();
  sink.gauge("lethe_gui_frontends", "Frontends connected.",
             static_cast<double>(value(gui.frontends)));
  sink.counter("lethe_gui_frontends_total", "Frontends that ever connected.",
               value(gui.frontends_total));
  sink.counter("lethe_gui_frontends_refused_total", "Too many, or no descriptors left.",
               value(gui.refused_frontends));
  sink.counter("lethe_gui_frontends_slow_total", "Sent off for not reading.",
               value(gui.slow_frontends));
  sink.counter("lethe_gui_frames_total", "Frames sent.", value(gui.frames));
  sink.counter("lethe_gui_input_events_total", "Input of frontends.", value(gui.input_events));
  sink.counter("lethe_gui_refused_messages_total", "Frontends' messages that break the rules.",
               value(gui.refused_messages));
}

}  // namespace lethe
