#include "vmm/terminal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>

#include "base/assert.h"

namespace lethe {
namespace {

// What restore() needs; plain statics, since a signal handler reads them.
termios saved_mode;
const char* farewell_text = "";
std::atomic<int> raw_fd{-1};  // -1: nothing to restore

void restore() {
  // SAFETY: tcsetattr is async-signal-safe (POSIX.1 2.4.3), and the exchange makes it happen once.
  const int fd = raw_fd.exchange(-1);
  if (fd < 0) return;
  if (*farewell_text != '\0') [[maybe_unused]]
    const ssize_t written = ::write(fd, farewell_text, ::strlen(farewell_text));
  (void)::tcsetattr(fd, TCSANOW, &saved_mode);
}

void restore_and_die(int signal) {
  restore();
  // SA_RESETHAND has put the default action back: this ends the process as if we had not been here.
  (void)::raise(signal);
}

void install_once() {
  static const bool installed = [] {
    (void)::atexit(restore);
    struct sigaction action{};
    action.sa_handler = restore_and_die;
    action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER);
    for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGQUIT})
      (void)::sigaction(signal, &action, nullptr);
    return true;
  }();
  LETHE_ASSERT(installed);
}

void set_raw(int fd) {
  termios raw = saved_mode;
  ::cfmakeraw(&raw);
  raw.c_oflag |= OPOST | ONLCR;  // lines of Lethe's own end in a plain newline
  (void)::tcsetattr(fd, TCSANOW, &raw);
}

constexpr uint8_t kEscape = 1;  // Ctrl-A

}  // namespace

Result<std::unique_ptr<RawTerminal>> RawTerminal::enter(int fd, const char* farewell) {
  LETHE_ASSERT(raw_fd.load() < 0);
  if (::tcgetattr(fd, &saved_mode) != 0)
    return host_error("the terminal does not tell its mode: {}", errno_text(errno));
  farewell_text = farewell;
  install_once();
  raw_fd.store(fd);
  set_raw(fd);
  return std::unique_ptr<RawTerminal>(new RawTerminal);
}

RawTerminal::~RawTerminal() { restore(); }

void RawTerminal::give_back() { restore(); }

void RawTerminal::reapply() {
  if (const int fd = raw_fd.load(); fd >= 0) set_raw(fd);
}

std::string EscapeKeys::feed(std::span<const uint8_t> typed) {
  std::string to_guest;
  for (const uint8_t byte : typed) {
    if (!x_escaped && byte == kEscape) {
      x_escaped = true;
      continue;
    }
    if (!x_escaped) {
      to_guest.push_back(static_cast<char>(byte));
      continue;
    }
    x_escaped = false;
    switch (byte) {
      case 'x':
        x_on_command(Command::kQuit);
        break;
      case 'p':
        x_on_command(Command::kPowerButton);
        break;
      case 'h':
      case '?':
        x_on_command(Command::kHelp);
        break;
      case kEscape:
        to_guest.push_back(kEscape);
        break;
      default:
        to_guest.push_back(kEscape);
        to_guest.push_back(static_cast<char>(byte));
    }
  }
  return to_guest;
}

const char* EscapeKeys::help() {
  return "\nCtrl-A x  quit (the guest is stopped at once)\n"
         "Ctrl-A p  press the power button\n"
         "Ctrl-A h  this help\n"
         "Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";
}

}  // namespace lethe
