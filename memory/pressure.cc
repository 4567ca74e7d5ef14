#include "memory/pressure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace lethe {
namespace {

constexpr size_t kFileMax = 256 * 1024;  // more than any of these files has

// The file's text, empty if it can't be read.
std::string read_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::string text;
  if (!fd.valid()) return text;
  std::array<char, 4096> piece;
  while (text.size() < kFileMax) {
    const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(piece.data(), static_cast<size_t>(got));
  }
  return text;
}

// Calls `each` with every line until it returns false.
template <typename Each>
void for_lines(std::string_view text, const Each& each) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (!each(text.substr(0, end))) return;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// The words of a line.
std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t end = std::min(line.find_first_of(" \t"), line.size());
    if (end > 0) words.push_back(line.substr(0, end));
    line.remove_prefix(std::min(end + 1, line.size()));
  }
  return words;
}

std::optional<uint64_t> number(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  uint64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr == text.data()) return std::nullopt;
  return value;
}

// The number after `key` and white space, in a file of such lines.
std::optional<uint64_t> value_of(std::string_view text, std::string_view key) {
  std::optional<uint64_t> found;
  for_lines(text, [&](std::string_view line) {
    if (!line.starts_with(key)) return true;
    found = number(line.substr(key.size()));
    return !found;
  });
  return found;
}

std::optional<double> average(const std::vector<std::string_view>& words) {
  for (std::string_view word : words) {
    if (!word.starts_with("avg10=")) continue;
    word.remove_prefix(6);
    double value = 0;
    const auto result = std::from_chars(word.data(), word.data() + word.size(), value);
    if (result.ec != std::errc() || !(value >= 0 && value <= 100)) return std::nullopt;
    return value;
  }
  return std::nullopt;
}

bool has_word(std::string_view list, std::string_view word) {  // separated by commas
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    if (list.substr(0, end) == word) return true;
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

bool readable(const std::string& path) { return ::access(path.c_str(), R_OK) == 0; }

// A v1 group without a limit says the largest multiple of a page below 2^63.
constexpr uint64_t kNoLimitV1 = 1ULL << 62;

constexpr const char* kSystemPsi = "/proc/pressure/memory";

Result<UniqueFd> trigger_of(const std::string& psi) {
  int error = 0;
  for (const std::string_view wish : {"some 150000 1000000", "some 300000 2000000"}) {
    UniqueFd fd(::open(psi.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd.valid()) return host_error("{}: {}", psi, errno_text(errno));
    // With the terminating 0, as the kernel's own example writes it.
    if (::write(fd.get(), wish.data(), wish.size() + 1) >= 0) return fd;
    error = errno;
  }
  return host_error("{}: no trigger: {}", psi, errno_text(error));
}

}  // namespace

std::optional<PressureAverages> parse_pressure(std::string_view text) {
  std::optional<double> some;
  double full = 0;  // not there for processors; not needed
  for_lines(text, [&](std::string_view line) {
    const auto words = words_of(line);
    if (words.empty()) return true;
    if (words[0] == "some") some = average(words);
    if (words[0] == "full") full = average(words).value_or(0);
    return true;
  });
  if (!some) return std::nullopt;
  return PressureAverages{*some, full};
}

Pressure::Pressure(std::string root) : x_root(std::move(root)) {
  find_groups();
  if (x_psi.empty() && parse_pressure(read_file(x_root + kSystemPsi))) x_psi = x_root + kSystemPsi;
}

// proc(5): a line of cgroup is "ID:controllers:path", v2's with no controllers; a line of mountinfo
// is "ID parent dev root mountpoint options [fields] - type source super-options".
void Pressure::find_groups() {
  std::string v2, v1;
  for_lines(read_file(x_root + "/proc/self/cgroup"), [&](std::string_view line) {
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) return true;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty()) v2 = line.substr(second + 1);
    if (has_word(controllers, "memory")) v1 = line.substr(second + 1);
    return true;
  });
  for_lines(read_file(x_root + "/proc/self/mountinfo"), [&](std::string_view line) {
    const auto words = words_of(line);
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 6 || words.end() - dash < 4) return true;
    const std::string root(words[3]), mount(words[4]);
    if (dash[1] == "cgroup2" && !v2.empty())
      add_groups(x_root + mount, root, v2, true);
    else if (dash[1] == "cgroup" && !v1.empty() && has_word(dash[3], "memory"))
      add_groups(x_root + mount, root, v1, false);
    return true;
  });
}

void Pressure::add_groups(const std::string& mount, const std::string& mount_root, std::string path,
                          bool v2) {
  // A container sees a part of the tree: paths begin at the root of the mount.
  if (mount_root != "/" && path.starts_with(mount_root)) path.erase(0, mount_root.size());
  if (path.find("..") != std::string::npos) return;  // outside of the part that is mounted
  while (!path.empty() && path.back() == '/') path.pop_back();
  for (bool own = true;; own = false) {
    const std::string group = mount + path;
    if (v2 && own && x_psi.empty() && parse_pressure(read_file(group + "/memory.pressure")))
      x_psi = group + "/memory.pressure";
    const Group files =
        v2 ? Group{group + "/memory.current", group + "/memory.max", group + "/memory.high",
                   group + "/memory.stat", "inactive_file "}
           : Group{group + "/memory.usage_in_bytes", group + "/memory.limit_in_bytes", "",
                   group + "/memory.stat", "total_inactive_file "};
    if (readable(files.current) && readable(files.max)) x_groups.push_back(files);
    if (path.empty()) return;
    path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
}

MemoryState Pressure::read() const {
  MemoryState state;
  const std::string meminfo = read_file(x_root + "/proc/meminfo");
  const auto total = value_of(meminfo, "MemTotal:");
  const auto available = value_of(meminfo, "MemAvailable:");
  if (total && available) {
    state.host_total = *total * 1024;
    state.host_available = *available * 1024;
  }
  for (const Group& group : x_groups) {
    // "max" is no number, and no limit.
    const uint64_t max = number(read_file(group.max)).value_or(UINT64_MAX);
    const uint64_t high =
        group.high.empty() ? UINT64_MAX : number(read_file(group.high)).value_or(UINT64_MAX);
    const uint64_t limit = std::min(max, high);
    const auto current = number(read_file(group.current));
    if (limit >= kNoLimitV1 || limit == 0 || !current) continue;
    const uint64_t cache = value_of(read_file(group.stat), group.file_cache).value_or(0);
    const uint64_t used = *current - std::min(*current, cache);
    const uint64_t headroom = limit - std::min(limit, used);
    if (state.limit != 0 && headroom >= state.headroom) continue;
    state.limit = limit;
    state.headroom = headroom;
  }
  if (!x_psi.empty())
    state.averages = parse_pressure(read_file(x_psi)).value_or(PressureAverages{});
  return state;
}

Result<UniqueFd> Pressure::open_trigger() const {
  if (x_psi.empty()) return host_error("the host has no pressure stall information for memory");
  auto trigger = trigger_of(x_psi);
  const std::string system = x_root + kSystemPsi;
  if (trigger || x_psi == system) return trigger;
  // A login's scope, say, has a memory.pressure that its user can read and not write.
  auto other = trigger_of(system);
  if (other) return other;
  return host_error("{}; {}", trigger.error().text, other.error().text);
}

}  // namespace lethe
