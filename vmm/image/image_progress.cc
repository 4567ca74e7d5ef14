#include "vmm/image/image_progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr size_t kColumnsDefault = 80;

size_t columns_of(std::FILE* file) {
  winsize size{};
  const bool known = ::ioctl(::fileno(file), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kColumnsDefault;
}

}  // namespace

ImageProgress::ImageProgress(std::FILE* out, int stages, bool verbose)
    : x_out(out), x_stages(stages), x_terminal(!verbose && ::isatty(::fileno(out)) != 0) {}

ImageProgress::~ImageProgress() { erase(); }

void ImageProgress::begin(std::string_view stage) {
  ++x_stage;
  x_name = stage;
  x_note.clear();
  x_began = std::chrono::steady_clock::now();
  if (x_terminal) return tick();
  fmt::print(x_out, "[{}/{}] {}\n", x_stage, x_stages, x_name);
  std::fflush(x_out);
}

void ImageProgress::note(std::string_view text) {
  x_note = printable(text);
  if (x_terminal) return tick();
  fmt::print(x_out, "[{}/{}] {:>5}  {}\n", x_stage, x_stages, seconds(), x_note);
  std::fflush(x_out);
}

void ImageProgress::end(std::string_view result) {
  erase();
  fmt::print(x_out, "[{}/{}] {}: {}{}{}\n", x_stage, x_stages, x_name, seconds(),
             result.empty() ? "" : ", ", result);
  std::fflush(x_out);
  x_name.clear();
}

void ImageProgress::say(std::string_view line) {
  erase();
  fmt::print(x_out, "{}\n", line);
  std::fflush(x_out);
}

void ImageProgress::tick() {
  if (!x_terminal || x_name.empty()) return;
  std::string line = fmt::format("[{}/{}] {} {}", x_stage, x_stages, x_name, seconds());
  if (!x_note.empty()) line += "  " + x_note;
  line.resize(std::min(line.size(), columns_of(x_out) - 1));
  fmt::print(x_out, "\r{}\x1b[K", line);
  std::fflush(x_out);
}

std::string ImageProgress::seconds() const {
  using std::chrono::seconds;
  const auto spent = std::chrono::steady_clock::now() - x_began;
  return fmt::format("{} s", std::chrono::duration_cast<seconds>(spent).count());
}

void ImageProgress::erase() {
  if (x_terminal && !x_name.empty()) fmt::print(x_out, "\r\x1b[K");
  std::fflush(x_out);
}

}  // namespace lethe
