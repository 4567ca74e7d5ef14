// How much memory does a VM take beside its guest's RAM? Proportional set size of the process (file
// pages that processes share count by share), once a 128 MiB guest with the devices of
// configs/minimal.toml (serial, virtio console, random source) has used them all and idles. QEMU
// with the same devices and guest beside it.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "bench/report.h"

extern char** environ;

namespace {

constexpr double kGuestMib = 128;
constexpr int kDeadlineMs = 60'000;

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "bench_overhead: %s\n", why.c_str());
  std::exit(1);
}

// A VM whose guest has printed "ready".
class Vm {
 public:
  explicit Vm(const std::vector<std::string>& command) : x_name(command[0]) {
    std::vector<char*> arguments;
    for (const std::string& argument : command)
      arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    int console[2];
    if (pipe2(console, O_CLOEXEC) != 0) fail("pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, console[1], STDOUT_FILENO);
    if (posix_spawnp(&x_pid, arguments[0], &actions, nullptr, arguments.data(), environ) != 0)
      fail("cannot run " + x_name);
    posix_spawn_file_actions_destroy(&actions);
    close(console[1]);
    wait_until_ready(console[0]);
    x_console = console[0];
  }
  ~Vm() {
    kill(x_pid, SIGKILL);
    waitpid(x_pid, nullptr, 0);
    close(x_console);
  }

  // MiB that are not guest RAM, which is the memory that is kept out of core dumps (VmFlags: dd).
  [[nodiscard]] double pss_mib() const {
    std::ifstream smaps("/proc/" + std::to_string(x_pid) + "/smaps");
    double size_kib = 0, pss_kib = 0, own_kib = 0, guest_kib = 0;
    for (std::string line; std::getline(smaps, line);) {
      if (line.starts_with("Size:")) size_kib = kib(line);
      if (line.starts_with("Pss:")) pss_kib = kib(line);
      if (!line.starts_with("VmFlags:")) continue;
      if (line.find(" dd") != std::string::npos)
        guest_kib += size_kib;
      else
        own_kib += pss_kib;
    }
    if (guest_kib / 1024 < kGuestMib || guest_kib / 1024 > kGuestMib + 4)
      fail(x_name + ": guest RAM not found: " + std::to_string(guest_kib) + " KiB");
    return own_kib / 1024;
  }

 private:
  static double kib(const std::string& line) {
    return std::strtod(line.c_str() + line.find(':') + 1, nullptr);
  }

  void wait_until_ready(int console) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kDeadlineMs);
    std::string seen;
    while (seen.find("ready") == std::string::npos) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd waiting{console, POLLIN, 0};
      char chunk[256];
      if (left.count() <= 0 || poll(&waiting, 1, static_cast<int>(left.count())) <= 0)
        fail(x_name + ": the guest did not get ready; its console: " + seen);
      const ssize_t got = read(console, chunk, sizeof chunk);
      if (got <= 0) fail(x_name + " ended; its console: " + seen);
      seen.append(chunk, static_cast<size_t>(got));
    }
    usleep(200'000);  // what the device still does about its last interrupt
  }

  std::string x_name;
  pid_t x_pid = -1;
  int x_console = -1;
};

}  // namespace

int main(int argc, char** argv) {
  lethe::BenchReport report(argc, argv);
  const auto here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::string kernel =
      (here / "../guest-tests/baremetal/virtio.elf").lexically_normal().string();
  const std::string config = std::filesystem::temp_directory_path() /
                             ("lethe-overhead-" + std::to_string(getpid()) + ".toml");
  std::ofstream(config) << "[boot]\nkernel = \"" << kernel << "\"\ncmdline = \"test=idle\"\n";
  {
    const Vm lethe({here / "lethe", "run", config, "--non-interactive"});
    const Vm qemu({"qemu-system-x86_64",
                   "-M",
                   "q35,dump-guest-core=off",
                   "-accel",
                   "kvm",
                   "-cpu",
                   "host",
                   "-m",
                   "128",
                   "-nodefaults",
                   "-no-user-config",
                   "-display",
                   "none",
                   "-no-reboot",
                   "-device",
                   "isa-debug-exit,iobase=0xf4,iosize=4",
                   "-chardev",
                   "stdio,id=out,mux=on",
                   "-serial",
                   "chardev:out",
                   "-device",
                   "virtio-serial-pci,disable-legacy=on,max_ports=1",
                   "-device",
                   "virtconsole,chardev=out",
                   "-device",
                   "virtio-rng-pci,disable-legacy=on",
                   "-kernel",
                   kernel,
                   "-append",
                   "test=idle"});
    report.add("overhead.pss_mib", lethe.pss_mib(), "MiB");
    report.add("overhead.qemu_pss_mib", qemu.pss_mib(), "MiB");
  }
  std::filesystem::remove(config);
  return report.finish();
}
