// lethe-vnc: a VM's screen or windows for VNC clients and browsers.
#include <fmt/format.h>
#include <getopt.h>
#include <unistd.h>

#include <charconv>
#include <climits>
#include <cstdio>
#include <string_view>

#include "frontend/vnc/listeners.h"
#include "frontend/vnc/vnc_server.h"

namespace lethe::gui {
namespace {

constexpr const char* kHelp =
    R"(lethe-vnc: a VM's screen or windows for VNC clients and browsers

Usage: lethe-vnc NAME [OPTIONS]

Options:
  --unix PATH            listen on a Unix socket, for this user alone (default:
                         vnc.sock in the VM's run-time directory)
  --port N               listen on 127.0.0.1:N, 0 takes a free port; needs
                         --password-file
  --web-port N           the same for browsers: noVNC's page, and VNC over WebSocket
  --password-file FILE   clients must know its first line: 1 to 8 characters (VNC
                         has no more); the file must be mode 600
  --screen N             only screen N, from 0
  --windows              only the guest's windows; default: the windows once there
                         are some, else screen 0
  --view-only            send no input to the guest
  --web DIR              noVNC's folder, with core/ and vendor/ (default: where
                         ./dev setup has put it)
  --socket PATH          the GUI socket, instead of NAME
  -h, --help             this

It ends with the VM, or by Ctrl+C. VNC is not encrypted: reach it from elsewhere
through ssh. What clients have on their clipboard is not sent to the guest. A
local user has up to 16 guesses a second at the password, with --web-port 48.

Exit codes: 0 the VM ended, or Ctrl+C; 1 can't serve; 2 usage

Examples:
  lethe-vnc work
  printf 'secret12' > ~/.vncpw; chmod 600 ~/.vncpw
  lethe-vnc work --port 5901 --web-port 6080 --password-file ~/.vncpw
  ssh -L 5901:/run/user/1000/lethe/work/vnc.sock host      # then: vncviewer :1
  ssh -L 6080:127.0.0.1:6080 host   # --web-port: the same number at both ends; then
                                    # http://127.0.0.1:6080/
)";

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

struct Arguments {
  VncOptions options;
  bool help = false;
};

Result<unsigned> number(const char* option, std::string_view text, unsigned most) {
  unsigned value = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || at != text.data() + text.size() || value > most)
    return config_error("{} takes a number, 0 to {}", option, most);
  return value;
}

// Beside an installed program, or in the folder that holds the build folders.
std::string default_web() {
  char path[PATH_MAX] = {};
  if (::readlink("/proc/self/exe", path, sizeof path - 1) <= 0) return "";
  const std::string folder = std::string(path).substr(0, std::string_view(path).rfind('/'));
  for (const char* place : {"/../share/lethe/novnc", "/../../novnc"})
    if (::access((folder + place + "/core/rfb.js").c_str(), R_OK) == 0) return folder + place;
  return "";
}

Result<> take_option(int option, Arguments& arguments) {
  VncOptions& options = arguments.options;
  switch (option) {
    case 'u':
      options.unix_path = optarg;
      return {};
    case 't': {
      LETHE_TRY_ASSIGN(const unsigned port, number("--port", optarg, 65535));
      options.port = static_cast<uint16_t>(port);
      return {};
    }
    case 'e': {
      LETHE_TRY_ASSIGN(const unsigned port, number("--web-port", optarg, 65535));
      options.web_port = static_cast<uint16_t>(port);
      return {};
    }
    case 'w': {
      LETHE_TRY_ASSIGN(options.password, read_password(optarg));
      return {};
    }
    case 'n': {
      LETHE_TRY_ASSIGN(options.output, number("--screen", optarg, kOutputsMax - 1));
      options.show = Desktop::Show::kScreen;
      return {};
    }
    case 'a':
      options.show = Desktop::Show::kWindows;
      return {};
    case 'v':
      options.view_only = true;
      return {};
    case 'b':
      options.web = optarg;
      return {};
    case 'p':
      options.target.socket = optarg;
      return {};
    case 'h':
      arguments.help = true;
      return {};
    default:
      return config_error("see lethe-vnc --help");
  }
}

Result<Arguments> parse_arguments(int argc, char** argv) {
  static const option kLong[] = {{"unix", required_argument, nullptr, 'u'},
                                 {"port", required_argument, nullptr, 't'},
                                 {"web-port", required_argument, nullptr, 'e'},
                                 {"password-file", required_argument, nullptr, 'w'},
                                 {"screen", required_argument, nullptr, 'n'},
                                 {"windows", no_argument, nullptr, 'a'},
                                 {"view-only", no_argument, nullptr, 'v'},
                                 {"web", required_argument, nullptr, 'b'},
                                 {"socket", required_argument, nullptr, 'p'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {}};
  Arguments arguments;
  VncOptions& options = arguments.options;
  for (int c = 0; (c = ::getopt_long(argc, argv, "h", kLong, nullptr)) != -1;)
    LETHE_TRY(take_option(c, arguments));
  if (arguments.help) return arguments;
  if (options.target.socket.empty()) {
    if (optind == argc) return config_error("a VM's NAME is missing (lethe-vnc --help)");
    options.target.name = argv[optind++];
  }
  if (optind != argc) return config_error("'{}' is too much (lethe-vnc --help)", argv[optind]);
  const bool ports = options.port || options.web_port;
  if (ports && options.password.empty())
    return config_error(
        "a port without --password-file: every user and every web page on this machine could "
        "look and type");
  if (options.unix_path.empty() && !ports) {
    if (options.target.name.empty())
      return config_error("with --socket, give --unix, --port or --web-port, too");
    LETHE_TRY_ASSIGN(const std::string folder, run_dir_of(options.target.name));
    options.unix_path = folder + "/vnc.sock";
  }
  if (options.web.empty()) options.web = default_web();
  return arguments;
}

int vnc_main(int argc, char** argv) {
  const auto arguments = parse_arguments(argc, argv);
  if (arguments && arguments->help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const Result<> done =
      arguments ? VncServer(arguments->options).run() : Unexpected(arguments.error());
  if (done) return 0;
  fmt::print(stderr, "lethe-vnc: {}\n", done.error().text);
  return done.error().kind == ErrorClass::kConfig ? kExitUsage : kExitFailed;
}

}  // namespace
}  // namespace lethe::gui

int main(int argc, char** argv) { return lethe::gui::vnc_main(argc, argv); }
