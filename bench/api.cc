// How long does the control API take while its VM is busy, and what does it cost one that rests?
//
// Busy: a guest that writes, reads back and prints as fast as it can. GET /state is asked over a
// connection that stays, and so is, in turns, a bare Beast server on a Unix socket of its own
// process, which answers with as many bytes: what any such server takes on this machine.
// Idle: a guest in HLT with interrupts off, with one client connected that asks nothing and one
// that listens to /events: how often do the VM's threads wake up? (voluntary context switches) The
// kernel's own thread among them, KVM's for huge pages, is counted apart.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/test_util.h"
#include "base/unique_fd.h"
#include "bench/report.h"

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Protocol = asio::local::stream_protocol;
using std::chrono::duration;
using std::chrono::steady_clock;

namespace {

constexpr std::chrono::milliseconds kPatience{60'000};
constexpr int kRounds = 10;
constexpr int kWarmUp = 200;  // requests
constexpr int kEach = 1000;   // requests of each server, a round
constexpr std::chrono::seconds kIdle{10};
// What the start and the requests have set off goes on for a while: a request's deadline wakes the
// main thread once, although the answer has gone.
constexpr std::chrono::seconds kSettle{12};
constexpr size_t kEchoBytes = 112;  // as long as GET /state's answer

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "bench_api: %s\n", why.c_str());
  std::exit(1);
}

