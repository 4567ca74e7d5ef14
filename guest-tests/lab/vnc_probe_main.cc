// Drives a guest of `lethe.test=paint` (guest-tests/linux/screen_painter_main.cc) over VNC, and
// measures what its user sees: bench/present_vnc's clock. It is static and runs inside the lab.
//
// usage: vnc_probe [-t FILE] [-v COMMAND] [-n COUNT] DEADLINE_MS SOCKET COMMAND [ARG...]
//   -t FILE      keep the guest's console there (needed to see that it is up); and FILE.vnc
//   -v COMMAND   the VNC server, run (sh -c exec) when the guest is up; else it is the VMM itself
//   -n COUNT     damages of each size (default 20)
//
// A key is typed over VNC; the guest paints a rectangle; the answer is there when every pixel of it
// is the colour that no other frame has. Between two keys is a pause of 0 to 60 ms, so that no
// server's own clock is met in step.
//
// Prints one line of KEY=VALUE: SIZE_ms (median) and SIZE_bytes (mean received per damage) for
// small, medium and full; cpu_ms: processor time of VMM and VNC server, without the guest's own,
// per damage; animation_fps, animation_cpu_ms: 60 frames that the guest paints, one every 20 ms if
// it can: how many of them a second were seen, and processor time per frame seen. Exit code: 0; 1
// failure; 2 usage.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "guest-tests/lab/rfb_client.h"
#include "guest-tests/linux/screen_pattern.h"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using lethe::RfbClient;
using namespace lethe::screen_pattern;
constexpr auto kAnswerMax = 20s;  // a guest that needs longer for a key is broken

[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "vnc_probe: %s\n", what.c_str());
  std::exit(1);
}

