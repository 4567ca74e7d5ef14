#include <fmt/format.h>
#include <linux/input-event-codes.h>

#include <algorithm>
#include <optional>

#include "frontend/keys.h"
#include "frontend/shot/glyphs.h"
#include "frontend/shot/png_file.h"
#include "frontend/shot/steps.h"

namespace lethe::gui {
namespace {

constexpr std::chrono::milliseconds kSendPatience{10'000};

class Runner {
 public:
  Runner(Session& session, const StepsOptions& options) : x_session(session), x_options(options) {}

  Result<> run(const Step& step) {
    return std::visit([&](const auto& action) { return run(action, step); }, step.action);
  }
  Result<> finish() { return sent(x_session.flush(kSendPatience)); }

 private:
  static Result<> sent(const Result<bool>& result) {
    if (!result) return Unexpected(result.error());
    if (!*result) return host_error("the VM does not take input");
    return {};
  }
  std::string out(const std::string& name) const {
    return name.starts_with('/') ? name : x_options.out + "/" + name;
  }

  // Runs out of time at `step`: keeps what is to be seen, says `why`.
  Result<> fail(const Step& step, const std::string& why) {
    const Picture* actual = x_session.picture(step.surface);
    if (actual == nullptr)
      return host_error("nothing was shown on {} within {} ms (there: {})", step.surface.text(),
                        step.timeout.count(), x_session.surfaces_text());
    LETHE_TRY(write_png(out("actual.png"), *actual));
    return host_error("{}: {}; see {}", step.surface.text(), why, out("actual.png"));
  }

  Result<> run(const WaitImage& wait, const Step& step) {
    LETHE_TRY_ASSIGN(const Picture expected, read_png(wait.path));
    const auto matches = [&] {
      const Picture* actual = x_session.picture(step.surface);
      return actual != nullptr && compare(*actual, expected, wait.rules).matches;
    };
    LETHE_TRY_ASSIGN(const bool matched, x_session.wait(matches, step.timeout));
    if (matched) return {};
    LETHE_TRY(write_png(out("expected.png"), expected));
    const Picture* actual = x_session.picture(step.surface);
    if (actual == nullptr) return fail(step, "");
    LETHE_TRY(write_png(out("difference.png"), difference_picture(*actual, expected, wait.rules)));
    const Comparison comparison = compare(*actual, expected, wait.rules);
    return fail(step,
                fmt::format("does not match {} after {} ms: {}", wait.path, step.timeout.count(),
                            describe(comparison, *actual, expected, wait.rules)));
  }

  Result<> run(const WaitText& wait, const Step& step) {
    if (!x_font) {
      LETHE_TRY_ASSIGN(Font font, Font::load(x_options.font));
      x_font.emplace(std::move(font));
    }
    std::vector<std::string> lines;
    const auto seen = [&] {
      const Picture* actual = x_session.picture(step.surface);
      if (actual == nullptr) return false;
      lines = read_text(*actual, *x_font);
      return has_text(lines, wait.text);
    };
    LETHE_TRY_ASSIGN(const bool found, x_session.wait(seen, step.timeout));
    if (found) return {};
    while (!lines.empty() && lines.back().empty()) lines.pop_back();
    return fail(step, fmt::format("no text \"{}\" after {} ms; it reads:\n{}\n", wait.text,
                                  step.timeout.count(), fmt::join(lines, "\n")));
  }

  // The surface that input goes to, with the focus.
  Result<uint64_t> target(const Step& step) {
    const auto there = [&] { return x_session.find(step.surface).has_value(); };
    LETHE_TRY_ASSIGN(const bool found, x_session.wait(there, step.timeout));
    if (!found)
      return host_error("there is no {} after {} ms (there: {})", step.surface.text(),
                        step.timeout.count(), x_session.surfaces_text());
    const uint64_t surface = *x_session.find(step.surface);
    if (surface != x_focus) x_session.client().send_focus(surface, true);
    x_focus = surface;
    return surface;
  }

  void press(uint64_t surface, const std::vector<uint32_t>& chord) {
    for (const uint32_t code : chord) x_session.client().send_key(surface, code, true);
    for (auto code = chord.rbegin(); code != chord.rend(); ++code)
      x_session.client().send_key(surface, *code, false);
  }

  Result<> run(const TypeText& type, const Step& step) {
    LETHE_TRY_ASSIGN(const uint64_t surface, target(step));
    for (const char c : type.text) {
      const KeyStroke stroke = *us_key(static_cast<unsigned char>(c));
      if (stroke.shift)
        press(surface, {KEY_LEFTSHIFT, stroke.code});
      else
        press(surface, {stroke.code});
      LETHE_TRY(finish());
    }
    return {};
  }

  Result<> run(const PressKeys& keys, const Step& step) {
    LETHE_TRY_ASSIGN(const uint64_t surface, target(step));
    for (const auto& chord : keys.chords) {
      press(surface, chord);
      LETHE_TRY(finish());
    }
    return {};
  }

  Result<> run(const Click& click, const Step& step) {
    LETHE_TRY_ASSIGN(const uint64_t surface, target(step));
    x_session.client().send_motion(surface, click.x, click.y);
    x_session.client().send_button(surface, click.button, true);
    x_session.client().send_button(surface, click.button, false);
    return finish();
  }

  Result<> run(const Resize& size, const Step& step) {
    LETHE_TRY_ASSIGN(const uint64_t surface, target(step));
    const SurfaceState state = x_session.client().surfaces().at(surface);
    x_session.client().send_configure(surface, state.x, state.y, size.width, size.height);
    const auto resized = [&] {
      const Picture* actual = x_session.picture(step.surface);
      return actual != nullptr && actual->width == size.width && actual->height == size.height;
    };
    LETHE_TRY_ASSIGN(const bool done, x_session.wait(resized, step.timeout));
    if (done) return {};
    return fail(step, fmt::format("it is not {}x{} after {} ms", size.width, size.height,
                                  step.timeout.count()));
  }

  Result<> run(const CloseSurface&, const Step& step) {
    LETHE_TRY_ASSIGN(const uint64_t surface, target(step));
    x_session.client().send_close(surface);
    return finish();
  }

  Result<> run(const WaitGone&, const Step& step) {
    const auto gone = [&] { return !x_session.find(step.surface).has_value(); };
    LETHE_TRY_ASSIGN(const bool done, x_session.wait(gone, step.timeout));
    if (done) return {};
    return host_error("{} is still there after {} ms", step.surface.text(), step.timeout.count());
  }

  Result<> run(const TakeShot& shot, const Step& step) {
    const auto shown = [&] { return x_session.picture(step.surface) != nullptr; };
    LETHE_TRY_ASSIGN(const bool there, x_session.wait(shown, step.timeout));
    if (!there) return fail(step, "");
    return write_png(out(shot.path), *x_session.picture(step.surface));
  }

  Session& x_session;
  const StepsOptions& x_options;
  std::optional<Font> x_font;
  uint64_t x_focus = 0;
};

}  // namespace

Result<> run_steps(Session& session, const std::vector<Step>& steps, const StepsOptions& options) {
  Runner runner(session, options);
  for (size_t i = 0; i < steps.size(); ++i) {
    if (auto done = runner.run(steps[i]); !done)
      return Unexpected(Error{done.error().kind, fmt::format("step {} of {}: {}", i + 1,
                                                             steps.size(), done.error().text)});
  }
  return runner.finish();
}

}  // namespace lethe::gui
