// Gui and its channel: what frontends see, and what creators hear.
#include "devices/gui/gui.h"

#include <gtest/gtest.h>

#include "base/mutex.h"
#include "devices/gui/gui_test_util.h"

namespace lethe {
namespace {

using Event = FakeCreator::Event;
using std::chrono::milliseconds;

constexpr Rect kAll{0, 0, kWidth, kHeight};

Rect damage_of(const gui::Frame& frame) {
  return {frame.damage_x, frame.damage_y, frame.damage_width, frame.damage_height};
}

TEST(GuiTest, shows_a_frontend_what_there_is_and_what_changes) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("hello", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  rig.on_gui([&] { std::memset(rig.gui->buffer(buffer)->data(), 0x5A, kBytes); });
  EXPECT_EQ(rig.present(surface, buffer, kWidth, kHeight, {0, 0, 1, 1}), 1U);
  auto frontend = rig.connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_STREQ(frontend.surfaces[surface].title, "hello");
  const gui::Frame first = frontend.frames[surface];
  EXPECT_EQ(first.generation, buffer.generation);
  EXPECT_EQ(damage_of(first), kAll) << "the first frame is whole";
  EXPECT_EQ(frontend.buffers[buffer.generation].data[kBytes - 1], 0x5A);

  rig.present(surface, buffer, kWidth, kHeight, {3, 4, 5, 6});
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  const gui::Frame second = frontend.frames[surface];
  EXPECT_EQ(damage_of(second), (Rect{3, 4, 5, 6}));
  EXPECT_EQ(frontend.packets_received, 5U) << "welcome, surface, buffer, two frames";
  EXPECT_TRUE(eventually([&] { return rig.done(surface) == second.frame; }));

  rig.remove_surface(surface);
  rig.release_buffer(buffer);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  EXPECT_EQ(frontend.surfaces_gone, std::vector<SurfaceId>{surface});
  EXPECT_EQ(frontend.gone.at(0).revoked, 0U);
  EXPECT_TRUE(eventually([&] { return rig.freed() == std::vector<BufferId>{buffer}; }));
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 1U);
  EXPECT_EQ(rig.count(rig.ledger().freed.bytes), kBytes);
  EXPECT_EQ(rig.count(rig.ledger().orphan.bytes), 0U);
}

TEST(GuiTest, damage_coalesces_while_a_frontend_reads) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("slow", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  frontend.answers_frames = false;
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  rig.present(surface, buffer, kWidth, kHeight, {10, 10, 2, 2});
  rig.present(surface, buffer, kWidth, kHeight, {20, 5, 1, 1});
  const uint64_t last = rig.present(surface, buffer, kWidth, kHeight, {12, 8, 4, 1});
  EXPECT_FALSE(frontend.receive(milliseconds(20))) << "one frame is on its way at most";
  frontend.done_reading(surface, 1);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_EQ(frontend.frames[surface].frame, last);
  EXPECT_EQ(damage_of(frontend.frames[surface]), (Rect{10, 5, 11, 7}));
  EXPECT_EQ(frontend.frames_received, 2U);
}

TEST(GuiTest, damage_is_clipped_and_whole_when_the_size_or_format_changes) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("clip", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  const auto next = [&](uint32_t width, const Rect& damage) {
    rig.present(surface, buffer, width, kHeight, damage);
    EXPECT_TRUE(frontend.receive_until(gui::Type::kFrame));
    return damage_of(frontend.frames[surface]);
  };
  EXPECT_EQ(next(kWidth, {0, 0, 1, 1}), kAll);
  EXPECT_EQ(next(kWidth, {60, 10, 100, 100}), (Rect{60, 10, 4, 6}));
  EXPECT_EQ(next(kWidth, {kWidth, 0, 1, 1}), Rect{});
  EXPECT_EQ(next(kWidth, {0xFFFF'FFFF, 0xFFFF'FFFF, 0xFFFF'FFFF, 1}), Rect{});
  EXPECT_EQ(next(kWidth / 2, {0, 0, 1, 1}), (Rect{0, 0, kWidth / 2, kHeight}));
}

TEST(GuiTest, a_creator_is_told_at_once_when_nobody_looks) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("alone", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  const uint64_t frame = rig.present(surface, buffer, kWidth, kHeight, kAll);
  EXPECT_TRUE(eventually([&] { return rig.done(surface) == frame; }));
}

TEST(GuiTest, a_frame_is_done_when_every_frontend_has_read_it) {
  GuiRig rig({.read_patience = std::chrono::hours(1)});
  const SurfaceId surface = rig.add_surface("two", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto first = rig.connect();
  auto second = rig.connect();
  first.answers_frames = second.answers_frames = false;
  const uint64_t frame = rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(first.receive_until(gui::Type::kFrame));
  ASSERT_TRUE(second.receive_until(gui::Type::kFrame));
  first.done_reading(surface, frame);
  first.send(gui::Type::kClose, gui::Close{{}, surface});
  ASSERT_TRUE(eventually([&] { return rig.events().size() == 1; }))
      << "its answer was heard before";
  rig.on_gui([] {});  // creators are told in a turn of their own
  EXPECT_EQ(rig.done(surface), 0U);
  second.done_reading(surface, frame);
  EXPECT_TRUE(eventually([&] { return rig.done(surface) == frame; }));
}

TEST(GuiTest, a_frontend_that_does_not_answer_is_not_waited_for) {
  constexpr milliseconds kPatience{500};  // long enough that a busy host does not look like it
  GuiRig rig({.read_patience = kPatience});
  const SurfaceId surface = rig.add_surface("stuck", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto stuck = rig.connect();
  stuck.answers_frames = false;
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t frame = rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(eventually([&] { return rig.done(surface) == frame; }));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kPatience - milliseconds(1));
  // From now on it costs nothing: hundred frames in less than half of what the waits would take.
  const auto later = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    const uint64_t next = rig.present(surface, buffer, kWidth, kHeight, kAll);
    ASSERT_TRUE(eventually([&] { return rig.done(surface) == next; }));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - later, kPatience * 50);
  // Until it answers: then it gets the newest, and is waited for again.
  ASSERT_TRUE(stuck.receive_until(gui::Type::kFrame));
  stuck.done_reading(surface, frame);
  ASSERT_TRUE(stuck.receive_until(gui::Type::kFrame));
  EXPECT_EQ(stuck.frames[surface].frame, frame + 100);
  EXPECT_EQ(stuck.frames_received, 2U);
}

TEST(GuiTest, a_buffer_that_goes_is_not_shown_any_more) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("gone", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  rig.on_gui([&] {
    (void)rig.gui->present(surface, rig.content(buffer, kWidth, kHeight), kAll);
    rig.gui->set_cursor(surface, {.image = rig.content(buffer, 8, 8), .hot_x = 1, .hot_y = 2});
  });
  ASSERT_TRUE(frontend.receive_until(gui::Type::kCursor));
  EXPECT_EQ(frontend.cursors[surface].hot_y, 2U);
  rig.release_buffer(buffer);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  frontend.drain();
  EXPECT_EQ(frontend.cursors[surface].buffer, gui::kNoBuffer);
  EXPECT_TRUE(eventually([&] {
    frontend.drain();
    return frontend.frames[surface].buffer == gui::kNoBuffer;
  }));
  EXPECT_EQ(frontend.frames[surface].width, 0U);
  EXPECT_TRUE(eventually([&] { return rig.freed().size() == 1; }));
  rig.on_gui([&] { EXPECT_EQ(rig.gui->buffer(buffer), nullptr); });
}

TEST(GuiTest, a_buffer_unmapped_of_ones_own_accord_is_sent_again_when_it_is_shown) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("window", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  frontend.unmap(buffer);
  EXPECT_TRUE(eventually([&] { return rig.holders(buffer) == 0; }));
  EXPECT_EQ(rig.state(buffer), ShareLedger::State::kLive);
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBuffer));
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_NE(rig.holders(buffer), 0U);
  EXPECT_TRUE(frontend.gone.empty());
}

TEST(GuiTest, who_unmaps_a_buffer_has_read_it) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("window", kWidth, kHeight);
  const BufferId first = rig.create_buffer(kBytes);
  const BufferId second = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  frontend.answers_frames = false;
  rig.present(surface, first, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  rig.present(surface, second, kWidth, kHeight, kAll);
  rig.release_buffer(first);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone)) << "answered with Unmapped only";
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_EQ(frontend.frames[surface].generation, second.generation);
}

