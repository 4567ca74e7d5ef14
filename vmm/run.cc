#include "vmm/run.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "base/file_bytes.h"
#include "base/log.h"
#include "base/program_code.h"
#include "base/unix_socket.h"
#include "devices/console_output.h"
#include "devices/virtio/console/console.h"
#include "vmm/api/events.h"
#include "vmm/api/machine_target.h"
#include "vmm/console_host.h"
#include "vmm/gui_host.h"
#include "vmm/machine.h"
#include "vmm/net_host.h"
#include "vmm/run_dir.h"
#include "vmm/terminal.h"
#include "vmm/vsock_socket.h"

namespace lethe {
namespace {

constexpr size_t kInputChunk = 4096;
constexpr std::chrono::milliseconds kOutputPatience{1000};
// The control API's socket is made when the guest has run for so long: one that ends before, as
// many in a test suite do, does not pay for it.
constexpr std::chrono::milliseconds kApiDelay{2};
constexpr std::chrono::milliseconds kSettled{
    100};  // after its start, most of its code is of no use

// The signals that end a VM. They are blocked except while a session's loop waits for them, so that
// none finds the default action in the gap of a restart and leaves the terminal raw.
class SignalMask {
 public:
  SignalMask() {
    ::sigemptyset(&x_set);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&x_set, signal);
    block();
  }
  void block() { (void)::pthread_sigmask(SIG_BLOCK, &x_set, nullptr); }
  void unblock() { (void)::pthread_sigmask(SIG_UNBLOCK, &x_set, nullptr); }

 private:
  sigset_t x_set;
};

int exit_code(const Outcome& outcome) {
  switch (outcome.ending) {
    case Ending::kPoweredOff:
      return kExitPoweredOff;
    case Ending::kReset:
      return kExitRebooted;
    case Ending::kPanicked:
      return kExitPanicked;
    case Ending::kDebugExit:
      return debug_exit_code(outcome.debug_value);
    case Ending::kTripleFault:
      return kExitTripleFault;
    case Ending::kForced:
      return kExitForced;
    case Ending::kHostFailure:
      break;
  }
  return kExitHostError;
}

// In events: how the guest ended.
const char* ending_name(Ending ending) {
  switch (ending) {
    case Ending::kPoweredOff:
      return "powered-off";
    case Ending::kReset:
      return "rebooted";
    case Ending::kPanicked:
      return "panicked";
    case Ending::kDebugExit:
      return "debug-exit";
    case Ending::kTripleFault:
      return "triple-fault";
    case Ending::kForced:
      return "forced";
    case Ending::kHostFailure:
      break;
  }
  return "host-error";
}

// A restored guest's memory can't be had: whoever touched it, a vCPU or a device, can't go on, and
// no thread can be ended that waits for it.
void end_without_memory(const Error& error) {
  RawTerminal::give_back();
  std::fprintf(stderr, "lethe: %s\n", error.text.c_str());
  std::_Exit(exit_code_of(error.kind));
}

// One boot of the VM: a machine, its console and the signals that end it. A restart is a new
// session, so that nothing of the old machine is left in the loop.
class Session final : private RunControl {
 public:
  Session(const VmConfig& config, const RunOptions& options, RawTerminal* raw, SignalMask& mask,
          const RunHistory& history, Gui* gui, const VsockSocket* vsock, Events& events,
          ConsoleHub& hub, StartSignal& start)
      : x_config(config),
        x_options(options),
        x_history(history),
        x_gui(gui),
        x_vsock(vsock),
        x_events(events),
        x_hub(hub),
        x_start(start),
        x_raw(raw),
        x_mask(mask),
        x_keys([this](EscapeKeys::Command command) { on_command(command); }) {}

  // The first boot empties the console's log, later ones append to it. `api` becomes the control
  // API's socket the first time: after the guest was started, which does not have to wait for it.
  Result<Outcome> run(const RunDir& run_dir, UniqueFd& api) {
    const bool first = x_history.boots == 1;
    LETHE_TRY_ASSIGN(
        x_output,
        ConsoleOutput::create(x_loop, x_start.detached() ? -1 : STDOUT_FILENO, x_config.console.log,
                              first ? ConsoleLog::kTruncate : ConsoleLog::kAppend));
    x_output->set_tap([this](std::span<const uint8_t> bytes) { x_hub.on_output(bytes); });
    LETHE_TRY(watch_signals());
    x_stop_timer = x_loop.make_timer([this] { on_stop_timeout(); });
    LETHE_TRY_ASSIGN(x_machine,
                     Machine::create(x_config, x_loop, *x_output, x_gui, x_vsock,
                                     [this](Outcome outcome) { finish(outcome); },
                                     {first ? x_options.snapshot : nullptr, end_without_memory}));
    x_machine->console_input().set_room_listener([this] { feed_guest(); });
    if (!x_options.non_interactive) {
      if (x_raw != nullptr) resize_console();
      watch_input();
    }
    x_machine->start();
    x_machine->net_host().set_listener([this](size_t net, bool up, const std::string& why) {
      x_events.publish("link", {{"net", net}, {"up", up}, {"why", why}});
    });
    x_events.publish("started", {{"boots", x_history.boots}});
    Result<> served;
    const auto serve = x_loop.make_timer([&] {
      served = serve_api(run_dir, api);
      if (!served) x_loop.stop();
    });
    if (x_start.detached())
      served = serve_api(run_dir, api);
    else
      serve->start(kApiDelay);
    const auto settled = x_loop.make_timer(unmap_unused_code);
    settled->start(kSettled);
    if (served) {
      x_mask.unblock();
      x_loop.run();
      x_mask.block();
    }
    x_events.detach();
    x_server.reset();
    x_machine->stop();
    x_output->finish(kOutputPatience);
    x_hub.detach();
    LETHE_TRY(std::move(served));
    return x_outcome;
  }

