// The frontends as people use them, with a running VM (label kvm): lethe-view on an X server, VNC
// clients of Debian's and a browser on lethe-vnc, lethe-shot. What they show is compared with what
// the guest draws (baremetal/guests/picture.h), and a click must come out of the guest's console.

#include <algorithm>

#include "guest-tests/gui_pictures.h"
#include "guest-tests/gui_vm.h"

namespace {

using namespace lethe_test;

class FrontendTest : public GuiVm {
 protected:
  void start_demo() {
    ASSERT_NO_FATAL_FAILURE(start("demo.elf", "still=1"));
    ASSERT_TRUE(x_vm.says_soon("demo: look with"));
  }
  void TearDown() override {
    unsetenv("DISPLAY");  // the X server goes
    GuiVm::TearDown();
  }
  static std::string lethe() { return program_folder() / "lethe"; }

  // An X server without a window manager, which stays when its last client goes; its screen is a
  // file.
  void start_x() {
    x_x = Program({"sh", "-c",
                   "exec Xvfb -displayfd 3 -noreset -screen 0 1280x1024x24 -nolisten tcp -fbdir " +
                       x_dir + " 3>" + x_dir + "/display"},
                  x_dir + "/xvfb.log");
    ASSERT_TRUE(soon([&] { return file_text(x_dir + "/display").find('\n') != std::string::npos; }))
        << x_x.said();
    std::string number = file_text(x_dir + "/display");
    number.pop_back();
    setenv("DISPLAY", (":" + number).c_str(), 1);
    setenv("SDL_VIDEODRIVER", "x11", 1);
    setenv("SDL_RENDER_DRIVER", "software", 1);
    setenv("SDL_AUDIODRIVER", "dummy", 1);
    unsetenv("WAYLAND_DISPLAY");
  }
  [[nodiscard]] Image x_screen() const { return decode_xwd(file_text(x_dir + "/Xvfb_screen0")); }
  // Waits until the picture is on the X screen, and says where.
  [[nodiscard]] std::optional<Place> shown_on_x(const Image& image) const {
    std::optional<Place> place;
    (void)soon([&] {
      const Image all = x_screen();
      if (!all.pixels.empty()) place = find_in(all, image);
      return place.has_value();
    });
    return place;
  }
  // What a command prints; it must end with 0.
  [[nodiscard]] std::string output_of(const std::vector<std::string>& words) const {
    Program program(words, x_dir + "/output");
    EXPECT_EQ(program.wait_for_end(), 0) << words.front() << ": " << program.said();
    return program.said();
  }
  void x_do(std::vector<std::string> words) const {
    words.insert(words.begin(), "xdotool");
    (void)output_of(words);
  }
  // The X window with this text in its title comes to the front.
  void raise(const std::string& title) const {
    std::string id;
    ASSERT_TRUE(soon([&] {
      Program search({"xdotool", "search", "--onlyvisible", "--name", title}, x_dir + "/output");
      if (search.wait_for_end() == 0) id = search.said();
      return !id.empty();
    })) << "no window '"
        << title << "'";
    id = id.substr(0, id.find('\n'));
    x_do({"windowraise", id});
    x_do({"windowfocus", id});
  }

  Program x_x;
};

TEST_F(FrontendTest, lethe_view_shows_each_window_and_a_click_and_a_key_arrive) {
  ASSERT_NO_FATAL_FAILURE(start_x());
  ASSERT_NO_FATAL_FAILURE(start_demo());
  Program view({lethe(), "attach", "vm"}, x_dir + "/view.log");
  for (const auto& [title, name] :
       {std::pair{"Lethe demo: river", "RIVER"}, {"Lethe demo: boat", "BOAT"}}) {
    SCOPED_TRACE(title);
    ASSERT_NO_FATAL_FAILURE(raise(title));
    EXPECT_TRUE(shown_on_x(window_image(name, 0))) << view.said();
  }
  const auto boat = shown_on_x(window_image("BOAT", 0));
  ASSERT_TRUE(boat);
  x_do({"mousemove", std::to_string(boat->x + 60), std::to_string(boat->y + 70), "click", "1"});
  EXPECT_TRUE(x_vm.says_soon("click in window 2 at 60,70: colour 1"));
  EXPECT_TRUE(shown_on_x(window_image("BOAT", 1)));
  x_do({"key", "q"});
  EXPECT_TRUE(x_vm.says_soon("key 16 down in BOAT"));
  EXPECT_EQ(x_vm.wait_for_end(), 0);
}

TEST_F(FrontendTest, lethe_view_shows_the_screen) {
  ASSERT_NO_FATAL_FAILURE(start_x());
  ASSERT_NO_FATAL_FAILURE(start("gui.elf", "test=screen"));
  ASSERT_TRUE(x_vm.says_soon("shown"));
  Program view({lethe(), "attach", "vm"}, x_dir + "/view.log");
  EXPECT_TRUE(shown_on_x(screen_image())) << view.said();
}

TEST_F(FrontendTest, lethe_view_survives_the_vm_and_says_so) {
  ASSERT_NO_FATAL_FAILURE(start_x());
  ASSERT_NO_FATAL_FAILURE(start_demo());
  Program view({lethe(), "attach", "vm"}, x_dir + "/view.log");
  ASSERT_NO_FATAL_FAILURE(raise("Lethe demo: river"));
  ASSERT_TRUE(shown_on_x(window_image("RIVER", 0)));
  x_vm.kill_and_wait();
  EXPECT_NO_FATAL_FAILURE(raise("ended"));  // in the title of its windows
  // And over the picture.
  EXPECT_TRUE(soon([&] { return !find_in(x_screen(), window_image("RIVER", 0)); }));
  EXPECT_TRUE(view.runs());
}

TEST_F(FrontendTest, lethe_shot_takes_windows_and_screens) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  (void)output_of({lethe(), "shot", "vm", x_dir + "/screen.png"});
  const Image screen = decode_png(file_text(x_dir + "/screen.png"));
  EXPECT_EQ(screen.width, picture::kScreenWidth);
  EXPECT_EQ(screen.pixels, screen_image().pixels);
  (void)output_of({lethe(), "shot", "vm", x_dir + "/boat.png", "--window", "Lethe demo: boat"});
  EXPECT_EQ(decode_png(file_text(x_dir + "/boat.png")).pixels, window_image("BOAT", 0).pixels);
}

