// TOML to VmConfig, by the table in vmm/config_schema.cc. The only file that sees toml++
// (header-only: Debian ships its library shared only, and `lethe` is linked statically).
#include "vmm/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#define TOML_MAX_NESTED_VALUES 16
#include <toml++/toml.h>

#include "vmm/config_schema.h"
#include "vmm/toml_depth.h"

namespace lethe {
namespace {

constexpr size_t kErrorsMax = 100;  // per file: no one reads more

class Parser {
 public:
  Parser(const std::string& file, std::vector<std::string>& errors)
      : x_shown_file(printable(file)), x_errors(errors) {
    const size_t slash = file.rfind('/');
    if (slash != std::string::npos) x_directory = file.substr(0, slash + 1);
    x_stem = file.substr(slash + 1);  // npos + 1 is 0
    x_stem = x_stem.substr(0, x_stem.rfind('.'));
  }

  VmConfig parse(std::string_view text, std::span<const std::string> overrides);

 private:
  struct Place {
    std::string text;  // "FILE:3:7" or "--set memory.size=1K"
  };

  void add_error(std::string line) {
    if (x_errors.size() < kErrorsMax) x_errors.push_back(std::move(line));
  }
  void key_error(const Place& place, const std::string& key, const std::string& what) {
    add_error(fmt::format("{}: key '{}' {}", place.text, printable(key), what));
  }
  Place place_of(const toml::source_region& source) const {
    return {fmt::format("{}:{}:{}", x_shown_file, source.begin.line, source.begin.column)};
  }

  void parse_top(const toml::table& top);
  void parse_disks(const toml::node& node);
  void parse_table(const toml::table& table, const ConfigSection& section, size_t disk);
  void parse_value(const ConfigKey& key, const Place& place, const toml::node& node, size_t disk);
  void apply_override(const std::string& item);
  void finish();