  // Whether another session follows. A guest that resets instead of powering off, when the user
  // asked for the end, does not restart; one that the user has reset does in any case.
  [[nodiscard]] bool restarts() const {
    return x_outcome.ending == Ending::kReset && !x_stopping &&
           (x_end_asked == Ending::kReset || x_config.boot.on_reboot == OnReboot::kRestart);
  }

 private:
  Result<> serve_api(const RunDir& run_dir, UniqueFd& api) {
    const bool first = !api.valid();
    if (first) {
      LETHE_TRY_ASSIGN(api, listen_unix(run_dir.path() + "/" + kApiSocketName));
    }
    RunControl& control = *this;
    x_target.emplace(x_config, x_loop, *x_machine, x_gui, x_history, control, x_events, x_hub);
    x_events.attach(x_loop);
    LETHE_TRY_ASSIGN(
        x_server, HttpServer::create(x_loop, api, [this](const HttpRequest& request, auto reply) {
          answer_api(*x_target, request, reply);
        }));
    LETHE_TRY(x_hub.attach(x_loop, run_dir.path() + "/" + kConsoleSocketName,
                           [this](std::string_view keys) { return type(keys); }));
    if (first) run_dir.set_ready();
    std::vector<int> taps;  // a reboot opens them again
    for (const NetConfig& net : x_config.nets)
      if (net.tap_fd) taps.push_back(static_cast<int>(*net.tap_fd));
    return x_start.send(run_dir.path() + "/" + kMessagesName, taps);
  }

  Result<> watch_signals() {
    LETHE_TRY_ASSIGN(x_signals, x_loop.watch_signals({SIGTERM, SIGINT, SIGHUP, SIGWINCH, SIGCONT},
                                                     [this](int signal) { on_signal(signal); }));
    return {};
  }

  void watch_input() {
    auto watch = x_loop.watch_readable(STDIN_FILENO, [this] { read_input(); });
    if (watch) {
      x_input = std::move(*watch);
    } else {
      // A regular file or /dev/null can't be waited for: the guest gets no input then.
      log_info(LogModule::kVmm, "standard input is not read: {}", watch.error().text);
    }
  }

