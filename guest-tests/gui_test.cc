// Windows of a running VM and frontends that misbehave (label kvm): what frontends hold when they
// die, or don't let go, comes back; the guest is never held up. With the bare-metal demo guest.
#include <linux/input-event-codes.h>
#include <sys/mman.h>

#include "devices/gui/fake_frontend.h"
#include "guest-tests/api_check.h"
#include "guest-tests/baremetal/guests/picture.h"
#include "guest-tests/gui_vm.h"

namespace {

using namespace lethe_test;
using lethe::FakeFrontend;
namespace gui = lethe::gui;

constexpr const char* kLive = "gui.buffers.live";
constexpr const char* kLiveBytes = "gui.buffer_bytes.live";
constexpr const char* kOrphan = "gui.buffers.orphan";
constexpr const char* kFreeing = "gui.buffers.freeing";
constexpr const char* kFrontends = "gui.frontends";
constexpr uint32_t kQuit = KEY_Q;

// What a process may grow by that does not leak. ASan keeps what was freed for a while.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LETHE_ASAN 1
#endif
#endif
#ifdef LETHE_ASAN
constexpr size_t kGrowthKiBMax = 400 * 1024;
#else
constexpr size_t kGrowthKiBMax = 8 * 1024;
#endif

std::vector<uint32_t> window_picture(const char* name, uint32_t colour) {
  std::vector<uint32_t> pixels(picture::kWindowWidth * picture::kWindowHeight);
  picture::window({pixels.data(), picture::kWindowWidth, picture::kWindowHeight}, name, colour);
  return pixels;
}

class GuiTest : public GuiVm {
 protected:
  // The demo, with its two windows open.
  void start_demo(const std::string& cmdline = "still=1", const std::string& gui = "") {
    ASSERT_NO_FATAL_FAILURE(start("demo.elf", cmdline, gui));
    ASSERT_TRUE(x_vm.says_soon("demo: look with"));
  }
  // The surface with this title, once its first frame is there; 0: there is none.
  static uint64_t surface_named(FakeFrontend& frontend, const std::string& title) {
    uint64_t found = 0;
    (void)soon([&] {
      for (const auto& [id, surface] : frontend.surfaces)
        if (title == surface.title && frontend.frames.contains(id)) found = id;
      if (found == 0) (void)frontend.receive(std::chrono::milliseconds(100));
      return found != 0;
    });
    EXPECT_NE(found, 0U) << "no surface '" << title << "' with a frame";
    return found;
  }
  static bool receive_until(FakeFrontend& frontend, auto&& holds) {
    return soon([&] {
      if (holds()) return true;
      (void)frontend.receive(std::chrono::milliseconds(100));
      return holds();
    });
  }
  static void type(FakeFrontend& frontend, uint64_t surface, uint32_t code) {
    frontend.send(gui::Type::kKey, gui::Key{{}, surface, code, 1});
    frontend.send(gui::Type::kKey, gui::Key{{}, surface, code, 0});
  }
  static void click(FakeFrontend& frontend, uint64_t surface, int32_t x, int32_t y) {
    frontend.send(gui::Type::kMotion, gui::Motion{{}, surface, x, y});
    frontend.send(gui::Type::kButton, gui::Button{{}, surface, BTN_LEFT, 1});
    frontend.send(gui::Type::kButton, gui::Button{{}, surface, BTN_LEFT, 0});
  }
  // What the frontend sees of a surface now.
  static std::vector<uint32_t> pixels_of(FakeFrontend& frontend, uint64_t surface) {
    const gui::Frame frame = frontend.frames.at(surface);
    std::vector<uint32_t> pixels;
    const auto buffer = frontend.buffers.find(frame.generation);
    if (buffer == frontend.buffers.end()) return pixels;
    for (uint32_t y = 0; y < frame.height; ++y) {
      for (uint32_t x = 0; x < frame.width; ++x) {
        uint32_t pixel = 0;
        std::memcpy(&pixel, buffer->second.data + frame.offset + y * frame.stride + x * 4, 4);
        pixels.push_back(pixel & 0xffffff);
      }
    }
    return pixels;
  }
  // The guest goes on: it reacts to a click, and a new frontend sees it.
  void expect_guest_goes_on() {
    FakeFrontend frontend = FakeFrontend::connect(socket_path());
    const uint64_t river = surface_named(frontend, "Lethe demo: river");
    ASSERT_NE(river, 0U);
    const size_t before = lines_with("click in window 1");
    click(frontend, river, 5, 6);
    EXPECT_TRUE(soon([&] { return lines_with("click in window 1 at 5,6") > before; }));
  }
  // In a process of its own: connects, maps what the demo shows, says so on `stamp`, then does
  // nothing more.
  pid_t fork_holder(std::atomic<int>* stamp) {
    const std::string path = socket_path();
    const pid_t child = fork();
    if (child != 0) return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    FakeFrontend frontend = FakeFrontend::connect(path);
    frontend.answers_gone = false;
    while (frontend.buffers.size() < 3) (void)frontend.receive();
    stamp->store(1);
    for (;;) pause();
  }
  static std::atomic<int>* shared_stamp() {
    void* const memory = mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    // SAFETY: shared memory of a page, which outlives its users.
    return new (memory) std::atomic<int>(0);
  }
};

TEST_F(GuiTest, a_frontend_sees_what_the_guest_draws_and_a_click_changes_it) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  const uint64_t river = surface_named(frontend, "Lethe demo: river");
  const uint64_t boat = surface_named(frontend, "Lethe demo: boat");
  ASSERT_TRUE(river != 0 && boat != 0);
  EXPECT_EQ(pixels_of(frontend, river), window_picture("RIVER", 0));
  EXPECT_EQ(pixels_of(frontend, boat), window_picture("BOAT", 0));
  const uint64_t before = frontend.frames.at(boat).frame;
  click(frontend, boat, 40, 50);
  EXPECT_TRUE(x_vm.says_soon("click in window 2 at 40,50: colour 1"));
  EXPECT_TRUE(receive_until(frontend, [&] { return frontend.frames.at(boat).frame > before; }));
  EXPECT_EQ(pixels_of(frontend, boat), window_picture("BOAT", 1));
  EXPECT_EQ(pixels_of(frontend, river), window_picture("RIVER", 0));
  type(frontend, river, kQuit);
  EXPECT_TRUE(x_vm.says_soon("key 16 down in RIVER"));
  EXPECT_EQ(x_vm.wait_for_end(), 0);
  EXPECT_TRUE(receive_until(frontend, [&] { return frontend.bye.has_value(); }));
  EXPECT_EQ(frontend.bye, gui::ByeReason::kVmEnded);
}