TEST(GuiTest, hands_input_to_the_creator) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("input", 100, 50);
  auto frontend = rig.connect();
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});  // the guest makes its own repeats
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
  frontend.send(gui::Type::kMotion, gui::Motion{{}, surface, -5, 70});
  frontend.send(gui::Type::kButton, gui::Button{{}, surface, 0x110, 1});
  frontend.send(gui::Type::kWheel, gui::Wheel{{}, surface, -1, 2});
  frontend.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, surface, -7, 8, 640, 480});
  frontend.send(gui::Type::kClose, gui::Close{{}, surface});
  const std::vector<Event> expected{{"key", surface, 30, 1},
                                    {"key", surface, 30, 0},
                                    {"motion", surface, 0, 49},
                                    {"button", surface, 0x110, 1},
                                    {"wheel", surface, -1, 2},
                                    {"focus", surface, 1},
                                    {"configure", surface, -7, 8, 640, 480},
                                    {"close", surface}};
  EXPECT_TRUE(eventually([&] { return rig.events().size() == expected.size(); }));
  EXPECT_EQ(rig.events(), expected);
  EXPECT_EQ(rig.metric("lethe_gui_input_events_total"), 10);
}

TEST(GuiTest, focus_of_any_surface_in_any_frontend_is_the_vms) {
  GuiRig rig;
  Mutex mutex;
  std::vector<bool> heard;  // guarded by the mutex
  const auto hears = [&](const std::vector<bool>& expected) {
    return eventually([&] {
      MutexLock lock(mutex);
      return heard == expected;
    });
  };
  const SurfaceId surface = rig.add_surface("one", 100, 50);
  const SurfaceId doomed = rig.add_surface("two", 100, 50);
  rig.gui->set_focus_listener([&](bool focused) {
    MutexLock lock(mutex);
    heard.push_back(focused);
  });
  auto first = rig.connect();
  {
    auto second = rig.connect();
    first.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
    EXPECT_TRUE(hears({true}));
    second.send(gui::Type::kFocus, gui::Focus{{}, doomed, 1, 0});
    ASSERT_TRUE(eventually([&] { return rig.events().size() == 2; }));
    first.send(gui::Type::kFocus, gui::Focus{{}, surface, 0, 0});
    ASSERT_TRUE(eventually([&] { return rig.events().size() == 3; }));
    EXPECT_TRUE(hears({true})) << "the other one still has it";
    rig.on_gui([&] { rig.gui->remove_surface(doomed); });
    EXPECT_TRUE(hears({true, false}));
    second.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
    EXPECT_TRUE(hears({true, false, true}));
  }
  EXPECT_TRUE(hears({true, false, true, false})) << "a frontend that goes takes its focus along";
  rig.gui->set_focus_listener(nullptr);
  first.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
  ASSERT_TRUE(eventually([&] { return rig.events().size() >= 6; }));
  EXPECT_TRUE(hears({true, false, true, false}));
}

