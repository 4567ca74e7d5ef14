#include "devices/virtio/input/input_config.h"

#include <linux/input-event-codes.h>
#include <linux/input.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <string_view>

#include "devices/virtio/input/screen_input.h"

namespace lethe {
namespace {

constexpr uint16_t kVendor = 0x1af4;  // as its PCI function
constexpr uint16_t kVersion = 1;

void set_text(virtio_input_config& config, std::string_view text) {
  config.size = static_cast<uint8_t>(text.copy(config.u.string, sizeof config.u.string));
}

// A bitmap is as long as its last byte that is not zero (5.8.5.2).
void set_bit(virtio_input_config& config, uint32_t bit) {
  config.u.bitmap[bit / 8] = static_cast<uint8_t>(config.u.bitmap[bit / 8] | 1u << (bit % 8));
  config.size = std::max(config.size, static_cast<uint8_t>(bit / 8 + 1));
}

void set_bits(virtio_input_config& config, std::initializer_list<uint32_t> bits) {
  for (const uint32_t bit : bits) set_bit(config, bit);
}

void describe_events(virtio_input_config& config, InputKind kind, uint8_t type) {
  static_assert(kInputCodes <= sizeof config.u.bitmap * 8);
  const bool keyboard = kind == InputKind::kKeyboard;
  switch (type) {
    case EV_KEY:
      for (uint32_t code = 0; code < kInputCodes; ++code)
        if (has_key(kind, code)) set_bit(config, code);
      break;
    case EV_REL:
      if (!keyboard) set_bits(config, {REL_WHEEL, REL_HWHEEL, REL_WHEEL_HI_RES, REL_HWHEEL_HI_RES});
      break;
    case EV_ABS:
      if (!keyboard) set_bits(config, {ABS_X, ABS_Y});
      break;
    case EV_LED:
      if (keyboard) set_bits(config, {LED_NUML, LED_CAPSL, LED_SCROLLL, LED_COMPOSE, LED_KANA});
      break;
    case EV_REP:
      if (keyboard) set_bit(config, REP_DELAY);  // there at all: the guest repeats keys itself
      break;
    default:
      break;
  }
}

}  // namespace

bool has_key(InputKind kind, uint32_t code) {
  if (kind == InputKind::kTablet) return code >= BTN_LEFT && code <= BTN_TASK;
  if (code == KEY_RESERVED || code >= kInputCodes) return false;
  // A keyboard with buttons would be a mouse or a game pad for the guest.
  const bool button = (code >= BTN_MISC && code < KEY_OK) ||
                      (code >= BTN_DPAD_UP && code <= BTN_DPAD_RIGHT) ||
                      (code >= BTN_TRIGGER_HAPPY && code <= BTN_TRIGGER_HAPPY40);
  return !button;
}

virtio_input_config describe_input(InputKind kind, uint8_t select, uint8_t subsel) {
  const bool keyboard = kind == InputKind::kKeyboard;
  virtio_input_config config;
  std::memset(&config, 0, sizeof config);  // all of the union
  config.select = select;
  config.subsel = subsel;
  // 5.8.5.2: subsel is 0 for all but EV_BITS and ABS_INFO.
  if (subsel != 0 && select != VIRTIO_INPUT_CFG_EV_BITS && select != VIRTIO_INPUT_CFG_ABS_INFO)
    return config;
  switch (select) {
    case VIRTIO_INPUT_CFG_ID_NAME:
      set_text(config, keyboard ? "Lethe keyboard" : "Lethe tablet");
      break;
    case VIRTIO_INPUT_CFG_ID_SERIAL:
      set_text(config, keyboard ? "lethe-keyboard-0" : "lethe-tablet-0");
      break;
    case VIRTIO_INPUT_CFG_ID_DEVIDS:
      config.u.ids = {.bustype = BUS_VIRTUAL,
                      .vendor = kVendor,
                      .product = static_cast<uint16_t>(keyboard ? 1 : 2),
                      .version = kVersion};
      config.size = sizeof config.u.ids;
      break;
    case VIRTIO_INPUT_CFG_EV_BITS:
      describe_events(config, kind, subsel);
      break;
    case VIRTIO_INPUT_CFG_ABS_INFO:
      if (keyboard || (subsel != ABS_X && subsel != ABS_Y)) break;
      config.u.abs.max = ScreenInput::kPointerMax;
      config.size = sizeof config.u.abs;
      break;
    default:  // PROP_BITS: a tablet with buttons has none
      break;
  }
  return config;
}

}  // namespace lethe
