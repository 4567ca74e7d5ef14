#include "devices/virtio/input/input.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <linux/input.h>

#include <array>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "devices/virtio/fake_pci_driver.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/loop_test_util.h"
#include "devices/virtio/pci_transport.h"

namespace lethe {
namespace {

constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 128 * kMiB};
constexpr uint16_t kEvents = InputDevice::kEventQueue;
constexpr uint16_t kStatus = InputDevice::kStatusQueue;

struct Event {
  uint16_t type;
  uint16_t code;
  int32_t value;
  bool operator==(const Event&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Event& event) {
  return out << event.type << "/" << event.code << "=" << event.value;
}
constexpr Event kSyn{EV_SYN, SYN_REPORT, 0};

// A guest with one device, and the buffers it gave.
struct Guest {
  Guest(const GuestMemory& ram, InputDevice& device, GuestAddr heap)
      : memory(ram), transport(ram, device, heap) {
    transport.start();
  }
  void give(int buffers, uint32_t size = sizeof(virtio_input_event)) {
    for (int i = 0; i < buffers; ++i) {
      if (free.empty()) free.push_back(transport.heap().alloc(64));
      const FakeBuffer buffer{free.back(), size, true};
      const auto head = transport.driver(kEvents).add({&buffer, 1});
      ASSERT_TRUE(head);
      by_head[*head] = free.back();
      free.pop_back();
    }
    transport.kick_if_wanted(kEvents);
  }
  std::optional<Event> read(std::chrono::milliseconds patience = FakeTransport::kPatience) {
    const auto used =
        transport.driver(kEvents).wait_used(transport.interrupt(kEvents), deadline_in(patience));
    if (!used) return std::nullopt;
    EXPECT_EQ(used->written, sizeof(virtio_input_event));
    free.push_back(by_head[used->head]);
    virtio_input_event event{};
    // SAFETY: the object's own bytes.
    EXPECT_TRUE(memory.read(free.back(), {reinterpret_cast<uint8_t*>(&event), sizeof event}));
    return Event{event.type, event.code, static_cast<int32_t>(event.value)};
  }
  const GuestMemory& memory;
  FakeTransport transport;
  std::vector<GuestAddr> free;
  std::map<uint16_t, GuestAddr> by_head;
};

struct InputTest : testing::Test {
  InputTest() : input(keyboard.get(), tablet.get()) {}
  // The devices' thread is this one, but for kicks.
  IoThread thread{"test-gui"};
  std::unique_ptr<GuestMemory> memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<InputDevice> keyboard = InputDevice::make_keyboard(thread.loop());
  std::unique_ptr<InputDevice> tablet = InputDevice::make_tablet(thread.loop());
  InputDevices input;
  std::optional<Guest> keys_guest;
  std::optional<Guest> tablet_guest;

