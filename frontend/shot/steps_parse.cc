#include <fmt/format.h>
#include <linux/input-event-codes.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <optional>
#include <span>

#include "frontend/keys.h"
#include "frontend/shot/steps.h"

namespace lethe::gui {
namespace {

namespace json = boost::json;

// One step's members, each taken once; what is left over is unknown.
class Members {
 public:
  explicit Members(const json::object& object) : x_object(object) {}

  [[nodiscard]] const json::value* take(std::string_view name) {
    const json::value* value = x_object.if_contains(name);
    x_taken += value == nullptr ? 0 : 1;
    return value;
  }
  [[nodiscard]] bool has(std::string_view name) const { return x_object.contains(name); }
  [[nodiscard]] bool all_taken() const { return x_taken == x_object.size(); }

  [[nodiscard]] Result<std::string> string(std::string_view name) {
    const json::value* value = take(name);
    if (value == nullptr || !value->is_string())
      return config_error("\"{}\" must be a string", name);
    return std::string(value->get_string());
  }
  // A number of at least `low` and at most `high`; `otherwise` if it is not there.
  [[nodiscard]] Result<double> number(std::string_view name, double low, double high,
                                      double otherwise) {
    const json::value* value = take(name);
    if (value == nullptr) return otherwise;
    if (value->is_number()) {
      const double number = value->to_number<double>();
      if (number >= low && number <= high) return number;
    }
    return config_error("\"{}\" must be a number, {} to {}", name, low, high);
  }

