// What lethe-agent's tests share: an X server, programs and clients of it, the agent beside a fake
// host.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "guest-tests/linux/agent/agent.h"
#include "guest-tests/linux/agent/fake_host.h"

namespace lethe::agent {

using std::chrono::steady_clock;
inline constexpr std::chrono::seconds kDeadline{20};
inline constexpr uint32_t kRed = 0xCC2211;
inline constexpr uint32_t kBlue = 0x1144BB;

inline bool installed(const char* program) {
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
    if (x_pid > 0 && waitpid(x_pid, &x_status, WNOHANG) == x_pid) x_pid = 0;
    return x_pid == 0;
  }
  [[nodiscard]] int status() const { return x_status; }  // waitpid(2)'s, after ended()

 private:
  pid_t x_pid = 0;
  int x_status = 0;
};

// Xvfb on a display number that no other test has: servers that choose one themselves remove each
// other's sockets now and then.
class XServer {
 public:
  XServer() {
    static int count = 0;
    const int display = 1000 + (getpid() * 8 + count++) % 50'000;
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) return;
    UniqueFd number(ends[0]);
    UniqueFd theirs(ends[1]);
    x_program.emplace(std::vector<std::string>{"Xvfb", ":" + std::to_string(display), "-displayfd",
                                               std::to_string(theirs.get()), "-screen", "0",
                                               "1024x768x24", "-noreset", "-nolisten", "tcp"},
                      theirs.get());
    theirs.reset();
    pollfd waiting{.fd = number.get(), .events = POLLIN, .revents = 0};
    std::array<char, 16> text{};
    const auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(kDeadline).count();
    if (poll(&waiting, 1, static_cast<int>(timeout)) != 1 ||
        read(number.get(), text.data(), text.size() - 1) <= 0)
      return;
    const std::string name = ":" + std::to_string(display);
    for (const auto end = steady_clock::now() + kDeadline; steady_clock::now() < end;) {
      xcb_connection_t* probe = xcb_connect(name.c_str(), nullptr);
      const int error = xcb_connection_has_error(probe);
      xcb_disconnect(probe);
      if (error == 0) {
        x_name = name;
        return;
      }
      std::fprintf(stderr, "Xvfb %s: error %d of the first connection\n", name.c_str(), error);
    }
  }
  [[nodiscard]] const std::string& name() const { return x_name; }
  void kill_now() { x_program->kill_now(); }
  [[nodiscard]] std::string state() {
    return x_program->ended() ? "Xvfb ended, status " + std::to_string(x_program->status())
                              : "Xvfb runs";
  }

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
    ASSERT_NO_FATAL_FAILURE(connect());
  }
  void connect() {
    auto opened = XConnection::open(server->name(), true);
    ASSERT_TRUE(opened) << opened.error().text << "; " << server->state();
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

}  // namespace lethe::agent
