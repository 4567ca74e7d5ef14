// `lethe console`: this terminal as the console of a running VM.
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <optional>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/console_stream.h"
#include "vmm/cli/vm_client.h"
#include "vmm/cli/wait_signals.h"
#include "vmm/terminal.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kForever{-1};
constexpr const char* kConsoleKeys =
    "\nCtrl-A x  leave (the guest goes on)\n"
    "Ctrl-A p  press the power button\n"
    "Ctrl-A h  this help\n"
    "Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";

class ConsoleClient {
 public:
  ConsoleClient(const RunningVm& vm, UniqueFd console) : x_vm(vm), x_console(std::move(console)) {}

  // Returns the exit code.
  Result<int> run() {
    if (::isatty(STDIN_FILENO) == 1) {
      fmt::print(stderr, "lethe: console of '{}': Ctrl-A h for help, Ctrl-A x leaves\n", x_vm.name);
      LETHE_TRY_ASSIGN(x_raw, RawTerminal::enter(STDIN_FILENO));
      tell_size();
    }
    while (!x_code) {
      std::array<pollfd, 3> descriptors = {pollfd{x_console.get(), POLLIN, 0},
                                           pollfd{x_typing ? STDIN_FILENO : -1, POLLIN, 0},
                                           pollfd{STDOUT_FILENO, 0, 0}};
      if (!x_keys.empty()) descriptors[0].events |= POLLOUT;
      if (!x_keys.empty()) descriptors[1].fd = -1;  // what was typed goes first
      (void)on_signal(x_signals.wait(descriptors, kForever));
      if ((descriptors[0].revents & POLLOUT) != 0) send_keys();
      if ((descriptors[0].revents & ~POLLOUT) != 0) show_output();
      if (descriptors[1].revents != 0) read_keys();
      if (descriptors[2].revents != 0) x_code = x_code.value_or(0);  // nobody reads us any more
    }
    x_raw.reset();
    if (x_ended) fmt::print(stderr, "lethe: '{}' has closed its console\n", x_vm.name);
    return *x_code;
  }

 private:
  // False: it ends us.
  bool on_signal(int signal) {
    if (signal == SIGWINCH) {
      tell_size();
    } else if (signal == SIGCONT) {
      if (x_raw) x_raw->reapply();
    } else if (signal != 0) {
      x_code = 128 + signal;
    }
    return !x_code;
  }

  void show_output() {
    std::array<char, 16384> chunk;
    const ssize_t got = ::recv(x_console.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      x_ended = true;
      x_code = 0;
    } else if (!write_all(STDOUT_FILENO, {chunk.data(), static_cast<size_t>(got)}, x_signals,
                          [this](int signal) { return on_signal(signal); })) {
      x_code = x_code.value_or(kExitHostError);  // nobody reads us
    }
  }

  void read_keys() {
    std::array<uint8_t, 4096> chunk;
    const ssize_t got = ::read(STDIN_FILENO, chunk.data(), chunk.size());
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      x_typing = false;
      if (x_raw) x_code = 0;  // the terminal is gone
      return;
    }
    const std::span<const uint8_t> typed(chunk.data(), static_cast<size_t>(got));
    x_keys += x_raw ? x_escapes.feed(typed) : std::string(typed.begin(), typed.end());
    send_keys();
  }

  void send_keys() {
    while (!x_keys.empty()) {
      const ssize_t sent =
          ::send(x_console.get(), x_keys.data(), x_keys.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno != EAGAIN) x_keys.clear();  // its end is seen by reading
      if (sent < 0) return;
      x_keys.erase(0, static_cast<size_t>(sent));
    }
  }

  void on_command(EscapeKeys::Command command) {
    switch (command) {
      case EscapeKeys::Command::kQuit:
        x_code = 0;
        break;
      case EscapeKeys::Command::kPowerButton:
        ask("POST", "/power-button", "");
        break;
      case EscapeKeys::Command::kHelp:
        std::fputs(kConsoleKeys, stderr);
        break;
    }
  }

  void tell_size() const {
    winsize size{};
    if (x_raw && ::ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
      ask("PUT", "/console/size",
          fmt::format("{{\"columns\":{},\"rows\":{}}}", size.ws_col, size.ws_row));
  }

  void ask(const char* method, const char* path, std::string body) const {
    const auto answer = http_request({.socket = x_vm.path + "/" + kApiSocketName,
                                      .method = method,
                                      .path = path,
                                      .body = std::move(body)});
    if (!answer || answer->status >= 300)
      fmt::print(stderr, "\nlethe: {}\n", answer ? error_in(*answer) : answer.error().text);
  }

  const RunningVm& x_vm;
  const UniqueFd x_console;
  WaitSignals x_signals{SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT};
  std::unique_ptr<RawTerminal> x_raw;  // null: standard input is no terminal
  EscapeKeys x_escapes{[this](EscapeKeys::Command command) { on_command(command); }};
  std::string x_keys;  // typed, and not yet sent
  bool x_typing = true;
  bool x_ended = false;
  std::optional<int> x_code;
};

Result<int> run_console(const std::string& name) {
  LETHE_TRY_ASSIGN(const RunningVm vm, find_running_vm(name));
  LETHE_TRY_ASSIGN(UniqueFd console, connect_console(vm));
  return ConsoleClient(vm, std::move(console)).run();
}

}  // namespace

int command_console(int argc, char** argv) {
  CommandLine line(
      "console",
      "Connects this terminal to the console of a running VM: shows the last 64 KiB and what "
      "comes, and sends what is typed. Ctrl-A x leaves, and the guest goes on; Ctrl-A p presses "
      "the power button; Ctrl-A h lists the keys. Several may be connected at once.",
      "  lethe console web\n"
      "  echo reboot | lethe console web\n",
      "0 left, or the VM has ended; 1 it does not run; 2 bad usage; 128 + N ended by signal N.");
  std::string name;
  line.app().add_option("NAME", name, "The VM's name (lethe ps lists those that run)")->required();
  if (const auto code = line.parse(argc, argv)) return *code;
  (void)::signal(SIGPIPE, SIG_IGN);
  const auto code = run_console(name);
  if (code) return *code;
  print_error(code.error().text);
  return exit_code_of(code.error().kind);
}

}  // namespace lethe