TEST_F(FrontendTest, frontends_of_all_kinds_at_once) {
  ASSERT_NO_FATAL_FAILURE(start_x());
  ASSERT_NO_FATAL_FAILURE(start_demo());
  Program view({lethe(), "attach", "vm"}, x_dir + "/view.log");
  Program second({lethe(), "attach", "vm"}, x_dir + "/second.log");
  EXPECT_TRUE(stat_soon("gui.frontends", 2));
  for (int i = 0; i < 5; ++i)
    (void)output_of({lethe(), "shot", "vm", x_dir + "/boat.png", "--window", "Lethe demo: boat"});
  EXPECT_TRUE(stat_soon("gui.frontends", 2));
  const double live = stat("gui.buffers.live");
  view.send(SIGKILL);
  (void)view.wait_for_end();
  EXPECT_TRUE(stat_soon("gui.frontends", 1));
  EXPECT_TRUE(stat_soon("gui.buffers.orphan", 0));
  EXPECT_EQ(stat("gui.buffers.live"), live);
  EXPECT_TRUE(second.runs());
}

// baremetal/configs/gui-check.toml's first step, and the same with a pixel that the guest does not
// draw.
TEST_F(FrontendTest, a_check_of_the_screen_that_fails_leaves_three_pictures) {
  Image wrong = screen_image();
  wrong.pixels[wrong.width * 30 + 50] ^= 0xffffff;
  ASSERT_TRUE(write_png(x_dir + "/right.png", screen_image()));
  ASSERT_TRUE(write_png(x_dir + "/wrong.png", wrong));
  std::ofstream(x_dir + "/looks.toml")
      << "[memory]\nsize = \"32M\"\n[boot]\nkernel = \""
      << (program_folder().parent_path() / "guest-tests/baremetal/demo.elf").string()
      << "\"\ncmdline = \"still=1\"\n[gui]\nenabled = true\nwidth = " << wrong.width
      << "\nheight = " << wrong.height
      << "\n[check]\nexit = \"screen\"\ndeadline_ms = 60000\n"
         "[[check.screen]]\nwait_image = \"right.png\"\n"
         "[[check.screen]]\nwait_image = \"wrong.png\"\ntimeout_ms = 300\n";
  Program check({lethe(), "check", x_dir + "/looks.toml", "--out", x_dir + "/out"}, x_dir + "/log");
  EXPECT_EQ(check.wait_for_end(), 1) << check.said();
  EXPECT_EQ(count_of(check.said(), "step 2 of 2: "), 1U) << check.said();
  EXPECT_EQ(count_of(check.said(), "1x1+50+30"), 1U) << check.said();
  const std::string pictures = x_dir + "/out/looks.screen/";
  EXPECT_EQ(decode_png(file_text(pictures + "actual.png")).pixels, screen_image().pixels);
  EXPECT_EQ(decode_png(file_text(pictures + "expected.png")).pixels, wrong.pixels);
  const Image difference = decode_png(file_text(pictures + "difference.png"));
  ASSERT_EQ(difference.pixels.size(), wrong.pixels.size());
  EXPECT_EQ(difference.at(50, 30), 0xff0000U);
  EXPECT_EQ(std::ranges::count(difference.pixels, 0xff0000U), 1);
}

}  // namespace