TEST_F(GuiTest, the_screen_and_its_input) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  uint64_t screen = 0;
  ASSERT_TRUE(receive_until(frontend, [&] {
    for (const auto& [id, surface] : frontend.surfaces)
      if (surface.kind == 0 && frontend.frames.contains(id)) screen = id;
    return screen != 0;
  }));
  std::vector<uint32_t> expected(picture::kScreenWidth * picture::kScreenHeight);
  picture::screen({expected.data(), picture::kScreenWidth, picture::kScreenHeight});
  EXPECT_EQ(pixels_of(frontend, screen), expected);
  click(frontend, screen, 10, 10);
  EXPECT_TRUE(x_vm.says_soon("click on the screen, button 272"));
  type(frontend, screen, KEY_ESC);
  EXPECT_TRUE(x_vm.says_soon("key 1 down in the screen"));
  EXPECT_EQ(x_vm.wait_for_end(), 0);
}

TEST_F(GuiTest, a_restored_vm_shows_the_same_picture_and_its_windows_go_on) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  const std::string dir = x_dir + "/snapshot";
  {
    FakeFrontend frontend = FakeFrontend::connect(socket_path());
    const uint64_t boat = surface_named(frontend, "Lethe demo: boat");
    ASSERT_NE(boat, 0U);
    click(frontend, boat, 40, 50);
    EXPECT_TRUE(x_vm.says_soon("click in window 2 at 40,50: colour 1"));
    Program save({program_folder() / "lethe", "snapshot", "vm", dir, "--stop"}, x_dir + "/save");
    ASSERT_EQ(save.wait_for_end(), 0) << save.said();
    EXPECT_EQ(x_vm.wait_for_end(), 6);
  }
  int keys[2];
  ASSERT_EQ(pipe2(keys, O_CLOEXEC), 0);
  x_vm = Program({program_folder() / "lethe", "restore", dir}, x_dir + "/again", keys[0]);
  close(keys[0]);
  ASSERT_TRUE(soon([&] { return access(socket_path().c_str(), F_OK) == 0; })) << x_vm.said();
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  const uint64_t river = surface_named(frontend, "Lethe demo: river");
  const uint64_t boat = surface_named(frontend, "Lethe demo: boat");
  ASSERT_TRUE(river != 0 && boat != 0) << x_vm.said();
  EXPECT_EQ(pixels_of(frontend, river), window_picture("RIVER", 0));
  EXPECT_EQ(pixels_of(frontend, boat), window_picture("BOAT", 1));
  uint64_t screen = 0;
  ASSERT_TRUE(receive_until(frontend, [&] {
    for (const auto& [id, surface] : frontend.surfaces)
      if (surface.kind == 0 && frontend.frames.contains(id)) screen = id;
    return screen != 0;
  }));
  std::vector<uint32_t> expected(picture::kScreenWidth * picture::kScreenHeight);
  picture::screen({expected.data(), picture::kScreenWidth, picture::kScreenHeight});
  EXPECT_EQ(pixels_of(frontend, screen), expected);
  const uint64_t before = frontend.frames.at(boat).frame;
  click(frontend, boat, 5, 6);
  EXPECT_TRUE(x_vm.says_soon("click in window 2 at 5,6: colour 2"));
  EXPECT_TRUE(receive_until(frontend, [&] { return frontend.frames.at(boat).frame > before; }));
  EXPECT_EQ(pixels_of(frontend, boat), window_picture("BOAT", 2));
  click(frontend, screen, 10, 10);
  EXPECT_TRUE(x_vm.says_soon("click on the screen, button 272"));
  type(frontend, screen, KEY_ESC);
  EXPECT_EQ(x_vm.wait_for_end(), 0);
  close(keys[1]);
}

