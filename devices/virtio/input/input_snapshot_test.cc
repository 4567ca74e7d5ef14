// Input devices over a freeze, and in another process.
#include <gtest/gtest.h>
#include <linux/input-event-codes.h>

#include <optional>
#include <random>
#include <vector>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/input/input.h"
#include "devices/virtio/loop_test_util.h"

namespace lethe {
namespace {

constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 64 * kMiB};
constexpr uint16_t kEvents = InputDevice::kEventQueue;

class InputSnapshot : public testing::Test {
 protected:
  InputSnapshot() : input(keyboard.get(), tablet.get()) { guest.start(); }
  ~InputSnapshot() override { guest.reset(); }
  void give(int buffers) {
    for (int i = 0; i < buffers; ++i) {
      const FakeBuffer buffer{guest.heap().alloc(64), 8, true};
      const auto head = guest.driver(kEvents).add({&buffer, 1});
      ASSERT_TRUE(head);
      by_head[*head] = buffer.address;
    }
    guest.kick_if_wanted(kEvents);
  }
  // "type/code=value" of the next events.
  std::vector<std::string> read(size_t count) {
    std::vector<std::string> events;
    while (events.size() < count) {
      const auto used = guest.driver(kEvents).wait_used(guest.interrupt(kEvents),
                                                        deadline_in(FakeTransport::kPatience));
      if (!used) break;
      const auto event = memory->load<virtio_input_event>(by_head[used->head]).value();
      events.push_back(fmt::format("{}/{}={}", uint16_t{event.type}, uint16_t{event.code},
                                   static_cast<int32_t>(event.value)));
    }
    return events;
  }
  std::unique_ptr<GuestMemory> memory = GuestMemory::create({&kRam, 1}, {}).value();
  IoThread thread{"test-gui"};
  std::unique_ptr<InputDevice> keyboard = InputDevice::make_keyboard(thread.loop());
  std::unique_ptr<InputDevice> tablet = InputDevice::make_tablet(thread.loop());
  std::unique_ptr<InputDevice> other = InputDevice::make_keyboard(thread.loop());
  InputDevices input;
  FakeTransport guest{*memory, *keyboard};
  std::array<GuestAddr, 64> by_head{};
};
using Strings = std::vector<std::string>;

TEST_F(InputSnapshot, what_is_typed_while_frozen_and_before_arrives_once_and_in_order) {
  input.key(KEY_A, true);
  guest.freeze();
  input.key(KEY_A, false);
  guest.freeze();  // the machine is saved once more
  input.key(KEY_B, true);
  guest.thaw();
  give(6);
  EXPECT_EQ(read(6), (Strings{"1/30=1", "0/0=0", "1/30=0", "0/0=0", "1/48=1", "0/0=0"}));
  EXPECT_EQ(keyboard->counters().ignored, 0U);
}

TEST_F(InputSnapshot, another_device_goes_on_in_the_middle_of_a_frame_and_lets_go_of_keys) {
  input.key(KEY_A, true);
  give(1);
  EXPECT_EQ(read(1), Strings{"1/30=1"});  // its SYN has no room yet
  input.key(KEY_B, true);
  input.key(KEY_B, false);
  input.key(KEY_C, true);
  guest.freeze();
  const auto state = guest.save();
  ASSERT_TRUE(guest.move_to(*other, state));
  guest.thaw();
  give(12);
  // A and C are held by nobody there: in whatever order they go up.
  EXPECT_EQ(read(11), (Strings{"0/0=0", "1/48=1", "0/0=0", "1/48=0", "0/0=0", "1/46=1", "0/0=0",
                               "1/30=0", "0/0=0", "1/46=0", "0/0=0"}));
}

TEST_F(InputSnapshot, before_a_driver_reads_nothing_waits_though_it_is_frozen) {
  guest.reset();
  keyboard->freeze();
  input.key(KEY_A, true);
  EXPECT_EQ(keyboard->counters().ignored, 1U);
}

TEST_F(InputSnapshot, any_state_from_a_file_is_refused_or_harmless) {
  for (int i = 0; i < 8; ++i) input.key(KEY_A, i % 2 == 0);
  input.key(KEY_B, true);
  guest.freeze();
  const auto state = guest.save();
  for (size_t size = 0; size < state.size(); ++size)
    EXPECT_FALSE(guest.move_to(*other, std::span(state).first(size))) << size;
  std::mt19937 random(3);
  int taken = 0;
  for (int i = 0; i < 2000; ++i) {
    auto bytes = state;
    bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1U << random() % 8);
    if (guest.move_to(*other, bytes)) ++taken;
  }
  EXPECT_GT(taken, 100);
  ASSERT_TRUE(guest.move_to(*other, state));
  guest.thaw();
  give(8);
  EXPECT_EQ(read(2), (Strings{"1/30=1", "0/0=0"}));
}

TEST(InputBacklogState, every_key_down_and_a_full_ring_fit) {
  InputBacklog backlog;
  for (uint32_t code = 0; code < kInputCodes; ++code) (void)backlog.edge(code, true);
  for (int i = 0; i < 10'000; ++i) (void)backlog.wheel(1, 0);
  (void)backlog.motion(1, 2);
  StateWriter to;
  backlog.save(to);
  const auto state = to.take();
  InputBacklog other;
  StateReader from(state);
  other.restore(from, [](uint32_t) { return true; });
  ASSERT_TRUE(from.check());
  other.release_all();
  backlog.release_all();
  while (!backlog.empty()) {
    ASSERT_FALSE(other.empty());
    const auto a = backlog.take();
    const auto b = other.take();
    ASSERT_EQ(uint16_t{a.code}, uint16_t{b.code});
    ASSERT_EQ(uint32_t{a.value}, uint32_t{b.value});
  }
  EXPECT_TRUE(other.empty());
}

}  // namespace
}  // namespace lethe