double ms(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// A program that ends with this one, both its outputs in a file.
class Program {
 public:
  Program(std::vector<char*> argv, const std::string& output) {
    argv.push_back(nullptr);
    x_pid = fork();
    if (x_pid < 0) give_up("fork failed");
    if (x_pid > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int in = open("/dev/null", O_RDONLY);
    const int out = open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execvp(argv[0], argv.data());
    std::perror(argv[0]);
    _exit(127);
  }
  ~Program() {
    kill(x_pid, SIGKILL);
    int status = 0;
    waitpid(x_pid, &status, 0);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  [[nodiscard]] bool runs() const {
    siginfo_t end{};  // WNOWAIT: the destructor's kill must not meet another process
    return waitid(P_PID, static_cast<id_t>(x_pid), &end, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           end.si_pid == 0;
  }
  // utime + stime - guest_time of proc_pid_stat(5), fields 14, 15 and 43.
  [[nodiscard]] double cpu_ms() const {
    std::ifstream file("/proc/" + std::to_string(x_pid) + "/stat");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    if (text.find(')') == std::string::npos) give_up("a process is gone");
    std::istringstream fields(text.substr(text.rfind(')') + 2));
    double ticks = 0;
    std::string field;
    for (int i = 3; fields >> field; ++i) {
      if (i == 14 || i == 15) ticks += std::atof(field.c_str());
      if (i == 43) ticks -= std::atof(field.c_str());
    }
    return ticks * 1000 / static_cast<double>(sysconf(_SC_CLK_TCK));
  }

 private:
  pid_t x_pid = -1;
};

void wait_until_ready(const Program& vmm, const std::string& console, Clock::time_point deadline) {
  while (true) {
    std::ifstream file(console);
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    if (text.find(kReady) != std::string::npos) return;
    if (!vmm.runs()) give_up("the VMM ended early");
    if (Clock::now() > deadline) give_up("the guest did not come up");
    usleep(100'000);
  }
}

bool shows(const RfbClient& client, const Damage& damage, uint32_t wanted) {
  for (uint32_t y = damage.y; y < damage.y + damage.height; ++y)
    for (uint32_t x = damage.x; x < damage.x + damage.width; ++x)
      if (client.pixel(x, y) != wanted) return false;
  return true;
}

// Reads updates until the rectangle is complete: when that was. `seen` counts the colours that its
// last pixel had on the way.
Clock::time_point wait_for(RfbClient& client, const Damage& damage, uint32_t wanted,
                           uint32_t* seen = nullptr) {
  const Clock::time_point end = Clock::now() + kAnswerMax;
  const auto last = [&] {
    return client.pixel(damage.x + damage.width - 1, damage.y + damage.height - 1);
  };
  uint32_t before = last();
  while (Clock::now() < end) {
    if (!client.update(1s)) continue;
    if (seen != nullptr && last() != before) ++*seen;
    before = last();
    if (before == wanted && shows(client, damage, wanted)) return client.updated_at();
  }
  give_up(std::string("no answer to a key: ") + damage.name);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// The whole screen is as the guest first painted it.
void wait_for_first(RfbClient& client) {
  const Clock::time_point end = Clock::now() + kAnswerMax;
  while (Clock::now() < end) {
    (void)client.update(1s);
    if (client.width() == kWidth && client.height() == kHeight &&
        shows(client, {"all", 0, 0, 0, 0, kWidth, kHeight}, colour(0)))
      return;
  }
  give_up("the guest's first picture does not arrive: size " + std::to_string(client.width()) +
          "x" + std::to_string(client.height()));
}

struct Figures {
  std::vector<double> ms[std::size(kDamages)];
  uint64_t bytes[std::size(kDamages)] = {};
};

Figures measure(RfbClient& client, int count, uint32_t& number) {
  Figures figures;
  std::minstd_rand random(1);
  std::uniform_int_distribution<useconds_t> pause_us(0, 60'000);
  size_t kinds[std::size(kDamages)];
  std::iota(std::begin(kinds), std::end(kinds), size_t{0});
  for (int i = 0; i < count; ++i) {
    std::shuffle(std::begin(kinds), std::end(kinds), random);
    for (const size_t kind : kinds) {
      usleep(pause_us(random));
      const uint64_t bytes_before = client.bytes();
      const Clock::time_point start = Clock::now();
      client.press(kDamages[kind].keysym);
      const Clock::time_point end = wait_for(client, kDamages[kind], colour(++number));
      figures.ms[kind].push_back(ms(end - start));
      figures.bytes[kind] += client.bytes() - bytes_before;
    }
  }
  return figures;
}

int run(int argc, char** argv) {
  std::string console = "vnc_probe.console";
  std::string server;
  int count = 20;
  for (int option = 0; (option = getopt(argc, argv, "+t:v:n:")) != -1;) {
    if (option == 't') console = optarg;
    if (option == 'v') server = optarg;
    if (option == 'n') count = std::atoi(optarg);
    if (option == '?') argc = 0;
  }
  if (argc < optind + 3 || count < 1) {
    std::fprintf(stderr,
                 "usage: vnc_probe [-t FILE] [-v COMMAND] [-n COUNT] DEADLINE_MS SOCKET COMMAND "
                 "[ARG...]\n");
    return 2;
  }
  const Clock::time_point deadline =
      Clock::now() + std::chrono::milliseconds(std::atol(argv[optind]));
  const Program vmm({argv + optind + 2, argv + argc}, console);
  wait_until_ready(vmm, console, deadline);
  std::optional<Program> vnc;
  if (!server.empty()) {
    server = "exec " + server;
    char shell[] = "/bin/sh";
    char option[] = "-c";
    vnc.emplace(std::vector<char*>{shell, option, server.data()}, console + ".vnc");
  }
  RfbClient client(argv[optind + 1], deadline);
  wait_for_first(client);
  uint32_t number = 0;
  (void)measure(client, 2, number);  // warms up
  const auto cpu_ms = [&] { return vmm.cpu_ms() + (vnc ? vnc->cpu_ms() : 0); };
  const double cpu_before = cpu_ms();
  const Figures figures = measure(client, count, number);
  const double cpu_after = cpu_ms();
  for (size_t kind = 0; kind < std::size(kDamages); ++kind)
    std::printf("%s_ms=%.2f %s_bytes=%lu ", kDamages[kind].name, median(figures.ms[kind]),
                kDamages[kind].name, figures.bytes[kind] / static_cast<uint64_t>(count));
  std::printf("cpu_ms=%.2f ", (cpu_after - cpu_before) / (count * std::size(kDamages)));
  uint32_t seen = 0;
  const double animation_cpu_before = cpu_ms();
  const Clock::time_point start = Clock::now();
  client.press(kAnimationKeysym);
  const Clock::time_point end =
      wait_for(client, kAnimationDamage, colour(number + kAnimationFrames), &seen);
  std::printf("animation_fps=%.1f animation_cpu_ms=%.2f\n", seen * 1000 / ms(end - start),
              (cpu_ms() - animation_cpu_before) / seen);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  return run(argc, argv);
}
