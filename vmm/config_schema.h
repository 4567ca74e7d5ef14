// Every key a config may have, described once: the parser, the error messages and docs/config.md
// all read this table.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <tl/expected.hpp>

#include "vmm/config.h"

namespace lethe {

enum class KeyType : uint8_t {
  kBool,
  kInteger,   // min to max
  kSize,      // text: digits and an optional suffix K, M, G or T (binary); min to max bytes
  kText,      // at most max bytes, no control characters
  kPath,      // as kText; made relative to the config file
  kChoice,    // one of `choices`
  kTextList,  // each as kText
  kTyped,  // text that a US keyboard can type: printable ASCII, newlines, tabs; at most max bytes
  kFraction,     // 0 to 1
  kNumbers,      // a list of `numbers` whole numbers, min to max
  kNumberLists,  // a list of such lists
};

// A value as the file has it, free of the TOML library's types. monostate: some other type.
struct RawValue {
  std::string_view type;  // "an integer", "a table": for messages
  std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<std::string>,
               std::vector<int64_t>, std::vector<std::vector<int64_t>>>
      value;
};

// A value that has passed its key's checks: the member for the key's type is set.
struct ConfigValue {
  bool flag = false;
  uint64_t number = 0;  // integer, size in bytes, or the index of the choice
  std::string text;
  std::vector<std::string> list;
  double fraction = 0;
  std::vector<std::vector<uint32_t>> numbers;  // of kNumbers: one
};

struct ConfigKey {
  std::string_view section;  // "" for the top level
  std::string_view name;
  KeyType type;
  std::string_view fallback{};  // the default as TOML, for the reference; empty: none
  bool required = false;
  uint64_t min = 0;
  uint64_t max = 0;
  size_t numbers = 0;  // of kNumbers and kNumberLists: how many in a list
  std::span<const std::string_view> choices{};
  // A further rule, and its words (what would be right, instead of the type's own words).
  bool (*valid)(const ConfigValue&) = nullptr;
  std::string_view rule{};
  std::string_view help;
  void (*store)(VmConfig&, size_t index, ConfigValue&&);  // `index`: which [[section]] table

  [[nodiscard]] std::string full_name() const;
};

struct ConfigSection {
  std::string_view name;
  bool repeated = false;  // [[name]]
  std::string_view help;
};

[[nodiscard]] std::span<const ConfigKey> config_keys();
[[nodiscard]] std::span<const ConfigKey> gui_config_keys();     // of [gui], among config_keys()
[[nodiscard]] std::span<const ConfigKey> net_config_keys();     // of [[net]], likewise
[[nodiscard]] std::span<const ConfigKey> screen_config_keys();  // of [[check.screen]], likewise
[[nodiscard]] std::span<const ConfigKey> vsock_config_keys();   // of [vsock], likewise
[[nodiscard]] std::span<const ConfigKey> exec_config_keys();    // of [[check.exec]], and more
[[nodiscard]] std::span<const ConfigSection> config_sections();
// What is wrong with the keys of a [[net]] taken together; nothing if they fit.
[[nodiscard]] std::optional<std::string> net_problem(const NetConfig& net);
[[nodiscard]] const ConfigKey* find_config_key(std::string_view section, std::string_view name);

// What a right value looks like: "a whole number from 1 to 64".
[[nodiscard]] std::string expectation(const ConfigKey& key);

// Checks the value; the error says what is wrong and what would be right.
[[nodiscard]] tl::expected<ConfigValue, std::string> convert(const ConfigKey& key, RawValue raw);

// "; did you mean 'size'?" for an unknown key of a section, or an empty text.
[[nodiscard]] std::string suggest_key(std::string_view section, std::string_view name);

// "128M", and back; the largest suffix that divides the number. parse: nothing if it is no size.
[[nodiscard]] std::string format_size(uint64_t bytes);
[[nodiscard]] std::optional<uint64_t> parse_size(std::string_view text);

// The reference part of docs/config.md (Markdown).
[[nodiscard]] std::string config_reference();

// The text with control characters and broken UTF-8 shown as \xNN, cut at kPrintableBytesMax (of
// the text): for one-line messages.
inline constexpr size_t kPrintableBytesMax = 200;
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace lethe