  std::string x_shown_file;
  std::string x_directory;  // with its slash, or empty
  std::string x_stem;
  std::vector<std::string>& x_errors;
  VmConfig x_config;
  bool x_kernel_key_failed = false;
};

const char* type_words(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "a list";
    case toml::node_type::string:
      return "text";
    case toml::node_type::integer:
      return "a whole number";
    case toml::node_type::floating_point:
      return "a fraction";
    case toml::node_type::boolean:
      return "true or false";
    default:
      return "a date or time";
  }
}

RawValue raw_value(const toml::node& node) {
  RawValue raw{type_words(node), {}};
  if (const auto* flag = node.as_boolean()) raw.value = flag->get();
  if (const auto* number = node.as_integer()) raw.value = number->get();
  if (const auto* text = node.as_string()) raw.value = text->get();
  if (const auto* array = node.as_array()) {
    std::vector<std::string> list;
    for (const toml::node& entry : *array) {
      if (const auto* text = entry.as_string()) {
        list.push_back(text->get());
      } else {
        raw.type = "a list with something else than texts";
        return raw;
      }
    }
    raw.value = std::move(list);
  }
  return raw;
}

const ConfigSection* find_section(std::string_view name) {
  for (const ConfigSection& section : config_sections())
    if (section.name == name) return &section;
  return nullptr;
}

void Parser::parse_value(const ConfigKey& key, const Place& place, const toml::node& node,
                         size_t disk) {
  auto value = convert(key, raw_value(node));
  if (!value) {
    if (key.full_name() == "boot.kernel") x_kernel_key_failed = true;
    return key_error(place, key.full_name(), value.error());
  }
  if (key.type == KeyType::kPath && !value->text.starts_with('/'))
    value->text.insert(0, x_directory);
  key.store(x_config, disk, std::move(*value));
}

void Parser::parse_table(const toml::table& table, const ConfigSection& section, size_t disk) {
  for (const auto& [name, node] : table) {
    if (section.name.empty() && find_section(name.str()) != nullptr && !name.str().empty())
      continue;  // parse_top's
    const Place place = place_of(name.source());
    const ConfigKey* key = find_config_key(section.name, name.str());
    if (key == nullptr) {
      const std::string full = section.name.empty()
                                   ? std::string(name.str())
                                   : fmt::format("{}.{}", section.name, name.str());
      key_error(place, full,
                "is not known" + (suggest_key(section.name, name.str()).empty()
                                      ? std::string(": see docs/config.md, or `lethe validate "
                                                    "--print-reference`")
                                      : suggest_key(section.name, name.str())));
      continue;
    }
    parse_value(*key, place, node, disk);
  }
}

void Parser::parse_disks(const toml::node& node) {
  const toml::array* disks = node.as_array();
  if (disks == nullptr || !disks->is_homogeneous<toml::table>()) {
    // An empty list is not homogeneous for toml++, but it plainly means: no disk.
    if (disks != nullptr && disks->empty()) return;
    return key_error(place_of(node.source()), "disk",
                     fmt::format("is {}: write [[disk]] above each disk's keys", type_words(node)));
  }
  for (const toml::node& entry : *disks) {
    const Place place = place_of(entry.source());
    if (x_config.disks.size() == kDisksMax)
      return key_error(place, "disk", fmt::format("is one disk too many: at most {}", kDisksMax));
    x_config.disks.emplace_back();
    parse_table(*entry.as_table(), *find_section("disk"), x_config.disks.size() - 1);
    if (entry.as_table()->contains("path")) continue;
    key_error(place, "disk.path", "is missing: name the disk's image file, path = \"root.img\"");
  }
}

void Parser::parse_top(const toml::table& top) {
  parse_table(top, *find_section(""), 0);
  for (const ConfigSection& section : config_sections()) {
    if (section.name.empty()) continue;
    const toml::node* node = top.get(section.name);
    if (node == nullptr) continue;
    if (section.repeated) {
      parse_disks(*node);
    } else if (const toml::table* table = node->as_table()) {
      if (section.name == "check") x_config.check.present = true;
      parse_table(*table, section, 0);
    } else {
      key_error(place_of(node->source()), std::string(section.name),
                fmt::format("is {}: write [{}] above its keys", type_words(*node), section.name));
    }
  }
}

// "memory.size=1G", "name=x", "disk.0.path=root.img".
void Parser::apply_override(const std::string& item) {
  const Place place{fmt::format("--set {}", printable(item))};
  const size_t equals = item.find('=');
  if (equals == std::string::npos)
    return add_error(fmt::format("{}: write it as key=value, such as memory.size=1G", place.text));
  const std::string full = item.substr(0, equals);
  const std::string text = item.substr(equals + 1);
  size_t dot = full.find('.');
  const std::string section = dot == std::string::npos ? "" : full.substr(0, dot);
  size_t disk = 0;
  if (section == "disk") {
    const size_t second = full.find('.', dot + 1);
    const auto number = parse_size(std::string_view(full).substr(dot + 1, second - dot - 1));
    if (second == std::string::npos || !number || *number >= x_config.disks.size())
      return key_error(
          place, full,
          fmt::format("names no disk: write disk.N.path, with N less than the {} disks "
                      "of the config",
                      x_config.disks.size()));
    disk = *number;
    dot = second;
  }
  const std::string name = dot == std::string::npos ? full : full.substr(dot + 1);
  const ConfigKey* key = find_config_key(section, name);
  if (key == nullptr) return key_error(place, full, "is not known" + suggest_key(section, name));

  // Text may come without quotes: --set name=42 is a name.
  const bool text_key = key->type != KeyType::kBool && key->type != KeyType::kInteger &&
                        key->type != KeyType::kTextList;
  const bool quoted = text.starts_with('"') || text.starts_with('\'');
  const std::string line = "value = " + text;
  if ((!text_key || quoted) && !toml_too_deep(line)) {
    const auto parsed = toml::parse(line);
    if (parsed && parsed.table().size() == 1)
      return parse_value(*key, place, *parsed.table().get("value"), disk);
  }
  parse_value(*key, place, toml::value<std::string>(text), disk);
}

// What concerns several keys at once.
void Parser::finish() {
  if (x_config.boot.kernel.empty() && !x_kernel_key_failed)
    key_error({x_shown_file}, "boot.kernel",
              "is missing: name the kernel to boot, kernel = \"vmlinuz\" under [boot]");
  if (x_config.memory.backing == MemoryBacking::kHugetlb &&
      x_config.memory.size_bytes % (2 * kMiB) != 0)
    key_error(
        {x_shown_file}, "memory.size",
        "must be a multiple of 2M, the size of a huge page, with memory.backing = \"hugetlb\"");
  if (x_config.check.present && x_config.check.exit == "reboot" &&
      x_config.boot.on_reboot == OnReboot::kRestart)
    key_error({x_shown_file}, "check.exit",
              "\"reboot\" can't come about: set boot.on_reboot = \"exit\" too");
  if (!x_config.name.empty()) return;
  if (valid_vm_name(x_stem)) {
    x_config.name = x_stem;
  } else {
    key_error(
        {x_shown_file}, "name",
        fmt::format("is missing, and the file's name does not make one: it must be {}", kNameRule));
  }
}

VmConfig Parser::parse(std::string_view text, std::span<const std::string> overrides) {
  if (const auto line = toml_too_deep(text)) {
    add_error(
        fmt::format("{}:{}: a key has too many parts: there are two at most, as in memory.size",
                    x_shown_file, *line));
    return {};
  }
  const auto parsed = toml::parse(text);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    add_error(fmt::format("{}: not TOML: {}", place_of(error.source()).text,
                          printable(error.description())));
    return {};
  }
  parse_top(parsed.table());
  for (const std::string& item : overrides) apply_override(item);
  finish();
  return std::move(x_config);
}

}  // namespace

VmConfig parse_config(std::string_view text, const std::string& file,
                      std::span<const std::string> overrides, std::vector<std::string>& errors) {
  return Parser(file, errors).parse(text, overrides);
}

}  // namespace lethe