TEST(GuiTest, frontends_that_come_and_go_are_told) {
  GuiRig rig;
  Mutex mutex;
  std::vector<std::pair<bool, uint64_t>> heard;  // guarded by the mutex
  const auto hears = [&](const std::vector<std::pair<bool, uint64_t>>& expected) {
    return eventually([&] {
      MutexLock lock(mutex);
      return heard == expected;
    });
  };
  rig.gui->set_frontend_listener([&](bool came, uint64_t frontends) {
    MutexLock lock(mutex);
    heard.emplace_back(came, frontends);
  });
  auto first = rig.connect();
  EXPECT_TRUE(hears({{true, 1}}));
  {
    auto second = rig.connect();
    EXPECT_TRUE(hears({{true, 1}, {true, 2}}));
  }
  EXPECT_TRUE(hears({{true, 1}, {true, 2}, {false, 1}}));
  rig.gui->set_frontend_listener(nullptr);
}

TEST(GuiTest, releases_keys_buttons_and_focus_of_a_frontend_that_goes) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("input", 100, 50);
  {
    auto frontend = rig.connect();
    frontend.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
    frontend.send(gui::Type::kKey, gui::Key{{}, surface, 29, 1});
    frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
    frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
    frontend.send(gui::Type::kButton, gui::Button{{}, surface, 0x111, 1});
    ASSERT_TRUE(eventually([&] { return rig.events().size() == 5; }));
  }
  ASSERT_TRUE(eventually([&] { return rig.events().size() == 8; }));
  const std::vector<Event> all = rig.events();
  EXPECT_EQ(all[5], (Event{"button", surface, 0x111, 0}));
  EXPECT_EQ(all[6], (Event{"key", surface, 29, 0}));
  EXPECT_EQ(all[7], (Event{"focus", surface, 0}));
}