// A process that dies with this one.
class Child {
 public:
  template <typename Run>
  explicit Child(Run&& run) : x_pid(fork()) {
    if (x_pid != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    run();
    _exit(125);
  }
  ~Child() {
    kill(x_pid, SIGKILL);
    waitpid(x_pid, nullptr, 0);
  }
  [[nodiscard]] pid_t pid() const { return x_pid; }

 private:
  pid_t x_pid;
};

class Client {
 public:
  explicit Client(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    x_fd.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const bool connected = lethe::eventually(
        [&] {
          // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
          return connect(x_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
                 0;
        },
        kPatience);
    if (!connected) fail("nobody listens at " + path);
  }
  void send(const std::string& text) const {
    if (::send(x_fd.get(), text.data(), text.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(text.size()))
      fail("a request was not taken");
  }
  // From the request to the whole answer, microseconds.
  double ask(const std::string& text) {
    const auto start = steady_clock::now();
    send(text);
    receive();
    return duration<double, std::micro>(steady_clock::now() - start).count();
  }

 private:
  void receive() {
    std::string got;
    size_t wanted = std::string::npos;
    while (got.size() < wanted) {
      pollfd waiting{x_fd.get(), POLLIN, 0};
      char chunk[4096];
      if (poll(&waiting, 1, static_cast<int>(kPatience.count())) <= 0) fail("no answer");
      const ssize_t now = recv(x_fd.get(), chunk, sizeof chunk, 0);
      if (now <= 0) fail("the answer was cut");
      got.append(chunk, static_cast<size_t>(now));
      const size_t end = got.find("\r\n\r\n");
      if (end == std::string::npos) continue;
      const size_t length = got.find("Content-Length: ");
      if (!got.starts_with("HTTP/1.1 200 ") || length > end) fail("not the answer: " + got);
      wanted = end + 4 + std::strtoul(got.c_str() + length + 16, nullptr, 10);
    }
  }
  lethe::UniqueFd x_fd;
};

// The peer: Beast's own asynchronous loop, one connection after the other.
class EchoConnection : public std::enable_shared_from_this<EchoConnection> {
 public:
  explicit EchoConnection(Protocol::socket socket) : x_socket(std::move(socket)) {}
  void read() {
    x_request = {};
    http::async_read(x_socket, x_buffer, x_request,
                     [self = shared_from_this()](const boost::system::error_code& error, size_t) {
                       if (!error) self->write();
                     });
  }

 private:
  void write() {
    x_response = {http::status::ok, 11};
    x_response.set(http::field::content_type, "application/json");
    x_response.body().assign(kEchoBytes, 'x');
    x_response.prepare_payload();
    http::async_write(x_socket, x_response,
                      [self = shared_from_this()](const boost::system::error_code& error, size_t) {
                        if (!error) self->read();
                      });
  }
  Protocol::socket x_socket;
  boost::beast::flat_buffer x_buffer;
  http::request<http::string_body> x_request;
  http::response<http::string_body> x_response;
};

void serve_echo(const std::string& path) {
  asio::io_context context;
  Protocol::acceptor acceptor(context, Protocol::endpoint(path));
  std::function<void()> accept = [&] {
    acceptor.async_accept([&](const boost::system::error_code& error, Protocol::socket socket) {
      if (!error) std::make_shared<EchoConnection>(std::move(socket))->read();
      accept();
    });
  };
  accept();
  context.run();
}

// A directory for sockets and configs; it goes with the object.
class Folder {
 public:
  Folder() {
    char made[] = "/tmp/lethe-bench-api-XXXXXX";
    if (mkdtemp(made) == nullptr) fail("no directory in /tmp");
    x_path = made;
    setenv("XDG_RUNTIME_DIR", made, 1);
  }
  ~Folder() { std::filesystem::remove_all(x_path); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return x_path + "/" + name; }
  [[nodiscard]] std::string text(const std::string& name) const {
    std::ifstream file(x_path + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::string x_path;
};

// `lethe run` of the case `test`, when it has printed `ready`.
class Vm {
 public:
  Vm(const Folder& folder, const std::string& test, const std::string& ready)
      : x_name(test), x_folder(folder), x_child([&] { run(); }) {
    if (!lethe::eventually([&] { return x_folder.text(x_name).find(ready) != std::string::npos; },
                           kPatience))
      fail("the guest is not ready: " + x_folder.text(x_name));
  }
  [[nodiscard]] std::string socket() const { return x_folder / ("lethe/" + x_name + "/api.sock"); }

  struct Activity {
    uint64_t wakings = 0;
    uint64_t kvm_wakings = 0;
    double cpu_ms = 0;
  };
  [[nodiscard]] Activity activity() const {
    Activity all;
    const std::string process = "/proc/" + std::to_string(x_child.pid());
    for (const auto& task : std::filesystem::directory_iterator(process + "/task")) {
      std::ifstream status(task.path() / "status");
      uint64_t* wakings = &all.wakings;
      for (std::string line; std::getline(status, line);) {
        // The kernel's own, which KVM puts into each process with a VM.
        if (line.starts_with("Name:\tkvm-nx-lpage")) wakings = &all.kvm_wakings;
        if (line.starts_with("voluntary_ctxt_switches:"))
          *wakings += std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10);
      }
    }
    std::ifstream stat(process + "/stat");
    std::string field;
    for (int i = 1; stat >> field && i <= 15; ++i)
      if (i >= 14)  // utime, stime
        all.cpu_ms += std::strtod(field.c_str(), nullptr) * 1000.0 /
                      static_cast<double>(sysconf(_SC_CLK_TCK));
    return all;
  }

 private:
  void run() const {
    const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    std::ofstream(x_folder / "disk");
    std::filesystem::resize_file(x_folder / "disk", 1 << 20);
    const std::string config = x_folder / (x_name + ".toml");
    std::ofstream(config) << "name = \"" << x_name << "\"\n[boot]\nkernel = \""
                          << (here / "../guest-tests/baremetal/virtio.elf").string()
                          << "\"\ncmdline = \"test=" << x_name << "\"\n[[disk]]\npath = \"disk\"\n";
    const int console = open((x_folder / x_name).c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(console, STDOUT_FILENO);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    execl((here / "lethe").c_str(), "lethe", "run", config.c_str(), "--non-interactive", nullptr);
  }
  std::string x_name;
  const Folder& x_folder;
  Child x_child;
};

// How long anything on the host has waited for memory (PSI), ms.
double host_stall_ms() {
  std::ifstream pressure("/proc/pressure/memory");
  std::string line;
  if (!std::getline(pressure, line) || line.find("total=") == std::string::npos) return 0;
  return std::strtod(line.c_str() + line.find("total=") + 6, nullptr) / 1000;
}

void measure_busy(const Folder& folder, lethe::BenchReport& report) {
  const std::string echo_path = folder / "echo.sock";
  const Child echo([&] { serve_echo(echo_path); });
  const Vm vm(folder, "busy", "tick 100\n");
  Client peer(echo_path);
  Client api(vm.socket());
  const std::string request = "GET /state HTTP/1.1\r\nHost: vm\r\n\r\n";
  for (int i = 0; i < kWarmUp; ++i) {
    (void)peer.ask(request);
    (void)api.ask(request);
  }
  std::vector<double> asked, echoed;
  for (int i = 0; i < kRounds * kEach; ++i) {
    echoed.push_back(peer.ask(request));
    asked.push_back(api.ask(request));
  }
  const double ours = lethe::quantile(asked, 0.99);
  const double bare = lethe::quantile(echoed, 0.99);
  report.add("api.state_p50_us", lethe::median(asked), "us");
  report.add("api.state_p99_us", ours, "us");
  report.add("api.echo_p50_us", lethe::median(echoed), "us");
  report.add("api.echo_p99_us", bare, "us");
  report.add("api.p99_vs_echo", ours / bare, "x");
}

void measure_idle(const Folder& folder, lethe::BenchReport& report) {
  const Vm vm(folder, "idle", "ready\n");
  Client quiet(vm.socket());
  (void)quiet.ask("GET /state HTTP/1.1\r\nHost: vm\r\n\r\n");
  const Client listener(vm.socket());
  listener.send("GET /events HTTP/1.1\r\nHost: vm\r\n\r\n");
  usleep(std::chrono::microseconds(kSettle).count());
  const double stalled = host_stall_ms();
  const Vm::Activity before = vm.activity();
  usleep(std::chrono::microseconds(kIdle).count());
  const Vm::Activity after = vm.activity();
  report.add("api.idle_wakeups_per_s",
             static_cast<double>(after.wakings - before.wakings) / kIdle.count(), "1/s");
  report.add("api.idle_kvm_worker_wakeups_per_s",
             static_cast<double>(after.kvm_wakings - before.kvm_wakings) / kIdle.count(), "1/s");
  report.add("api.idle_host_stall_ms", host_stall_ms() - stalled, "ms");
  report.add("api.idle_cpu_ms_per_s", (after.cpu_ms - before.cpu_ms) / kIdle.count(), "ms/s");
}

}  // namespace

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  const Folder folder;
  measure_busy(folder, report);
  measure_idle(folder, report);
  return report.finish();
}
