// `lethe exec`: a command in a running guest, by its agent.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <array>

#include "base/event_loop.h"
#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/config_schema.h"
#include "vmm/exec/client.h"
#include "vmm/run_dir.h"

namespace lethe {
namespace {

// As `env`, `timeout` and `docker exec` have them.
constexpr int kExitExecTimedOut = 124;
constexpr int kExitExecFailed = 125;
constexpr int kExitExecCannotRun = 126;
constexpr int kExitExecSignal = 128;  // plus the signal

struct ExecOptions {
  std::string name;
  ExecRequest request;
  ExecClient::Options client;
  double timeout_s = 0;
  double wait_s = 0;
};

int exit_code_of(const ExecEnd& end, const std::string& name) {
  using How = ExecEnd::How;
  if (end.how == How::kExited) return static_cast<int>(end.value);
  if (end.how == How::kSignalled) return kExitExecSignal + static_cast<int>(end.value);
  std::string way_out;
  if (end.how == How::kNoAgent)
    way_out = ": the guest must run lethe-exec, and the config have [vsock] (docs/ci.md)";
  print_error(fmt::format("exec: '{}': {}{}", printable(name), describe(end), way_out));
  if (end.how == How::kTimedOut) return kExitExecTimedOut;
  return end.how == How::kRefused ? kExitExecCannotRun : kExitExecFailed;
}

// The command's streams are ours. No signal is watched: what ends us closes the connection, and
// with it the agent kills the command; this goes for us while our output blocks, too. Threading:
// the main thread.
class Execution {
 public:
  explicit Execution(ExecOptions& options) : x_options(options) {}

  int run() {
    x_client = std::make_unique<ExecClient>(
        x_loop, x_options.client, x_options.request,
        ExecClient::Handlers{
            .output = [this](std::string_view bytes, bool is_error) { show(bytes, is_error); },
            .wants_input = [this] { read_input(); },
            .ended =
                [this](ExecEnd end) {
                  x_end = std::move(end);
                  x_loop.stop();
                }});
    x_loop.run();
    x_input.reset();
    x_client.reset();  // closes: the agent kills what still runs
    return exit_code_of(x_end, x_options.name);
  }

 private:
  // Blocks while our own output does: then the guest's command waits too.
  void show(std::string_view bytes, bool is_error) {
    const int fd = is_error ? STDERR_FILENO : STDOUT_FILENO;
    while (!bytes.empty()) {
      const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0 && errno == EAGAIN) {  // whoever shares it with us made it so
        pollfd room{.fd = fd, .events = POLLOUT, .revents = 0};
        (void)::poll(&room, 1, -1);
        continue;
      }
      if (wrote <= 0) return x_client->end({ExecEnd::How::kLost, 0, ""});  // our reader is gone
      bytes.remove_prefix(static_cast<size_t>(wrote));
    }
  }

  // Once our input has something. A file, which can't be waited for, always has.
  void read_input() {
    if (x_input_over) return;
    auto watch = x_loop.watch_readable(STDIN_FILENO, [this] { give_input(); });
    if (!watch) return give_input();
    x_input = std::move(*watch);
  }

  void give_input() {
    std::array<char, exec::kFrameBytesMax> chunk;
    const ssize_t got = ::read(STDIN_FILENO, chunk.data(), chunk.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return;
    x_input.reset();
    x_input_over = got <= 0;
    x_client->send_input({chunk.data(), static_cast<size_t>(std::max<ssize_t>(got, 0))});
  }

  ExecOptions& x_options;
  EventLoop x_loop;
  std::unique_ptr<ExecClient> x_client;
  std::unique_ptr<EventLoop::Watch> x_input;
  bool x_input_over = false;
  ExecEnd x_end;
};

std::chrono::milliseconds from_seconds(double number) {
  return std::chrono::milliseconds(static_cast<int64_t>(number * 1000));
}

}  // namespace

int command_exec(int argc, char** argv) {
  CommandLine line(
      "exec",
      "Runs a command in a running guest, by the agent lethe-exec there, and ends as "
      "it ends. Ctrl-C kills it.",
      "  lethe exec web -- uname -a\n"
      "  lethe exec web -- sh -c 'journalctl -b | grep -c error'\n"
      "  tar -c site | lethe exec -i --cwd /srv web -- tar -x\n",
      "the command's own; 128 + N killed by signal N; 124 --timeout; 125 no such VM, no "
      "agent, or the connection was lost; 126 the agent could not run it; 2 bad usage.");
  ExecOptions options;
  line.app()
      .add_option("NAME", options.name, "The VM's name (lethe ps lists those that run)")
      ->required();
  line.app()
      .add_option("COMMAND", options.request.run, "The program and its arguments, behind --")
      ->required();
  line.app().add_flag("-i,--stdin", options.request.takes_stdin,
                      "Give it this command's standard input (default: it has none)");
  line.app()
      .add_option("-e,--env", options.request.env, "NAME=VALUE: a variable of its environment")
      ->allow_extra_args(false);
  line.app().add_option("--cwd", options.request.cwd, "The directory in the guest to run it in");
  line.app()
      .add_option("--timeout", options.timeout_s, "Kill it after so many seconds")
      ->check(number_between(0.001, 86400));
  line.app()
      .add_option("--wait", options.wait_s,
                  "Wait up to so many seconds for a guest that still boots (default: 0)")
      ->check(number_between(0, 86400));
  line.app()
      .add_option("--port", options.client.port, "The agent's vsock port (default: 1024)")
      ->check(CLI::Range(1u, UINT32_MAX - 1));
  if (const auto code = line.parse(argc, argv)) return *code;
  if (const auto request = exec_request_line(options.request); !request) {
    print_error("exec: " + request.error().text);
    return kExitUsage;
  }
  const auto vm = find_running_vm(options.name);
  if (!vm) {
    print_error(vm.error().text);
    return kExitExecFailed;
  }
  options.client.socket = vm->path + "/" + kVsockSocketName;
  options.client.patience = from_seconds(options.wait_s);
  options.request.timeout = from_seconds(options.timeout_s);
  (void)::signal(SIGPIPE, SIG_IGN);
  return Execution(options).run();
}

}  // namespace lethe
