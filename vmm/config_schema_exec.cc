// The keys of [[check.exec]], and those of [check] that belong to it.
#include "vmm/config_schema.h"

namespace lethe {
namespace {

using Value = ConfigValue;

constexpr uint64_t kTextMax = 4095;  // PATH_MAX less the zero
constexpr uint64_t kScriptMax = 64 << 10;

bool is_absolute(const Value& v) { return v.text.starts_with('/'); }

bool is_environment(const Value& v) {
  for (const std::string& entry : v.list) {
    const size_t equals = entry.find('=');
    if (equals == 0 || equals == std::string::npos) return false;
  }
  return true;
}

bool are_artifacts(const Value& v) {
  for (const std::string& path : v.list) {
    // "/..", also in the middle; "/" alone is the whole guest.
    if (!path.starts_with('/') || path.find_first_not_of('/') == std::string::npos) return false;
    if ((path + "/").find("/../") != std::string::npos) return false;
  }
  return true;
}

ExecStep& step(VmConfig& config, size_t index) { return config.check.exec[index]; }

constexpr ConfigKey kExecKeys[] = {
    {.section = "check",
     .name = "artifacts",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .valid = are_artifacts,
     .rule = "a list of absolute paths without \"..\"",
     .help = "Files and directories of the guest that are kept on the host (`--out`), after the "
             "last command or a failed one. The guest needs `tar`. Needs `[[check.exec]]`.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.artifacts = std::move(v.list); }},
    {.section = "check",
     .name = "artifacts_max",
     .type = KeyType::kSize,
     .fallback = "\"256M\"",
     .max = kTiB,
     .help = "The most bytes that all of them may have.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.check.artifacts_max = v.number; }},
    {.section = "check",
     .name = "agent_port",
     .type = KeyType::kInteger,
     .fallback = "1024",
     .min = 1,
     .max = UINT32_MAX - 1,
     .help = "The vsock port at which the guest's agent listens (`lethe-exec --port`).",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.check.agent_port = static_cast<uint32_t>(v.number); }},
    {.section = "check.exec",
     .name = "run",
     .type = KeyType::kTextList,
     .max = 256,
     .help = "A program and its arguments; `PATH` is searched.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).run = std::move(v.list); }},
    {.section = "check.exec",
     .name = "shell",
     .type = KeyType::kTyped,
     .max = kScriptMax,
     .help = "A script for the guest's `/bin/sh -c`.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).shell = std::move(v.text); }},
    {.section = "check.exec",
     .name = "env",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .valid = is_environment,
     .rule = "a list of \"NAME=value\"",
     .help = "Added to the agent's own environment.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).env = std::move(v.list); }},
    {.section = "check.exec",
     .name = "cwd",
     .type = KeyType::kText,
     .max = kTextMax,
     .valid = is_absolute,
     .rule = "an absolute path in quotes",
     .help = "The directory in which it runs. Default: the agent's.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).cwd = std::move(v.text); }},
    {.section = "check.exec",
     .name = "stdin",
     .type = KeyType::kTyped,
     .max = kScriptMax,
     .help = "What it reads. Default: nothing.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).input = std::move(v.text); }},
    {.section = "check.exec",
     .name = "expect_exit",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = 255,
     .help = "The exit code it must end with.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).expect_exit = static_cast<uint32_t>(v.number); }},
    {.section = "check.exec",
     .name = "stdout_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "Regular expressions (RE2 syntax); each must match within a line of its output.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).stdout_match = std::move(v.list); }},
    {.section = "check.exec",
     .name = "stdout_not_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "Regular expressions; none may match within any line of its output.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).stdout_not_match = std::move(v.list); }},
    {.section = "check.exec",
     .name = "stderr_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "As `stdout_match`, of its error output.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).stderr_match = std::move(v.list); }},
    {.section = "check.exec",
     .name = "stderr_not_match",
     .type = KeyType::kTextList,
     .fallback = "[]",
     .max = 64,
     .help = "As `stdout_not_match`, of its error output.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).stderr_not_match = std::move(v.list); }},
    {.section = "check.exec",
     .name = "timeout_ms",
     .type = KeyType::kInteger,
     .fallback = "30000",
     .min = 1,
     .max = 86400000,
     .help = "It is killed, and the check has failed, if it has not ended by then. The time until "
             "the agent answers counts to `check.deadline_ms` only.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { step(c, i).timeout_ms = static_cast<uint32_t>(v.number); }},
    {.section = "check.exec",
     .name = "output_max",
     .type = KeyType::kSize,
     .fallback = "\"1M\"",
     .min = 4096,
     .max = 64 * kMiB,
     .help =
         "It is killed, and the check has failed, if it prints more than that to its output, or "
         "to its error output.",
     .store = [](VmConfig& c, size_t i, Value&& v) { step(c, i).output_max = v.number; }},
};

}  // namespace

std::span<const ConfigKey> exec_config_keys() { return kExecKeys; }

}  // namespace lethe