  void read_input() {
    std::array<uint8_t, kInputChunk> chunk;
    const ssize_t got = ::read(STDIN_FILENO, chunk.data(), chunk.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (got <= 0) {
      x_input.reset();  // the other end is closed
      return;
    }
    const std::span<const uint8_t> typed(chunk.data(), static_cast<size_t>(got));
    (void)type(x_raw ? x_keys.feed(typed) : std::string(typed.begin(), typed.end()));
  }

  // False: the guest has no room for more.
  bool type(std::string_view keys) {
    x_pending += keys;
    feed_guest();
    return x_pending.empty();
  }

  // Gives the guest what it has room for; reading stops while something is left over.
  void feed_guest() {
    // SAFETY: the characters of the string, as bytes.
    const std::span bytes(reinterpret_cast<const uint8_t*>(x_pending.data()), x_pending.size());
    x_pending.erase(0, x_machine->console_input().receive(bytes));
    if (!x_pending.empty() && x_input) {
      x_input.reset();
      x_input_paused = true;
    } else if (x_pending.empty() && x_input_paused) {
      x_input_paused = false;
      watch_input();
    }
    if (x_pending.empty()) x_hub.resume_keys();
  }

  void resize_console() {
    winsize size{};
    if (::ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
      x_machine->virtio_console().resize(size.ws_col, size.ws_row);
  }

  void on_signal(int signal) {
    if (signal == SIGWINCH) {
      if (x_raw) resize_console();
    } else if (signal == SIGCONT) {
      if (x_raw) x_raw->reapply();
    } else if (x_stopping || x_config.boot.stop_timeout_ms == 0) {
      finish({Ending::kForced});
    } else {
      x_stopping = true;
      x_events.publish("stopping");
      press_power_button();
      x_stop_timer->start(std::chrono::milliseconds(x_config.boot.stop_timeout_ms));
    }
  }

  void on_stop_timeout() {
    std::fprintf(stderr,
                 "lethe: '%s' did not power off within boot.stop_timeout_ms = %u: ended by force\n",
                 x_config.name.c_str(), x_config.boot.stop_timeout_ms);
    finish({Ending::kForced});
  }

  void on_command(EscapeKeys::Command command) {
    switch (command) {
      case EscapeKeys::Command::kQuit:
        finish({Ending::kForced});
        break;
      case EscapeKeys::Command::kPowerButton:
        press_power_button();
        break;
      case EscapeKeys::Command::kHelp:
        std::fputs(EscapeKeys::help(), stderr);
        break;
    }
  }

  // RunControl.
  [[nodiscard]] bool stopping() const override { return x_stopping; }
  void press_power_button() override {
    if (x_target && x_target->ends_when_saved()) return;
    if (x_machine->paused()) {
      x_events.publish("resumed");
      x_machine->resume();
    }
    x_events.publish("power-button");
    x_machine->power_button();
  }
  void end_soon(Ending ending) override {
    if (!x_end_asked || ending == Ending::kForced) x_end_asked = ending;
    x_loop.post([this] { finish({*x_end_asked}); });
  }

  // The first end counts.
  void finish(Outcome outcome) {
    if (std::exchange(x_finished, true)) return;
    x_outcome = outcome;
    if (restarts())
      x_events.publish("reset", {{"by", x_end_asked ? "user" : "guest"}});
    else
      x_events.publish("ended",
                       {{"how", ending_name(outcome.ending)}, {"exit_code", exit_code(outcome)}});
    x_loop.stop();
  }

  const VmConfig& x_config;
  const RunOptions& x_options;
  const RunHistory& x_history;
  Gui* const x_gui;                  // null: none
  const VsockSocket* const x_vsock;  // null: none
  Events& x_events;
  ConsoleHub& x_hub;
  StartSignal& x_start;
  RawTerminal* const x_raw;  // null: the console is no terminal
  SignalMask& x_mask;
  EventLoop x_loop;
  std::unique_ptr<ConsoleOutput> x_output;
  std::unique_ptr<EventLoop::Watch> x_signals;
  std::unique_ptr<EventLoop::Timer> x_stop_timer;
  std::unique_ptr<Machine> x_machine;
  std::optional<MachineTarget> x_target;
  std::unique_ptr<HttpServer> x_server;
  EscapeKeys x_keys;
  std::unique_ptr<EventLoop::Watch> x_input;
  std::string x_pending;  // typed, and not yet taken by the guest
  bool x_input_paused = false;
  bool x_stopping = false;            // a signal asked for the end
  std::optional<Ending> x_end_asked;  // by the control API
  bool x_finished = false;
  Outcome x_outcome;
};

// What `lethe log` shows of a detached VM that has ended. Errors are for the messages only.
void keep_console(const RunDir& run_dir, const ConsoleHub& hub) {
  const std::string path = run_dir.path() + "/" + kLastConsoleName;
  const std::string text = hub.kept();
  const UniqueFd file(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  const Result<> wrote =
      file.valid() ? write_all(file.get(), text) : Result<>(host_error("{}", errno_text(errno)));
  if (!wrote) log_warn(LogModule::kConsole, "'{}' was not written: {}", path, wrote.error().text);
}

Result<Outcome> run_sessions(const VmConfig& config, const RunOptions& options,
                             StartSignal& start) {
  LETHE_TRY_ASSIGN(const RunDir run_dir, RunDir::create(config.name, RunDirRoots::of_this_process(),
                                                        options.config_file));
  SignalMask mask;
  std::unique_ptr<RawTerminal> raw;
  if (!options.non_interactive && ::isatty(STDIN_FILENO) == 1) {
    std::fprintf(stderr, "lethe: console of '%s': Ctrl-A h for help\n", config.name.c_str());
    LETHE_TRY_ASSIGN(raw, RawTerminal::enter(STDIN_FILENO));
  }
  Events events;
  LETHE_TRY_ASSIGN(const std::unique_ptr<Gui> gui, make_gui(config, run_dir, events));
  LETHE_TRY_ASSIGN(const std::unique_ptr<VsockSocket> vsock, make_vsock_socket(config, run_dir));
  UniqueFd api;  // kept over restarts: who connects meanwhile waits
  ConsoleHub hub;
  RunHistory history;
  for (;;) {
    ++history.boots;
    Session session(config, options, raw.get(), mask, history, gui.get(), vsock.get(), events, hub,
                    start);
    LETHE_TRY_ASSIGN(const Outcome outcome, session.run(run_dir, api));
    if (!session.restarts()) {
      if (start.detached()) keep_console(run_dir, hub);
      return outcome;
    }
    log_info(LogModule::kVmm, "'{}' restarts", config.name);
  }
}

}  // namespace

int run_machine(const VmConfig& config, const RunOptions& options, StartSignal start) {
  (void)::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of write(), too
  (void)::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of write(), not our end
  const auto outcome = run_sessions(config, options, start);
  if (!outcome) {
    std::fprintf(stderr, "lethe: %s\n", outcome.error().text.c_str());
    return exit_code_of(outcome.error().kind);
  }
  const int code = exit_code(*outcome);
  if (start.detached())
    std::fprintf(stderr, "lethe: '%s' ended: exit code %d\n", config.name.c_str(), code);
  return code;
}

}  // namespace lethe
