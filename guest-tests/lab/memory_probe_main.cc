// Drives a guest of `lethe.test=memory-bench` (guest-tests/linux/init-test) under any VMM, and
// measures from outside how its memory comes back: the reclaim benchmark's clock. It is static and
// runs inside the lab, where there is nothing but busybox.
//
// usage: memory_probe [-t FILE] [-p COMMAND] [-w] DEADLINE_MS COMMAND [ARG...]
//   -t FILE      keep the guest's console
//   -p COMMAND   run it (sh -c) as soon as the guest has freed: a pull on demand
//   -w           let the guest go on to its end, and tell the VMM's exit code (exit=N)
//
// The guest fills memory, says so, and waits for a line; frees, says so, and waits again. Resident
// memory is the VMM process's, from /proc/PID/statm, looked at every 5 ms.
//
// Prints one line of KEY=VALUE: rss_filled, rss_end (KiB); ram_filled, ram_end (KiB: the part of it
// in anonymous mappings of 2 MiB and more, the guest's memory, by /proc/PID/smaps); free_filled,
// free_freed, free_end (KiB, the guest's MemFree); first_ms, back95_ms, last_ms: from the guest's
// word that it has freed to the first 8 MiB, to 95 % of the freed bytes, and to the last 1 MiB that
// came back; back95_ms is -1 if so much never came. Exit code: 0; 1 host error; 2 usage; 3 the
// guest ended early; 4 the deadline passed.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kQuietMs = 6000;  // three of the guest's own report rounds without a change
constexpr long kStepKib = 1024;
constexpr unsigned long kLargeMapping = 2 << 20;

[[noreturn]] void give_up(int code, const char* what) {
  std::fprintf(stderr, "memory_probe: %s\n", what);
  std::exit(code);
}

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The VMM under test, its console in and out.
class Vmm {
 public:
  Vmm(char** argv, double deadline_ms, const char* transcript)
      : start_(Clock::now()),
        deadline_ms_(deadline_ms),
        transcript_(transcript ? std::fopen(transcript, "w") : nullptr) {
    int in[2];
    int out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) give_up(1, "no pipes");
    child_ = fork();
    if (child_ < 0) give_up(1, "fork failed");
    if (child_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      execvp(argv[0], argv);
      std::perror(argv[0]);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_guest_ = in[1];
    from_guest_ = out[0];
  }
  ~Vmm() {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      int status = 0;
      waitpid(child_, &status, 0);
    }
    if (transcript_) std::fclose(transcript_);
  }
  Vmm(const Vmm&) = delete;
  Vmm& operator=(const Vmm&) = delete;

  // Waits for the line "lethe-memory: STEP free=N" and returns N.
  long wait_for(const char* step) {
    const std::string wanted = std::string("lethe-memory: ") + step + " free=";
    while (true) {
      const size_t at = console_.find(wanted);
      if (at != std::string::npos && console_.find('\n', at) != std::string::npos)
        return std::atol(console_.c_str() + at + wanted.size());
      if (!read_console()) give_up(3, "the guest ended early");
    }
  }
  void go_on() const {
    if (write(to_guest_, "\n", 1) != 1) give_up(1, "the console takes nothing");
  }
  // Reads the console until the VMM ends: its exit code, or 128 and the signal.
  int wait_for_end() {
    while (read_console()) {
    }
    int status = 0;
    while (waitpid(child_, &status, WNOHANG) == 0) {
      check_deadline();
      usleep(5000);
    }
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  [[nodiscard]] long resident_kib() const {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/statm", child_);
    std::FILE* const file = std::fopen(path, "r");
    long size = 0;
    long resident = 0;
    const bool good = file != nullptr && std::fscanf(file, "%ld %ld", &size, &resident) == 2;
    if (file != nullptr) std::fclose(file);
    if (!good) give_up(3, "the VMM is gone");
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
  }
  [[nodiscard]] long guest_resident_kib() const {
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/smaps", child_);
    std::FILE* const file = std::fopen(path, "r");
    if (file == nullptr) give_up(3, "the VMM is gone");
    long total = 0;
    bool counts = false;
    char line[512];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      unsigned long begin = 0;
      unsigned long end = 0;
      unsigned long inode = 0;
      char name[2] = "";
      long resident = 0;
      if (std::sscanf(line, "%lx-%lx %*s %*s %*s %lu %1s", &begin, &end, &inode, name) >= 3)
        counts = inode == 0 && name[0] == '\0' && end - begin >= kLargeMapping;
      else if (counts && std::sscanf(line, "Rss: %ld", &resident) == 1)
        total += resident;
    }
    std::fclose(file);
    return total;
  }
  void check_deadline() const {
    if (ms_since(start_) > deadline_ms_) give_up(4, "deadline passed");
  }

 private:
  // False at the console's end.
  bool read_console() {
    check_deadline();
    pollfd waiting{from_guest_, POLLIN, 0};
    if (poll(&waiting, 1, 1000) <= 0) return true;
    char buffer[4096];
    const ssize_t got = read(from_guest_, buffer, sizeof buffer);
    if (got <= 0) return false;
    console_.append(buffer, static_cast<size_t>(got));
    if (transcript_) {
      std::fwrite(buffer, 1, static_cast<size_t>(got), transcript_);
      std::fflush(transcript_);
    }
    return true;
  }

  Clock::time_point start_;
  double deadline_ms_;
  std::FILE* transcript_;
  pid_t child_ = -1;
  int to_guest_ = -1;
  int from_guest_ = -1;
  std::string console_;
};

