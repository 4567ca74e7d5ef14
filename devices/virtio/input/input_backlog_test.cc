#include "devices/virtio/input/input_backlog.h"

#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <vector>

namespace lethe {
namespace {

using Taken = InputBacklog::Taken;

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

Event take(InputBacklog& backlog) {
  const virtio_input_event event = backlog.take();
  return {event.type, event.code, static_cast<int32_t>(event.value)};
}
std::vector<Event> take_all(InputBacklog& backlog) {
  std::vector<Event> events;
  while (!backlog.empty()) events.push_back(take(backlog));
  return events;
}

TEST(InputBacklog, makes_one_frame_of_each_thing_that_happens) {
  InputBacklog backlog;
  EXPECT_TRUE(backlog.empty());
  EXPECT_EQ(backlog.edge(KEY_A, true), Taken::kNew);
  EXPECT_EQ(backlog.edge(KEY_A, false), Taken::kNew);
  EXPECT_EQ(backlog.motion(5, 32767), Taken::kNew);
  EXPECT_EQ(backlog.wheel(-2, 0), Taken::kNew);
  EXPECT_EQ(backlog.wheel(1, 3), Taken::kNew);
  EXPECT_EQ(backlog.frames(), 5u);
  const std::vector<Event> expected = {{EV_KEY, KEY_A, 1},
                                       kSyn,
                                       {EV_KEY, KEY_A, 0},
                                       kSyn,
                                       {EV_ABS, ABS_X, 5},
                                       {EV_ABS, ABS_Y, 32767},
                                       kSyn,
                                       {EV_REL, REL_WHEEL, -2},
                                       {EV_REL, REL_WHEEL_HI_RES, -240},
                                       kSyn,
                                       {EV_REL, REL_WHEEL, 1},
                                       {EV_REL, REL_WHEEL_HI_RES, 120},
                                       {EV_REL, REL_HWHEEL, 3},
                                       {EV_REL, REL_HWHEEL_HI_RES, 360},
                                       kSyn};
  EXPECT_EQ(take_all(backlog), expected);
}

TEST(InputBacklog, merges_motions_in_a_row_but_not_over_anything_else) {
  InputBacklog backlog;
  EXPECT_EQ(backlog.motion(1, 1), Taken::kNew);
  EXPECT_EQ(backlog.motion(2, 2), Taken::kMerged);
  EXPECT_EQ(backlog.edge(BTN_LEFT, true), Taken::kNew);
  EXPECT_EQ(backlog.motion(3, 3), Taken::kNew);
  const std::vector<Event> expected = {
      {EV_ABS, ABS_X, 2}, {EV_ABS, ABS_Y, 2}, kSyn, {EV_KEY, BTN_LEFT, 1}, kSyn,
      {EV_ABS, ABS_X, 3}, {EV_ABS, ABS_Y, 3}, kSyn};
  EXPECT_EQ(take_all(backlog), expected);
}

TEST(InputBacklog, leaves_a_frame_alone_once_it_is_begun) {
  InputBacklog backlog;
  EXPECT_EQ(backlog.motion(1, 1), Taken::kNew);
  EXPECT_EQ(take(backlog), (Event{EV_ABS, ABS_X, 1}));
  EXPECT_EQ(backlog.motion(2, 2), Taken::kNew);
  const std::vector<Event> expected = {
      {EV_ABS, ABS_Y, 1}, kSyn, {EV_ABS, ABS_X, 2}, {EV_ABS, ABS_Y, 2}, kSyn};
  EXPECT_EQ(take_all(backlog), expected);
}

TEST(InputBacklog, passes_over_what_changes_nothing) {
  InputBacklog backlog;
  EXPECT_EQ(backlog.edge(KEY_A, false), Taken::kSame);
  EXPECT_EQ(backlog.edge(KEY_A, true), Taken::kNew);
  EXPECT_EQ(backlog.edge(KEY_A, true), Taken::kSame);
  EXPECT_EQ(take_all(backlog).size(), 2u);
  backlog.clear();
  EXPECT_EQ(backlog.edge(KEY_A, false), Taken::kSame);
  EXPECT_TRUE(backlog.empty());
}

// All keys down, motion between them, until nothing more is taken; then every release.
TEST(InputBacklog, has_room_for_every_release_when_it_is_full) {
  InputBacklog backlog;
  std::vector<uint32_t> held;
  for (uint32_t code = 0; code < kInputCodes; ++code) {
    ASSERT_EQ(backlog.edge(code, true), Taken::kNew);
    held.push_back(code);
  }
  // Fill it up with a key that goes up and down.
  uint32_t edges = 0;
  EXPECT_EQ(backlog.edge(0, false), Taken::kNew);
  while (backlog.edge(0, true) == Taken::kNew && backlog.edge(0, false) == Taken::kNew) edges += 2;
  EXPECT_GT(edges, 1000u);
  while (backlog.wheel(1, 0) == Taken::kNew) {
  }
  EXPECT_EQ(backlog.edge(0, true), Taken::kFull);
  EXPECT_EQ(backlog.edge(0, false), Taken::kSame);  // its press was not taken
  for (uint32_t code = 1; code < kInputCodes; ++code) {
    (void)backlog.motion(code, code);
    ASSERT_EQ(backlog.edge(code, false), Taken::kNew) << code;
  }
  EXPECT_LE(backlog.frames(), InputBacklog::kFramesMax);
  std::map<uint16_t, int32_t> state;
  Event last_motion{};
  for (const Event& event : take_all(backlog)) {
    if (event.type == EV_KEY) state[event.code] = event.value;
    if (event.type == EV_ABS && event.code == ABS_X) last_motion = event;
    // A motion before a release is not lost, even then: where a drag ends matters.
    if (event.type == EV_KEY && event.code > 0 && event.value == 0) {
      EXPECT_EQ(last_motion.value, event.code);
    }
  }
  for (const auto& [code, value] : state) EXPECT_EQ(value, 0) << code;
}

TEST(InputBacklog, keeps_the_last_motion_when_it_is_full) {
  InputBacklog backlog;
  while (backlog.wheel(1, 0) == Taken::kNew) {
  }
  EXPECT_EQ(backlog.motion(1, 1), Taken::kNew);  // aside
  EXPECT_EQ(backlog.motion(7, 8), Taken::kMerged);
  EXPECT_EQ(backlog.edge(BTN_LEFT, true), Taken::kFull);
  const std::vector<Event> events = take_all(backlog);
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events[events.size() - 3], (Event{EV_ABS, ABS_X, 7}));
  EXPECT_EQ(events[events.size() - 2], (Event{EV_ABS, ABS_Y, 8}));
}

// Against a plain list: what was taken comes out, whole and in order, but for merged motions.
RC_GTEST_PROP(InputBacklogProperty, gives_out_what_it_took_in_order, ()) {
  InputBacklog backlog;
  std::vector<Event> expected;  // motions only as far as they must come
  std::vector<Event> got;
  std::map<uint32_t, bool> down;
  bool motion_last = false;  // the last expected frame is a motion that may still be replaced
  const auto steps = *rc::gen::scale(
      30.0, rc::gen::container<std::vector<uint16_t>>(rc::gen::arbitrary<uint16_t>()));
  size_t refused = 0;
  for (const uint16_t step : steps) {
    const uint32_t value = step / 8;
    switch (step % 8) {
      case 0:
      case 1:
      case 2: {
        const uint32_t code = value % 12;
        const bool press = step % 8 != 2;
        const Taken taken = backlog.edge(code, press);
        RC_ASSERT(taken != Taken::kMerged);
        if (press == down[code]) RC_ASSERT(taken == Taken::kSame);
        if (!press && down[code]) RC_ASSERT(taken == Taken::kNew);
        if (taken == Taken::kFull) ++refused;
        if (taken != Taken::kNew) break;
        down[code] = press;
        expected.push_back({EV_KEY, static_cast<uint16_t>(code), press ? 1 : 0});
        expected.push_back(kSyn);
        motion_last = false;
        break;
      }
      case 3:
      case 4: {
        const Taken taken = backlog.motion(value, value + 1);
        RC_ASSERT(taken == (motion_last ? Taken::kMerged : Taken::kNew));
        if (motion_last) expected.resize(expected.size() - 3);
        expected.push_back({EV_ABS, ABS_X, static_cast<int32_t>(value)});
        expected.push_back({EV_ABS, ABS_Y, static_cast<int32_t>(value + 1)});
        expected.push_back(kSyn);
        motion_last = true;
        break;
      }
      default:
        for (uint32_t i = 0; i < value % 5 && !backlog.empty(); ++i) got.push_back(take(backlog));
        // Begun is begun.
        if (got.size() + 3 > expected.size()) motion_last = false;
        break;
    }
  }
  RC_ASSERT(refused == 0U);  // far from full
  for (const Event& event : take_all(backlog)) got.push_back(event);
  RC_ASSERT(got == expected);
}

}  // namespace
}  // namespace lethe
