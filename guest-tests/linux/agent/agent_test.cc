// lethe-agent under Xvfb, with a fake host. Without Xvfb, xterm and xclock (packages xvfb, xterm,
// x11-apps) the tests skip.
#include <linux/input-event-codes.h>

#include <fstream>

#include "guest-tests/linux/agent/agent_test_util.h"

namespace lethe::agent {
namespace {

INSTANTIATE_TEST_SUITE_P(, AgentTest, testing::Bool(), [](const auto& run) {
  return run.param ? "drawn_by_the_server" : "copied";
});

TEST_P(AgentTest, shows_windows_that_are_there_and_new_ones_with_their_content) {
  Client client(server->name());
  const auto red = client.window(10, 20, 200, 100, kRed);
  client.map(red, "red");
  ASSERT_NE(shown("red"), nullptr);
  agent.reset();  // and one that finds the window there
  EXPECT_EQ(host.windows.size(), 0u);
  agent.emplace(*x, host);
  const auto blue = client.window(50, 60, 301, 77, kBlue);
  client.map(blue, "blue");
  const FakeWindow* red_window = shown("red");
  const FakeWindow* blue_window = shown("blue");
  ASSERT_NE(red_window, nullptr);
  ASSERT_NE(blue_window, nullptr);
  EXPECT_EQ(host.windows.size(), 2u);
  EXPECT_EQ(red_window->state.x, 10);
  EXPECT_EQ(red_window->state.y, 20);
  EXPECT_EQ(red_window->state.width, 200u);
  EXPECT_EQ(red_window->state.flags, window::kWindowVisible | window::kWindowResizable);
  EXPECT_EQ(host.pixel(red_window->state.window, 199, 99), kRed);
  // They overlap on the guest's screen; each is shown whole.
  EXPECT_TRUE(until([&] { return same_content(client, *red_window, red); }));
  EXPECT_TRUE(until([&] { return same_content(client, *blue_window, blue); }));
  EXPECT_EQ(agent->counters().direct_frames > 0, GetParam());
}

TEST_P(AgentTest, damage_brings_the_window_up_to_date) {
  Client client(server->name());
  const auto id = client.window(0, 0, 320, 240, kRed);
  client.map(id, "canvas");
  const FakeWindow* window = shown("canvas");
  ASSERT_NE(window, nullptr);
  for (int16_t i = 0; i < 40; ++i) {
    client.fill(id, {static_cast<int16_t>(i * 7), static_cast<int16_t>(i * 5), 31, 17},
                kBlue + static_cast<uint32_t>(i));
    ASSERT_TRUE(until([&] { return same_content(client, *window, id); })) << i;
  }
  EXPECT_GT(window->frames, 10u);
}

TEST_P(AgentTest, shows_what_is_in_child_windows) {
  Client client(server->name());
  const auto id = client.window(0, 0, 160, 120, kRed);
  const auto child = client.window(20, 30, 50, 40, kBlue);
  xcb_reparent_window(client.x, child, id, 20, 30);
  xcb_map_window(client.x, child);
  client.map(id, "parent");
  const FakeWindow* window = shown("parent");
  ASSERT_NE(window, nullptr);
  const uint32_t number = window->state.window;
  EXPECT_TRUE(until([&] { return host.pixel(number, 20, 30) == kBlue; }));
  client.fill(child, {10, 10, 5, 5}, kRed);
  EXPECT_TRUE(until([&] { return host.pixel(number, 32, 42) == kRed; }));
  EXPECT_TRUE(same_content(client, *window, id));
  EXPECT_EQ(host.windows.size(), 1u);
}

TEST_P(AgentTest, tells_of_a_frame_only_when_it_is_drawn) {
  Client client(server->name());
  const auto id = client.window(0, 0, 640, 480, kRed);
  client.map(id, "drawn");
  const FakeWindow* window = shown("drawn");
  ASSERT_NE(window, nullptr);
  uint32_t colour = kRed;
  uint32_t early = 0;
  host.on_frame = [&](uint32_t number) { early += host.pixel(number, 639, 479) != colour ? 1 : 0; };
  for (uint32_t i = 1; i <= 20; ++i) {
    ASSERT_TRUE(agent->step(0));
    colour = kBlue + i;
    const uint32_t frames = window->frames;
    client.fill(id, {0, 0, 640, 480}, colour);
    ASSERT_TRUE(until([&] { return window->frames > frames; }));
  }
  EXPECT_EQ(early, 0u);
}

TEST_P(AgentTest, draws_no_frame_over_one_that_is_being_read) {
  Client client(server->name());
  const auto id = client.window(0, 0, 64, 64, kRed);
  host.answers_done = false;
  client.map(id, "slow");
  const FakeWindow* window = shown("slow");
  ASSERT_NE(window, nullptr);
  const uint32_t number = window->state.window;
  client.fill(id, {0, 0, 64, 64}, kBlue);
  const auto until_then = steady_clock::now() + Agent::kReadPatience / 2;
  while (steady_clock::now() < until_then) ASSERT_TRUE(agent->step(10));
  EXPECT_EQ(window->frames, 1u);
  EXPECT_EQ(host.pixel(number, 5, 5), kRed);
  host.push(window::kEventDone, number, window->serial);
  EXPECT_TRUE(until([&] { return host.pixel(number, 5, 5) == kBlue; }));
  EXPECT_EQ(window->frames, 2u);
  // A lost answer does not stop a window for good.
  client.fill(id, {0, 0, 64, 64}, kRed);
  EXPECT_TRUE(until([&] { return host.pixel(number, 5, 5) == kRed; }));
}

TEST_P(AgentTest, follows_title_move_resize_and_unmap) {
  Client client(server->name());
  const auto id = client.window(0, 0, 100, 100, kRed);
  client.map(id, "one");
  const FakeWindow* window = shown("one");
  ASSERT_NE(window, nullptr);
  client.title(id, "Zw\xF6lf");  // Latin-1
  const std::array<uint32_t, 4> values = {300, 200, 150, 50};
  xcb_configure_window(client.x, id, 15, values.data());
  xcb_flush(client.x);
  EXPECT_TRUE(until([&] { return window->title == "Zwölf" && window->content.width == 150; }));
  EXPECT_EQ(window->state.x, 300);
  EXPECT_EQ(window->state.y, 200);
  EXPECT_EQ(window->state.height, 50u);
  EXPECT_TRUE(until([&] { return same_content(client, *window, id); }));
  EXPECT_TRUE(until([&] { return host.buffers == 1; }));
  xcb_unmap_window(client.x, id);
  xcb_flush(client.x);
  EXPECT_TRUE(until([&] { return host.windows.empty() && host.buffers == 0; }));
  client.map(id, "again");
  EXPECT_NE(shown("again"), nullptr);
  xcb_destroy_window(client.x, id);
  xcb_flush(client.x);
  EXPECT_TRUE(until([&] { return host.windows.empty(); }));
}

TEST_P(AgentTest, menus_are_popups_and_transients_are_dialogs_of_their_parents) {
  Client client(server->name());
  const auto main = client.window(0, 0, 200, 200, kRed);
  client.map(main, "main");
  ASSERT_NE(shown("main"), nullptr);
  const uint32_t number = host.by_title("main")->state.window;
  const auto dialog = client.window(20, 20, 50, 50, kBlue);
  xcb_change_property(client.x, XCB_PROP_MODE_REPLACE, dialog, XCB_ATOM_WM_TRANSIENT_FOR,
                      XCB_ATOM_WINDOW, 32, 1, &main);
  client.map(dialog, "dialog");
  ASSERT_NE(shown("dialog"), nullptr);
  EXPECT_EQ(host.by_title("dialog")->state.parent, number);
  EXPECT_TRUE((host.by_title("dialog")->state.flags & window::kWindowDialog) != 0);
  host.push(window::kEventFocus, number, 1);
  ASSERT_TRUE(agent->step(100));
  const auto menu = client.window(30, 30, 60, 90, kBlue, true);
  client.map(menu, "menu");
  ASSERT_NE(shown("menu"), nullptr);
  EXPECT_EQ(host.by_title("menu")->state.parent, number);
  EXPECT_EQ(host.by_title("menu")->state.flags, window::kWindowVisible | window::kWindowPopup);
  // What toolkits keep outside the screen is nobody's window.
  const auto helper = client.window(-100, -100, 1, 1, kBlue, true);
  client.map(helper, "helper");
  client.title(main, "later");
  xcb_flush(client.x);
  ASSERT_TRUE(until([&] { return host.by_title("later") != nullptr; }));
  EXPECT_EQ(host.by_title("helper"), nullptr);
}

TEST_P(AgentTest, pointer_and_wheel_reach_the_window_they_are_meant_for) {
  Client client(server->name());
  const auto below = client.window(100, 100, 200, 200, kRed);
  client.map(below, "below");
  ASSERT_NE(shown("below"), nullptr);
  const auto above = client.window(100, 100, 200, 200, kBlue);
  client.map(above, "above");
  ASSERT_NE(shown("above"), nullptr);
  const uint32_t number = host.by_title("below")->state.window;
  host.push(window::kEventMotion, number, 12, 34);
  host.push(window::kEventButton, number, BTN_RIGHT, 1);
  host.push(window::kEventButton, number, BTN_RIGHT, 0);
  host.push(window::kEventWheel, number, static_cast<uint32_t>(-1), 0);
  std::vector<xcb_button_press_event_t> presses;
  EXPECT_TRUE(until([&] {
    // SAFETY: the event's type says that it is this struct.
    while (auto event = client.event(XCB_BUTTON_PRESS))
      presses.push_back(*reinterpret_cast<xcb_button_press_event_t*>(event.get()));
    return presses.size() == 2;
  }));
  ASSERT_EQ(presses.size(), 2u);
  EXPECT_EQ(presses[0].detail, 3);
  EXPECT_EQ(presses[0].event, below);
  EXPECT_EQ(presses[0].event_x, 12);
  EXPECT_EQ(presses[0].event_y, 34);
  EXPECT_EQ(presses[1].detail, 5);
  // A button that X does not know is counted, a window that is gone is not.
  host.push(window::kEventButton, number, 0x2C0, 1);
  host.push(window::kEventKey, number, 0x2FF, 1);
  host.push(window::kEventKey, 12345, KEY_A, 1);
  EXPECT_TRUE(until([&] { return agent->counters().input_refused == 2; }));
}

TEST_P(AgentTest, focus_goes_where_the_host_says_and_away) {
  Client client(server->name());
  const auto atom = [&](const std::string& name) {
    XReply<xcb_intern_atom_reply_t> reply(xcb_intern_atom_reply(
        client.x, xcb_intern_atom(client.x, 0, static_cast<uint16_t>(name.size()), name.c_str()),
        nullptr));
    return reply->atom;
  };
  const auto focused_is = [&](xcb_window_t window) {
    XReply<xcb_get_input_focus_reply_t> reply(
        xcb_get_input_focus_reply(client.x, xcb_get_input_focus(client.x), nullptr));
    return reply->focus == window;
  };
  const auto one = client.window(0, 0, 100, 100, kRed);
  client.map(one, "one");
  ASSERT_NE(shown("one"), nullptr);
  const auto two = client.window(200, 0, 100, 100, kBlue);
  const xcb_atom_t protocols = atom("WM_PROTOCOLS");
  const xcb_atom_t take_focus = atom("WM_TAKE_FOCUS");
  xcb_change_property(client.x, XCB_PROP_MODE_REPLACE, two, protocols, XCB_ATOM_ATOM, 32, 1,
                      &take_focus);
  client.map(two, "two");
  ASSERT_NE(shown("two"), nullptr);
  const uint32_t first = host.by_title("one")->state.window;
  const uint32_t second = host.by_title("two")->state.window;
  host.push(window::kEventFocus, first, 1);
  EXPECT_TRUE(until([&] { return focused_is(one); }));
  host.push(window::kEventFocus, second, 1);
  EXPECT_TRUE(until([&] { return focused_is(two); }));
  EXPECT_TRUE(until([&] {
    // SAFETY: the event's type says that it is this struct.
    const auto event = client.event(XCB_CLIENT_MESSAGE);
    return event != nullptr &&
           reinterpret_cast<xcb_client_message_event_t*>(event.get())->data.data32[0] == take_focus;
  }));
  host.push(window::kEventFocus, first, 0);  // the end of an older focus changes nothing
  host.push(window::kEventFocus, second, 0);
  EXPECT_TRUE(until([&] { return focused_is(XCB_NONE); }));
}

TEST_P(AgentTest, configure_moves_and_resizes_within_the_screen) {
  Client client(server->name());
  const auto id = client.window(0, 0, 100, 100, kRed);
  client.map(id, "moved");
  const FakeWindow* window = shown("moved");
  ASSERT_NE(window, nullptr);
  host.push(window::kEventConfigure, window->state.window, static_cast<uint32_t>(-50), 5000, 240,
            120);
  EXPECT_TRUE(until([&] { return window->content.width == 240; }));
  EXPECT_EQ(window->state.x, 0);
  EXPECT_EQ(window->state.y, 768 - 120);
}

TEST_P(AgentTest, keys_typed_at_xterm_arrive_and_closing_it_ends_it) {
  if (!installed("xterm")) GTEST_SKIP() << "no xterm here: apt-get install xterm";
  const std::string file = testing::TempDir() + "/agent-typed-" + std::to_string(getpid());
  unlink(file.c_str());
  Program xterm(
      {"xterm", "-display", server->name(), "-title", "typed", "-e", "sh", "-c",
       "echo > " + file + ".ready; read line; echo \"$line\" > " + file + "; exec sleep 60"});
  ASSERT_NE(shown("typed"), nullptr);
  ASSERT_TRUE(until([&] { return access((file + ".ready").c_str(), F_OK) == 0; }));
  // xterm asks for key presses a little after it has mapped its window.
  ASSERT_TRUE(until([&] {
    const auto windows = x->children(x->root());
    XReply<xcb_get_window_attributes_reply_t> attributes(xcb_get_window_attributes_reply(
        x->xcb(), xcb_get_window_attributes(x->xcb(), windows.at(0)), nullptr));
    return (attributes->all_event_masks & XCB_EVENT_MASK_KEY_PRESS) != 0;
  }));
  const uint32_t number = host.by_title("typed")->state.window;
  type(number, {KEY_L, KEY_E, KEY_T, KEY_H, KEY_E});
  host.push(window::kEventKey, number, KEY_LEFTSHIFT, 1);
  type(number, {KEY_1});
  host.push(window::kEventKey, number, KEY_LEFTSHIFT, 0);
  type(number, {KEY_ENTER});
  std::string line;
  EXPECT_TRUE(until([&] {
    std::ifstream stream(file);
    return static_cast<bool>(std::getline(stream, line));
  }));
  EXPECT_EQ(line, "lethe!");
  unlink(file.c_str());
  unlink((file + ".ready").c_str());
  EXPECT_FALSE(xterm.ended());
  host.push(window::kEventClose, number);
  EXPECT_TRUE(until([&] { return xterm.ended() && host.windows.empty(); }));
}

TEST_P(AgentTest, closing_kills_a_client_that_knows_no_better) {
  Client client(server->name());
  client.map(client.window(0, 0, 100, 100, kRed), "stubborn");
  const FakeWindow* window = shown("stubborn");
  ASSERT_NE(window, nullptr);
  host.push(window::kEventClose, window->state.window);
  EXPECT_TRUE(until([&] { return host.windows.empty(); }));
  xcb_flush(client.x);
  EXPECT_TRUE(
      until([&] { return client.event(0) == nullptr && xcb_connection_has_error(client.x); }));
}

TEST_P(AgentTest, two_programs_are_two_windows) {
  if (!installed("xclock") || !installed("xterm"))
    GTEST_SKIP() << "no xterm and xclock here: apt-get install xterm x11-apps";
  Program xterm({"xterm", "-display", server->name(), "-title", "terminal"});
  Program xclock({"xclock", "-display", server->name(), "-title", "clock"});
  ASSERT_NE(shown("terminal"), nullptr);
  ASSERT_NE(shown("clock"), nullptr);
  EXPECT_EQ(host.windows.size(), 2u);
  host.push(window::kEventClose, host.by_title("clock")->state.window);
  EXPECT_TRUE(until([&] { return xclock.ended() && host.windows.size() == 1; }));
  EXPECT_NE(host.by_title("terminal"), nullptr);
  EXPECT_FALSE(xterm.ended());
}

TEST_P(AgentTest, the_end_of_the_x_server_takes_its_windows_and_the_next_one_is_served) {
  {
    Client client(server->name());
    client.map(client.window(0, 0, 100, 100, kRed), "old");
    ASSERT_NE(shown("old"), nullptr);
  }
  server->kill_now();
  EXPECT_TRUE(until([&] { return x->broken(); }));
  agent.reset();
  EXPECT_EQ(host.windows.size(), 0u);
  EXPECT_EQ(host.buffers, 0u);
  server.emplace();
  ASSERT_NE(server->name(), "");
  ASSERT_NO_FATAL_FAILURE(connect());
  Client client(server->name());
  client.map(client.window(0, 0, 100, 100, kBlue), "new");
  EXPECT_NE(shown("new"), nullptr);
}

TEST_P(AgentTest, a_window_manager_that_runs_keeps_its_rights) {
  agent.reset();
  auto second = XConnection::open(server->name(), true);  // `x` has the root's redirection
  ASSERT_TRUE(second) << second.error().text;
  EXPECT_TRUE(x->manages());
  EXPECT_FALSE((*second)->manages());
}

TEST_P(AgentTest, many_windows_come_and_go_and_nothing_stays) {
  Client client(server->name());
  for (int round = 0; round < 20; ++round) {
    std::vector<xcb_window_t> ids;
    for (int16_t i = 0; i < 30; ++i) {
      ids.push_back(client.window(i, i, static_cast<uint16_t>(20 + i * 9),
                                  static_cast<uint16_t>(20 + i * 5), kBlue));
      client.map(ids.back(), std::to_string(i));
    }
    if (round % 2 == 0) {
      ASSERT_TRUE(until([&] { return host.windows.size() == ids.size(); }));
    }
    for (const auto id : ids) xcb_destroy_window(client.x, id);
    xcb_flush(client.x);
    XReply<xcb_get_input_focus_reply_t> synced(
        xcb_get_input_focus_reply(client.x, xcb_get_input_focus(client.x), nullptr));
  }
  EXPECT_TRUE(until([&] { return host.windows.empty() && host.buffers == 0; }));
}

TEST(AgentCommands, a_long_batch_is_cut_between_commands) {
  FakeHost host;
  Commands commands(host);
  for (uint32_t i = 1; i <= 2000; ++i) {
    window::WindowCreate create{};
    create.window = i;
    create.width = create.height = 1;
    commands.add(window::kWindowCreate, create);
  }
  ASSERT_TRUE(commands.flush());
  EXPECT_EQ(host.windows.size(), 2000u);
  EXPECT_THAT(host.complaints, testing::IsEmpty());
  EXPECT_TRUE(commands.empty());
}

TEST(AgentText, titles_are_cut_at_characters_and_made_utf8) {
  EXPECT_EQ(utf8_cut("Zwölf", 3), "Zw");
  EXPECT_EQ(utf8_cut("Zwölf", 4), "Zwö");
  EXPECT_EQ(utf8_cut("a\xFF\xC3", 10), "a??");
  EXPECT_EQ(utf8_cut("", 10), "");
}

}  // namespace
}  // namespace lethe::agent
