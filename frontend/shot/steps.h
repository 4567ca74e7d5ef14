// What the screen tester does: a list of steps from a JSON file (docs/gui.md), and its run.
//
// {"steps": [
//   {"wait_image": "golden.png", "tolerance": 8, "max_different": 0.001,
//    "masks": [[x, y, width, height]], "surface": "screen:0", "timeout_ms": 30000},
//   {"wait_text": "login:", "surface": "screen:0", "timeout_ms": 30000},
//   {"type": "root\n"},
//   {"keys": ["KEY_LEFTCTRL+KEY_C", "KEY_ENTER"]},
//   {"click": [x, y], "button": "left", "surface": "window:xterm"},
//   {"resize": [1024, 768], "surface": "screen:0"},
//   {"close": true, "surface": "window:xterm"},
//   {"wait_gone": true, "surface": "window:xterm"},
//   {"shot": "after.png", "surface": "screen:0"}
// ]}
//
// One thread.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "frontend/shot/compare.h"
#include "frontend/shot/session.h"

namespace lethe::gui {

inline constexpr std::chrono::milliseconds kStepTimeout{30'000};
inline constexpr size_t kStepsBytesMax = 1 << 20;  // of the file
inline constexpr int64_t kStepTimeoutMsMax = 24 * 3600 * 1000;

struct WaitImage {
  std::string path;
  CompareRules rules;
};
struct WaitText {
  std::string text;
};
struct TypeText {
  std::string text;
};
struct PressKeys {
  std::vector<std::vector<uint32_t>> chords;  // evdev codes, pressed in order, released backwards
};
struct Click {
  int32_t x = 0, y = 0;
  uint32_t button = 0;  // BTN_*
};
// Asks for the size, and waits until the surface shows a picture of it.
struct Resize {
  uint32_t width = 0, height = 0;
};
struct CloseSurface {};
// That a surface which an earlier step has used is there no more.
struct WaitGone {};
struct TakeShot {
  std::string path;
};

struct Step {
  std::variant<WaitImage, WaitText, TypeText, PressKeys, Click, Resize, CloseSurface, WaitGone,
               TakeShot>
      action;
  Selector surface;
  std::chrono::milliseconds timeout = kStepTimeout;
};

// Relative paths of golden images are taken from `folder`. Errors (kConfig) name the step.
[[nodiscard]] Result<std::vector<Step>> parse_steps(std::string_view json,
                                                    const std::string& folder);

struct StepsOptions {
  std::string out = ".";  // folder of shots, and of actual.png, expected.png, difference.png
  std::string font;       // of wait_text
};

// Runs them one after the other, up to the first that fails. Errors: kHost: it failed, what was
// seen instead, and where the pictures are; kConfig: a file that a step names can't be read.
[[nodiscard]] Result<> run_steps(Session& session, const std::vector<Step>& steps,
                                 const StepsOptions& options);

}  // namespace lethe::gui
