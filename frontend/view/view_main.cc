// lethe-view: a VM's screens and windows as windows of the host.
#include <X11/Xlib.h>
#include <fmt/format.h>
#include <getopt.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "frontend/view/viewer.h"

namespace lethe::gui {
namespace {

constexpr const char* kHelp =
    R"(lethe-view: a VM's screens and windows as windows of the host

Usage: lethe-view NAME [OPTIONS]

Options:
  --screen N        only screen N, from 0
  --windows         only the guest's windows, no screens
  --full-screen     start in full screen
  --grab            the guest gets all keys, also those of the host's desktop
  --scale MODE      fit: as large as the window allows (default);
                    integer: by whole numbers
  --view-only       send no input
  --exit-with-vm    end when the VM ends; else its last picture stays
  --socket PATH     the GUI socket, instead of NAME
  -h, --help        this

Keys:
  Ctrl+Alt+F  full screen on and off     Ctrl+Alt+G  keyboard grab on and off
  Ctrl+Alt+S  scale fit or integer       Ctrl+Alt+1  the guest's own size
  Ctrl+Alt+Q  close the viewer           R           reconnect, once the VM has ended

Closing a screen's window ends the viewer, not the VM; closing a guest's window
asks the guest to close it. Resizing tells the guest.

Exit codes: 0 closed; 1 no display, or the VM can't be reached; 2 usage

Examples:
  lethe-view work
  lethe-view work --screen 0 --full-screen --grab
  lethe attach work               the same, by way of lethe
)";

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

struct Arguments {
  ViewOptions options;
  bool help = false;
};

Result<> take_option(int option, Arguments& arguments) {
  ViewOptions& options = arguments.options;
  const std::string_view value = optarg == nullptr ? "" : optarg;
  switch (option) {
    case 'n':
      options.screen = static_cast<uint32_t>(std::strtoul(optarg, nullptr, 10));
      if (value.find_first_not_of("0123456789") != std::string_view::npos || value.empty() ||
          *options.screen >= kOutputsMax)
        return config_error("--screen takes a number, 0 to {}", kOutputsMax - 1);
      return {};
    case 's':
      if (value != "fit" && value != "integer") return config_error("--scale takes fit or integer");
      options.scale = value == "fit" ? Scale::kFit : Scale::kInteger;
      return {};
    case 'p':
      options.target.socket = value;
      return {};
    case 'w':
      options.windows_only = true;
      return {};
    case 'f':
      options.full_screen = true;
      return {};
    case 'g':
      options.grab = true;
      return {};
    case 'v':
      options.view_only = true;
      return {};
    case 'x':
      options.exit_with_vm = true;
      return {};
    case 'h':
      arguments.help = true;
      return {};
    default:
      return config_error("see lethe-view --help");
  }
}

Result<Arguments> parse_arguments(int argc, char** argv) {
  static const option kLong[] = {
      {"screen", required_argument, nullptr, 'n'}, {"windows", no_argument, nullptr, 'w'},
      {"full-screen", no_argument, nullptr, 'f'},  {"grab", no_argument, nullptr, 'g'},
      {"scale", required_argument, nullptr, 's'},  {"view-only", no_argument, nullptr, 'v'},
      {"exit-with-vm", no_argument, nullptr, 'x'}, {"socket", required_argument, nullptr, 'p'},
      {"help", no_argument, nullptr, 'h'},         {}};
  Arguments arguments;
  for (int c = 0; (c = ::getopt_long(argc, argv, "h", kLong, nullptr)) != -1;)
    LETHE_TRY(take_option(c, arguments));
  if (arguments.help) return arguments;
  if (arguments.options.target.socket.empty()) {
    if (optind == argc) return config_error("a VM's NAME is missing (lethe-view --help)");
    arguments.options.target.name = argv[optind++];
  }
  if (optind != argc) return config_error("'{}' is too much (lethe-view --help)", argv[optind]);
  return arguments;
}

XErrorHandler previous_x_errors = nullptr;

// SDL wakes its wait by an event to one of our windows, from the poller's thread and over another
// connection to the X server: the window may have been destroyed when it arrives. Xlib would end
// the process.
int on_x_error(Display* display, XErrorEvent* error) {
  if (error->error_code == BadWindow) return 0;
  return previous_x_errors == nullptr ? 0 : previous_x_errors(display, error);
}

Result<> start_sdl() {
  // Closing one window of several is no wish to end.
  SDL_SetHint(SDL_HINT_QUIT_ON_LAST_WINDOW_CLOSE, "0");
  SDL_SetHint(SDL_HINT_VIDEO_X11_NET_WM_BYPASS_COMPOSITOR, "0");
  SDL_SetHint(SDL_HINT_MOUSE_FOCUS_CLICKTHROUGH, "1");
  SDL_SetHint(SDL_HINT_APP_NAME, "lethe-view");
  // Before, since SDL_Quit() puts back what it found, and then reads what errors are left; and
  // after, since SDL_Init() puts its own in front.
  previous_x_errors = XSetErrorHandler(on_x_error);
  const bool on = SDL_Init(SDL_INIT_VIDEO) == 0;
  const char* driver = on ? SDL_GetCurrentVideoDriver() : "";
  const bool shows = std::strcmp(driver, "offscreen") != 0 && std::strcmp(driver, "dummy") != 0;
  if (on && (shows || std::getenv("SDL_VIDEODRIVER") != nullptr)) {
    SDL_EnableScreenSaver();
    (void)XSetErrorHandler(on_x_error);
    return {};
  }
  return host_error(
      "there is no display ({}): set DISPLAY or WAYLAND_DISPLAY; without one, lethe-vnc and "
      "lethe-shot show what a VM does",
      on ? "SDL found none" : SDL_GetError());
}

int view_main(int argc, char** argv) {
  const auto arguments = parse_arguments(argc, argv);
  if (arguments && arguments->help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  Result<> done = arguments ? start_sdl() : Unexpected(arguments.error());
  if (done) done = Viewer(arguments->options).run();
  SDL_Quit();
  if (done) return 0;
  fmt::print(stderr, "lethe-view: {}\n", done.error().text);
  return done.error().kind == ErrorClass::kConfig ? kExitUsage : kExitFailed;
}

}  // namespace
}  // namespace lethe::gui

int main(int argc, char** argv) { return lethe::gui::view_main(argc, argv); }
