// `lethe top`: all VMs of this user, live.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/top_view.h"
#include "vmm/cli/vm_client.h"
#include "vmm/cli/wait_signals.h"
#include "vmm/terminal.h"

namespace lethe {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPatience{1000};  // with one VM, so that a stuck one does not stop the rest
constexpr const char* kEnterScreen = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J";
constexpr const char* kLeaveScreen = "\x1b[?25h\x1b[?1049l";

std::vector<TopRow> look(TopSampler& sampler, TopSort sort) {
  std::vector<TopRow> rows;
  for (const RunningVm& vm : running_vms()) {
    const auto state = get_json(vm, "/state", kPatience);
    const auto stats = state ? get_json(vm, "/stats", kPatience) : state;
    if (!stats) {
      rows.emplace_back();
      rows.back().name = vm.name;
      rows.back().problem = stats.error().text;
      continue;
    }
    rows.push_back(sampler.sample(vm.name, *state, *stats, steady_clock::now()));
  }
  sort_rows(rows, sort);
  return rows;
}

class Screen {
 public:
  Screen(milliseconds interval, TopSort sort) : x_interval(interval), x_sort(sort) {}

  // Returns the exit code.
  Result<int> run() {
    LETHE_TRY_ASSIGN(x_raw, RawTerminal::enter(STDIN_FILENO, kLeaveScreen));
    put(kEnterScreen);
    for (;;) {
      x_rows = look(x_sampler, x_sort);
      draw();
      const auto next = steady_clock::now() + x_interval;
      for (auto left = x_interval; left.count() > 0;
           left = std::chrono::ceil<milliseconds>(next - steady_clock::now()))
        if (const auto code = wait(left)) return *code;
    }
  }

 private:
  std::optional<int> wait(milliseconds left) {
    pollfd input{STDIN_FILENO, POLLIN, 0};
    switch (const int signal = x_signals.wait({&input, 1}, left)) {
      case 0:
        return input.revents != 0 ? read_key() : std::nullopt;
      case SIGCONT:
        x_raw->reapply();
        put(kEnterScreen);
        [[fallthrough]];
      case SIGWINCH:
        draw();
        return std::nullopt;
      default:
        return 128 + signal;
    }
  }

  std::optional<int> read_key() {
    char key = 0;
    if (::read(STDIN_FILENO, &key, 1) <= 0) return 0;  // the terminal is gone
    switch (key) {
      case 'q':
      case 3:  // Ctrl-C: the terminal is raw
        return 0;
      case 'm':
        x_sort = TopSort::kResident;
        break;
      case 'n':
        x_sort = TopSort::kName;
        break;
      case 'c':
        x_sort = TopSort::kCpu;
        break;
      case 'r':
        x_sort = TopSort::kReturned;
        break;
      default:
        return std::nullopt;
    }
    sort_rows(x_rows, x_sort);
    draw();
    return std::nullopt;
  }

  void draw() const {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
      size.ws_col = 80;
      size.ws_row = 24;
    }
    const size_t lines = std::max<size_t>(size.ws_row, 4) - 2;
    std::string text = "\x1b[H";
    for (const char c : top_table(x_rows, size.ws_col, lines, true)) {
      if (c == '\n') text += "\x1b[K";
      text += c;
    }
    const std::string keys = "q quit   sort by: m memory  c CPU  r returned  n name";
    put(text + "\x1b[J\n" + keys.substr(0, size.ws_col));
  }

  static void put(std::string_view text) {
    (void)std::fwrite(text.data(), 1, text.size(), stdout);
    (void)std::fflush(stdout);
  }

  const milliseconds x_interval;
  TopSort x_sort;
  WaitSignals x_signals{SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT};
  std::unique_ptr<RawTerminal> x_raw;
  TopSampler x_sampler;
  std::vector<TopRow> x_rows;
};

}  // namespace

int command_top(int argc, char** argv) {
  CommandLine line(
      "top",
      "Shows all running VMs of this user, live: what each holds, and what its guest "
      "gave back. Keys: q quits; m, c, r, n sort by memory, CPU, returned, name. Where "
      "the output is no terminal, one table is printed, as with --once.",
      "  lethe top\n"
      "  lethe top -d 5 --sort returned\n"
      "  lethe top --once --sort cpu\n"
      "  lethe top --json | jq -r '.[] | select(.cpu_percent > 50) | .name'\n",
      "0 shown; 1 host error; 2 bad usage; 128 + N ended by signal N.");
  double delay = 1;
  bool once = false;
  bool as_json = false;
  std::string sort = "memory";
  const std::map<std::string, TopSort> sorts = {{"memory", TopSort::kResident},
                                                {"name", TopSort::kName},
                                                {"cpu", TopSort::kCpu},
                                                {"returned", TopSort::kReturned}};
  line.app()
      .add_option("-d,--delay", delay, "Seconds between two looks (default: 1)")
      ->check(number_between(0.1, 3600));
  line.app().add_flag("--once", once, "Print one table and end");
  line.app().add_flag("--json", as_json, "Print an array, as JSON, and end");
  line.app()
      .add_option("--sort", sort, "memory (default), cpu, returned or name")
      ->check(CLI::IsMember(sorts));
  if (const auto code = line.parse(argc, argv)) return *code;

  if (once || as_json || ::isatty(STDOUT_FILENO) != 1 || ::isatty(STDIN_FILENO) != 1) {
    TopSampler sampler;
    const std::vector<TopRow> rows = look(sampler, sorts.at(sort));
    std::fputs((as_json ? top_json(rows) : top_table(rows, 0, 0, false)).c_str(), stdout);
    return 0;
  }
  const auto code = Screen(milliseconds(static_cast<int64_t>(delay * 1000)), sorts.at(sort)).run();
  if (code) return *code;
  print_error(code.error().text);
  return kExitHostError;
}

}  // namespace lethe
