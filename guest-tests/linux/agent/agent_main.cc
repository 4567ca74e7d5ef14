// lethe-agent: shows the X11 windows of a guest on Lethe's host. docs/gui.md, "The agent".
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>
#include <thread>

#include "guest-tests/linux/agent/agent.h"
#include "guest-tests/linux/agent/drm_host.h"
#include "guest-tests/linux/agent/say.h"
#include "guest-tests/linux/agent/x_connection.h"

namespace {

using namespace lethe::agent;

constexpr std::string_view kUsage =
    R"(usage: lethe-agent [--display NAME] [--device FILE] [--no-wm] [--once] [--verbose]

Shows every top-level window of an X server in this guest as a window on Lethe's host.

  --display NAME   the X server; $DISPLAY by default
  --device FILE    virtio-gpu's render node; the first one in /dev/dri by default
  --no-wm          do not act as the window manager, even if none runs (one starts later)
  --once           end when the X server does; by default wait for the next one
  --verbose        say how many frames were shown when the X server ends

The VM needs `[gui] enabled = true`, the guest Linux 6.1 or later with the module virtio-gpu.
Exit codes: 0 the X server ended (--once), 1 the host or the X server refused, 2 usage.
)";

struct Options {
  std::string display;
  std::string device;
  bool manage = true;
  bool once = false;
  bool verbose = false;
};

constexpr std::chrono::milliseconds kRetry{500};

// Returns true to go on, false on a bad line.
bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--no-wm") {
      options.manage = false;
    } else if (argument == "--once") {
      options.once = true;
    } else if (argument == "--verbose") {
      options.verbose = true;
    } else if (argument == "--display" && i + 1 < argc) {
      options.display = argv[++i];
    } else if (argument == "--device" && i + 1 < argc) {
      options.device = argv[++i];
    } else {
      say("what is {}? Try --help", argument);
      return false;
    }
  }
  return true;
}

// One X server, to its end.
lethe::Result<> serve(XConnection& x, DrmHost& host, bool verbose) {
  Agent agent(x, host);
  say("connected{}", x.manages() ? "; no window manager runs: acting as one" : "");
  while (!x.broken()) LETHE_TRY(agent.step(-1));
  const AgentCounters& counters = agent.counters();
  if (verbose)
    say("{} frames, {} of them drawn by the X server, {} buffers released, {} events lost",
        counters.frames, counters.direct_frames, counters.released, host.lost_events());
  say("the X server has ended");
  return {};
}

lethe::Result<> run(const Options& options) {
  LETHE_TRY_ASSIGN(auto host, DrmHost::open(options.device));
  bool said = false;
  while (true) {
    auto x = XConnection::open(options.display, options.manage);
    if (x) {
      LETHE_TRY(serve(**x, *host, options.verbose));
      said = false;
    } else if (!said) {
      say("{}; waiting for one", x.error().text);
      said = true;
    }
    if (options.once && x) return {};
    std::this_thread::sleep_for(kRetry);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "--help" || std::string_view(argv[i]) == "-h") {
      std::fwrite(kUsage.data(), 1, kUsage.size(), stdout);
      return 0;
    }
  Options options;
  if (!parse(argc, argv, options)) return 2;
  const auto result = run(options);
  if (!result) {
    say("{}", result.error().text);
    return 1;
  }
  return 0;
}
