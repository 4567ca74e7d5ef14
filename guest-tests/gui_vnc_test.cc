// lethe-vnc with a running VM (label kvm): Debian's own VNC clients take the picture that the guest
// draws (baremetal/guests/picture.h), and a headless Chromium sees it through noVNC's page, where a
// click reaches the guest.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <sstream>

#include "frontend/vnc/fake_browser.h"
#include "guest-tests/gui_pictures.h"
#include "guest-tests/gui_vm.h"
#include "guest-tests/pty_process.h"

namespace {

using namespace lethe_test;

constexpr int kFirstPort = 5900;  // clients count displays from there
constexpr const char* kPassword = "letmein1";
// The same as a VNC password file has it: encrypted by DES with the key that all programs share.
constexpr const char* kPasswordFile = "\x4c\x18\xdc\xb1\xf8\x92\xd1\x73";
constexpr int kLossy = 60;  // how far JPEG may be off, of 255

class VncTest : public GuiVm {
 protected:
  // The demo, and lethe-vnc on a port that clients can be told as a display.
  void start_vnc() {
    ASSERT_NO_FATAL_FAILURE(start("demo.elf", "still=1"));
    ASSERT_TRUE(x_vm.says_soon("demo: look with"));
    std::ofstream(x_dir + "/password") << kPassword << "\n";
    ASSERT_EQ(chmod((x_dir + "/password").c_str(), 0600), 0);
    // Somebody may take the port first: another one then.
    for (int tries = 0; tries < 10 && x_port == 0; ++tries) {
      const int port = free_port();
      x_vnc = Program({program_folder() / "lethe", "vnc", "vm", "--port", std::to_string(port),
                       "--web-port", "0", "--password-file", x_dir + "/password"},
                      x_dir + "/vnc.log");
      if (soon([&] { return said("Browsers on") || !x_vnc.runs(); }) && x_vnc.runs()) x_port = port;
    }
    ASSERT_NE(x_port, 0) << x_vnc.said();
  }
  [[nodiscard]] bool said(const std::string& text) const {
    return x_vnc.said().find(text) != std::string::npos;
  }
  // Among those that displays 1 to 99 have.
  static int free_port() {
    for (int i = 0; i < 99; ++i) {
      const int port = kFirstPort + 1 + (getpid() + i) % 99;
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(static_cast<uint16_t>(port));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      // SAFETY: a sockaddr_in is given as the sockaddr that bind() wants, with its size.
      const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
      close(fd);
      if (bound) return port;
    }
    return 0;
  }
  [[nodiscard]] std::string display() const {
    return "127.0.0.1:" + std::to_string(x_port - kFirstPort);
  }
  // Both windows of the demo are in the picture, where the guest has put them.
  static void expect_windows(const Image& image, int tolerance) {
    ASSERT_FALSE(image.pixels.empty());
    const auto river = find_in(image, window_image("RIVER", 0), tolerance);
    const auto boat = find_in(image, window_image("BOAT", 0), tolerance);
    ASSERT_TRUE(river && boat);
    EXPECT_EQ(boat->x - river->x, 200U);
    EXPECT_EQ(boat->y - river->y, 40U);
  }

  // What noVNC has drawn.
  static Image canvas(lethe::gui::FakeBrowser& browser) {
    const auto text = browser.evaluate(
        "(() => { const c = document.querySelector('canvas'); if (!c) return ''; "
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "const t = [c.width, c.height]; for (let i = 0; i < d.length; i += 4) "
        "t.push((d[i] << 16) + (d[i + 1] << 8) + d[i + 2]); return t.join(' '); })()");
    std::istringstream numbers(text.value_or(""));
    Image image;
    numbers >> image.width >> image.height;
    for (uint32_t pixel = 0; numbers >> pixel;) image.pixels.push_back(pixel);
    if (image.pixels.size() != size_t{image.width} * image.height) return {};
    return image;
  }
  // `password`: what is in its password file.
  [[nodiscard]] Program take_snapshot(const char* password) const {
    std::ofstream(x_dir + "/vncpasswd").write(password, 8);
    return {{"vncsnapshot", "-quiet", "-nojpeg", "-passwd", x_dir + "/vncpasswd", display(),
             x_dir + "/snapshot.jpg"},
            x_dir + "/snapshot.log"};
  }