TEST(GuiTest, a_key_whose_surface_is_gone_is_released_through_another) {
  GuiRig rig;
  const SurfaceId dialog = rig.add_surface("dialog", 100, 50);
  const SurfaceId window = rig.add_surface("window", 100, 50);
  auto frontend = rig.connect();
  frontend.send(gui::Type::kKey, gui::Key{{}, dialog, 28, 1});
  ASSERT_TRUE(eventually([&] { return rig.events().size() == 1; }));
  rig.remove_surface(dialog);
  frontend.send(gui::Type::kKey, gui::Key{{}, dialog, 28, 0});
  ASSERT_TRUE(eventually([&] { return rig.events().size() == 2; }));
  EXPECT_EQ(rig.events()[1], (Event{"key", window, 28, 0}));
}

TEST(GuiTest, a_frontend_that_only_looks_sees_everything_and_moves_nothing) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("look", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect(gui::kHelloViewOnly);
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
  frontend.send(gui::Type::kMotion, gui::Motion{{}, surface, 1, 1});
  frontend.send(gui::Type::kButton, gui::Button{{}, surface, 0x110, 1});
  frontend.send(gui::Type::kWheel, gui::Wheel{{}, surface, 1, 0});
  frontend.send(gui::Type::kFocus, gui::Focus{{}, surface, 1, 0});
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, surface, 0, 0, 10, 10});
  frontend.send(gui::Type::kClose, gui::Close{{}, surface});
  EXPECT_TRUE(eventually([&] { return rig.metric("lethe_gui_refused_messages_total") == 7; }));
  const uint64_t frame = rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_TRUE(eventually([&] { return rig.done(surface) == frame; }));
  EXPECT_TRUE(rig.events().empty());
}

TEST(GuiTest, several_frontends_come_and_go) {
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("many", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  for (int round = 0; round < 10; ++round) {
    std::vector<FakeFrontend> frontends;
    for (int i = 0; i < 8; ++i) frontends.push_back(rig.connect());
    for (FakeFrontend& frontend : frontends)
      ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame)) << round;
    frontends.clear();
    ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 0; }));
  }
  EXPECT_EQ(rig.metric("lethe_gui_frontends_total"), 80);
  EXPECT_EQ(rig.metric("lethe_gui_frontends_refused_total"), 0);
}

TEST(GuiTest, titles_are_cut_at_a_character_and_cleaned) {
  GuiRig rig;
  std::string title(253, 'a');
  title += "\xC3\xA9\xC3\xA9";  // two characters of two bytes: one fits
  (void)rig.add_surface(title, 1, 1);
  const SurfaceId bad = rig.add_surface("a\x1B[31m\xFF\xC2\x9B\xE2\x82", 1, 1);
  auto frontend = rig.connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  EXPECT_EQ(std::string(frontend.surfaces.begin()->second.title), title.substr(0, 255));
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  EXPECT_STREQ(frontend.surfaces[bad].title, "a?[31m????");
}