TEST_F(GuiTest, windows_are_closed_moved_and_resized_by_the_user) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  const uint64_t river = surface_named(frontend, "Lethe demo: river");
  const uint64_t boat = surface_named(frontend, "Lethe demo: boat");
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, river, 7, 8, 200, 100});
  EXPECT_TRUE(x_vm.says_soon("window 1 is 200x100 at 7,8"));
  EXPECT_TRUE(receive_until(frontend, [&] {
    return frontend.surfaces.at(river).width == 200 && frontend.frames.at(river).width == 200;
  }));
  EXPECT_EQ(frontend.surfaces.at(river).x, 7);
  // The old buffer is unmapped by now, and the guest is told.
  EXPECT_TRUE(x_vm.says_soon("released"));
  frontend.send(gui::Type::kClose, gui::Close{{}, boat});
  EXPECT_TRUE(x_vm.says_soon("window 2 closed"));
  EXPECT_TRUE(receive_until(frontend, [&] { return !frontend.surfaces_gone.empty(); }));
  EXPECT_EQ(frontend.surfaces_gone.front(), boat);
  // The last one: the demo ends by itself.
  frontend.send(gui::Type::kClose, gui::Close{{}, river});
  EXPECT_EQ(x_vm.wait_for_end(), 0);
}

TEST_F(GuiTest, what_a_killed_frontend_mapped_comes_back_when_its_process_is_gone) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  const double live = stat(kLive);
  EXPECT_GE(live, 4);  // two windows, the event ring, the screen
  std::atomic<int>* const stamp = shared_stamp();
  const pid_t holder = fork_holder(stamp);
  ASSERT_TRUE(soon([&] { return stamp->load() == 1; }));
  // Its window is resized by another frontend: the old buffer is an orphan while it is mapped.
  FakeFrontend other = FakeFrontend::connect(socket_path());
  const uint64_t river = surface_named(other, "Lethe demo: river");
  other.send(gui::Type::kConfigure, gui::Configure{{}, river, 0, 0, 100, 100});
  EXPECT_TRUE(x_vm.says_soon("window 1 is 100x100"));
  EXPECT_TRUE(receive_until(other, [&] { return !other.gone.empty(); }));
  EXPECT_TRUE(stat_soon(kOrphan, 1));
  EXPECT_EQ(count_of(x_vm.said(), "released"), 0U);
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  EXPECT_TRUE(stat_soon(kOrphan, 0));
  EXPECT_TRUE(stat_soon(kFreeing, 0));
  EXPECT_EQ(stat(kLive), live);
  EXPECT_TRUE(x_vm.says_soon("released"));
  EXPECT_EQ(stat("gui.buffers_ended_total.revoked"), 0);
  EXPECT_NO_FATAL_FAILURE(expect_guest_goes_on());
}