 private:
  const json::object& x_object;
  size_t x_taken = 0;
};

// An array of exactly `into.size()` whole numbers, 0 to kSidePixelsMax.
Result<> numbers(const json::value& value, std::string_view name, std::span<uint32_t> into) {
  const json::array* array = value.if_array();
  bool good = array != nullptr && array->size() == into.size();
  for (size_t i = 0; good && i < into.size(); ++i) {
    const int64_t* number = (*array)[i].if_int64();
    good = number != nullptr && *number >= 0 && *number <= kSidePixelsMax;
    if (good) into[i] = static_cast<uint32_t>(*number);
  }
  if (!good)
    return config_error("\"{}\" must be {} whole numbers, 0 to {}", name, into.size(),
                        kSidePixelsMax);
  return {};
}

Result<WaitImage> parse_image(Members& members, const std::string& folder) {
  WaitImage image;
  LETHE_TRY_ASSIGN(image.path, members.string("wait_image"));
  if (!image.path.starts_with('/')) image.path = folder + "/" + image.path;
  LETHE_TRY_ASSIGN(const double tolerance, members.number("tolerance", 0, 255, 0));
  image.rules.tolerance = static_cast<uint32_t>(tolerance);
  LETHE_TRY_ASSIGN(image.rules.max_different, members.number("max_different", 0, 1, 0));
  if (const json::value* masks = members.take("masks")) {
    if (!masks->is_array()) return config_error("\"masks\" must be an array of [x, y, w, h]");
    for (const json::value& mask : masks->get_array()) {
      uint32_t sides[4];
      LETHE_TRY(numbers(mask, "masks", sides));
      image.rules.masks.push_back({sides[0], sides[1], sides[2], sides[3]});
    }
  }
  return image;
}

Result<TypeText> parse_type(Members& members) {
  TypeText type;
  LETHE_TRY_ASSIGN(type.text, members.string("type"));
  for (const char c : type.text)
    if (!us_key(static_cast<unsigned char>(c)))
      return config_error("\"type\": a US keyboard has no key for the byte {:#x}; use \"keys\"",
                          static_cast<unsigned char>(c));
  return type;
}

Result<PressKeys> parse_keys(Members& members) {
  const json::value* value = members.take("keys");
  if (!value->is_array()) return config_error("\"keys\" must be an array of strings");
  PressKeys keys;
  for (const json::value& element : value->get_array()) {
    if (!element.is_string()) return config_error("\"keys\" must be an array of strings");
    std::vector<uint32_t> chord;
    std::string_view left(element.get_string());
    while (true) {
      const size_t plus = left.find('+');
      const std::string_view name = left.substr(0, plus);
      const auto code = key_by_name(name);
      if (!code) return config_error("\"keys\": '{}' is no key, such as KEY_ENTER", name);
      chord.push_back(*code);
      if (plus == std::string_view::npos) break;
      left.remove_prefix(plus + 1);
    }
    keys.chords.push_back(std::move(chord));
  }
  return keys;
}

Result<Click> parse_click(Members& members) {
  uint32_t at[2];
  LETHE_TRY(numbers(*members.take("click"), "click", at));
  Click click{static_cast<int32_t>(at[0]), static_cast<int32_t>(at[1]), BTN_LEFT};
  if (!members.has("button")) return click;
  LETHE_TRY_ASSIGN(const std::string button, members.string("button"));
  if (button == "middle")
    click.button = BTN_MIDDLE;
  else if (button == "right")
    click.button = BTN_RIGHT;
  else if (button != "left")
    return config_error("\"button\" must be left, middle or right");
  return click;
}

// Steps that need nothing but their name, which is true.
Result<> parse_flag(Members& members, std::string_view name) {
  const json::value* value = members.take(name);
  if (!value->is_bool() || !value->get_bool()) return config_error("\"{}\" must be true", name);
  return {};
}

Result<Step> parse_step(const json::value& value, const std::string& folder) {
  if (!value.is_object()) return config_error("it is no object");
  Members members(value.get_object());
  Step step;
  if (members.has("wait_image")) {
    LETHE_TRY_ASSIGN(step.action, parse_image(members, folder));
  } else if (members.has("wait_text")) {
    LETHE_TRY_ASSIGN(const std::string text, members.string("wait_text"));
    step.action = WaitText{text};
  } else if (members.has("type")) {
    LETHE_TRY_ASSIGN(step.action, parse_type(members));
  } else if (members.has("keys")) {
    LETHE_TRY_ASSIGN(step.action, parse_keys(members));
  } else if (members.has("click")) {
    LETHE_TRY_ASSIGN(step.action, parse_click(members));
  } else if (members.has("resize")) {
    uint32_t sides[2];
    LETHE_TRY(numbers(*members.take("resize"), "resize", sides));
    if (sides[0] == 0 || sides[1] == 0) return config_error("\"resize\": 0 is no size");
    step.action = Resize{sides[0], sides[1]};
  } else if (members.has("close")) {
    LETHE_TRY(parse_flag(members, "close"));
    step.action = CloseSurface{};
  } else if (members.has("wait_gone")) {
    LETHE_TRY(parse_flag(members, "wait_gone"));
    step.action = WaitGone{};
  } else if (members.has("shot")) {
    LETHE_TRY_ASSIGN(const std::string path, members.string("shot"));
    step.action = TakeShot{path};
  } else {
    return config_error(
        "it has none of wait_image, wait_text, type, keys, click, resize, close, wait_gone, shot");
  }
  if (members.has("surface")) {
    LETHE_TRY_ASSIGN(const std::string surface, members.string("surface"));
    const auto selector = Selector::parse(surface);
    if (!selector) return config_error("\"surface\" must be \"screen:N\" or \"window:TITLE\"");
    step.surface = *selector;
  }
  LETHE_TRY_ASSIGN(const double timeout, members.number("timeout_ms", 0, kStepTimeoutMsMax,
                                                        static_cast<double>(kStepTimeout.count())));
  step.timeout = std::chrono::milliseconds(static_cast<int64_t>(timeout));
  if (!members.all_taken()) return config_error("it has a member that this kind of step has not");
  return step;
}

}  // namespace

Result<std::vector<Step>> parse_steps(std::string_view text, const std::string& folder) {
  boost::system::error_code error;
  const json::value root = json::parse({text.data(), text.size()}, error);
  if (error) return config_error("it is no JSON: {}", error.message());
  const json::value* list = root.is_object() ? root.get_object().if_contains("steps") : nullptr;
  if (list == nullptr || !list->is_array() || root.get_object().size() != 1)
    return config_error("it must be {{\"steps\": [...]}}");
  std::vector<Step> steps;
  for (const json::value& value : list->get_array()) {
    auto step = parse_step(value, folder);
    if (!step) return config_error("step {}: {}", steps.size() + 1, step.error().text);
    steps.push_back(std::move(*step));
  }
  return steps;
}

}  // namespace lethe::gui
