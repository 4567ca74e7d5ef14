// The config of a VM: one struct per table of the TOML file, and how a file becomes one.
//
// The keys, their types, ranges, defaults and help texts are described once, in
// vmm/config_schema*.cc; docs/config.md is printed from there. Everything here runs on the main
// thread before the VM exists.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace lethe {

inline constexpr uint64_t kConfigFileBytesMax = 1 << 20;
inline constexpr size_t kNetsMax = 8;
inline constexpr size_t kDisksMax = 24;  // PCI bus 0 has 32 slots; the rest is for other devices

// How memory that the guest gives back is forgotten: docs/memory.md.
enum class MemoryPolicy : uint8_t { kAuto, kPool, kDiscard, kLazy };
// As config and API spell them, in the order of the enumeration.
inline constexpr std::array<std::string_view, 4> kMemoryPolicies = {"auto", "pool", "discard",
                                                                    "lazy"};
[[nodiscard]] constexpr std::string_view policy_name(MemoryPolicy policy) {
  return kMemoryPolicies[static_cast<size_t>(policy)];
}
enum class ScrubTime : uint8_t { kIdle, kMap };

struct MemoryConfig {
  uint64_t size_bytes = 128 * kMiB;  // 16 MiB to 1 TiB, a multiple of 1 MiB (hugetlb: of 2 MiB)
  MemoryBacking backing = MemoryBacking::kAnonymous;
  bool thp = true;
  bool automatic = false;  // "auto": the governor runs
  MemoryPolicy policy = MemoryPolicy::kAuto;
  bool forget = true;             // false: what was returned may stay readable (lazy)
  uint32_t forget_ms_max = 1000;  // 10 to 3600000
  uint64_t isolated_max = 64 * kMiB;
  std::optional<uint64_t> pool_max;  // bytes; none: pool_bytes_max() says
  ScrubTime scrub = ScrubTime::kIdle;
  uint32_t weight = 100;     // 1 to 10000
  uint64_t floor_bytes = 0;  // the least memory that the governor leaves the guest
  bool operator==(const MemoryConfig&) const = default;

  // What the scrub pool may hold: pool_max, by default a quarter of the memory, at most 512 MiB;
  // whole huge pages.
  [[nodiscard]] uint64_t pool_bytes_max() const {
    const uint64_t bytes = pool_max.value_or(std::min(size_bytes / 4, 512 * kMiB));
    return bytes / kHugePageBytes * kHugePageBytes;
  }
};

struct BalloonConfig {
  bool enabled = true;
  bool deflate_on_oom = true;
  bool free_page_reporting = true;
  bool free_page_hinting = true;
  bool statistics = true;
  bool operator==(const BalloonConfig&) const = default;
};

enum class OnReboot : uint8_t { kRestart, kExit };

// Every path below is absolute or relative to the working directory: load_config() has put the
// config file's directory before it. An empty optional path means: none.
struct BootConfig {
  std::string kernel;
  std::string initrd;  // optional
  std::string cmdline;
  bool unpack = true;
  OnReboot on_reboot = OnReboot::kRestart;
  uint32_t stop_timeout_ms = 10000;  // 0: the first SIGTERM already ends the VM by force
  bool operator==(const BootConfig&) const = default;
};

enum class ConsoleInput : uint8_t { kSerial, kVirtio };

struct ConsoleConfig {
  ConsoleInput input = ConsoleInput::kSerial;
  std::string log;  // optional
  bool operator==(const ConsoleConfig&) const = default;
};

struct DiskConfig {
  std::string path;
  bool read_only = false;
  bool direct = false;
  uint32_t queues = 1;               // 1 to 16
  uint32_t queue_size = 256;         // a power of two, 16 to 1024
  uint64_t iops_max = 0;             // requests per second, 0: no limit
  uint64_t bandwidth_bytes_max = 0;  // bytes per second, 0: no limit
  bool operator==(const DiskConfig&) const = default;
};