  Guest& keys() {
    if (!keys_guest) keys_guest.emplace(*memory, *keyboard, GuestAddr{0});
    return *keys_guest;
  }
  Guest& pointer() {
    if (!tablet_guest) tablet_guest.emplace(*memory, *tablet, GuestAddr{64 * kMiB});
    return *tablet_guest;
  }
};

virtio_input_config config_of(InputDevice& device, uint8_t select, uint8_t subsel) {
  const uint8_t selection[] = {select, subsel};
  device.write_config(0, {selection, 1});
  device.write_config(1, {selection + 1, 1});
  virtio_input_config config{};
  // SAFETY: the object's own bytes.
  device.read_config(0, {reinterpret_cast<uint8_t*>(&config), sizeof config});
  return config;
}
bool bit(const virtio_input_config& config, uint32_t index) {
  return (config.u.bitmap[index / 8] >> (index % 8) & 1) != 0;
}

TEST_F(InputTest, says_what_it_is) {
  const auto name = config_of(*keyboard, VIRTIO_INPUT_CFG_ID_NAME, 0);
  EXPECT_EQ(std::string(name.u.string, name.size), "Lethe keyboard");
  const auto serial = config_of(*tablet, VIRTIO_INPUT_CFG_ID_SERIAL, 0);
  EXPECT_EQ(std::string(serial.u.string, serial.size), "lethe-tablet-0");
  const auto ids = config_of(*tablet, VIRTIO_INPUT_CFG_ID_DEVIDS, 0);
  EXPECT_EQ(ids.size, sizeof(virtio_input_devids));
  EXPECT_EQ(ids.u.ids.bustype, BUS_VIRTUAL);
  EXPECT_EQ(ids.u.ids.product, 2);
  EXPECT_EQ(config_of(*tablet, VIRTIO_INPUT_CFG_PROP_BITS, 0).size, 0);
}

TEST_F(InputTest, the_keyboard_has_all_keys_and_no_button) {
  const auto keys = config_of(*keyboard, VIRTIO_INPUT_CFG_EV_BITS, EV_KEY);
  EXPECT_EQ(keys.size, kInputCodes / 8);
  for (const uint32_t code : {KEY_ESC, KEY_A, KEY_MICMUTE, KEY_OK, KEY_FN, KEY_ALS_TOGGLE})
    EXPECT_TRUE(bit(keys, code)) << code;
  for (const uint32_t code : {KEY_RESERVED, BTN_0, BTN_LEFT, BTN_TOUCH, BTN_DPAD_UP,
                              BTN_TRIGGER_HAPPY1, BTN_TRIGGER_HAPPY40})
    EXPECT_FALSE(bit(keys, code)) << code;
  EXPECT_TRUE(bit(config_of(*keyboard, VIRTIO_INPUT_CFG_EV_BITS, EV_LED), LED_CAPSL));
  EXPECT_NE(config_of(*keyboard, VIRTIO_INPUT_CFG_EV_BITS, EV_REP).size, 0);
  EXPECT_EQ(config_of(*keyboard, VIRTIO_INPUT_CFG_EV_BITS, EV_ABS).size, 0);
}

TEST_F(InputTest, the_tablet_has_axes_buttons_and_a_wheel) {
  const auto axes = config_of(*tablet, VIRTIO_INPUT_CFG_EV_BITS, EV_ABS);
  EXPECT_EQ(axes.size, 1);
  EXPECT_EQ(axes.u.bitmap[0], 1 << ABS_X | 1 << ABS_Y);
  const auto axis = config_of(*tablet, VIRTIO_INPUT_CFG_ABS_INFO, ABS_Y);
  EXPECT_EQ(axis.size, sizeof(virtio_input_absinfo));
  EXPECT_EQ(axis.u.abs.min, 0u);
  EXPECT_EQ(axis.u.abs.max, ScreenInput::kPointerMax);
  const auto buttons = config_of(*tablet, VIRTIO_INPUT_CFG_EV_BITS, EV_KEY);
  for (uint32_t code = 0; code < kInputCodes; ++code)
    EXPECT_EQ(bit(buttons, code), code >= BTN_LEFT && code <= BTN_TASK) << code;
  const auto wheel = config_of(*tablet, VIRTIO_INPUT_CFG_EV_BITS, EV_REL);
  EXPECT_TRUE(bit(wheel, REL_WHEEL) && bit(wheel, REL_HWHEEL) && bit(wheel, REL_WHEEL_HI_RES));
  EXPECT_FALSE(bit(wheel, REL_X));
  EXPECT_EQ(config_of(*tablet, VIRTIO_INPUT_CFG_EV_BITS, EV_REP).size, 0);
}

// 5.8.5.2: size 0 for what there is nothing for. All 65536 selections, of both.
TEST_F(InputTest, answers_any_selection_within_the_structure) {
  for (InputDevice* device : {keyboard.get(), tablet.get()})
    for (uint32_t select = 0; select < 256; ++select)
      for (uint32_t subsel = 0; subsel < 256; ++subsel) {
        const auto config =
            config_of(*device, static_cast<uint8_t>(select), static_cast<uint8_t>(subsel));
        ASSERT_EQ(config.select, select);
        ASSERT_EQ(config.subsel, subsel);
        ASSERT_LE(config.size, sizeof config.u);
        for (size_t i = config.size; i < sizeof config.u; ++i) ASSERT_EQ(config.u.bitmap[i], 0);
        const bool known =
            select >= VIRTIO_INPUT_CFG_ID_NAME && select <= VIRTIO_INPUT_CFG_ABS_INFO;
        if (!known || (subsel != 0 && select < VIRTIO_INPUT_CFG_EV_BITS)) ASSERT_EQ(config.size, 0);
      }
}

TEST_F(InputTest, takes_writes_of_select_and_subsel_only) {
  const std::vector<uint8_t> all(sizeof(virtio_input_config), VIRTIO_INPUT_CFG_ID_NAME);
  keyboard->write_config(0, all);  // subsel becomes 1: there is no such name
  std::vector<uint8_t> read(all.size());
  keyboard->read_config(0, read);
  EXPECT_EQ(read[0], 1);
  EXPECT_EQ(read[1], 1);
  for (size_t i = 2; i < read.size(); ++i) EXPECT_EQ(read[i], 0) << i;
  uint8_t byte = 0;
  (void)config_of(*keyboard, VIRTIO_INPUT_CFG_ID_NAME, 0);
  keyboard->read_config(offsetof(virtio_input_config, u), {&byte, 1});
  EXPECT_EQ(byte, 'L');
  keyboard->write_config(offsetof(virtio_input_config, u), {&byte, 1});
  keyboard->write_config(sizeof(virtio_input_config) - 1, {&byte, 1});
  keyboard->read_config(sizeof(virtio_input_config) - 1, {&byte, 1});
  EXPECT_EQ(byte, 0);
}

TEST_F(InputTest, puts_an_event_into_the_ring_before_the_call_returns) {
  keys().give(4);
  input.key(KEY_A, true);
  EXPECT_EQ(keys().transport.driver(kEvents).raw_used_index(), 2);
  EXPECT_EQ(keys().transport.interrupt(kEvents).count(), 1u);  // one for the frame
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_A, 1}));
  EXPECT_EQ(keys().read(), kSyn);
}

