#include "vmm/check/guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <memory>

#include "base/unique_fd.h"
#include "vmm/check/memory_budget.h"
#include "vmm/check/run_names.h"
#include "vmm/check/screen_steps.h"
#include "vmm/config_schema.h"
#include "vmm/doctor.h"

namespace lethe {
namespace {

struct Candidate {
  std::string file;
  bool from_directory = false;
};

bool is_directory(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string stem_of(const std::string& file) {
  const std::string name = file.substr(file.rfind('/') + 1);  // npos + 1 is 0
  return name.substr(0, name.rfind('.'));
}

std::vector<Candidate> list_directory(const std::string& path, std::vector<std::string>& errors) {
  std::vector<Candidate> found;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(path.c_str()), ::closedir);
  if (!entries) {
    errors.push_back(fmt::format("'{}': {}", printable(path), errno_text(errno)));
    return found;
  }
  while (const dirent* entry = ::readdir(entries.get())) {
    const std::string_view name = entry->d_name;
    if (name.ends_with(".toml") && !name.starts_with('.'))
      found.push_back({fmt::format("{}{}{}", path, path.ends_with('/') ? "" : "/", name), true});
  }
  if (found.empty())
    errors.push_back(fmt::format("directory '{}' has no *.toml file", printable(path)));
  return found;
}

void read_guest(const Candidate& candidate, GuestList& list, std::vector<std::string>& errors) {
  auto config = load_config(candidate.file);
  if (!config) {
    errors.push_back(config.error().text);
    return;
  }
  if (!config->check.present) {
    const std::string line =
        fmt::format("config '{}' has no [check] table", printable(candidate.file));
    if (candidate.from_directory) {
      list.notes.push_back(line + ": passed over");
    } else {
      errors.push_back(line + ": add one, or leave the file out");
    }
    return;
  }
  auto patterns = compile_patterns(config->check, candidate.file);
  if (!patterns) {
    errors.push_back(patterns.error().text);
    return;
  }
  auto exec = plan_exec(*config, candidate.file);
  if (!exec) {
    errors.push_back(exec.error().text);
    return;
  }
  const auto missing = missing_images(config->check.screen, candidate.file);
  if (!missing.empty()) {
    errors.insert(errors.end(), missing.begin(), missing.end());
    return;
  }
  const uint64_t memory = memory_of(*config);
  list.guests.push_back({stem_of(candidate.file), candidate.file, std::move(config->check),
                         std::move(*patterns), std::move(*exec), memory});
}

}  // namespace

GuestList collect_guests(std::span<const std::string> inputs, std::vector<std::string>& errors) {
  std::vector<Candidate> candidates;
  for (const std::string& input : inputs) {
    if (!is_directory(input)) {
      candidates.push_back({input, false});
      continue;
    }
    for (Candidate& found : list_directory(input, errors)) candidates.push_back(std::move(found));
  }
  GuestList list;
  for (const Candidate& candidate : candidates) read_guest(candidate, list, errors);
  std::sort(list.guests.begin(), list.guests.end(), [](const Guest& a, const Guest& b) {
    return a.name != b.name ? a.name < b.name : a.config_file < b.config_file;
  });
  for (size_t i = 1; i < list.guests.size(); ++i)
    if (list.guests[i].name == list.guests[i - 1].name)
      errors.push_back(fmt::format("two guests have the name '{}': '{}' and '{}': rename a file",
                                   printable(list.guests[i].name),
                                   printable(list.guests[i - 1].config_file),
                                   printable(list.guests[i].config_file)));
  if (list.guests.empty() && errors.empty())
    errors.emplace_back("no config has a [check] table: nothing to check");
  return list;
}

std::vector<Guest> take_shard(std::vector<Guest> guests, uint32_t shard, uint32_t shards) {
  std::vector<Guest> taken;
  for (Guest& guest : guests)
    if (stable_hash(guest.name) % shards == shard - 1) taken.push_back(std::move(guest));
  return taken;
}

std::string missing_needs(const CheckConfig& check) {
  for (const std::string& need : check.needs) {  // the parser knows no others
    if (need == "fast-kvm") {
      static const Result<bool> fast = kvm_is_fast();  // measured once
      if (!fast) return "needs fast-kvm: " + fast.error().text;
      if (!*fast) return "needs fast-kvm: KVM runs guests by emulation here (see lethe doctor)";
    }
    if (need != "kvm") continue;
    const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (!kvm.valid()) return fmt::format("needs kvm: /dev/kvm: {}", errno_text(errno));
  }
  return {};
}

}  // namespace lethe