// How a guest's network card is connected: exactly one of the first four.
struct NetConfig {
  bool user = false;                  // passt
  std::string tap;                    // a tap's name
  std::optional<uint32_t> tap_fd;     // an open tap's descriptor
  std::string socket;                 // a Unix stream socket to connect to
  std::vector<std::string> forwards;  // with user, as the next two: parse_forward()
  bool host_loopback = false;
  std::vector<std::string> passt_options;
  std::string mac;                   // empty: default_mac()
  std::optional<uint32_t> mtu;       // kNetMtuMin to kNetMtuMax; none: 65520 with user, else 1500
  uint32_t queues = 1;               // pairs, 1 to 8; more than 1 with tap only
  uint32_t queue_size = 256;         // a power of two, 16 to 1024
  bool link = true;                  // up at first
  uint64_t bandwidth_bytes_max = 0;  // bytes per second and direction, 0: no limit
  uint64_t packets_max = 0;          // per second and direction, 0: no limit
  bool operator==(const NetConfig&) const = default;
};

struct RngConfig {
  bool enabled = true;
  std::string source = "/dev/urandom";
  bool operator==(const RngConfig&) const = default;
};

// Screen, windows, keyboard and pointer: docs/gui.md.
struct GuiConfig {
  bool enabled = false;
  uint32_t width = 1280;  // of each screen at first, 320 to 16384
  uint32_t height = 800;
  uint32_t screens = 1;  // 1 to 16
  bool keyboard = true;
  bool pointer = true;
  uint64_t window_memory =
      512 * kMiB;              // the BAR that windows' buffers are mapped in: a power of two
  uint64_t memory_max = kGiB;  // host memory of screens and windows together
  uint32_t frontends_max = 8;  // 1 to 16
  uint32_t free_per_iteration = 10000;  // 0: no limit
  uint64_t orphan_bytes_max = 256 * kMiB;
  uint32_t orphans_max = 4096;
  uint32_t orphan_ms_max = 10000;
  bool operator==(const GuiConfig&) const = default;
};

// The virtio socket device: docs/vsock.md.
struct VsockConfig {
  bool enabled = false;
  uint32_t cid = 3;  // the guest's: 3 to 4294967294
  std::string path;  // of the host's socket; empty: vsock.sock in the run-time directory
  bool operator==(const VsockConfig&) const = default;
};

// One [[check.screen]] table: what is done, or waited for, on the guest's screen. Exactly one of
// those up to `shot` is set.
struct ScreenStep {
  std::string wait_image{};  // a PNG's path
  std::string wait_text{};
  std::string type{};
  std::vector<std::string> keys{};
  std::vector<uint32_t> click{};   // x, y
  std::vector<uint32_t> resize{};  // width, height
  bool close = false;
  bool wait_gone = false;
  std::string shot{};  // a PNG's name, in --out

  std::string surface = "screen:0";  // or "window:TITLE"
  uint32_t timeout_ms = 30000;
  uint32_t tolerance = 0;                      // with wait_image, as the next two
  double max_different = 0;                    // 0 to 1
  std::vector<std::vector<uint32_t>> masks{};  // x, y, width, height
  uint32_t button = 0;                         // with click: kMouseButtons[button]
  bool operator==(const ScreenStep&) const = default;
};
inline constexpr std::array<std::string_view, 3> kMouseButtons = {"left", "middle", "right"};
inline constexpr size_t kScreenStepsMax = 256;

// One [[check.exec]] table: a command that the guest's agent runs, and what is expected of it. One
// of `run` and `shell` is set. The patterns are as CheckConfig's.
struct ExecStep {
  std::vector<std::string> run{};
  std::string shell{};
  std::vector<std::string> env{};  // "NAME=value"
  std::string cwd{};
  std::string input{};  // its stdin; empty: none
  uint32_t expect_exit = 0;
  std::vector<std::string> stdout_match{};
  std::vector<std::string> stdout_not_match{};
  std::vector<std::string> stderr_match{};
  std::vector<std::string> stderr_not_match{};
  uint32_t timeout_ms = 30000;
  uint64_t output_max = 1 * kMiB;  // bytes, of stdout and stderr each
  bool operator==(const ExecStep&) const = default;
};
inline constexpr size_t kExecStepsMax = 256;

