#include "devices/virtio/console/console.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/loop_test_util.h"

namespace lethe {
namespace {

constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 16 * kMiB};
constexpr uint16_t kRx = ConsoleDevice::kReceiveQueue;
constexpr uint16_t kTx = ConsoleDevice::kTransmitQueue;

// A sink with a given amount of room; locks, as the guest's thread looks at it too.
class LockedSink : public ByteSink {
 public:
  size_t write(std::span<const uint8_t> bytes) override {
    MutexLock lock(x_mutex);
    const size_t count = std::min(bytes.size(), x_room);
    x_text.append(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count));
    x_room -= count;
    return count;
  }
  void add_room_listener(std::function<void()> listener) override {
    x_listener = std::move(listener);
  }
  void set_room(size_t bytes) {  // loop's thread
    {
      MutexLock lock(x_mutex);
      x_room = bytes;
    }
    x_listener();
  }
  std::string text() {
    MutexLock lock(x_mutex);
    return x_text;
  }

 private:
  Mutex x_mutex;
  size_t x_room LETHE_GUARDED_BY(x_mutex) = SIZE_MAX;
  std::string x_text LETHE_GUARDED_BY(x_mutex);
  std::function<void()> x_listener;
};

struct ConsoleTest : testing::Test {
  ConsoleTest() { guest.start(); }
  FakeBuffer put(std::string_view text) {
    // SAFETY: bytes of the text, as they are.
    const std::span bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    return {guest.heap().put(bytes), static_cast<uint32_t>(text.size()), false};
  }
  FakeBuffer room(uint32_t size) { return {guest.heap().alloc(size), size, true}; }
  std::string content(GuestAddr address, size_t size) {
    std::vector<uint8_t> bytes(size);
    EXPECT_TRUE(memory->read(address, bytes));
    return {bytes.begin(), bytes.end()};
  }
  size_t type(std::string_view text) {
    size_t taken = 0;
    device.run([&] {
      // SAFETY: as above.
      taken = device->receive({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    });
    return taken;
  }
  std::optional<FakeDriver::Used> wait_used(uint16_t queue) {
    return guest.driver(queue).wait_used(guest.interrupt(queue),
                                         deadline_in(FakeTransport::kPatience));
  }
  virtio_console_config config() {
    uint8_t bytes[sizeof(virtio_console_config)];
    device->read_config(0, bytes);
    virtio_console_config result;
    std::memcpy(&result, bytes, sizeof result);
    return result;
  }

  std::unique_ptr<GuestMemory> memory = GuestMemory::create({&kRam, 1}, {}).value();
  LockedSink sink;
  OnLoop<ConsoleDevice> device{
      [this](EventLoop& loop) { return std::make_unique<ConsoleDevice>(loop, sink); }};
  FakeTransport guest{*memory, *device};
};

TEST_F(ConsoleTest, sends_what_the_guest_writes_in_order) {
  const FakeBuffer buffers[] = {put("one "), put("two "), put("three")};
  EXPECT_EQ(guest.request(kTx, buffers), 0u);
  const FakeBuffer more = put("!\n");
  EXPECT_EQ(guest.request(kTx, {&more, 1}, FakeDriver::Table::kIndirect), 0u);
  EXPECT_EQ(sink.text(), "one two three!\n");
  EXPECT_EQ(device->counters().bytes_out, 15u);
}

TEST_F(ConsoleTest, does_not_complete_output_that_the_sink_has_not_taken) {
  device.run([&] { sink.set_room(10); });
  const FakeBuffer buffer = put(std::string(30, 'x'));
  ASSERT_TRUE(guest.driver(kTx).add({&buffer, 1}));
  guest.kick(kTx);
  ASSERT_TRUE(eventually([&] { return sink.text().size() == 10; }));
  const auto soon = deadline_in(std::chrono::milliseconds(20));
  EXPECT_FALSE(guest.driver(kTx).wait_used(guest.interrupt(kTx), soon));
  device.run([&] { sink.set_room(100); });
  EXPECT_TRUE(wait_used(kTx));
  EXPECT_EQ(sink.text(), std::string(30, 'x'));
}

TEST_F(ConsoleTest, sends_more_than_one_wake_ups_budget) {
  const std::string text(ConsoleDevice::kWakeBytesMax * 3 + 5, 'y');
  const FakeBuffer buffer = put(text);
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_TRUE(sink.text() == text);
}

TEST_F(ConsoleTest, delivers_input_and_says_how_much) {
  const FakeBuffer buffer = room(64);
  ASSERT_TRUE(guest.driver(kRx).add({&buffer, 1}));
  guest.kick(kRx);
  EXPECT_EQ(type("hello"), 5u);
  const auto used = wait_used(kRx);
  ASSERT_TRUE(used);
  EXPECT_EQ(used->written, 5u);
  EXPECT_EQ(content(buffer.address, 6), std::string("hello\0", 6));
}

TEST_F(ConsoleTest, keeps_input_until_the_guest_gives_buffers) {
  EXPECT_EQ(type("early "), 6u);
  EXPECT_EQ(type("bird"), 4u);
  const FakeBuffer buffers[] = {room(3), room(20)};
  EXPECT_EQ(guest.request(kRx, buffers), 10u);
  EXPECT_EQ(content(buffers[0].address, 3), "ear");
  EXPECT_EQ(content(buffers[1].address, 7), "ly bird");
}

TEST_F(ConsoleTest, input_is_bounded_and_asks_for_more_without_losing_any) {
  std::string text(ConsoleDevice::kInputMax * 2, ' ');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 23);
  std::atomic<int> asked{0};
  device.run([&] { device->set_room_listener([&] { ++asked; }); });
  size_t sent = type(text);
  EXPECT_EQ(sent, ConsoleDevice::kInputMax);
  EXPECT_EQ(type(text), 0u);
  EXPECT_EQ(asked, 0);
  std::string got;
  while (got.size() < text.size()) {
    const FakeBuffer buffer = room(1024);
    const auto written = guest.request(kRx, {&buffer, 1});
    ASSERT_TRUE(written);
    got += content(buffer.address, *written);
    device.run([] {});
    if (asked > 0) {
      asked = 0;
      sent += type(std::string_view(text).substr(sent));
    }
  }
  EXPECT_TRUE(got == text);
}

TEST_F(ConsoleTest, receive_buffers_that_can_not_be_written_are_counted_and_take_no_input) {
  EXPECT_EQ(type("x"), 1u);
  const FakeBuffer useless = put("readable");
  EXPECT_EQ(guest.request(kRx, {&useless, 1}), 0u);
  EXPECT_EQ(device->counters().refused, 1u);
  const FakeBuffer buffer = room(8);
  EXPECT_EQ(guest.request(kRx, {&buffer, 1}), 1u);
}

TEST_F(ConsoleTest, writable_transmit_buffers_send_nothing) {
  const FakeBuffer buffer = room(8);
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_EQ(sink.text(), "");
}

TEST_F(ConsoleTest, tells_the_terminals_size_and_its_changes) {
  EXPECT_NE(guest.features() & uint64_t{1} << VIRTIO_CONSOLE_F_SIZE, 0u);
  device.run([&] { device->resize(132, 43); });
  EXPECT_TRUE(guest.wait_config_changes());
  EXPECT_EQ(config().cols, 132);
  EXPECT_EQ(config().rows, 43);
  EXPECT_EQ(config().max_nr_ports, 1u);
  device.run([&] { device->resize(132, 43); });
  EXPECT_EQ(guest.config_changes(), 1u) << "no change, no interrupt";
  const uint8_t emergency[] = {'!', 0, 0, 0};
  device->write_config(8, emergency);
  EXPECT_EQ(sink.text(), "");
}

TEST_F(ConsoleTest, a_broken_ring_needs_a_reset_and_works_after_it) {
  guest.driver(kTx).raw_publish(4711);
  guest.kick(kTx);
  ASSERT_TRUE(guest.wait_needs_reset());
  guest.reset();
  guest.start();
  type("x");
  guest.driver(kRx).raw_publish(4711);
  guest.kick(kRx);
  ASSERT_TRUE(guest.wait_needs_reset());
  guest.reset();
  guest.start();
  const FakeBuffer buffer = put("alive");
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_EQ(sink.text(), "alive");
}

TEST_F(ConsoleTest, survives_resets_while_output_waits_for_the_sink) {
  for (int round = 0; round < 100; ++round) {
    device.run([&] { sink.set_room(static_cast<size_t>(round % 5)); });
    const FakeBuffer buffer = put("0123456789");
    ASSERT_TRUE(guest.driver(kTx).add({&buffer, 1}));
    guest.kick(kTx);
    if (round % 3 != 0) device.run([] {});
    if (round % 2 == 0) {
      guest.reset();
      guest.start();
    } else {
      guest.stop_queue(kTx);
      guest.restart_queue(kTx);
    }
  }
  device.run([&] { sink.set_room(1000); });
  const FakeBuffer buffer = put("end");
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_TRUE(sink.text().ends_with("end"));
}

TEST_F(ConsoleTest, output_under_way_is_sent_once_over_a_freeze) {
  const std::string text = "one two three four five";
  device.run([&] { sink.set_room(3); });
  const FakeBuffer buffer = put(text);
  ASSERT_TRUE(guest.driver(kTx).add({&buffer, 1}));
  guest.kick(kTx);
  for (size_t sent = 3; sent < text.size(); sent += 5) {
    ASSERT_TRUE(eventually([&] { return sink.text().size() == sent; }));
    guest.freeze();
    EXPECT_EQ(guest.position(kTx).unfinished.size(), 1u);
    EXPECT_FALSE(guest.driver(kTx).poll_used()) << "not an answer";
    device.run([&] { sink.set_room(5); });  // frozen: nobody takes it
    EXPECT_EQ(sink.text().size(), sent);
    guest.thaw();
  }
  EXPECT_TRUE(wait_used(kTx));
  EXPECT_EQ(sink.text(), text);
}

TEST_F(ConsoleTest, output_input_and_size_go_on_in_another_device) {
  device.run([&] {
    sink.set_room(4);
    device->resize(132, 43);
  });
  const FakeBuffer out = put("half a line\n");
  ASSERT_TRUE(guest.driver(kTx).add({&out, 1}));
  guest.kick(kTx);
  ASSERT_TRUE(eventually([&] { return sink.text().size() == 4; }));
  EXPECT_EQ(type("typed "), 6u);
  guest.freeze();
  EXPECT_EQ(type("ahead"), 5u);  // frozen: it waits
  const auto state = guest.save();

  LockedSink other_sink;
  OnLoop<ConsoleDevice> other{
      [&](EventLoop& loop) { return std::make_unique<ConsoleDevice>(loop, other_sink); }};
  ASSERT_TRUE(guest.move_to(*other, state));
  guest.thaw();
  EXPECT_TRUE(wait_used(kTx));
  EXPECT_EQ(sink.text() + other_sink.text(), "half a line\n");
  const FakeBuffer in = room(64);
  EXPECT_EQ(guest.request(kRx, {&in, 1}), 11u);
  EXPECT_EQ(content(in.address, 11), "typed ahead");
  uint8_t bytes[sizeof(virtio_console_config)];
  other->read_config(0, bytes);
  EXPECT_EQ(bytes[0], 132);
  EXPECT_EQ(bytes[2], 43);
  guest.reset();
}

TEST_F(ConsoleTest, a_terminal_that_has_said_its_size_keeps_it_over_a_restore) {
  device.run([&] { device->resize(132, 43); });
  guest.freeze();
  const auto state = guest.save();
  device.run([&] { device->resize(80, 25); });
  ASSERT_TRUE(guest.move_to(*device, state));
  EXPECT_EQ(config().cols, 80);
}

TEST_F(ConsoleTest, a_reset_after_a_freeze_forgets_what_was_under_way) {
  device.run([&] { sink.set_room(3); });
  const FakeBuffer buffer = put("one two");
  ASSERT_TRUE(guest.driver(kTx).add({&buffer, 1}));
  guest.kick(kTx);
  ASSERT_TRUE(eventually([&] { return sink.text().size() == 3; }));
  guest.freeze();
  guest.reset();
  device.run([&] { sink.set_room(100); });
  guest.start();
  const FakeBuffer more = put("whole");
  EXPECT_EQ(guest.request(kTx, {&more, 1}), 0u);
  EXPECT_EQ(sink.text(), "onewhole");
}

TEST_F(ConsoleTest, hostile_state_is_refused_or_harmless) {
  guest.freeze();
  const auto state = guest.save();
  for (size_t size = 0; size < state.size(); ++size)
    EXPECT_FALSE(guest.move_to(*device, std::span(state).first(size))) << size;
  auto longer = state;
  longer[2 + 2 + 8] = 1;  // input that is not there
  EXPECT_FALSE(guest.move_to(*device, longer));
  auto sent = state;
  for (size_t i = 4; i < 12; ++i) sent[i] = 0xff;  // more sent than there is
  EXPECT_TRUE(guest.move_to(*device, sent));
  guest.thaw();
  const FakeBuffer buffer = put("lost");
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_EQ(guest.request(kTx, {&buffer, 1}), 0u);
  EXPECT_EQ(sink.text(), "lost") << "the first one only";
}

}  // namespace
}  // namespace lethe
