// `lethe log`: what a VM's console showed last.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <optional>

#include "base/unix_socket.h"
#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/cli/console_stream.h"
#include "vmm/cli/vm_client.h"
#include "vmm/cli/wait_signals.h"
#include "vmm/config_schema.h"
#include "vmm/console_host.h"

namespace lethe {

Result<UniqueFd> connect_console(const RunningVm& vm) {
  const std::string path = vm.path + "/" + kConsoleSocketName;
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() || connect_unix(fd.get(), path) != 0)
    return host_error("'{}' (process {}): cannot connect to '{}': {}", vm.name, vm.pid, path,
                      errno_text(errno));
  return fd;
}

bool write_all(int fd, std::string_view bytes, WaitSignals& signals,
               const std::function<bool(int)>& go_on) {
  // What a terminal or pipe takes without blocking, if it takes anything: a write that blocks could
  // not be interrupted.
  constexpr size_t kChunk = 256;
  while (!bytes.empty()) {
    pollfd ready{fd, POLLOUT, 0};
    if (const int signal = signals.wait({&ready, 1}, std::chrono::milliseconds(-1)); signal != 0) {
      if (!go_on(signal)) return false;
      continue;
    }
    const ssize_t count = ::write(fd, bytes.data(), std::min(bytes.size(), kChunk));
    if (count < 0 && errno != EINTR && errno != EAGAIN) return false;
    bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }
  return true;
}

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kFileBytesMax = 1 << 20;
// A console's backlog comes at once: it ends where nothing has come for so long.
constexpr milliseconds kBacklogGap{50};
constexpr milliseconds kBacklogMax{500};

// The last lines of a text; a last one without a newline counts.
std::string_view last_lines(std::string_view text, std::optional<uint64_t> lines) {
  if (!lines) return text;
  if (*lines == 0) return {};
  size_t at = text.size();
  if (at > 0 && text[at - 1] == '\n') --at;
  for (uint64_t left = *lines; left > 0; --left) {
    at = at == 0 ? std::string_view::npos : text.rfind('\n', at - 1);
    if (at == std::string_view::npos) return text;
  }
  return text.substr(at + 1);
}

// The end of a file; none: it is missing.
std::optional<std::string> tail_of(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status{};
  if (!file.valid() || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode))
    return std::nullopt;
  const auto size = static_cast<size_t>(status.st_size);
  std::string text(std::min(size, kFileBytesMax), '\0');
  const ssize_t got =
      ::pread(file.get(), text.data(), text.size(), static_cast<off_t>(size - text.size()));
  text.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
  return text;
}

void show(std::string_view text) { (void)std::fwrite(text.data(), 1, text.size(), stdout); }

// Returns the exit code.
Result<int> follow(const RunningVm& vm, std::optional<uint64_t> lines) {
  LETHE_TRY_ASSIGN(const UniqueFd console, connect_console(vm));
  // A reader that goes away (`| head`) ends us.
  std::array<pollfd, 2> descriptors = {pollfd{console.get(), POLLIN, 0},
                                       pollfd{STDOUT_FILENO, 0, 0}};
  WaitSignals signals({SIGINT, SIGTERM, SIGHUP});
  int signal = 0;
  const auto put = [&](std::string_view text) {
    return write_all(STDOUT_FILENO, text, signals, [&](int caught) {
      signal = caught;
      return false;
    });
  };
  const auto end = [&] { return signal == 0 ? 0 : 128 + signal; };
  std::string backlog;
  bool collecting = true;
  const auto start = steady_clock::now();
  for (;;) {
    const milliseconds patience = !collecting       ? milliseconds(-1)
                                  : backlog.empty() ? kBacklogMax
                                                    : kBacklogGap;
    signal = signals.wait(descriptors, patience);
    if (signal != 0 || descriptors[1].revents != 0) return end();
    std::array<char, 16384> chunk;
    ssize_t got = 0;
    const bool ready = descriptors[0].revents != 0;
    if (ready) got = ::recv(console.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (ready && got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    const std::string_view piece(chunk.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (collecting) {
      backlog += piece;
      collecting = ready && got > 0 && backlog.size() < ConsoleHub::kKeptBytes &&
                   steady_clock::now() - start < kBacklogMax;
      if (!collecting && !put(last_lines(backlog, lines))) return end();
    } else if (!put(piece)) {
      return end();
    }
    if (ready && got <= 0) return 0;  // the VM has ended
  }
}

// What is left of a VM that ran detached, and has ended.
Result<> show_ended(const std::string& name, std::optional<uint64_t> lines, bool messages) {
  const auto running = find_running_vm(name);  // for its error
  const std::string path = valid_vm_name(name) ? run_dir_path(name) : std::string();
  const auto said = path.empty() ? std::nullopt : tail_of(path + "/" + kMessagesName);
  if (!said) return running ? Result<>() : Unexpected(running.error());
  if (messages) {
    show(last_lines(*said, lines));
    return {};
  }
  const auto console = tail_of(path + "/" + kLastConsoleName);
  if (console) show(last_lines(*console, lines));
  const std::string_view end = last_lines(*said, 1);
  print_error(fmt::format("'{}' does not run any more; it ran detached{}", name,
                          end.empty() ? ", and ended without a word" : ", and said last:"));
  if (!end.empty()) fmt::print(stderr, "{}\n", printable(end.substr(0, end.find('\n'))));
  return {};
}

Result<int> show_log(const std::string& name, std::optional<uint64_t> lines, bool followed,
                     bool messages) {
  const auto vm = find_running_vm(name);
  if (!vm) {
    LETHE_TRY(show_ended(name, lines, messages));
    return 0;
  }
  if (messages) {
    const auto said = tail_of(vm->path + "/" + kMessagesName);
    if (!said)
      return host_error("'{}' runs in the foreground: its messages are on its terminal", name);
    show(last_lines(*said, lines));
    return 0;
  }
  if (followed) return follow(*vm, lines);
  LETHE_TRY_ASSIGN(const std::string text, get_text(*vm, "/console/log"));
  show(last_lines(text, lines));
  return 0;
}

}  // namespace

int command_log(int argc, char** argv) {
  CommandLine line("log",
                   "Shows what a VM's console printed last, up to 64 KiB; of a VM that ran "
                   "detached also when it has ended, until its name is used again.",
                   "  lethe log web\n"
                   "  lethe log web -n 20 --follow\n"
                   "  lethe log web --messages      # what Lethe itself said, of a detached VM\n",
                   "0 shown; 1 there is no such VM, or it does not answer; 2 bad usage; 128 + N "
                   "ended by signal N.");
  std::string name;
  uint64_t count = 0;
  bool followed = false;
  bool messages = false;
  line.app().add_option("NAME", name, "The VM's name (lethe ps lists those that run)")->required();
  CLI::Option* const lines = line.app()
                                 .add_option("-n,--lines", count, "Only the last N lines of it")
                                 ->check(number_between(0, 1e9));
  line.app().add_flag("-f,--follow", followed, "Go on with what comes, until the VM ends");
  line.app().add_flag("--messages", messages,
                      "What the VM's process said, instead of its console; detached VMs only");
  if (const auto code = line.parse(argc, argv)) return *code;
  (void)::signal(SIGPIPE, SIG_IGN);
  std::fflush(stdout);
  const auto shown =
      show_log(name, lines->count() > 0 ? std::optional(count) : std::nullopt, followed, messages);
  if (shown) return *shown;
  print_error(shown.error().text);
  return exit_code_of(shown.error().kind);
}

}  // namespace lethe
