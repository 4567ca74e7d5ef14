// Any bytes as a config: no crash, no runaway recursion, and messages that are one line each.
#include "base/assert.h"
#include "vmm/check/pattern.h"
#include "vmm/config.h"
#include "vmm/config_schema.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lethe;
  if (size > kConfigFileBytesMax) return 0;
  // The first line is an override, the rest the file.
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t newline = std::min(all.find('\n'), size);
  const std::string override(all.substr(0, newline));
  const std::string_view text = all.substr(std::min(size, newline + 1));
  std::vector<std::string> errors;
  const VmConfig config = parse_config(text, "dir/fuzz.toml", {&override, 1}, errors);
  for (const std::string& error : errors)
    for (const char c : error) LETHE_ASSERT(c >= 0x20 && c < 0x7f);
  if (!errors.empty()) return 0;
  LETHE_ASSERT(valid_vm_name(config.name));
  LETHE_ASSERT(config.cpus >= 1 && config.cpus <= 64);
  LETHE_ASSERT(config.memory.size_bytes >= 16 * kMiB && config.memory.size_bytes <= kTiB);
  LETHE_ASSERT(config.disks.size() <= kDisksMax);
  LETHE_ASSERT(expected_exit_code(config.check) >= 0);
  if (const auto patterns = compile_patterns(config.check, "fuzz.toml"))
    (void)patterns->judge("a line\r\nanother\n\xff");
  return 0;
}