struct Returned {
  long rss_end = 0;
  double first_ms = -1;
  double last_ms = -1;
  std::vector<std::pair<double, long>> steps;  // ms, and the resident KiB that were reached then
  // To 95 % of what the guest had freed in the end: while a pull holds blocks its word is no
  // measure.
  [[nodiscard]] double back95_ms(long rss_filled, long freed_kib) const {
    for (const auto& [ms, resident] : steps)
      if (resident <= rss_filled - freed_kib / 100 * 95) return ms;
    return -1;
  }
};

// Looks on until nothing has come back for kQuietMs.
Returned watch(const Vmm& vmm, Clock::time_point freed_at, long rss_filled) {
  Returned result;
  result.rss_end = rss_filled;
  double last_ms = 0;
  while (ms_since(freed_at) - last_ms < kQuietMs) {
    vmm.check_deadline();
    const long resident = vmm.resident_kib();
    const double now_ms = ms_since(freed_at);
    if (resident <= result.rss_end - kStepKib) {
      result.rss_end = resident;
      last_ms = result.last_ms = now_ms;
      result.steps.emplace_back(now_ms, resident);
    }
    if (result.first_ms < 0 && resident <= rss_filled - 8 * 1024) result.first_ms = now_ms;
    usleep(5000);
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  const char* transcript = nullptr;
  const char* pull = nullptr;
  bool to_its_end = false;
  for (int option = 0; (option = getopt(argc, argv, "+t:p:w")) != -1;) {
    if (option == 't') transcript = optarg;
    if (option == 'p') pull = optarg;
    if (option == 'w') to_its_end = true;
    if (option == '?') argc = 0;
  }
  const int first = optind;
  if (argc < first + 2) {
    std::fprintf(stderr,
                 "usage: memory_probe [-t FILE] [-p COMMAND] [-w] DEADLINE_MS COMMAND [ARG...]\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  Vmm vmm(argv + first + 1, std::atof(argv[first]), transcript);
  const long free_filled = vmm.wait_for("filled");
  const long rss_filled = vmm.resident_kib();
  const long ram_filled = vmm.guest_resident_kib();
  vmm.go_on();
  const long free_freed = vmm.wait_for("freed");
  const Clock::time_point freed_at = Clock::now();
  const pid_t puller = pull != nullptr ? fork() : -1;
  if (pull != nullptr && puller == 0) {
    execl("/bin/sh", "sh", "-c", pull, nullptr);
    _exit(127);
  }
  const Returned returned = watch(vmm, freed_at, rss_filled);
  const long rss_end = vmm.resident_kib();
  const long ram_end = vmm.guest_resident_kib();
  vmm.go_on();
  const long free_end = vmm.wait_for("end");
  if (puller > 0) {
    int status = 0;
    kill(puller, SIGKILL);
    waitpid(puller, &status, 0);
  }
  std::printf(
      "rss_filled=%ld rss_end=%ld ram_filled=%ld ram_end=%ld free_filled=%ld free_freed=%ld "
      "free_end=%ld first_ms=%.0f "
      "back95_ms=%.0f last_ms=%.0f",
      rss_filled, rss_end, ram_filled, ram_end, free_filled, free_freed, free_end,
      returned.first_ms, returned.back95_ms(rss_filled, free_end - free_filled), returned.last_ms);
  if (to_its_end) {
    vmm.go_on();
    std::printf(" exit=%d", vmm.wait_for_end());
  }
  std::printf("\n");
  return 0;
}
