// lethe-agent under Xvfb, with a fake host. Without Xvfb, xterm and xclock (packages xvfb, xterm,
// x11-apps) the tests skip.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/input-event-codes.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>

#include "guest-tests/linux/agent/agent.h"
#include "guest-tests/linux/agent/fake_host.h"

namespace lethe::agent {
namespace {

using std::chrono::steady_clock;
constexpr std::chrono::seconds kDeadline{20};
constexpr uint32_t kRed = 0xCC2211;
constexpr uint32_t kBlue = 0x1144BB;

bool installed(const char* program) {
  return access((std::string("/usr/bin/") + program).c_str(), X_OK) == 0;
}

// A child process that does not outlive the test.
class Program {
 public:
  explicit Program(std::vector<std::string> command, int keep_fd = -1) {
    std::vector<char*> argv;
    for (auto& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    x_pid = fork();
    if (x_pid == 0) {
      const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
      dup2(null, 0);
      dup2(null, 1);
      dup2(null, 2);
      if (keep_fd >= 0) fcntl(keep_fd, F_SETFD, 0);
      execvp(argv[0], argv.data());
      _exit(127);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() { kill_now(); }
  void kill_now() {
    if (x_pid <= 0) return;
    kill(x_pid, SIGKILL);
    waitpid(x_pid, nullptr, 0);
    x_pid = 0;
  }
  [[nodiscard]] bool ended() {
    if (x_pid > 0 && waitpid(x_pid, nullptr, WNOHANG) == x_pid) x_pid = 0;
    return x_pid == 0;
  }

 private:
  pid_t x_pid = 0;
};

// Xvfb on a display number of its own choice.
class XServer {
 public:
  XServer() {
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) return;
    UniqueFd number(ends[0]);
    UniqueFd theirs(ends[1]);
    x_program.emplace(std::vector<std::string>{"Xvfb", "-displayfd", std::to_string(theirs.get()),
                                               "-screen", "0", "1024x768x24", "-nolisten", "tcp"},
                      theirs.get());
    theirs.reset();
    pollfd waiting{.fd = number.get(), .events = POLLIN, .revents = 0};
    std::array<char, 16> text{};
    const auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline).count();
    if (poll(&waiting, 1, static_cast<int>(timeout)) == 1 &&
        read(number.get(), text.data(), text.size() - 1) > 0)
      x_name = ":" + std::to_string(std::atoi(text.data()));
  }
  [[nodiscard]] const std::string& name() const { return x_name; }
  void kill_now() { x_program->kill_now(); }

 private:
  std::optional<Program> x_program;
  std::string x_name;
};

// An X client with windows of one colour.
class Client {
 public:
  explicit Client(const std::string& display) : x(xcb_connect(display.c_str(), nullptr)) {
    screen = xcb_setup_roots_iterator(xcb_get_setup(x)).data;
  }
  ~Client() { xcb_disconnect(x); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  xcb_window_t window(int16_t left, int16_t top, uint16_t width, uint16_t height, uint32_t colour,
                      bool override_redirect = false) const {
    const xcb_window_t id = xcb_generate_id(x);
    const std::array<uint32_t, 3> values = {
        colour, override_redirect ? 1u : 0u,
        XCB_EVENT_MASK_KEY_PRESS | XCB_EVENT_MASK_BUTTON_PRESS | XCB_EVENT_MASK_POINTER_MOTION};
    xcb_create_window(x, XCB_COPY_FROM_PARENT, id, screen->root, left, top, width, height, 0,
                      XCB_WINDOW_CLASS_INPUT_OUTPUT, screen->root_visual,
                      XCB_CW_BACK_PIXEL | XCB_CW_OVERRIDE_REDIRECT | XCB_CW_EVENT_MASK,
                      values.data());
    return id;
  }
  void title(xcb_window_t id, const std::string& text) const {
    xcb_change_property(x, XCB_PROP_MODE_REPLACE, id, XCB_ATOM_WM_NAME, XCB_ATOM_STRING, 8,
                        static_cast<uint32_t>(text.size()), text.data());
  }
  void map(xcb_window_t id, const std::string& text) const {
    title(id, text);
    xcb_map_window(x, id);
    xcb_flush(x);
  }
  void fill(xcb_window_t id, xcb_rectangle_t part, uint32_t colour) const {
    const xcb_gcontext_t gc = xcb_generate_id(x);
    xcb_create_gc(x, gc, id, XCB_GC_FOREGROUND, &colour);
    xcb_poly_fill_rectangle(x, id, gc, 1, &part);
    xcb_free_gc(x, gc);
    xcb_flush(x);
  }
  // The whole window as XGetImage sees it, 32 bits a pixel.
  [[nodiscard]] std::vector<uint32_t> image(xcb_window_t id, uint16_t width,
                                            uint16_t height) const {
    XReply<xcb_get_image_reply_t> reply(xcb_get_image_reply(
        x, xcb_get_image(x, XCB_IMAGE_FORMAT_Z_PIXMAP, id, 0, 0, width, height, ~0u), nullptr));
    std::vector<uint32_t> pixels(size_t{width} * height);
    if (!reply) return {};
    std::memcpy(pixels.data(), xcb_get_image_data(reply.get()), pixels.size() * 4);
    for (auto& pixel : pixels) pixel &= 0xFF'FFFF;
    return pixels;
  }
  // The next event of this type that is there by now; null: none.
  [[nodiscard]] XReply<xcb_generic_event_t> event(uint8_t type) const {
    while (auto* got = xcb_poll_for_event(x)) {
      XReply<xcb_generic_event_t> event(got);
      if ((event->response_type & 0x7F) == type) return event;
    }
    return nullptr;
  }

  xcb_connection_t* x;
  xcb_screen_t* screen;
};

class AgentTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (!installed("Xvfb")) GTEST_SKIP() << "no Xvfb here: apt-get install xvfb";
    server.emplace();
    ASSERT_NE(server->name(), "") << "Xvfb does not start";
    host.shares_memory = GetParam();
    connect();
  }
  void connect() {
    auto opened = XConnection::open(server->name(), true);
    ASSERT_TRUE(opened) << opened.error().text;
    x = std::move(*opened);
    agent.emplace(*x, host);
  }
  void TearDown() override {
    agent.reset();
    EXPECT_THAT(host.complaints, testing::IsEmpty());
    EXPECT_EQ(host.buffers, 0u);
    EXPECT_EQ(host.windows.size(), 0u);
  }
  // Lets the agent work until it is so.
  [[nodiscard]] bool until(const std::function<bool()>& condition) {
    const auto end = steady_clock::now() + kDeadline;
    while (!condition()) {
      if (steady_clock::now() > end || !agent->step(20)) return false;
    }
    return true;
  }
  [[nodiscard]] const FakeWindow* shown(const std::string& title) {
    const FakeWindow* found = nullptr;
    const bool there = until([&] {
      found = host.by_title(title);
      return found != nullptr && found->frames > 0;
    });
    return there ? found : nullptr;
  }
  [[nodiscard]] bool same_content(const Client& client, const FakeWindow& window,
                                  xcb_window_t id) const {
    const auto width = static_cast<uint16_t>(window.content.width);
    const auto height = static_cast<uint16_t>(window.content.height);
    const auto pixels = client.image(id, width, height);
    if (pixels.empty()) return false;
    for (uint32_t y = 0; y < height; ++y)
      for (uint32_t x_at = 0; x_at < width; ++x_at)
        if (host.pixel(window.state.window, x_at, y) != pixels[size_t{y} * width + x_at])
          return false;
    return true;
  }
  void type(uint32_t window, const std::vector<uint32_t>& codes) {
    for (const uint32_t code : codes) {
      host.push(window::kEventKey, window, code, 1);
      host.push(window::kEventKey, window, code, 0);
    }
  }

  std::optional<XServer> server;
  FakeHost host;
  std::unique_ptr<XConnection> x;
  std::optional<Agent> agent;
};

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
  Program xterm({"xterm", "-display", server->name(), "-title", "typed", "-e", "sh", "-c",
                 "read line; echo \"$line\" > " + file + "; exec sleep 60"});
  ASSERT_NE(shown("typed"), nullptr);
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
  connect();
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
