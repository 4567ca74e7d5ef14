// Hosts and frontends that are out of descriptors.
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

#include "devices/gui/gui_core.h"
#include "devices/gui/gui_test_util.h"

namespace lethe {
namespace {

using State = ShareLedger::State;
using std::chrono::milliseconds;

constexpr Rect kAll{0, 0, kWidth, kHeight};

// Lowers the limit so that `more` descriptors are left, as long as it lives.
class FewDescriptors {
 public:
  explicit FewDescriptors(unsigned more) {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &x_before), 0);
    const int lowest = UniqueFd(::dup(0)).get();
    rlimit tight = x_before;
    tight.rlim_cur = static_cast<rlim_t>(lowest) + more;
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  }
  ~FewDescriptors() { EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &x_before), 0); }

 private:
  rlimit x_before{};
};

// Gives up this thread's privileges, which lift the limit of descriptors on their way (unix(7),
// ETOOMANYREFS).
void drop_capabilities() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  const std::array<__user_cap_data_struct, 2> none{};
  EXPECT_EQ(::syscall(SYS_capset, &header, none.data()), 0);
}

// Descriptors that are on their way, and stay there as long as it lives.
class InFlight {
 public:
  explicit InFlight(int count) {
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, x_ends.data()), 0);
    for (; count > 0; count -= kATime) send();
  }
  ~InFlight() {
    for (const int end : x_ends) ::close(end);
  }

 private:
  static constexpr int kATime = 100;
  void send() {
    char byte = 0;
    iovec part{.iov_base = &byte, .iov_len = 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(kATime * sizeof(int))> control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(kATime * sizeof(int));
    const std::vector<int> descriptors(kATime, x_ends[0]);
    std::memcpy(CMSG_DATA(rights), descriptors.data(), kATime * sizeof(int));
    EXPECT_EQ(::sendmsg(x_ends[1], &header, MSG_DONTWAIT), 1) << errno;
  }
  std::array<int, 2> x_ends{};
};

TEST(GuiDescriptorsTest, out_of_descriptors_for_a_frontend_it_waits_and_does_not_spin) {
  LETHE_SKIP_UNDER_UBSAN();
  GuiRig rig;
  (void)rig.add_surface("w", kWidth, kHeight);
  FakeFrontend waiting(rig.path());
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 1; }));
  auto late =
      std::make_unique<FakeFrontend>(rig.path());  // its socket is there: no more are needed
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 2; }));
  late.reset();
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 1; }));
  const UniqueFd other(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const double refused = rig.metric("lethe_gui_frontends_refused_total");
  {
    const FewDescriptors few(0);
    ASSERT_TRUE(connect_to(other.get(), rig.path()));
    ASSERT_TRUE(
        eventually([&] { return rig.metric("lethe_gui_frontends_refused_total") > refused; }));
    // It goes on trying, with a pause each time.
    const auto begin = std::chrono::steady_clock::now();
    const double tried = rig.metric("lethe_gui_frontends_refused_total");
    ASSERT_TRUE(
        eventually([&] { return rig.metric("lethe_gui_frontends_refused_total") >= tried + 3; }));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 2 * GuiCore::kAcceptPause) << "it spins";
    // Who is connected is served.
    waiting.hello();
    EXPECT_TRUE(waiting.receive_until(gui::Type::kSurface));
  }
  EXPECT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 2; })) << "served now";
}

TEST(GuiDescriptorsTest,
     out_of_descriptors_after_the_accept_the_frontend_is_told_and_nothing_leaks) {
  LETHE_SKIP_UNDER_UBSAN();
  GuiRig rig;
  for (const unsigned more : {1U, 2U, 3U, 4U, 5U}) {
    const double refused = rig.metric("lethe_gui_frontends_refused_total");
    const UniqueFd other(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const size_t descriptors = open_descriptors();
    {
      const FewDescriptors few(more);
      ASSERT_TRUE(connect_to(other.get(), rig.path()));
      ASSERT_TRUE(eventually([&] {
        return rig.metric("lethe_gui_frontends_refused_total") > refused ||
               rig.metric("lethe_gui_frontends") > 0;
      }));
      if (rig.metric("lethe_gui_frontends") > 0) break;  // that many are enough
    }
    gui::Bye bye{};
    ASSERT_EQ(::recv(other.get(), &bye, sizeof bye, 0), static_cast<ssize_t>(sizeof bye)) << more;
    EXPECT_EQ(bye.reason, static_cast<uint32_t>(gui::ByeReason::kTooMany));
    EXPECT_TRUE(eventually([&] { return open_descriptors() == descriptors; })) << more;
  }
}

TEST(GuiDescriptorsTest, out_of_descriptors_for_a_buffer_orphans_go_first_then_the_guest_is_told) {
  LETHE_SKIP_UNDER_UBSAN();
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  const BufferId old = rig.create_buffer(kBytes);
  rig.present(surface, old, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  rig.release_buffer(old);
  EXPECT_EQ(rig.state(old), State::kOrphan);
  const size_t descriptors = open_descriptors();
  rig.on_gui([&] {
    const FewDescriptors few(0);
    const auto made = rig.gui->create_buffer(kBytes, rig.creator);
    ASSERT_TRUE(made) << "in place of the orphan: " << made.error().text;
    EXPECT_EQ(rig.gui->ledger().state(old), State::kUnused);
    const auto failed = rig.gui->create_buffer(kBytes, rig.creator);
    ASSERT_FALSE(failed);
    EXPECT_NE(failed.error().text.find("Too many open files"), std::string::npos);
    rig.gui->release_buffer(*made);
  });
  EXPECT_EQ(rig.count(rig.ledger().revoked.buffers), 1U);
  EXPECT_TRUE(eventually([&] { return open_descriptors() == descriptors - 2; }));
}

TEST(GuiDescriptorsTest, a_frontend_out_of_descriptors_does_not_hinder_the_vm) {
  LETHE_SKIP_UNDER_UBSAN();
  GuiRig rig;
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  {
    const FewDescriptors few(0);
    ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  }
  EXPECT_TRUE(frontend.buffers.empty()) << "the descriptor was lost on its way";
  frontend.say_unmapped(buffer);
  ASSERT_TRUE(eventually([&] { return rig.holders(buffer) == 0; }));
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_EQ(frontend.buffers.size(), 1U) << "it can have it again";
}

// The host takes no more descriptors: it is tried again and again, but not for ever.
TEST(GuiDescriptorsTest, a_frontend_that_nothing_can_be_sent_to_is_sent_off) {
  GuiRig rig({.drain_patience = milliseconds(200)});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  rig.on_gui(drop_capabilities);
  const InFlight many(500);
  const FewDescriptors few(50);  // of them on their way
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends_slow_total") == 1; }));
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBye));
  EXPECT_EQ(frontend.bye, gui::ByeReason::kTooSlow);
  EXPECT_EQ(frontend.frames_received, 0U);
}

TEST(GuiDescriptorsTest, a_frontend_is_not_sent_off_once_things_can_be_sent_again) {
  GuiRig rig({.drain_patience = milliseconds(500)});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  const BufferId buffer = rig.create_buffer(kBytes);
  auto frontend = rig.connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  rig.on_gui(drop_capabilities);
  {
    const InFlight many(500);
    const FewDescriptors few(50);  // of them on their way
    rig.present(surface, buffer, kWidth, kHeight, kAll);
  }
  ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
  EXPECT_FALSE(frontend.receive(milliseconds(700))) << "patience was not ended";
  EXPECT_EQ(rig.metric("lethe_gui_frontends"), 1);
}

}  // namespace
}  // namespace lethe