TEST_F(InputTest, screen_input_becomes_evdev_frames) {
  pointer().give(20);
  input.motion(100, 70000);
  input.button(BTN_RIGHT, true);
  input.wheel(1, -1);
  const std::vector<Event> expected = {{EV_ABS, ABS_X, 100},
                                       {EV_ABS, ABS_Y, ScreenInput::kPointerMax},
                                       kSyn,
                                       {EV_KEY, BTN_RIGHT, 1},
                                       kSyn,
                                       {EV_REL, REL_WHEEL, 1},
                                       {EV_REL, REL_WHEEL_HI_RES, 120},
                                       {EV_REL, REL_HWHEEL, -1},
                                       {EV_REL, REL_HWHEEL_HI_RES, -120},
                                       kSyn};
  for (const Event& event : expected) EXPECT_EQ(pointer().read(), event);
  EXPECT_EQ(tablet->counters().frames, 3u);
}

TEST_F(InputTest, ignores_keys_it_does_not_have_and_devices_that_are_not_there) {
  keys().give(4);
  input.key(BTN_LEFT, true);
  input.key(0, true);
  input.key(0xFFFF'FFFF, true);
  input.button(KEY_A, true);
  EXPECT_EQ(keyboard->counters().unknown, 3u);
  EXPECT_EQ(tablet->counters().unknown, 1u);
  InputDevices none(nullptr, nullptr);
  none.key(KEY_A, true);
  none.motion(1, 1);
  none.button(BTN_LEFT, true);
  none.wheel(1, 1);
  EXPECT_EQ(keys().transport.driver(kEvents).raw_used_index(), 0);
}

TEST_F(InputTest, drops_what_comes_before_the_driver_and_its_releases) {
  input.key(KEY_A, true);
  EXPECT_EQ(keyboard->counters().ignored, 1u);
  keys().give(8);
  input.key(KEY_A, false);
  input.key(KEY_B, true);
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_B, 1}));
  EXPECT_EQ(keys().read(), kSyn);
  keys().transport.reset();
  EXPECT_EQ(keyboard->counters().waiting, 0u);
  keys().transport.start();
  keys().free.clear();
  keys().give(8);
  input.key(KEY_B, false);  // of the driver before
  input.key(KEY_C, true);
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_C, 1}));
}

TEST_F(InputTest, waits_for_buffers_and_sends_what_waited_when_they_come) {
  keys();
  for (int i = 0; i < 100; ++i) input.key(KEY_A, i % 2 == 0);
  EXPECT_EQ(keyboard->counters().waiting, 100u);
  for (int i = 0; i < 100; ++i) {
    keys().give(2);
    ASSERT_EQ(keys().read(), (Event{EV_KEY, KEY_A, i % 2 == 0 ? 1 : 0}));
    ASSERT_EQ(keys().read(), kSyn);
  }
  EXPECT_EQ(keyboard->counters().waiting, 0u);
  EXPECT_EQ(keyboard->counters().lost, 0u);
}

