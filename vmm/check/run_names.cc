#include "vmm/check/run_names.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include "vmm/config.h"

namespace lethe {
namespace {

// With "check-1000-" before and the hash's nine behind, well below the 64 of a VM's name, and with
// room for the sockets' names in deep run-time directories.
constexpr size_t kGuestNameMax = 36;

}  // namespace

uint64_t stable_hash(std::string_view text) {
  uint64_t hash = 0xcbf2'9ce4'8422'2325;
  for (const char c : text) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100'0000'01b3;
  }
  // FNV's low bits are those of the text; MurmurHash3's finish mixes them.
  hash = (hash ^ (hash >> 33)) * 0xff51'afd7'ed55'8ccd;
  return hash ^ (hash >> 33);
}

Result<RunNames> RunNames::create(const RunDirRoots& roots) {
  LETHE_TRY_ASSIGN(const UniqueFd root, open_run_root(roots));
  for (int slot = 1; slot <= kCheckSlotsMax; ++slot) {
    // The files stay: a lock on one that another process has just removed would be nobody's.
    const std::string name = fmt::format(".check-{}.lock", slot);
    UniqueFd lock(
        ::openat(root.get(), name.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!lock.valid()) return host_error("run-time lock '{}': {}", name, errno_text(errno));
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return RunNames(slot, std::move(lock));
  }
  return host_error("{} `lethe check` of this user run already", kCheckSlotsMax);
}

std::string RunNames::of(std::string_view guest) const {
  std::string name;
  for (const char c : guest.substr(0, kGuestNameMax)) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
    name += plain || c == '-' ? c : '-';
  }
  if (name != guest) name += fmt::format("-{:08x}", stable_hash(guest) & 0xffff'ffff);
  return fmt::format("check-{}-{}", x_slot, name);
}

}  // namespace lethe
