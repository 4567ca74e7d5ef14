// The keys of [[check.screen]].
#include "devices/gui/protocol.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

using Value = ConfigValue;

constexpr uint64_t kTextMax = 4095;        // PATH_MAX less the zero
constexpr uint64_t kScreenTextMax = 1024;  // typed or looked for in one step

bool is_true(const Value& v) { return v.flag; }

bool is_png_name(const Value& v) {
  return v.text.size() > 4 && v.text.ends_with(".png") && v.text.find('/') == std::string::npos;
}

bool is_surface(const Value& v) {
  const std::string_view text = v.text;
  if (text.starts_with("window:")) return text.size() > 7;
  if (!text.starts_with("screen:")) return false;
  const auto number = parse_size(text.substr(7));
  return number && *number < gui::kOutputsMax && text.back() >= '0' && text.back() <= '9';
}

constexpr ConfigKey kScreenKeys[] = {
    {.section = "check.screen",
     .name = "wait_image",
     .type = KeyType::kPath,
     .min = 1,
     .max = kTextMax,
     .help = "Wait until the screen looks like this PNG.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].wait_image = std::move(v.text); }},
    {.section = "check.screen",
     .name = "wait_text",
     .type = KeyType::kText,
     .min = 1,
     .max = kScreenTextMax,
     .help =
         "Wait until a line of the guest's text console has this text. Graphical text is not read.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].wait_text = std::move(v.text); }},
    {.section = "check.screen",
     .name = "type",
     .type = KeyType::kTyped,
     .max = kScreenTextMax,
     .help = "Type this, on a US keyboard; `\\n` is Enter.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.check.screen[i].type = std::move(v.text); }},
    {.section = "check.screen",
     .name = "keys",
     .type = KeyType::kTextList,
     .max = kScreenTextMax,
     .help = "Press these keys, one after the other, by the names of Linux: "
             "`[\"KEY_LEFTCTRL+KEY_C\", \"KEY_ENTER\"]`.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.check.screen[i].keys = std::move(v.list); }},
    {.section = "check.screen",
     .name = "click",
     .type = KeyType::kNumbers,
     .max = gui::kSidePixelsMax,
     .numbers = 2,
     .help = "Click there: `[x, y]`, in pixels.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].click = std::move(v.numbers[0]); }},
    {.section = "check.screen",
     .name = "button",
     .type = KeyType::kChoice,
     .fallback = "\"left\"",
     .choices = kMouseButtons,
     .help = "With `click`: which button.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].button = static_cast<uint32_t>(v.number); }},
    {.section = "check.screen",
     .name = "resize",
     .type = KeyType::kNumbers,
     .min = 1,
     .max = gui::kSidePixelsMax,
     .numbers = 2,
     .help = "Ask for this size, `[width, height]`, and wait until it is shown.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].resize = std::move(v.numbers[0]); }},
    {.section = "check.screen",
     .name = "close",
     .type = KeyType::kBool,
     .valid = is_true,
     .rule = "true, or not there",
     .help = "Ask the surface to close.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.check.screen[i].close = v.flag; }},
    {.section = "check.screen",
     .name = "wait_gone",
     .type = KeyType::kBool,
     .valid = is_true,
     .rule = "true, or not there",
     .help = "Wait until a surface that an earlier step used is gone.",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.check.screen[i].wait_gone = v.flag; }},
    {.section = "check.screen",
     .name = "shot",
     .type = KeyType::kText,
     .max = 255,
     .valid = is_png_name,
     .rule = "a file's name that ends in .png, without a directory",
     .help = "Keep a picture, beside the console's log (`--out`).",
     .store = [](VmConfig& c, size_t i, Value&& v) { c.check.screen[i].shot = std::move(v.text); }},
    {.section = "check.screen",
     .name = "surface",
     .type = KeyType::kText,
     .fallback = "\"screen:0\"",
     .max = 300,
     .valid = is_surface,
     .rule = "\"screen:N\" with N from 0 to 15, or \"window:TITLE\"",
     .help = "What of the guest is meant.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].surface = std::move(v.text); }},
    {.section = "check.screen",
     .name = "timeout_ms",
     .type = KeyType::kInteger,
     .fallback = "30000",
     .min = 1,
     .max = 86400000,
     .help = "The check has failed if the step is not through by then.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].timeout_ms = static_cast<uint32_t>(v.number); }},
    {.section = "check.screen",
     .name = "tolerance",
     .type = KeyType::kInteger,
     .fallback = "0",
     .max = 255,
     .help = "With `wait_image`: how much a colour of a pixel may differ.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].tolerance = static_cast<uint32_t>(v.number); }},
    {.section = "check.screen",
     .name = "max_different",
     .type = KeyType::kFraction,
     .fallback = "0",
     .help = "With `wait_image`: how many of the pixels may differ by more: 0.001 is one in a "
             "thousand.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].max_different = v.fraction; }},
    {.section = "check.screen",
     .name = "masks",
     .type = KeyType::kNumberLists,
     .fallback = "[]",
     .max = gui::kSidePixelsMax,
     .numbers = 4,
     .help = "With `wait_image`: rectangles that are not compared, `[[x, y, width, height]]`.",
     .store = [](VmConfig& c, size_t i,
                 Value&& v) { c.check.screen[i].masks = std::move(v.numbers); }},
};

}  // namespace

std::span<const ConfigKey> screen_config_keys() { return kScreenKeys; }

}  // namespace lethe