TEST_F(InputTest, a_guest_that_never_reads_costs_a_bounded_backlog) {
  pointer();
  for (int i = 0; i < 100'000; ++i) {
    input.button(BTN_LEFT, true);
    input.motion(static_cast<uint32_t>(i) % 1000, 0);
    input.button(BTN_LEFT, false);
  }
  EXPECT_LE(tablet->counters().waiting, InputBacklog::kFramesMax);
  EXPECT_GT(tablet->counters().lost, 90'000u);
  // What is there reads well, and ends with the button up.
  std::optional<Event> last_button;
  const uint64_t frames = tablet->counters().waiting;
  for (uint64_t i = 0; i < frames; ++i) {
    if (HasFatalFailure()) return;
    for (;;) {
      pointer().give(1);
      const auto event = pointer().read();
      ASSERT_TRUE(event);
      if (*event == kSyn) break;
      if (event->type != EV_KEY) continue;
      ASSERT_TRUE(!last_button || last_button->value != event->value);
      last_button = event;
    }
  }
  ASSERT_TRUE(last_button);
  EXPECT_EQ(last_button->value, 0);
}

TEST_F(InputTest, refuses_buffers_that_are_too_small_and_goes_on) {
  keys().give(8, 7);
  keys().give(4);
  input.key(KEY_A, true);
  EXPECT_EQ(keyboard->counters().refused, 8u);
  EXPECT_EQ(keys().transport.driver(kEvents).raw_used_index(), 10);
  for (int i = 0; i < 8; ++i) {
    const auto used = keys().transport.driver(kEvents).poll_used();
    ASSERT_TRUE(used);
    EXPECT_EQ(used->written, 0u);
  }
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_A, 1}));
}

TEST_F(InputTest, takes_leds_from_the_status_queue) {
  const auto send = [&](uint16_t type, uint16_t code, uint32_t value) {
    const virtio_input_event event{.type = type, .code = code, .value = value};
    // SAFETY: the object's own bytes.
    const FakeBuffer buffer{
        keys().transport.heap().put({reinterpret_cast<const uint8_t*>(&event), sizeof event}),
        sizeof event, false};
    EXPECT_EQ(keys().transport.request(kStatus, {&buffer, 1}), 0u);
  };
  send(EV_LED, LED_CAPSL, 1);
  send(EV_LED, LED_NUML, 5);
  EXPECT_EQ(keyboard->counters().leds, 1u << LED_CAPSL | 1u << LED_NUML);
  send(EV_LED, LED_CAPSL, 0);
  send(EV_LED, 0xFFFF, 1);
  send(EV_SND, SND_BELL, 1);
  EXPECT_EQ(keyboard->counters().leds, 1u << LED_NUML);
  EXPECT_EQ(keyboard->counters().status, 5u);
  const FakeBuffer small{keys().transport.heap().alloc(8), 7, false};
  EXPECT_EQ(keys().transport.request(kStatus, {&small, 1}), 0u);
  EXPECT_EQ(keyboard->counters().refused, 1u);
  EXPECT_EQ(keys().transport.needs_reset_count(), 0u);
}

TEST_F(InputTest, a_broken_ring_needs_a_reset_and_works_after_it) {
  for (const uint16_t queue : {kEvents, kStatus}) {
    if (keys_guest) {
      keys().transport.reset();
      keys().transport.start();
      keys().free.clear();
    }
    keys().transport.driver(queue).raw_publish(9999);
    keys().transport.kick(queue);
    input.key(KEY_A, true);
    EXPECT_TRUE(keys().transport.wait_needs_reset());
    input.key(KEY_A, false);
  }
  keys().transport.reset();
  keys().transport.start();
  keys().free.clear();
  keys().give(2);
  input.key(KEY_B, true);
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_B, 1}));
  EXPECT_EQ(keys().transport.needs_reset_count(), 0u);
}

