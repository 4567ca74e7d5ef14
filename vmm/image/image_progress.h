// How a long build is shown: on a terminal one line that is rewritten each second, elsewhere plain
// lines. Main thread.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

namespace lethe {

class ImageProgress {
 public:
  // Writes to `out`, which it does not own. `verbose`: plain lines even on a terminal, since what
  // the tools say comes between.
  ImageProgress(std::FILE* out, int stages, bool verbose);
  // The line of a stage that did not end is completed.
  ~ImageProgress();
  ImageProgress(const ImageProgress&) = delete;
  ImageProgress& operator=(const ImageProgress&) = delete;

  void begin(std::string_view stage);
  // What the stage does now: one line.
  void note(std::string_view text);
  // The stage is done, with `result` to say of it ("612 MiB"), or nothing.
  void end(std::string_view result = {});
  // A line of its own, beside the progress.
  void say(std::string_view line);
  // Shows how long it has taken; to be called each second.
  void tick();

 private:
  [[nodiscard]] std::string seconds() const;
  void erase();
  std::FILE* const x_out;
  const int x_stages;
  bool x_terminal;
  int x_stage = 0;
  std::string x_name;  // empty: no stage is under way
  std::string x_note;
  std::chrono::steady_clock::time_point x_began;
};

}  // namespace lethe