TEST(GuiTest, says_bye_when_the_vm_ends) {
  GuiRig rig;
  auto frontend = rig.connect();
  auto silent = FakeFrontend(rig.path());
  rig.end();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBye));
  EXPECT_EQ(frontend.bye, gui::ByeReason::kVmEnded);
  EXPECT_FALSE(frontend.receive());
}

TEST(GuiTest, a_listener_that_is_forgotten_hears_nothing_more) {
  GuiRig rig;
  FakeCreator other;
  SurfaceId surface = 0;
  BufferId buffer;
  auto frontend = rig.connect();
  rig.on_gui([&] {
    surface = rig.gui->add_surface({.width = 10, .height = 10}, other).value();
    buffer = rig.gui->create_buffer(kBytes, other).value();
    (void)rig.gui->present(surface, rig.content(buffer, kWidth, kHeight), kAll);
  });
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
  ASSERT_TRUE(eventually([&] {
    size_t heard = 0;
    rig.on_gui([&] { heard = other.events.size(); });
    return heard == 1;
  }));
  rig.on_gui([&] {
    rig.gui->forget_listener(other);
    other = {};
  });
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
  ASSERT_TRUE(eventually([&] { return rig.count(rig.ledger().freed.buffers) == 1; }));
  rig.on_gui([&] {
    EXPECT_TRUE(other.events.empty());
    EXPECT_TRUE(other.freed.empty());
    EXPECT_TRUE(other.done.empty());
  });
}

// The connection has ended, but the core has not looked yet: what it holds down is not lifted by a
// listener that is gone, nor by another one in its place.
TEST(GuiTest, a_listener_that_is_forgotten_hears_nothing_of_a_connection_that_just_ended) {
  GuiRig rig;
  FakeCreator other;
  SurfaceId surface = 0;
  const auto add = [&] { return rig.gui->add_surface({.width = 10, .height = 10}, other).value(); };
  auto frontend = std::make_unique<FakeFrontend>(rig.connect());
  rig.on_gui([&] { surface = add(); });
  frontend->send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
  const auto heard = [&] {
    size_t events = 0;
    rig.on_gui([&] { events = other.events.size(); });
    return events;
  };
  ASSERT_TRUE(eventually([&] { return heard() == 1; }));
  rig.on_gui([&] {
    frontend.reset();
    rig.gui->update_surface(surface, {.width = 20, .height = 20});  // the message finds nobody
    rig.gui->forget_listener(other);
    other = {};
    surface = add();
  });
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 0; }));
  EXPECT_EQ(heard(), 0U);
  rig.on_gui([&] { rig.gui->forget_listener(other); });
}

TEST(GuiTest, there_are_limits_of_surfaces_buffers_and_bytes) {
  GuiRig rig({.buffers_max = 4, .bytes_max = 16 * kBytes});
  rig.on_gui([&] {
    for (uint32_t i = 0; i < gui::kSurfacesMax; ++i)
      ASSERT_TRUE(rig.gui->add_surface({}, rig.creator));
    EXPECT_FALSE(rig.gui->add_surface({}, rig.creator));
    EXPECT_FALSE(rig.gui->create_buffer(0, rig.creator));
    EXPECT_FALSE(rig.gui->create_buffer(gui::kBufferBytesMax + 1, rig.creator));
    EXPECT_FALSE(rig.gui->create_buffer(17 * kBytes, rig.creator));
    const BufferId large = rig.gui->create_buffer(13 * kBytes, rig.creator).value();
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(rig.gui->create_buffer(kBytes, rig.creator));
    EXPECT_FALSE(rig.gui->create_buffer(kBytes, rig.creator)) << "the fifth";
    rig.gui->release_buffer(large);
    EXPECT_TRUE(rig.gui->create_buffer(13 * kBytes, rig.creator)) << "room is made at once";
  });
}

}  // namespace
}  // namespace lethe
