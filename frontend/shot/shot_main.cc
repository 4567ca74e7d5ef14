// lethe-shot: a picture of a VM's screen as a PNG file, and the screen tester.
#include <fmt/format.h>
#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "frontend/connect.h"
#include "frontend/shot/glyphs.h"
#include "frontend/shot/png_file.h"
#include "frontend/shot/session.h"
#include "frontend/shot/steps.h"

namespace lethe::gui {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

constexpr const char* kHelp =
    R"(lethe-shot: a picture of what a VM shows, and a tester of screens

Usage: lethe-shot NAME OUT.png [--screen N | --window TITLE] [--wait-ms MS]
       lethe-shot NAME --steps FILE.json [--out DIR] [--font FILE]
       lethe-shot NAME --list

Options:
  --screen N       which screen, from 0 (default 0)
  --window TITLE   a window instead: with this title, else the first that has it
  --wait-ms MS     how long to wait for the first picture (default 10000)
  --steps FILE     run the steps of a JSON file: wait for an image or a text,
                   type, press keys, click, take shots (docs/gui.md)
  --out DIR        where steps leave shots and, if they fail, actual.png,
                   expected.png and difference.png (default .)
  --font FILE      PSF font of the guest's console, for wait_text
                   (default /usr/share/consolefonts/Lat15-VGA16.psf.gz)
  --list           print what screens and windows there are
  --socket PATH    the GUI socket, instead of NAME
  -h, --help       this

Exit codes: 0 done; 1 no match in time, or the VM can't be reached; 2 usage

Examples:
  lethe-shot work screen.png
  lethe-shot work xterm.png --window xterm
  lethe-shot work --steps login.json --out /tmp/login
  lethe shot work screen.png        the same, by way of lethe
)";

struct Options {
  Target target;
  std::string out_file;
  Selector surface;
  std::chrono::milliseconds wait{10'000};
  std::string steps_file;
  StepsOptions steps{.out = ".", .font = kDefaultFont};
  bool list = false;
  bool help = false;
};

Result<int64_t> number(const char* option, const char* text, int64_t most) {
  int64_t value = -1;
  const char* end = text + std::strlen(text);
  const auto [at, error] = std::from_chars(text, end, value);
  if (error != std::errc() || at != end || value < 0 || value > most)
    return config_error("{} takes a number, 0 to {}", option, most);
  return value;
}

Result<> take_option(int option, Options& options) {
  switch (option) {
    case 'n': {
      LETHE_TRY_ASSIGN(const int64_t screen, number("--screen", optarg, kOutputsMax - 1));
      options.surface = {
          .kind = SurfaceKind::kScreen, .output = static_cast<uint32_t>(screen), .title = {}};
      return {};
    }
    case 'w':
      options.surface = {.kind = SurfaceKind::kWindow, .output = 0, .title = optarg};
      return {};
    case 't': {
      LETHE_TRY_ASSIGN(const int64_t wait, number("--wait-ms", optarg, kStepTimeoutMsMax));
      options.wait = std::chrono::milliseconds(wait);
      return {};
    }
    case 's':
      options.steps_file = optarg;
      return {};
    case 'o':
      options.steps.out = optarg;
      return {};
    case 'f':
      options.steps.font = optarg;
      return {};
    case 'l':
      options.list = true;
      return {};
    case 'p':
      options.target.socket = optarg;
      return {};
    case 'h':
      options.help = true;
      return {};
    default:
      return config_error("see lethe-shot --help");
  }
}

Result<Options> parse_arguments(int argc, char** argv) {
  static const option kLong[] = {
      {"screen", required_argument, nullptr, 'n'},  {"window", required_argument, nullptr, 'w'},
      {"wait-ms", required_argument, nullptr, 't'}, {"steps", required_argument, nullptr, 's'},
      {"out", required_argument, nullptr, 'o'},     {"font", required_argument, nullptr, 'f'},
      {"list", no_argument, nullptr, 'l'},          {"socket", required_argument, nullptr, 'p'},
      {"help", no_argument, nullptr, 'h'},          {}};
  Options options;
  for (int c = 0; (c = ::getopt_long(argc, argv, "h", kLong, nullptr)) != -1;)
    LETHE_TRY(take_option(c, options));
  if (options.help) return options;
  if (options.target.socket.empty()) {
    if (optind == argc) return config_error("a VM's NAME is missing (lethe-shot --help)");
    options.target.name = argv[optind++];
  }
  const bool shot = options.steps_file.empty() && !options.list;
  if (shot && optind == argc) return config_error("OUT.png is missing (lethe-shot --help)");
  if (shot) options.out_file = argv[optind++];
  if (optind != argc) return config_error("'{}' is too much (lethe-shot --help)", argv[optind]);
  return options;
}

Result<std::vector<Step>> read_steps(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return config_error("cannot read '{}': {}", path, errno_text(errno));
  std::string text(kStepsBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kStepsBytesMax)
    return config_error("'{}' has more than {} bytes", path, kStepsBytesMax);
  const size_t slash = path.rfind('/');
  auto steps = parse_steps(text, slash == std::string::npos ? "." : path.substr(0, slash + 1));
  if (!steps) return config_error("'{}': {}", path, steps.error().text);
  return steps;
}

Result<> take_shot(Session& session, const Options& options) {
  const auto shown = [&] { return session.picture(options.surface) != nullptr; };
  LETHE_TRY_ASSIGN(const bool there, session.wait(shown, options.wait));
  if (!there)
    return host_error("nothing was shown on {} within {} ms (there: {})", options.surface.text(),
                      options.wait.count(), session.surfaces_text());
  return write_png(options.out_file, *session.picture(options.surface));
}

Result<> list(Session& session, const Options& options) {
  const auto described = [&] { return !session.client().surfaces().empty(); };
  LETHE_TRY(session.wait(described, options.wait));
  fmt::print("{}\n", session.surfaces_text());
  return {};
}

Result<> run(const Options& options) {
  std::vector<Step> steps;
  if (!options.steps_file.empty()) {
    LETHE_TRY_ASSIGN(steps, read_steps(options.steps_file));
  }
  LETHE_TRY_ASSIGN(UniqueFd socket, connect_socket(options.target));
  LETHE_TRY_ASSIGN(const std::unique_ptr<Session> session, Session::connect(std::move(socket)));
  if (options.list) return list(*session, options);
  if (!options.steps_file.empty()) return run_steps(*session, steps, options.steps);
  return take_shot(*session, options);
}

int shot_main(int argc, char** argv) {
  const auto options = parse_arguments(argc, argv);
  if (options && options->help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const Result<> done = options ? run(*options) : Unexpected(options.error());
  if (done) return 0;
  fmt::print(stderr, "lethe-shot: {}\n", done.error().text);
  return done.error().kind == ErrorClass::kConfig ? kExitUsage : kExitFailed;
}

}  // namespace
}  // namespace lethe::gui

int main(int argc, char** argv) { return lethe::gui::shot_main(argc, argv); }
