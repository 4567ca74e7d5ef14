// How a raw value becomes a checked one, and the words for what would be right.
#include <fmt/format.h>

#include <array>

#include "vmm/config_schema.h"
#include "vmm/suggest.h"

namespace lethe {
namespace {

using Converted = tl::expected<ConfigValue, std::string>;

constexpr size_t kNumberListsMax = 256;
constexpr std::array<std::pair<char, int>, 4> kSuffixes = {
    {{'T', 40}, {'G', 30}, {'M', 20}, {'K', 10}}};

tl::unexpected<std::string> wrong(const ConfigKey& key, const std::string& what) {
  return tl::unexpected(fmt::format("{}: it must be {}", what, expectation(key)));
}

tl::unexpected<std::string> wrong_type(const ConfigKey& key, const RawValue& raw) {
  return wrong(key, fmt::format("is {}", raw.type));
}

// Control characters would break one-line messages, file names with a zero cut short, and kernels'
// command lines end at a zero.
bool has_control_characters(std::string_view text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  return false;
}

Converted convert_text(const ConfigKey& key, std::string text, uint64_t min, uint64_t max) {
  if (text.size() < min) return wrong(key, "is empty");
  if (text.size() > max)
    return wrong(key, fmt::format("is {} bytes long, more than {}", text.size(), max));
  if (has_control_characters(text))
    return wrong(key, fmt::format("'{}' has a control character", printable(text)));
  ConfigValue value;
  value.text = std::move(text);
  return value;
}

Converted convert_number(const ConfigKey& key, uint64_t number, const std::string& shown) {
  if (number < key.min || number > key.max)
    return wrong(key, fmt::format("{} is out of range", shown));
  ConfigValue value;
  value.number = number;
  return value;
}

Converted convert_size(const ConfigKey& key, const std::string& text) {
  const auto bytes = parse_size(text);
  if (!bytes) return wrong(key, fmt::format("'{}' is no size", printable(text)));
  return convert_number(key, *bytes, text);
}

Converted convert_choice(const ConfigKey& key, const std::string& text) {
  ConfigValue value;
  for (; value.number < key.choices.size(); ++value.number)
    if (key.choices[value.number] == text) return value;
  return wrong(
      key, fmt::format("'{}' is not known{}", printable(text), did_you_mean(text, key.choices)));
}

Converted convert_list(const ConfigKey& key, std::vector<std::string>&& list) {
  if (list.size() > key.max)
    return wrong(key, fmt::format("has {} entries, more than {}", list.size(), key.max));
  ConfigValue value;
  for (std::string& text : list) {
    if (text.empty() || text.size() > 1024 || has_control_characters(text))
      return wrong(key, fmt::format("has the entry '{}', which is empty, over 1024 bytes or has a "
                                    "control character",
                                    printable(text)));
    value.list.push_back(std::move(text));
  }
  return value;
}

Converted convert_typed(const ConfigKey& key, std::string text) {
  if (text.empty()) return wrong(key, "is empty");
  if (text.size() > key.max)
    return wrong(key, fmt::format("is {} bytes long, more than {}", text.size(), key.max));
  for (const char c : text)
    if ((c < 0x20 || c > 0x7e) && c != '\n' && c != '\t')
      return wrong(key, fmt::format("'{}' has what no key types", printable(text)));
  ConfigValue value;
  value.text = std::move(text);
  return value;
}

Converted convert_numbers(const ConfigKey& key, const std::vector<std::vector<int64_t>>& lists) {
  if (lists.size() > kNumberListsMax)
    return wrong(key, fmt::format("has {} lists, more than {}", lists.size(), kNumberListsMax));
  ConfigValue value;
  for (const std::vector<int64_t>& list : lists) {
    if (list.size() != key.numbers) return wrong(key, fmt::format("has {} numbers", list.size()));
    std::vector<uint32_t> numbers;
    for (const int64_t number : list) {
      if (number < static_cast<int64_t>(key.min) || number > static_cast<int64_t>(key.max))
        return wrong(key, fmt::format("{} is out of range", number));
      numbers.push_back(static_cast<uint32_t>(number));
    }
    value.numbers.push_back(std::move(numbers));
  }
  return value;
}

Converted convert_fraction(const ConfigKey& key, double number) {
  if (!(number >= 0 && number <= 1)) return wrong(key, fmt::format("{} is out of range", number));
  ConfigValue value;
  value.fraction = number;
  return value;
}

// Lists of numbers, and fractions.
Converted convert_other(const ConfigKey& key, RawValue& raw) {
  if (key.type == KeyType::kFraction) {
    if (const auto* number = std::get_if<double>(&raw.value)) return convert_fraction(key, *number);
    if (const auto* whole = std::get_if<int64_t>(&raw.value))
      return convert_fraction(key, static_cast<double>(*whole));
  }
  if (const auto* numbers = std::get_if<std::vector<int64_t>>(&raw.value);
      numbers && key.type == KeyType::kNumbers)
    return convert_numbers(key, {*numbers});
  if (key.type == KeyType::kNumberLists) {
    if (const auto* lists = std::get_if<std::vector<std::vector<int64_t>>>(&raw.value))
      return convert_numbers(key, *lists);
    const auto* empty = std::get_if<std::vector<std::string>>(&raw.value);
    if (empty != nullptr && empty->empty()) return ConfigValue{};
  }
  return wrong_type(key, raw);
}

Converted convert_type(const ConfigKey& key, RawValue& raw) {
  if (auto* flag = std::get_if<bool>(&raw.value); flag && key.type == KeyType::kBool) {
    ConfigValue value;
    value.flag = *flag;
    return value;
  }
  if (auto* number = std::get_if<int64_t>(&raw.value); number && key.type == KeyType::kInteger) {
    if (*number < 0) return wrong(key, fmt::format("{} is out of range", *number));
    return convert_number(key, static_cast<uint64_t>(*number), std::to_string(*number));
  }
  if (auto* list = std::get_if<std::vector<std::string>>(&raw.value);
      list && key.type == KeyType::kTextList)
    return convert_list(key, std::move(*list));
  if (auto* text = std::get_if<std::string>(&raw.value)) {
    if (key.type == KeyType::kText || key.type == KeyType::kPath)
      return convert_text(key, std::move(*text), key.min, key.max);
    if (key.type == KeyType::kSize) return convert_size(key, *text);
    if (key.type == KeyType::kChoice) return convert_choice(key, *text);
    if (key.type == KeyType::kTyped) return convert_typed(key, std::move(*text));
  }
  return convert_other(key, raw);
}

std::string shown_value(const ConfigKey& key, const ConfigValue& value) {
  switch (key.type) {
    case KeyType::kBool:
      return value.flag ? "true" : "false";
    case KeyType::kInteger:
      return std::to_string(value.number);
    case KeyType::kSize:
      return format_size(value.number);
    case KeyType::kTextList:
      return printable(fmt::format("[\"{}\"]", fmt::join(value.list, "\", \"")));
    default:
      return fmt::format("'{}'", printable(value.text));
  }
}

std::string range_of(const ConfigKey& key) {
  if (key.type == KeyType::kSize)
    return fmt::format("from \"{}\" to \"{}\"", format_size(key.min), format_size(key.max));
  return fmt::format("from {} to {}", key.min, key.max);
}

}  // namespace

std::string ConfigKey::full_name() const {
  return section.empty() ? std::string(name) : fmt::format("{}.{}", section, name);
}

std::string expectation(const ConfigKey& key) {
  const std::string rule(key.rule);
  switch (key.type) {
    case KeyType::kBool:
      return "true or false";
    case KeyType::kInteger:
      return rule.empty() ? fmt::format("a whole number {}", range_of(key)) : rule;
    case KeyType::kSize:
      return fmt::format("a size in quotes {}, with suffix K, M, G or T{}{}", range_of(key),
                         rule.empty() ? "" : ", ", rule);
    case KeyType::kText:
      return rule.empty() ? fmt::format("text in quotes, at most {} bytes", key.max) : rule;
    case KeyType::kPath:
      return "a file's path in quotes";
    case KeyType::kChoice:
      break;
    case KeyType::kTyped:
      return fmt::format("text in quotes of printable ASCII, \\n and \\t, at most {} bytes",
                         key.max);
    case KeyType::kFraction:
      return "a number from 0 to 1";
    case KeyType::kNumbers:
      return fmt::format("a list of {} whole numbers {}", key.numbers, range_of(key));
    case KeyType::kNumberLists:
      return fmt::format("a list of lists of {} whole numbers {}", key.numbers, range_of(key));
    case KeyType::kTextList:
      return rule.empty() ? fmt::format("a list of texts, at most {}", key.max) : rule;
  }
  std::string words;
  for (size_t i = 0; i < key.choices.size(); ++i)
    words += fmt::format("{}\"{}\"",
                         i == 0                        ? ""
                         : i + 1 == key.choices.size() ? " or "
                                                       : ", ",
                         key.choices[i]);
  return words;
}

Converted convert(const ConfigKey& key, RawValue raw) {
  auto value = convert_type(key, raw);
  if (value && key.valid != nullptr && !key.valid(*value))
    return wrong(key, fmt::format("{} does not fit", shown_value(key, *value)));
  return value;
}

std::string suggest_key(std::string_view section, std::string_view name) {
  std::vector<std::string_view> names;
  for (const ConfigKey& key : config_keys())
    if (key.section == section) names.push_back(key.name);
  if (section.empty())
    for (const ConfigSection& known : config_sections())
      if (!known.name.empty()) names.push_back(known.name);
  if (const auto near = closest_word(name, names)) {
    const bool is_key = find_config_key(section, *near) != nullptr;
    if (!is_key) return fmt::format("; did you mean the table '{}'?", *near);
    return fmt::format("; did you mean '{}'?", find_config_key(section, *near)->full_name());
  }
  for (const ConfigKey& key : config_keys())
    if (key.name == name) return fmt::format("; did you mean '{}'?", key.full_name());
  return {};
}

std::string format_size(uint64_t bytes) {
  for (const auto& [letter, shift] : kSuffixes)
    if (bytes != 0 && bytes % (uint64_t{1} << shift) == 0)
      return fmt::format("{}{}", bytes >> shift, letter);
  return std::to_string(bytes);
}

std::optional<uint64_t> parse_size(std::string_view text) {
  int shift = 0;
  for (const auto& [letter, letter_shift] : kSuffixes)
    if (text.ends_with(letter)) shift = letter_shift;
  if (shift != 0) text.remove_suffix(1);
  if (text.empty() || text.size() > 19) return std::nullopt;  // 19 digits always fit 64 bits
  uint64_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<uint64_t>(c - '0');
  }
  if (number > UINT64_MAX >> shift) return std::nullopt;
  return number << shift;
}

std::string printable(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, kPrintableBytesMax)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      shown += fmt::format("\\x{:02x}", byte);
    } else {
      shown += c;
    }
  }
  if (text.size() > kPrintableBytesMax) shown += "...";
  return shown;
}

std::string config_reference() {
  std::string text;
  for (const ConfigSection& section : config_sections()) {
    if (section.name.empty()) {
      text += "### Top level\n";
    } else {
      text += fmt::format("### {}{}{}\n", section.repeated ? "[[" : "[", section.name,
                          section.repeated ? "]]" : "]");
    }
    text += fmt::format("{}\n\n| key | value | default | meaning |\n| --- | --- | --- | --- |\n",
                        section.help);
    for (const ConfigKey& key : config_keys()) {
      if (key.section != section.name) continue;
      const std::string fallback = key.required           ? "required"
                                   : key.fallback.empty() ? ""
                                                          : fmt::format("`{}`", key.fallback);
      text +=
          fmt::format("| `{}` | {} | {} | {} |\n", key.name, expectation(key), fallback, key.help);
    }
    text += "\n";
  }
  return text;
}

}  // namespace lethe
