// lethe-vnc seen with others' eyes: Debian's gvnccapture, and noVNC in Chromium.
#include <linux/input-event-codes.h>
#include <poll.h>
#include <pty.h>

#include "frontend/shot/png_file.h"
#include "frontend/vnc/fake_browser.h"
#include "frontend/vnc/vnc_fixture.h"

namespace lethe::gui {
namespace {

class VncClients : public VncProgram {
 protected:
  void start_on_port() {
    start({"work", "--port", "0", "--web-port", "0", "--password-file", folder_ + "/password",
           "--web", LETHE_NOVNC_FOLDER});
    serve();
    port_ = port("VNC on 127.0.0.1:");
    web_port_ = port("http://127.0.0.1:");
    ASSERT_TRUE(port_ != 0 && web_port_ != 0) << log();
    // VNC's display numbers begin at port 5900; the kernel's own ports at 32768 (ip(7)).
    ASSERT_GE(port_, 5900) << "see /proc/sys/net/ipv4/ip_local_port_range";
  }
  // Few colours, in blocks: clients that choose lossy encodings have no reason to.
  static Picture blocks() {
    Picture picture(kWidth, kHeight);
    for (uint32_t y = 0; y < kHeight; ++y)
      for (uint32_t x = 0; x < kWidth; ++x)
        picture.line(y)[x] = ((x / 40 + y / 25) % 2 == 0) ? 0x204080 : 0xFFCC11;
    return picture;
  }
  uint16_t port_ = 0, web_port_ = 0;
};

// gvnccapture asks for the password on its terminal.
int run_gvnccapture(uint16_t port, const std::string& file, const std::string& password,
                    std::string& said) {
  int terminal = -1;
  const std::string display = "127.0.0.1:" + std::to_string(port - 5900);
  const pid_t pid = ::forkpty(&terminal, nullptr, nullptr, nullptr);
  if (pid == 0) {
    ::execlp("gvnccapture", "gvnccapture", display.c_str(), file.c_str(),
             static_cast<char*>(nullptr));
    std::_Exit(127);
  }
  const UniqueFd closer(terminal);
  // It may throw away what was typed before it had switched the echo off: typed until it goes on.
  char bytes[512];
  pollfd waiting{.fd = terminal, .events = POLLIN, .revents = 0};
  for (int silent = 0; silent < 40;) {
    if (::poll(&waiting, 1, 500) != 1) {
      ++silent;
    } else {
      const ssize_t got = ::read(terminal, bytes, sizeof bytes);
      if (got <= 0) break;
      said.append(bytes, static_cast<size_t>(got));
      if (said.find("assword") == std::string::npos) continue;
    }
    if (said.find("onnect") == std::string::npos)
      (void)!::write(terminal, (password + "\n").c_str(), password.size() + 1);
  }
  int status = 0;
  if (!eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; })) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(VncClients, gvnccapture_captures_the_same_picture) {
  start_on_port();
  std::string said;
  EXPECT_EQ(run_gvnccapture(port_, folder_ + "/out.png", "secret12", said), 0) << said;
  const auto png = read_png(folder_ + "/out.png");
  ASSERT_TRUE(png) << png.error().text << said;
  EXPECT_EQ(*png, picture_);
}

TEST_F(VncClients, a_wrong_password_shows_nothing) {
  start_on_port();
  std::string said;
  EXPECT_NE(run_gvnccapture(port_, folder_ + "/out.png", "secret13", said), 0) << said;
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/out.png"));
}

TEST_F(VncClients, chromium_shows_the_novnc_page_and_clicks_and_keys_arrive) {
  if (!std::filesystem::exists(std::string(LETHE_NOVNC_FOLDER) + "/core/rfb.js"))
    GTEST_SKIP() << "noVNC is not in " LETHE_NOVNC_FOLDER ": ./dev setup could not fetch it";
  picture_ = blocks();
  start_on_port();
  FakeBrowser browser(folder_);
  ASSERT_TRUE(browser.running()) << "chromium does not start";
  ASSERT_TRUE(
      browser.open("http://127.0.0.1:" + std::to_string(web_port_) + "/#password=secret12"));
  ASSERT_TRUE(browser.wait_until("!!window.lethe && lethe._rfbConnectionState == 'connected'"))
      << browser.evaluate("document.body.innerText").value_or("no answer") << log();
  // Each pixel of the canvas, as RRGGBB.
  const std::string pixels =
      "(() => { const c = document.querySelector('canvas'); "
      "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let t = ''; "
      "for (let i = 0; i < d.length; i += 4) "
      "t += ((1 << 24) + (d[i] << 16) + (d[i + 1] << 8) + d[i + 2]).toString(16).slice(1); "
      "return t; })()";
  std::string expected;
  for (const Pixel pixel : picture_.pixels) expected += fmt::format("{:06x}", pixel);
  EXPECT_TRUE(eventually([&] { return browser.evaluate(pixels) == expected; }));

  // The canvas is scaled to the page's 400 pixels of width: its middle stays the middle.
  ASSERT_TRUE(
      browser.evaluate("(() => { const r = document.querySelector('canvas')"
                       ".getBoundingClientRect(); window.at = [Math.round(r.x + r.width / "
                       "2), Math.round(r.y + r.height / 2)]; return ''; })()"));
  const int x = std::atoi(browser.evaluate("'' + window.at[0]").value_or("0").c_str());
  const int y = std::atoi(browser.evaluate("'' + window.at[1]").value_or("0").c_str());
  ASSERT_TRUE(browser.click(x, y));
  const auto motion = vm_->receive_until<Motion>(Type::kMotion);
  ASSERT_TRUE(motion) << vm_->complaint();
  EXPECT_NEAR(motion->x, kWidth / 2, 2);
  EXPECT_NEAR(motion->y, kHeight / 2, 2);
  const auto press = vm_->receive_until<Button>(Type::kButton);
  ASSERT_TRUE(press && press->code == BTN_LEFT && press->down == 1) << vm_->complaint();
  ASSERT_TRUE(browser.press_key('a'));
  expect_key(KEY_A, true);
  expect_key(KEY_A, false);
}

}  // namespace
}  // namespace lethe::gui
