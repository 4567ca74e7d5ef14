#include "memory/cpu_follower.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <string_view>

#include "base/unique_fd.h"

namespace lethe {
namespace {

constexpr int kProcessorField = 39;
constexpr int kFieldAfterName = 3;

cpu_set_t only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

}  // namespace

std::optional<int> cpu_of_thread(pid_t thread) {
  std::array<char, 64> path{};
  fmt::format_to_n(path.data(), path.size() - 1, "/proc/self/task/{}/stat", thread);
  const UniqueFd fd(::open(path.data(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return std::nullopt;
  std::array<char, 1024> line;
  const ssize_t bytes = ::read(fd.get(), line.data(), line.size());
  if (bytes <= 0) return std::nullopt;
  std::string_view rest(line.data(), static_cast<size_t>(bytes));
  // The name may hold anything, but what follows it holds no parenthesis.
  const size_t name_end = rest.rfind(") ");
  if (name_end == std::string_view::npos) return std::nullopt;
  rest.remove_prefix(name_end + 2);
  for (int field = kFieldAfterName; field < kProcessorField; ++field) {
    const size_t space = rest.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    rest.remove_prefix(space + 1);
  }
  int cpu = -1;
  const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), cpu);
  if (parsed.ec != std::errc{} || cpu < 0 || cpu >= CPU_SETSIZE) return std::nullopt;
  return cpu;
}

bool CpuFollower::answered(pid_t thread) {
  const std::optional<int> cpu = thread > 0 ? cpu_of_thread(thread) : std::nullopt;
  if (!cpu || cpu != x_cpu) {
    leave();
    x_cpu = cpu;
    x_streak = cpu ? 1 : 0;
    return false;
  }
  if (x_following) return true;
  if (x_streak < kStreak) ++x_streak;
  return x_streak == kStreak && join(*cpu);
}

bool CpuFollower::join(int cpu) {
  if (::sched_getaffinity(0, sizeof x_before, &x_before) != 0) return false;
  if (!CPU_ISSET(static_cast<size_t>(cpu), &x_before)) return false;
  const cpu_set_t there = only(cpu);
  x_following = ::sched_setaffinity(0, sizeof there, &there) == 0;
  return x_following;
}

void CpuFollower::leave() {
  if (!x_following) return;
  x_following = false;
  // Whoever has set it meanwhile, from outside, means it.
  cpu_set_t now;
  const cpu_set_t there = only(*x_cpu);
  if (::sched_getaffinity(0, sizeof now, &now) != 0 || !CPU_EQUAL(&now, &there)) return;
  (void)::sched_setaffinity(0, sizeof x_before, &x_before);
}

}  // namespace lethe