TEST_F(GuiTest, a_frontend_that_never_acknowledges_is_revoked_at_the_limit) {
  ASSERT_NO_FATAL_FAILURE(start_demo("still=1", "orphan_ms_max = 1000\n"));
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  frontend.answers_gone = false;
  const uint64_t river = surface_named(frontend, "Lethe demo: river");
  const uint64_t generation = frontend.frames.at(river).generation;
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, river, 0, 0, 100, 100});
  EXPECT_TRUE(x_vm.says_soon("window 1 is 100x100"));  // the guest does not wait for it
  EXPECT_TRUE(x_vm.says_soon("released"));
  EXPECT_TRUE(stat_soon("gui.buffers_ended_total.revoked", 1));
  EXPECT_TRUE(stat_soon(kOrphan, 0));
  // Its memory is gone: reading it would raise SIGBUS. write(2) tells without one.
  const uint8_t* const data = frontend.buffers.at(generation).data;
  const int null = open("/dev/null", O_WRONLY);
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_EQ(write(pipes[1], data, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  for (const int fd : {null, pipes[0], pipes[1]}) close(fd);
  EXPECT_NO_FATAL_FAILURE(expect_guest_goes_on());
}

TEST_F(GuiTest, ledger_and_log_are_set_while_the_vm_runs) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  const auto ends_of_buffers = [&] { return lines_with("bytes freed"); };
  const auto resize = [&](FakeFrontend& frontend, uint32_t side) {
    const uint64_t river = surface_named(frontend, "Lethe demo: river");
    const size_t gone = frontend.gone.size();
    frontend.send(gui::Type::kConfigure, gui::Configure{{}, river, 0, 0, side, side});
    const std::string size = std::to_string(side);
    EXPECT_TRUE(x_vm.says_soon("window 1 is " + size + "x" + size));
    EXPECT_TRUE(receive_until(frontend, [&] { return frontend.gone.size() > gone; }));
    EXPECT_TRUE(stat_soon(kOrphan, 0));
    EXPECT_TRUE(stat_soon(kFreeing, 0));
  };
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  resize(frontend, 100);
  EXPECT_EQ(ends_of_buffers(), 0U) << "the log is silent until it is asked to speak";
  const std::string api = x_dir + "/lethe/vm/api.sock";
  EXPECT_EQ(ask_api(api, "PATCH", "/log", R"({"levels":"warn,gui=debug"})").status, 200u);
  EXPECT_EQ(ask_api(api, "PATCH", "/gui", R"({"free_per_iteration":1})").status, 200u);
  EXPECT_NE(ask_api(api, "GET", "/gui").body.find("\"free_per_iteration\":1,"), std::string::npos);
  resize(frontend, 90);
  EXPECT_TRUE(soon([&] { return ends_of_buffers() == 1; })) << x_vm.said();
  EXPECT_EQ(ask_api(api, "PATCH", "/log", R"({"levels":"warn"})").status, 200u);
  resize(frontend, 80);
  EXPECT_EQ(ends_of_buffers(), 1U);
}

TEST_F(GuiTest, several_frontends_look_at_once_and_come_and_go) {
  ASSERT_NO_FATAL_FAILURE(start_demo(""));  // its boat moves, its dialog comes and goes
  std::vector<FakeFrontend> frontends;
  for (int i = 0; i < 4; ++i) frontends.push_back(FakeFrontend::connect(socket_path()));
  EXPECT_TRUE(stat_soon(kFrontends, 4));
  for (FakeFrontend& frontend : frontends) {
    const uint64_t boat = surface_named(frontend, "Lethe demo: boat");
    ASSERT_NE(boat, 0U);
    EXPECT_EQ(pixels_of(frontend, boat), window_picture("BOAT", 0));
    const int32_t x = frontend.surfaces.at(boat).x;
    EXPECT_TRUE(receive_until(frontend, [&] { return frontend.surfaces.at(boat).x != x; }));
  }
  for (int i = 0; i < 2; ++i) frontends.pop_back();
  EXPECT_TRUE(stat_soon(kFrontends, 2));
  for (int round = 0; round < 20; ++round) (void)FakeFrontend::connect(socket_path());
  EXPECT_TRUE(stat_soon(kFrontends, 2));
  // All of them see the dialog come and go.
  for (FakeFrontend& frontend : frontends) {
    const uint64_t dialog = surface_named(frontend, "Lethe demo: obol");
    EXPECT_TRUE(receive_until(frontend, [&] { return !frontend.surfaces.contains(dialog); }));
  }
  EXPECT_NO_FATAL_FAILURE(expect_guest_goes_on());
}