// What `lethe check` expects of the guest. Nothing else reads it.
struct CheckConfig {
  bool present = false;  // the file has a [check] table
  uint32_t deadline_ms = 60000;
  std::string exit = "poweroff";            // as written; expected_exit_code() translates it
  std::vector<std::string> must_match;      // regular expressions (RE2), each within a line
  std::vector<std::string> must_not_match;  // the same
  std::vector<std::string> needs;
  std::vector<ScreenStep> screen{};
  std::vector<ExecStep> exec{};
  uint32_t agent_port = 1024;            // vsock
  std::vector<std::string> artifacts{};  // absolute paths in the guest
  uint64_t artifacts_max = 256 * kMiB;   // bytes, of all of them
  // exit = "screen": the guest is ended when its screen's steps are through.
  [[nodiscard]] bool ends_with_screen() const { return exit == "screen"; }
  // exit = "exec": likewise, of its commands. Of both, when all are through.
  [[nodiscard]] bool ends_with_exec() const { return exit == "exec"; }
  bool operator==(const CheckConfig&) const = default;
};

// What a config was parsed from: a snapshot keeps it. Two configs from different sources may be the
// same.
struct ConfigSource {
  std::string text;
  std::string file;  // absolute
  std::vector<std::string> overrides;
  bool operator==(const ConfigSource&) const { return true; }
};

struct VmConfig {
  std::string name;  // [a-z0-9][a-z0-9._-]{0,63}
  uint32_t cpus = 1;
  MemoryConfig memory;
  BalloonConfig balloon;
  BootConfig boot;
  ConsoleConfig console;
  std::vector<DiskConfig> disks;
  std::vector<NetConfig> nets;
  RngConfig rng;
  VsockConfig vsock;
  GuiConfig gui;
  CheckConfig check;
  ConfigSource source;
  bool operator==(const VmConfig&) const = default;
};

// The path from the root on. Nothing of it need be there.
[[nodiscard]] std::string absolute_path(const std::string& path);

// A VM's name: it names a directory, and people type it.
inline constexpr const char* kNameRule =
    "1 to 64 of a-z, 0-9, '.', '_' and '-', the first one a letter or a digit";
[[nodiscard]] bool valid_vm_name(std::string_view name);

// Reads the config in `text`. `file` is its path: for messages, for the default name and as the
// base of relative paths. `overrides` are "key=value" (`lethe run --set`), applied last; the value
// is TOML, or else taken as text. Each error becomes one line `FILE:LINE:COL: key 'x.y': what is
// wrong: what would be right` in `errors`; the config is good only if none was added.
[[nodiscard]] VmConfig parse_config(std::string_view text, const std::string& file,
                                    std::span<const std::string> overrides,
                                    std::vector<std::string>& errors);

// Reads the file's text. Fails (kConfig) when it is missing, unreadable, no regular file, or larger
// than kConfigFileBytesMax.
[[nodiscard]] Result<std::string> read_config_file(const std::string& file);

// The two together. The error (kConfig) is one line: the first error, and how many more there are.
[[nodiscard]] Result<VmConfig> load_config(const std::string& file,
                                           std::span<const std::string> overrides = {});

// Checks that the files the config names exist, are of the right kind and may be opened as the VM
// will: one line each, naming key and file. Opens nothing.
[[nodiscard]] std::vector<std::string> check_config_files(const VmConfig& config,
                                                          const std::string& file);

// The exit code that `lethe run` must end with for check.exit to hold.
[[nodiscard]] int expected_exit_code(const CheckConfig& check);

}  // namespace lethe