  Program x_vnc;
  int x_port = 0;
};

TEST_F(VncTest, gvnccapture_takes_the_picture_that_the_guest_draws) {
  ASSERT_NO_FATAL_FAILURE(start_vnc());
  PtyProcess capture({"/usr/bin/gvnccapture", display(), x_dir + "/capture.png"});
  ASSERT_TRUE(capture.wait_for("Password:"));
  capture.type(std::string(kPassword) + "\n");
  EXPECT_EQ(capture.wait_for_end(), 0);
  expect_windows(decode_png(file_text(x_dir + "/capture.png")), 0);
}

TEST_F(VncTest, vncsnapshot_takes_the_same_picture) {
  ASSERT_NO_FATAL_FAILURE(start_vnc());
  Program snapshot = take_snapshot(kPasswordFile);
  EXPECT_EQ(snapshot.wait_for_end(), 0) << snapshot.said();
  expect_windows(decode_jpeg(file_text(x_dir + "/snapshot.jpg")), kLossy);
}

TEST_F(VncTest, a_wrong_password_gets_no_picture) {
  ASSERT_NO_FATAL_FAILURE(start_vnc());
  Program snapshot = take_snapshot("another1");
  EXPECT_NE(snapshot.wait_for_end(), 0) << snapshot.said();
  EXPECT_FALSE(std::filesystem::exists(x_dir + "/snapshot.jpg"));
}

TEST_F(VncTest, a_browser_sees_the_guest_on_novncs_page_and_a_click_there_reaches_it) {
  if (!std::filesystem::exists(program_folder() / "../../novnc/core/rfb.js"))
    GTEST_SKIP() << "SKIPPED: noVNC is not there: ./dev setup fetches it";
  ASSERT_NO_FATAL_FAILURE(start_vnc());
  lethe::gui::FakeBrowser browser(x_dir);
  ASSERT_TRUE(browser.running()) << "chromium does not start";
  const std::string log = x_vnc.said();
  const size_t url = log.find("http://");
  ASSERT_NE(url, std::string::npos) << log;
  ASSERT_TRUE(browser.open(log.substr(url, log.find('\n', url) - url) + "#password=" + kPassword));
  std::optional<Place> place;
  EXPECT_TRUE(soon([&] { return (place = find_in(canvas(browser), window_image("BOAT", 0))); }))
      << browser.evaluate("document.body.innerText").value_or("no answer") << x_vnc.said();
  ASSERT_TRUE(place);
  // Where the window's middle is on the page, which scales the guest's screen.
  const auto on_page = [&](const char* side, const char* start, uint32_t at) {
    const std::string expression =
        std::string(
            "(() => { const c = document.querySelector('canvas'); const r = "
            "c.getBoundingClientRect(); return '' + Math.round(r.") +
        start + " + " + std::to_string(at) + " * r." + side + " / c." + side + "); })()";
    return std::atoi(browser.evaluate(expression).value_or("0").c_str());
  };
  ASSERT_TRUE(browser.click(on_page("width", "x", place->x + picture::kWindowWidth / 2),
                            on_page("height", "y", place->y + picture::kWindowHeight / 2)));
  EXPECT_TRUE(x_vm.says_soon("click in window 2 at "));
  EXPECT_TRUE(soon([&] { return find_in(canvas(browser), window_image("BOAT", 1)).has_value(); }));
}

TEST_F(VncTest, lethe_vnc_ends_with_the_vm) {
  ASSERT_NO_FATAL_FAILURE(start_vnc());
  x_vm.kill_and_wait();
  (void)x_vnc.wait_for_end();
  EXPECT_FALSE(x_vnc.runs());
}

}  // namespace
