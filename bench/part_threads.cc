#include "bench/part_threads.h"

#include <sched.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace lethe {

void part_threads() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  std::array<int, 2> chosen{};
  size_t found = 0;
  for (int cpu = 0; found < 2; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) chosen[found++] = cpu;
  }
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    const int thread = std::stoi(task.path().filename().string());
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(chosen[thread == ::getpid() ? 0 : 1], &one);
    if (::sched_setaffinity(thread, sizeof one, &one) != 0) {
      std::fprintf(stderr, "can't part the threads\n");
      std::exit(1);
    }
  }
}

}  // namespace lethe
