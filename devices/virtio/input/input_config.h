// What the two input devices say they are: the configuration space of virtio 1.2, 5.8.5.
#pragma once

#include <linux/virtio_input.h>

#include <cstdint>

namespace lethe {

enum class InputKind : uint8_t { kKeyboard, kTablet };

// One past the largest key or button (linux/input-event-codes.h: KEY_CNT).
inline constexpr uint32_t kInputCodes = 0x300;

// Whether the device has the key (EV_KEY): the keyboard all KEY_*, the tablet BTN_LEFT to BTN_TASK.
// Any code.
[[nodiscard]] bool has_key(InputKind kind, uint32_t code);

// What the driver reads after it has written `select` and `subsel`: any values; what there is
// nothing for has size 0 and is all zeros (5.8.5.2).
[[nodiscard]] virtio_input_config describe_input(InputKind kind, uint8_t select, uint8_t subsel);

}  // namespace lethe