// A slow guest, and a host that types, clicks and moves: every edge arrives, in order.
TEST_F(InputTest, every_edge_reaches_a_slow_guest_in_order) {
  std::minstd_rand random(1);  // the same each time
  constexpr uint32_t kCodes = 8;
  std::vector<Event> expected;
  std::array<bool, kCodes> down{};
  std::vector<Event> got;
  const auto read_frames = [&](size_t until) {
    while (got.size() < until) {
      const auto event = pointer().read();
      ASSERT_TRUE(event) << got.size() << " of " << until;
      pointer().give(1);
      if (event->type == EV_KEY) got.push_back(*event);
    }
  };
  pointer().give(3);
  for (int step = 0; step < 20'000; ++step) {
    const auto choice = random() % 4;
    if (choice < 2) {
      const auto code = static_cast<uint32_t>(random() % kCodes);
      down[code] = !down[code];
      expected.push_back({EV_KEY, static_cast<uint16_t>(BTN_LEFT + code), down[code] ? 1 : 0});
      input.button(BTN_LEFT + code, down[code]);
    } else {
      input.motion(static_cast<uint32_t>(random() % 40'000), 7);
    }
    // Some 1000 behind at most.
    if (expected.size() > got.size() + 1000) read_frames(got.size() + 500 + random() % 500);
    if (HasFatalFailure()) return;
  }
  read_frames(expected.size());
  EXPECT_EQ(got, expected);
  EXPECT_EQ(tablet->counters().lost, 0u);
}

TEST_F(InputTest, survives_resets_from_another_thread_while_events_come) {
  keys().give(16);
  std::atomic<bool> stop{false};
  std::thread typist([&] {
    while (!stop) {
      input.key(KEY_A, true);
      input.key(KEY_A, false);
    }
  });
  for (int round = 0; round < 200; ++round) {
    if (round % 2 == 0) {
      keys().transport.reset();
      keys().transport.start();
    } else {
      keys().transport.stop_queue(kEvents);
      keys().transport.restart_queue(kEvents);
    }
    keys().free.clear();
    keys().give(16);
    EXPECT_TRUE(keys().read());
    if (HasFailure()) break;
  }
  stop = true;
  typist.join();
  // The devices may go first.
  keys_guest.reset();
  keyboard.reset();
  input.key(KEY_A, true);
}

// Rings full of anything, kicks, resets: nothing worse than NEEDS_RESET.
TEST_F(InputTest, a_hostile_guest_harms_only_its_own_device) {
  std::minstd_rand random(2);
  for (int round = 0; round < 2000; ++round) {
    Guest& guest = random() % 2 == 0 ? keys() : pointer();
    const uint16_t queue = random() % 2 == 0 ? kEvents : kStatus;
    FakeDriver& driver = guest.transport.driver(queue);
    // A guest writes whenever it likes, and plainly: here on the devices' thread, for TSan takes
    // the driver's writes for ours.
    thread.run_and_wait([&] {
      for (uint32_t i = 0; i < random() % 8; ++i) {
        driver.raw_descriptor(
            static_cast<uint16_t>(random() % 64),
            {.addr = random() % 2 == 0 ? random() % kRam.size : random(),
             .len = static_cast<uint32_t>(random() % 3 == 0 ? random() : random() % 32),
             .flags = static_cast<uint16_t>(random() % 8),
             .next = static_cast<uint16_t>(random() % 70)});
      }
      for (uint32_t i = 0; i < random() % 4; ++i)
        driver.raw_publish(static_cast<uint16_t>(random() % 66));
      if (random() % 8 == 0) driver.raw_used_event(static_cast<uint16_t>(random()));
    });
    guest.transport.kick(queue);
    input.key(KEY_A + static_cast<uint32_t>(random() % 4), random() % 2 == 0);
    input.button(BTN_LEFT, random() % 2 == 0);
    input.motion(static_cast<uint32_t>(random()), static_cast<uint32_t>(random()));
    input.wheel(static_cast<int32_t>(random()), 1);
    if (random() % 8 == 0) {
      guest.transport.reset();
      guest.transport.start();
    }
  }
  for (Guest* guest : {&keys(), &pointer()}) {
    guest->transport.reset();
    guest->transport.start();
    guest->free.clear();
    guest->give(2);
  }
  input.key(KEY_ESC, true);
  input.button(BTN_TASK, true);
  EXPECT_EQ(keys().read(), (Event{EV_KEY, KEY_ESC, 1}));
  EXPECT_EQ(pointer().read(), (Event{EV_KEY, BTN_TASK, 1}));
}

// As a driver sees it: select and subsel written, size and data read, byte by byte.
TEST(InputOverPci, the_configuration_follows_the_selection) {
  EventLoop loop;
  FakeMachine machine;
  auto created =
      VirtioPciTransport::create(machine.pci->environment(), InputDevice::make_tablet(loop));
  ASSERT_TRUE(created);
  const uint8_t slot = machine.pci->add_device(std::move(*created)).value();
  FakePciDriver driver(machine, slot);
  const uint64_t config = driver.bar() + driver.device_config;
  const auto select = [&](uint8_t what, uint8_t sub) {
    machine.write(config, what, 1);
    machine.write(config + 1, sub, 1);
    return machine.read(config + 2, 1);
  };
  EXPECT_EQ(driver.device_config_length, sizeof(virtio_input_config));
  ASSERT_EQ(select(VIRTIO_INPUT_CFG_ID_NAME, 0), 12u);
  std::string name;
  for (int i = 0; i < 12; ++i) name += static_cast<char>(machine.read(config + 8 + i, 1));
  EXPECT_EQ(name, "Lethe tablet");
  EXPECT_EQ(select(VIRTIO_INPUT_CFG_ABS_INFO, ABS_X), sizeof(virtio_input_absinfo));
  EXPECT_EQ(machine.read(config + 12, 4), ScreenInput::kPointerMax);
  EXPECT_EQ(select(0xFF, 0xFF), 0u);
  EXPECT_EQ(machine.read(config + 12, 4), 0u);
}

}  // namespace
}  // namespace lethe
