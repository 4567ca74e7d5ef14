#include "vmm/config_schema.h"

#include <array>
#include <utility>

#include "vmm/run.h"

namespace lethe {
namespace {

using Value = ConfigValue;

constexpr uint64_t kTextMax = 4095;     // bytes; PATH_MAX less the zero
constexpr uint64_t kCmdlineMax = 2047;  // Linux's COMMAND_LINE_SIZE on x86 less the zero

constexpr std::array<std::string_view, 3> kBackings = {"anonymous", "shared", "hugetlb"};
constexpr std::array<std::string_view, 2> kScrubTimes = {"idle", "map"};
constexpr std::array<std::string_view, 2> kReboots = {"restart", "exit"};
constexpr std::array<std::string_view, 2> kInputs = {"serial", "virtio"};

bool whole_mib(const Value& v) { return v.number % kMiB == 0; }
bool power_of_two(const Value& v) { return (v.number & (v.number - 1)) == 0; }
bool name_ok(const Value& v) { return valid_vm_name(v.text); }
bool exit_ok(const Value& v) {
  CheckConfig check;
  check.exit = v.text;
  return check.ends_with_screen() || check.ends_with_exec() || expected_exit_code(check) >= 0;
}
bool needs_ok(const Value& v) {
  for (const std::string& need : v.list)
    if (need != "kvm" && need != "fast-kvm") return false;
  return true;
}

constexpr ConfigSection kSections[] = {
    {"", false, "The VM itself. These keys come before the first table."},
    {"memory", false, "The guest's memory, and what becomes of memory that the guest gives back."},
    {"balloon", false,
     "The virtio balloon: how the guest gives memory back. Stock Linux drives all of it."},
    {"boot", false, "What the guest boots, and what ends it."},
    {"console", false,
     "The guest's consoles: a serial port (`ttyS0` in Linux) and a virtio console (`hvc0`)."},
    {"disk", true,
     "A disk; repeat the table for more. Linux calls the first one `vda`, the next one `vdb`."},
    {"net", true,
     "A network card; repeat the table for more. Each has one of `user`, `tap`, `tap_fd` and "
     "`socket`. See [net.md](net.md)."},
    {"rng", false, "The virtio random source."},
    {"vsock", false,
     "The virtio socket device: streams between programs of the guest's and of the host's. See "
     "[vsock.md](vsock.md)."},
    {"gui", false, "Screens, windows, keyboard and pointer, for frontends such as `lethe attach`."},
    {"check", false,
     "What `lethe check` expects of the guest; `lethe run` does not read it. See [ci.md](ci.md)."},
    {"check.screen", true,
     "A step on the guest's screen; repeat the table for more. They are done one after the other, "
     "from the guest's start on. Each has one of `wait_image`, `wait_text`, `type`, `keys`, "
     "`click`, `resize`, `close`, `wait_gone` and `shot`. Needs `gui.enabled`."},
    {"check.exec", true,
     "A command in the guest; repeat the table for more. The guest's agent, `lethe-exec`, runs "
     "them "
     "one after the other, from when it answers on. Each has one of `run` and `shell`. Needs "
     "`vsock.enabled`."},
};

constexpr ConfigKey kKeys[] = {
    {.section = "",
     .name = "name",
     .type = KeyType::kText,
     .fallback = "",
     .max = 64,
     .valid = name_ok,
     .rule = kNameRule,
     .help = "The VM's name, under which it runs once at a time. Default: the config file's name "
             "without its suffix.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.name = std::move(v.text); }},
    {.section = "",
     .name = "cpus",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = 64,
     .help = "Virtual CPUs.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.cpus = static_cast<uint32_t>(v.number); }},
    {.section = "memory",
     .name = "size",
     .type = KeyType::kSize,
     .fallback = "\"128M\"",
     .min = 16 * kMiB,
     .max = kTiB,
     .valid = whole_mib,
     .rule = "a multiple of 1M",
     .help = "The guest's RAM. The host gives pages as the guest touches them.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.size_bytes = v.number; }},
    {.section = "memory",
     .name = "backing",
     .type = KeyType::kChoice,
     .fallback = "\"anonymous\"",
     .choices = kBackings,
     .help =
         "Private anonymous memory, a sealed memfd that other processes can map, or huge pages "
         "of 2M (reserve them in /proc/sys/vm/nr_hugepages; the size is then a multiple of 2M).",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.memory.backing = static_cast<MemoryBacking>(v.number); }},
    {.section = "memory",
     .name = "thp",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "Ask the host for transparent huge pages: faster, but touched memory grows by 2M at a "
             "time.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.thp = v.flag; }},
    {.section = "memory",
     .name = "auto",
     .type = KeyType::kBool,
     .fallback = "false",
     .help = "Let Lethe manage the memory: by the pressure on the host and what the guest says of "
             "itself, the governor sets the policy, the size of the scrub pool and the balloon. "
             "All a user needs to set.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.automatic = v.flag; }},
    {.section = "memory",
     .name = "policy",
     .type = KeyType::kChoice,
     .fallback = "\"auto\"",
     .choices = kMemoryPolicies,
     .help = "How memory that the guest gives back is forgotten. \"pool\": 2M chunks are kept in "
             "this process, scrubbed, and given to the guest again at little cost; \"discard\": "
             "all goes to the host at once; \"auto\": pool, and discard while the host is short of "
             "memory; \"lazy\": the host takes it when it needs it, and it stays readable until "
             "then (needs `forget = false`).",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.memory.policy = static_cast<MemoryPolicy>(v.number); }},
    {.section = "memory",
     .name = "forget",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "What the guest gave back must become unreadable, within `forget_ms_max`. False "
             "allows the policy \"lazy\".",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.forget = v.flag; }},
    {.section = "memory",
     .name = "forget_ms_max",
     .type = KeyType::kInteger,
     .fallback = "1000",
     .min = 10,
     .max = 3600000,
     .help = "The promise: what the guest gave back is unreadable by anyone this soon. What could "
             "not be scrubbed in the pool by then goes to the host.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.memory.forget_ms_max = static_cast<uint32_t>(v.number); }},
    {.section = "memory",
     .name = "isolated_max",
     .type = KeyType::kSize,
     .fallback = "\"64M\"",
     .min = 1 * kMiB,
     .max = kGiB,
     .help = "The most memory that is on its way at a time: taken from the guest, and not yet "
             "given back to it as done. What the guest sends in one piece is taken whole, though "
             "that alone is more.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.isolated_max = v.number; }},
    {.section = "memory",
     .name = "pool_max",
     .type = KeyType::kSize,
     .max = kTiB,
     .help = "The most memory the scrub pool keeps. Default: a quarter of `size`, at most 512M. "
             "\"0\": no pool, the policy \"pool\" is then as \"discard\".",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.pool_max = v.number; }},
    {.section = "memory",
     .name = "scrub",
     .type = KeyType::kChoice,
     .fallback = "\"idle\"",
     .choices = kScrubTimes,
     .help = "When the chunks of the pool are scrubbed: by idle threads, or only when the guest "
             "gets them again.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.memory.scrub = static_cast<ScrubTime>(v.number); }},
    {.section = "memory",
     .name = "weight",
     .type = KeyType::kInteger,
     .fallback = "100",
     .min = 1,
     .max = 10000,
     .help = "With `auto`: this VM's share of the host's memory under pressure, against the "
             "weights of the others.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.memory.weight = static_cast<uint32_t>(v.number); }},
    {.section = "memory",
     .name = "floor",
     .type = KeyType::kSize,
     .fallback = "\"0\"",
     .max = kTiB,
     .help = "With `auto`: the least memory that is left to the guest.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.memory.floor_bytes = v.number; }},
    {.section = "balloon",
     .name = "enabled",
     .type = KeyType::kBool,
     .fallback = "true",
     .help =
         "Give the guest a virtio balloon. Without it, nothing comes back before the guest ends.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.balloon.enabled = v.flag; }},
    {.section = "balloon",
     .name = "deflate_on_oom",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "The guest may take memory out of the balloon rather than run out of it.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.balloon.deflate_on_oom = v.flag; }},
    {.section = "balloon",
     .name = "free_page_reporting",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "The guest reports what it freed, a few seconds later, by itself.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.balloon.free_page_reporting = v.flag; }},
    {.section = "balloon",
     .name = "free_page_hinting",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "Lethe may ask the guest for what is free: `lethe reclaim`, and the governor under "
             "pressure.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.balloon.free_page_hinting = v.flag; }},
    {.section = "balloon",
     .name = "statistics",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "The guest tells how much memory is free, and more: `lethe stats` shows it, the "
             "governor wants it.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.balloon.statistics = v.flag; }},
    {.section = "boot",
     .name = "kernel",
     .type = KeyType::kPath,
     .required = true,
     .min = 1,
     .max = kTextMax,
     .help = "An ELF file with a PVH entry note (Linux's uncompressed vmlinux has one), or a Linux "
             "bzImage. Which of them it is, its content tells.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.boot.kernel = std::move(v.text); }},
    {.section = "boot",
     .name = "initrd",
     .type = KeyType::kPath,
     .min = 1,
     .max = kTextMax,
     .help = "An initial RAM disk. Optional.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.boot.initrd = std::move(v.text); }},
    {.section = "boot",
     .name = "cmdline",
     .type = KeyType::kText,
     .fallback = "\"\"",
     .max = kCmdlineMax,
     .help = "The kernel's command line. To see a Linux guest's messages, have `console=ttyS0`.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.boot.cmdline = std::move(v.text); }},
    {.section = "boot",
     .name = "unpack",
     .type = KeyType::kBool,
     .fallback = "true",
     .help =
         "bzImage with an LZ4 payload: unpack it on the host, which spares the guest that work.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.boot.unpack = v.flag; }},
    {.section = "boot",
     .name = "on_reboot",
     .type = KeyType::kChoice,
     .fallback = "\"restart\"",
     .choices = kReboots,
     .help = "When the guest reboots: start it again, or end `lethe run` with exit code 3.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.boot.on_reboot = static_cast<OnReboot>(v.number); }},
    {.section = "boot",
     .name = "stop_timeout_ms",
     .type = KeyType::kInteger,
     .fallback = "10000",
     .max = 3600000,
     .help =
         "How long the guest may take to power off after SIGTERM pressed its power button; then "
         "it is ended by force. 0: at once.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.boot.stop_timeout_ms = static_cast<uint32_t>(v.number); }},
    {.section = "console",
     .name = "input",
     .type = KeyType::kChoice,
     .fallback = "\"serial\"",
     .choices = kInputs,
     .help = "Which console gets what you type. Both consoles' output is shown.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.console.input = static_cast<ConsoleInput>(v.number); }},
    {.section = "console",
     .name = "log",
     .type = KeyType::kPath,
     .min = 1,
     .max = kTextMax,
     .help = "A file that gets a copy of the output. It is overwritten; of more than 16 MiB, the "
             "older half goes. Optional.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.console.log = std::move(v.text); }},
    {.section = "disk",
     .name = "path",
     .type = KeyType::kPath,
     .required = true,
     .min = 1,
     .max = kTextMax,
     .help = "A raw image file or a block device; a multiple of 512 bytes long.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.disks[i].path = std::move(v.text); }},
    {.section = "disk",
     .name = "read_only",
     .type = KeyType::kBool,
     .fallback = "false",
     .help = "Refuse the guest's writes.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.disks[i].read_only = v.flag; }},
    {.section = "disk",
     .name = "direct",
     .type = KeyType::kBool,
     .fallback = "false",
     .help = "Bypass the host's page cache (O_DIRECT). The file system must support it.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.disks[i].direct = v.flag; }},
    {.section = "disk",
     .name = "queues",
     .type = KeyType::kInteger,
     .fallback = "1",
     .min = 1,
     .max = 16,
     .help = "Request queues. More than one for each virtual CPU is of no use.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.disks[i].queues = static_cast<uint32_t>(v.number); }},
    {.section = "disk",
     .name = "queue_size",
     .type = KeyType::kInteger,
     .fallback = "256",
     .min = 16,
     .max = 1024,
     .valid = power_of_two,
     .rule = "a power of two from 16 to 1024",
     .help = "Entries of each queue.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.disks[i].queue_size = static_cast<uint32_t>(v.number); }},
    {.section = "disk",
     .name = "iops_max",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = 1000000000,
     .help = "Requests per second at most. 0: no limit.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.disks[i].iops_max = v.number; }},
    {.section = "disk",
     .name = "bandwidth_max",
     .type = KeyType::kSize,
     .fallback = "\"0\"",
     .max = kTiB,
     .help = "Bytes per second at most. 0: no limit.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.disks[i].bandwidth_bytes_max = v.number; }},
    {.section = "rng",
     .name = "enabled",
     .type = KeyType::kBool,
     .fallback = "true",
     .help = "Give the guest a virtio random source.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.rng.enabled = v.flag; }},
    {.section = "rng",
     .name = "source",
     .type = KeyType::kPath,
     .fallback = "\"/dev/urandom\"",
     .min = 1,
     .max = kTextMax,
     .help = "The file its bytes are read from.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.rng.source = std::move(v.text); }},
    {.section = "check",
     .name = "deadline_ms",
     .type = KeyType::kInteger,
     .fallback = "60000",
     .min = 1,
     .max = 86400000,
     .help = "The guest is killed, and the check failed, if it has not ended by then.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.check.deadline_ms = static_cast<uint32_t>(v.number); }},
    {.section = "check",
     .name = "exit",
     .type = KeyType::kText,
     .fallback = "\"poweroff\"",
     .max = 64,
     .valid = exit_ok,
     .rule = "\"poweroff\", \"reboot\", \"panic\", \"triple-fault\", \"screen\", \"exec\" or "
             "\"debug-exit:N\" with N from 0 to 63",
     .help =
         "How the guest must end. For \"reboot\", set `boot.on_reboot = \"exit\"`. "
         "\"debug-exit:63\" stands for all values above 62. \"screen\" and \"exec\": Lethe ends it "
         "when the steps of `[[check.screen]]` and `[[check.exec]]` are through.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.exit = std::move(v.text); }},
    {.section = "check",
     .name = "must_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "Regular expressions (RE2 syntax); each must match within a line of the console.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.must_match = std::move(v.list); }},
    {.section = "check",
     .name = "must_not_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "Regular expressions; none may match within any line of the console.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.must_not_match = std::move(v.list); }},
    {.section = "check",
     .name = "needs",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .valid = needs_ok,
     .rule = "a list of \"kvm\" and \"fast-kvm\"",
     .help =
         "What the host must have for this check; where it is missing, the check is skipped, and "
         "reported as skipped. \"kvm\": /dev/kvm; \"fast-kvm\": one that runs guests at hardware "
         "speed, as `lethe doctor` measures it.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.needs = std::move(v.list); }},
};

}  // namespace

std::span<const ConfigKey> config_keys() {
  static const std::vector<ConfigKey> all = [] {
    std::vector<ConfigKey> keys(std::begin(kKeys), std::end(kKeys));
    for (const auto& more : {net_config_keys(), gui_config_keys(), screen_config_keys(),
                             exec_config_keys(), vsock_config_keys()})
      keys.insert(keys.end(), more.begin(), more.end());
    return keys;
  }();
  return all;
}
std::span<const ConfigSection> config_sections() { return kSections; }

const ConfigKey* find_config_key(std::string_view section, std::string_view name) {
  for (const ConfigKey& key : config_keys())
    if (key.section == section && key.name == name) return &key;
  return nullptr;
}

bool valid_vm_name(std::string_view name) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (name.empty() || name.size() > 64 || !plain(name[0])) return false;
  for (const char c : name)
    if (!plain(c) && c != '.' && c != '_' && c != '-') return false;
  return true;
}

int expected_exit_code(const CheckConfig& check) {
  if (check.exit == "poweroff") return kExitPoweredOff;
  if (check.exit == "reboot") return kExitRebooted;
  if (check.exit == "panic") return kExitPanicked;
  if (check.exit == "triple-fault") return kExitTripleFault;
  constexpr std::string_view kPrefix = "debug-exit:";
  if (!check.exit.starts_with(kPrefix)) return -1;
  const std::string_view digits = std::string_view(check.exit).substr(kPrefix.size());
  if (digits.empty() || digits.size() > 2) return -1;
  uint32_t value = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return -1;
    value = value * 10 + static_cast<uint32_t>(c - '0');
  }
  return value <= 63 ? debug_exit_code(value) : -1;
}

}  // namespace lethe