TEST_F(GuiTest, a_guest_that_reboots_with_buffers_mapped_leaves_none_behind) {
  ASSERT_NO_FATAL_FAILURE(start("gui.elf", "test=reboot-forever", "", "on_reboot = \"restart\"\n"));
  ASSERT_TRUE(x_vm.says_soon("window shown"));
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  // It sees the windows of four boots: the connection stays, old windows go.
  uint64_t last = 0;
  double live = 0;
  size_t descriptors = 0;
  for (int boot = 0; boot < 4; ++boot) {
    if (boot > 0) ASSERT_NO_FATAL_FAILURE(go_on());
    uint64_t found = 0;
    ASSERT_TRUE(receive_until(frontend, [&] {
      for (const auto& [id, surface] : frontend.surfaces)
        if (std::string(surface.title) == "reboots" && id > last && frontend.frames.contains(id))
          found = id;
      return found != 0;
    })) << x_vm.said();
    if (last != 0) EXPECT_FALSE(frontend.surfaces.contains(last));
    last = found;
    if (boot > 0) continue;
    live = stat(kLiveBytes);
    descriptors = x_vm.descriptors();
  }
  // Of all that was mapped the last window's buffer is left.
  EXPECT_TRUE(receive_until(frontend, [&] { return frontend.buffers.size() == 1; }));
  EXPECT_TRUE(stat_soon(kOrphan, 0));
  EXPECT_TRUE(stat_soon(kFreeing, 0));
  EXPECT_EQ(stat("gui.buffers_ended_total.revoked"), 0);
  EXPECT_GT(live, 0);
  EXPECT_EQ(stat(kLiveBytes), live);
  EXPECT_EQ(stat("gui.buffer_bytes.orphan"), 0);
  EXPECT_TRUE(soon([&] { return x_vm.descriptors() == descriptors; }))
      << x_vm.descriptors() << ", at first " << descriptors;
}

TEST_F(GuiTest, a_killed_vm_is_the_end_for_its_frontends) {
  ASSERT_NO_FATAL_FAILURE(start_demo());
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  const uint64_t river = surface_named(frontend, "Lethe demo: river");
  x_vm.kill_and_wait();
  (void)receive_until(frontend, [&] { return !frontend.receive().has_value(); });
  // What it has mapped stays readable.
  EXPECT_EQ(pixels_of(frontend, river), window_picture("RIVER", 0));
}

// 100,000 windows and thousands of buffers: neither memory nor descriptors grow, nor the log.
TEST_F(GuiTest, a_flood_of_windows_costs_nothing_that_lasts) {
  ASSERT_NO_FATAL_FAILURE(start("gui.elf", "test=churn wait=1 buffers=3000"));
  ASSERT_TRUE(x_vm.says_soon("stage before"));
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  const auto resident_kib = [&] {
    const std::string status = file_text("/proc/" + std::to_string(x_vm.pid()) + "/status");
    return std::strtoul(status.c_str() + status.find("VmRSS:") + 6, nullptr, 10);
  };
  const size_t before_descriptors = x_vm.descriptors();
  const size_t before_kib = resident_kib();
  ASSERT_NO_FATAL_FAILURE(go_on());
  ASSERT_TRUE(receive_until(frontend, [&] { return lines_with("stage after") > 0; }));
  EXPECT_TRUE(stat_soon(kOrphan, 0));
  EXPECT_LE(x_vm.descriptors(), before_descriptors + 8);
  EXPECT_LE(resident_kib(), before_kib + kGrowthKiBMax);
  EXPECT_LE(std::ranges::count(x_vm.said(), '\n'), 40);
  ASSERT_NO_FATAL_FAILURE(go_on());
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
}

TEST_F(GuiTest, a_keyboard_whose_guest_is_slow_loses_no_key) {
  ASSERT_NO_FATAL_FAILURE(start("gui.elf", "test=input-held keys=100"));
  ASSERT_TRUE(x_vm.says_soon("holding"));
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  uint64_t screen = 0;
  ASSERT_TRUE(receive_until(frontend, [&] {
    for (const auto& [id, surface] : frontend.surfaces) screen = id;
    return screen != 0;
  }));
  for (int i = 0; i < 100; ++i) type(frontend, screen, KEY_A);
  EXPECT_TRUE(stat_soon("gui.input_events_total", 200));
  ASSERT_NO_FATAL_FAILURE(go_on());
  EXPECT_TRUE(x_vm.says_soon("100 down, 100 up"));
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
}

TEST_F(GuiTest, another_size_of_the_screen_reaches_the_guest) {
  ASSERT_NO_FATAL_FAILURE(start("gui.elf", "test=resize"));
  ASSERT_TRUE(x_vm.says_soon("waiting for another size"));
  FakeFrontend frontend = FakeFrontend::connect(socket_path());
  uint64_t screen = 0;
  ASSERT_TRUE(receive_until(frontend, [&] {
    for (const auto& [id, surface] : frontend.surfaces) screen = id;
    return screen != 0;
  }));
  frontend.send(gui::Type::kConfigure, gui::Configure{{}, screen, 0, 0, 800, 600});
  EXPECT_TRUE(x_vm.says_soon("size 800x600"));
  EXPECT_EQ(x_vm.wait_for_end(), 64) << x_vm.said();
}

}  // namespace
