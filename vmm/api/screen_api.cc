// The control API's /gui/screens: sizes and pictures.
#include <fmt/format.h>

#include "vmm/api/api_body.h"
#include "vmm/api/events.h"

namespace lethe {
namespace json = boost::json;

namespace {

json::object screen_object(const ScreenState& screen) {
  return {{"screen", screen.number},
          {"width", screen.width},
          {"height", screen.height},
          {"shows", screen.shows}};
}

// The screens, if the path's number is one of them; else that was the answer.
std::optional<std::vector<ScreenState>> screens_with(const ApiCall& call) {
  auto screens = call.target.screens();
  if (!screens) {
    call.refuse(409, screens.error().text);
  } else if (call.number >= screens->size()) {
    call.refuse(404, fmt::format("there is no screen {}", call.number));
  } else {
    return std::move(*screens);
  }
  return std::nullopt;
}

struct Size {
  uint64_t width = 0;
  uint64_t height = 0;
};

tl::expected<Size, std::string> size_of(const json::object& object) {
  Size size;
  for (const auto& [json_key, value] : object) {
    const std::string_view key(json_key.data(), json_key.size());
    constexpr std::string_view kKnown[] = {"width", "height"};
    if (key != kKnown[0] && key != kKnown[1]) return unknown_key(key, kKnown);
    const auto number = config_number("gui", key, value);
    if (!number) return tl::unexpected(number.error());
    (key == "width" ? size.width : size.height) = *number;
  }
  if (size.width == 0 || size.height == 0)
    return tl::unexpected<std::string>("the body must be {\"width\": PIXELS, \"height\": PIXELS}");
  return size;
}

}  // namespace

void get_screens(const ApiCall& call) {
  const auto screens = call.target.screens();
  if (!screens) return call.refuse(409, screens.error().text);
  json::array all;
  for (const ScreenState& screen : *screens) all.push_back(screen_object(screen));
  call.answer({{"screens", std::move(all)}});
}

void put_screen(const ApiCall& call) {
  if (!screens_with(call)) return;
  const auto object = parse_body(call.request);
  if (!object) return call.reply->send(object.error());
  const auto size = size_of(*object);
  if (!size) return call.refuse(400, size.error());
  const auto set = call.target.resize_screen(call.number, static_cast<uint32_t>(size->width),
                                             static_cast<uint32_t>(size->height));
  if (!set) return call.refuse(409, set.error().text);
  call.target.events().publish("screen", {{"screen", call.number}});
  if (const auto screens = screens_with(call)) call.answer(screen_object((*screens)[call.number]));
}

void get_screenshot(const ApiCall& call) {
  if (!screens_with(call)) return;
  const auto started =
      call.target.screenshot(call.number, [reply = call.reply](Result<std::string> png) {
        if (!png) return reply->send(http_error(409, png.error().text));
        reply->send({.body = std::move(*png), .type = "image/png"});
      });
  if (!started) call.refuse(409, started.error().text);
}

}  // namespace lethe
