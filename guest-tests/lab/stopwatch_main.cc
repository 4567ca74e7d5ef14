// Runs a command and tells how long it took until its output first had a given text: the boot
// benchmark's clock. It is static and runs inside the lab, where there is nothing but busybox.
//
// usage: stopwatch [-t FILE] DEADLINE_MS TEXT COMMAND [ARG...]
//   -t FILE   keep the output, each line with the milliseconds from exec to its first byte
//
// Prints one line, seconds from just before fork/exec to the read that completed TEXT. The command
// is then killed: what it does later is not the question. Exit code: 0; 1 host error; 2 usage;
// 3 the command ended without TEXT; 4 the deadline passed.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// Writes output to a file, a time before each line.
class Transcript {
 public:
  explicit Transcript(const char* path) : file_(path ? std::fopen(path, "w") : nullptr) {}
  ~Transcript() {
    if (file_) std::fclose(file_);
  }
  Transcript(const Transcript&) = delete;
  Transcript& operator=(const Transcript&) = delete;

  void add(std::string_view text, double ms) {
    if (!file_) return;
    for (char c : text) {
      if (at_line_start_) std::fprintf(file_, "%8.1f ", ms);
      std::fputc(c, file_);
      at_line_start_ = c == '\n';
    }
  }

 private:
  std::FILE* file_;
  bool at_line_start_ = true;
};

[[noreturn]] void run_command(int output, char** argv) {
  int null = open("/dev/null", O_RDONLY);
  dup2(null, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  execvp(argv[0], argv);
  std::perror(argv[0]);
  _exit(127);
}

// Reads until `text` was seen: 0, or an exit code of the program.
int watch(int input, Clock::time_point start, double deadline_ms, std::string_view text,
          Transcript& transcript) {
  std::string tail;  // the end of what was read: `text` may come in two reads
  char buffer[4096];
  while (true) {
    double left_ms = deadline_ms - ms_since(start);
    pollfd waiting{input, POLLIN, 0};
    if (left_ms <= 0 || poll(&waiting, 1, static_cast<int>(left_ms) + 1) == 0) return 4;
    ssize_t got = read(input, buffer, sizeof buffer);
    double now_ms = ms_since(start);
    if (got < 0) return 1;
    if (got == 0) return 3;
    std::string_view part(buffer, static_cast<size_t>(got));
    transcript.add(part, now_ms);
    tail += part;
    if (tail.find(text) != std::string::npos) {
      std::printf("%.3f\n", now_ms / 1000);
      return 0;
    }
    if (tail.size() > text.size()) tail.erase(0, tail.size() - text.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  int first = 1;
  const char* transcript_path = nullptr;
  if (argc > 2 && std::string_view(argv[1]) == "-t") {
    transcript_path = argv[2];
    first = 3;
  }
  if (argc < first + 3) {
    std::fprintf(stderr, "usage: stopwatch [-t FILE] DEADLINE_MS TEXT COMMAND [ARG...]\n");
    return 2;
  }
  double deadline_ms = std::atof(argv[first]);
  Transcript transcript(transcript_path);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return 1;
  Clock::time_point start = Clock::now();
  pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) run_command(ends[1], argv + first + 2);
  close(ends[1]);
  int code = watch(ends[0], start, deadline_ms, argv[first + 1], transcript);
  kill(child, SIGKILL);
  int status = 0;
  if (code == 3) {
    waitpid(child, &status, 0);
    std::fprintf(stderr, "stopwatch: %s ended (status 0x%x) without the text\n", argv[first + 2],
                 static_cast<unsigned>(status));
    return code;
  }
  waitpid(child, &status, 0);
  if (code == 4) std::fprintf(stderr, "stopwatch: deadline passed\n");
  return code;
}
