#include "vmm/doctor.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>

#include "base/assert.h"
#include "base/unique_fd.h"
#include "devices/gui/shared_buffer.h"
#include "memory/scrub_pool.h"
#include "vmm/api/http_server.h"
#include "vmm/boot/layout.h"
#include "vmm/frontend_program.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/vcpu.h"
#include "vmm/run.h"

namespace lethe {
namespace {

// A processor runs billions of instructions a second; emulation, by KVM or by the machine below it,
// some millions.
constexpr double kHardwareInstructionsPerSecond = 50e6;
constexpr uint32_t kIterationsFirst = 10'000;     // 30 ms of emulation
constexpr uint32_t kIterationsMax = 100'000'000;  // 0.1 s of hardware
constexpr rlim_t kGuiDescriptors = 4096;          // enough for a thousand buffers
constexpr uint16_t kDonePort = 0xF4;
constexpr uint64_t kCodeAddress = 0x1000;

class DonePort final : public BusDevice {
 public:
  explicit DonePort(std::function<void()> done) : x_done(std::move(done)) {}
  void bus_read(uint64_t, std::span<uint8_t>) override {}
  void bus_write(uint64_t, std::span<const uint8_t>) override { x_done(); }

 private:
  std::function<void()> x_done;
};

// Runs a guest of 2 * iterations instructions; returns the seconds it took.
Result<double> time_guest(const Kvm& kvm, uint32_t iterations) {
  const GuestMemory::Range range{GuestAddr{0}, 2 * kMiB};
  LETHE_TRY_ASSIGN(const auto memory, GuestMemory::create({&range, 1}, {.thp = false}));
  std::array<uint8_t, 14> code = {0xB9, 0,         0,    0, 0,  // mov ecx, iterations
                                  0x49,                         // loop: dec ecx
                                  0x75, 0xFD,                   // jnz loop
                                  0xE6, kDonePort,              // out kDonePort, al
                                  0xF4, 0xEB,      0xFD,        // hlt; jmp hlt
                                  0x90};
  for (int i = 0; i < 4; ++i) code[1 + i] = static_cast<uint8_t>(iterations >> (8 * i));
  LETHE_ASSERT(memory->write(GuestAddr{kCodeAddress}, code));
  LETHE_ASSERT(memory->store(GuestAddr{layout::kGdt}, kBootGdt));
  LETHE_TRY_ASSIGN(const auto vm, KvmVm::create(kvm));
  LETHE_TRY(vm->map_memory(memory->regions()));
  LETHE_TRY_ASSIGN(auto cpuid, supported_cpuid(kvm));
  LETHE_TRY_ASSIGN(const auto vcpu, Vcpu::create(kvm, *vm, std::move(cpuid), 0, 1));
  BootState state;
  state.entry = kCodeAddress;
  state.gdt = layout::kGdt;
  LETHE_TRY(vcpu->set_boot_state(state));
  Bus ports("port I/O");
  const Bus mmio("MMIO");
  DonePort done([&] { vcpu->request_stop(); });
  LETHE_TRY(ports.add({kDonePort, 1}, done));
  const auto start = std::chrono::steady_clock::now();
  if (vcpu->run(ports, mmio) != VcpuExit::kStopped)
    return Unexpected(Error{ErrorClass::kKvm, "KVM does not run a tiny guest to its end"});
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Instructions a second: longer guests until one takes long enough to be measured.
Result<double> guest_speed(const Kvm& kvm) {
  for (uint32_t iterations = kIterationsFirst;; iterations *= 10) {
    LETHE_TRY_ASSIGN(const double seconds, time_guest(kvm, iterations));
    if (seconds > 0.005 || iterations >= kIterationsMax) return 2.0 * iterations / seconds;
  }
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string io_uring_state() {
  io_uring ring;
  const int result = io_uring_queue_init(4, &ring, 0);
  if (result == 0) {
    io_uring_queue_exit(&ring);
    return "ok";
  }
  return fmt::format("not usable ({}): disks need it: see sysctl kernel.io_uring_disabled",
                     errno_text(-result));
}

std::string huge_page_state() {
  const std::string modes = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  if (modes.empty()) return "none: this kernel has no transparent huge pages; guests run slower";
  if (modes.find("[never]") == std::string::npos) return modes + " (transparent)";
  return modes +
         ": guests run slower, and the scrub pool takes nothing: echo madvise > "
         "/sys/kernel/mm/transparent_hugepage/enabled";
}

// What the governor (memory.auto) goes by: opened as it would be, with a trigger.
std::string pressure_state() {
  const UniqueFd fd(::open("/proc/pressure/memory", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid() && errno == ENOENT)
    return "no /proc/pressure/memory: memory.auto goes by free memory alone: boot with psi=1";
  if (!fd.valid())
    return fmt::format("/proc/pressure/memory: {}: memory.auto goes by free memory alone",
                       errno_text(errno));
  // Windows of a whole 2 s need no rights (since Linux 6.5); before, triggers are root's.
  constexpr std::string_view kTrigger = "some 200000 2000000";
  if (::write(fd.get(), kTrigger.data(), kTrigger.size() + 1) < 0)
    return fmt::format(
        "readable, but triggers are refused ({}): memory.auto looks at it by time; Linux 6.5 lets "
        "every user have triggers",
        errno_text(errno));
  return "ok (PSI, with triggers)";
}

// What [gui] needs: buffers in sealed memfds, a descriptor or three each.
std::string gui_state() {
  if (const auto buffer = SharedBuffer::create(1); !buffer)
    return "windows can't be shared: " + buffer.error().text;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_max >= kGuiDescriptors) return "ok";
  return fmt::format("ok, but a process may have only {} descriptors (ulimit -Hn): few windows",
                     limit.rlim_max);
}

std::string frontends_state() {
  std::string missing;
  for (const char* program : {"lethe-view", "lethe-vnc", "lethe-shot"})
    if (!find_frontend(program)) missing += (missing.empty() ? "" : ", ") + std::string(program);
  return missing.empty() ? "lethe-view, lethe-vnc, lethe-shot"
                         : missing + " not there: put them beside lethe or into PATH";
}

// What was found, in order: printed at once as a table, or at the end as one object.
class Findings {
 public:
  explicit Findings(const DoctorOptions& options) : x_options(options) {}
  void add(const char* what, const std::string& finding) {
    if (!x_options.quiet && !x_options.json) std::printf("%-12s %s\n", what, finding.c_str());
    std::string key = what;
    std::ranges::replace(key, ' ', '_');
    x_json += json_quote(key) + ":" + json_quote(finding) + ",";
  }
  int end(int code) const {
    if (x_options.json) std::printf("{%s\"exit_code\":%d}\n", x_json.c_str(), code);
    return code;
  }

 private:
  const DoctorOptions& x_options;
  std::string x_json;
};

}  // namespace

Result<bool> kvm_is_fast() {
  LETHE_TRY_ASSIGN(const auto kvm, Kvm::open());
  LETHE_TRY_ASSIGN(const double speed, guest_speed(kvm));
  return speed >= kHardwareInstructionsPerSecond;
}

int run_doctor(const DoctorOptions& options) {
  Findings findings(options);
  utsname system{};
  (void)::uname(&system);
  findings.add("kernel", fmt::format("{} {}", system.sysname, system.release));
  findings.add("io_uring", io_uring_state());
  findings.add("huge pages", huge_page_state());
  findings.add("pressure", pressure_state());
  findings.add("scrub pool", probe_chunk_mover().why);
  findings.add("GUI", gui_state());
  findings.add("frontends", frontends_state());
  const auto kvm = Kvm::open();
  if (!kvm) {
    findings.add("KVM", kvm.error().text);
    return findings.end(kExitNoKvm);
  }
  findings.add("KVM", fmt::format("ok, up to {} vCPUs a VM", kvm->capability(KVM_CAP_MAX_VCPUS)));
  const auto speed = guest_speed(*kvm);
  if (!speed) {
    findings.add("guest speed", speed.error().text);
    return findings.end(kExitNoKvm);
  }
  const bool hardware = *speed >= kHardwareInstructionsPerSecond;
  findings.add(
      "guest speed",
      fmt::format("{:.1f} million instructions/s: {}", *speed / 1e6,
                  hardware ? "the processor runs guest code"
                           : "guest code is emulated: small guests run, Linux takes hours; "
                             "use a host whose processor offers virtualisation"));
  return findings.end(hardware ? kDoctorGood : kDoctorSlow);
}

}  // namespace lethe
