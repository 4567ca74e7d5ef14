// What goes wrong between a VM and its frontends, by accident: processes that end, that do not
// answer, that do not read. Each test asserts bytes, descriptors and states.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <fstream>

#include "base/log.h"
#include "devices/gui/gui_test_util.h"

namespace lethe {
namespace {

using State = ShareLedger::State;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Rect kAll{0, 0, kWidth, kHeight};

// A child process, killed and waited for at the end at the latest. Made before any thread is.
class Child {
 public:
  // `body` gets a descriptor to write a byte to when it is ready, and never returns to the test.
  explicit Child(const std::function<void(int)>& body) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    x_pid = ::fork();
    if (x_pid == 0) {
      ::close(ends[0]);
      ::alarm(60);
      body(ends[1]);
      ::_exit(0);
    }
    ::close(ends[1]);
    x_ready.reset(ends[0]);
  }
  ~Child() { kill(); }
  bool ready() {
    char byte = 0;
    return ::read(x_ready.get(), &byte, 1) == 1;
  }
  void kill() {
    if (x_pid <= 0) return;
    ::kill(x_pid, SIGKILL);
    EXPECT_EQ(::waitpid(x_pid, nullptr, 0), x_pid);
    x_pid = 0;
  }
  [[nodiscard]] pid_t pid() const { return x_pid; }

 private:
  pid_t x_pid = 0;
  UniqueFd x_ready;
};

void say_ready(int fd) { EXPECT_EQ(::write(fd, "r", 1), 1); }

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t all = 0;
  uint64_t resident = 0;
  statm >> all >> resident;
  return resident * 4096;
}

// What a process may grow by that does not leak. ASan keeps what was freed for a while.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LETHE_ASAN 1
#endif
#endif
#ifdef LETHE_ASAN
constexpr uint64_t kGrowthMax = 400 << 20;
#else
constexpr uint64_t kGrowthMax = 8 << 20;
#endif

// Bytes that the file behind a mapping still has.
int64_t allocated_bytes(int fd) {
  struct stat info{};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return info.st_blocks * 512;
}

TEST(GuiFailureTest, what_a_frontend_sent_before_it_exited_is_heard) {
  constexpr size_t kPresses = 50;
  auto socket = std::make_unique<FakeGuiSocket>();
  const std::string path = socket->path();
  Child child([&](int) {
    auto frontend = FakeFrontend::connect(path);
    frontend.receive_until(gui::Type::kSurface);
    const SurfaceId surface = frontend.surfaces.begin()->first;
    for (size_t i = 0; i < kPresses; ++i) {
      frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 1});
      frontend.send(gui::Type::kKey, gui::Key{{}, surface, 30, 0});
    }
  });
  GuiRig rig({}, std::move(socket));
  (void)rig.add_surface("typed into", 100, 50);
  EXPECT_TRUE(eventually([&] { return rig.events().size() == 2 * kPresses; }))
      << rig.events().size();
}

TEST(GuiFailureTest, a_killed_frontend_lets_go_of_what_it_mapped) {
  auto socket = std::make_unique<FakeGuiSocket>();
  const std::string path = socket->path();
  Child child([&](int ready) {
    auto frontend = FakeFrontend::connect(path);
    frontend.answers_frames = frontend.answers_gone = false;
    for (int i = 0; i < 3; ++i) frontend.receive_until(gui::Type::kFrame);
    say_ready(ready);
    ::pause();
  });
  const size_t descriptors = open_descriptors();
  {
    GuiRig rig({}, std::move(socket));
    std::vector<BufferId> buffers;
    for (int i = 0; i < 3; ++i) {
      buffers.push_back(rig.create_buffer(kBytes));
      rig.present(rig.add_surface("w", kWidth, kHeight), buffers.back(), kWidth, kHeight, kAll);
    }
    ASSERT_TRUE(child.ready());
    for (const BufferId id : buffers) EXPECT_NE(rig.holders(id), 0U);
    rig.release_buffer(buffers[0]);
    rig.release_buffer(buffers[1]);
    EXPECT_EQ(rig.state(buffers[0]), State::kOrphan);
    EXPECT_EQ(rig.count(rig.ledger().orphan.bytes), 2 * kBytes);
    EXPECT_TRUE(rig.freed().empty());
    child.kill();
    ASSERT_TRUE(eventually([&] { return rig.freed().size() == 2; }));
    EXPECT_EQ(rig.state(buffers[0]), State::kUnused);
    EXPECT_EQ(rig.state(buffers[2]), State::kLive);
    EXPECT_EQ(rig.holders(buffers[2]), 0U);
    EXPECT_EQ(rig.count(rig.ledger().freed.bytes), 2 * kBytes);
    EXPECT_EQ(rig.count(rig.ledger().orphan.buffers), 0U);
    EXPECT_EQ(rig.count(rig.ledger().live.bytes), kBytes);
    EXPECT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 0; }));
    // The guest goes on, and another frontend sees it.
    const SurfaceId surface = rig.add_surface("after", kWidth, kHeight);
    rig.present(surface, buffers[2], kWidth, kHeight, kAll);
    auto frontend = rig.connect();
    EXPECT_TRUE(frontend.receive_until(gui::Type::kFrame));
  }
  EXPECT_EQ(open_descriptors(), descriptors - 1) << "the listening socket is closed, too";
}

TEST(GuiFailureTest, the_end_of_a_connection_alone_frees_nothing) {
  GuiRig rig({.ledger = {.orphan_age_max = milliseconds(200)}});
  const BufferId buffer = rig.create_buffer(kBytes);
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  auto closed = std::make_unique<FakeFrontend>(rig.connect());
  ASSERT_TRUE(closed->receive_until(gui::Type::kFrame));
  // The descriptor is kept: a mapping that outlives the connection, in a process that lives on.
  const UniqueFd kept = std::move(closed->buffers[buffer.generation].fd);
  closed.reset();
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 0; }));
  EXPECT_NE(rig.holders(buffer), 0U);
  rig.release_buffer(buffer);
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 0U);
  EXPECT_TRUE(eventually([&] { return rig.freed().size() == 1; })) << "by its age";
  EXPECT_EQ(rig.count(rig.ledger().revoked.buffers), 1U);
  EXPECT_EQ(allocated_bytes(kept.get()), 0);
}

TEST(GuiFailureTest, connections_of_a_process_that_lives_on_do_not_use_up_the_places) {
  GuiRig rig;
  const BufferId buffer = rig.create_buffer(kBytes);
  rig.present(rig.add_surface("w", kWidth, kHeight), buffer, kWidth, kHeight, kAll);
  for (int i = 0; i < 40; ++i) {
    auto frontend = rig.connect();
    ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame)) << i;
  }
  EXPECT_EQ(rig.metric("lethe_gui_frontends_refused_total"), 0);
  rig.release_buffer(buffer);
  EXPECT_EQ(rig.state(buffer), State::kOrphan) << "the last ones are still counted";
}

struct Limit {
  const char* name;
  LedgerLimits limits;
};
class GuiRevocationTest : public testing::TestWithParam<Limit> {};

TEST_P(GuiRevocationTest, a_frontend_that_never_acknowledges_does_not_hinder_the_guest) {
  constexpr uint32_t kCount = 20;
  GuiRig rig({.buffers_max = 64, .ledger = GetParam().limits});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  const size_t descriptors = open_descriptors();
  std::vector<BufferId> buffers;
  for (uint32_t i = 0; i < kCount; ++i) {
    buffers.push_back(rig.create_buffer(kBytes));
    rig.on_gui([&] { std::memset(rig.gui->buffer(buffers.back())->data(), 1, kBytes); });
    ASSERT_TRUE(rig.show(frontend, surface, buffers.back()));
    const auto begin = std::chrono::steady_clock::now();
    rig.release_buffer(buffers.back());
    EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(2)) << "waits for nobody";
  }
  const auto told = [&] { return rig.freed().size(); };
  const bool by_age = GetParam().limits.orphan_age_max < seconds(10);
  const size_t expected = by_age ? kCount : kCount - 4;
  ASSERT_TRUE(eventually([&] { return told() == expected; })) << told();
  EXPECT_EQ(rig.count(rig.ledger().revoked.buffers), expected);
  EXPECT_EQ(rig.count(rig.ledger().revoked.bytes), expected * kBytes);
  EXPECT_EQ(rig.count(rig.ledger().orphan.buffers), kCount - expected);
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 0U);
  for (size_t i = 0; i < kCount; ++i) {
    const bool revoked = i < expected;  // the oldest
    EXPECT_EQ(rig.state(buffers[i]), revoked ? State::kUnused : State::kOrphan) << i;
    const int fd = frontend.buffers[buffers[i].generation].fd.get();
    EXPECT_EQ(allocated_bytes(fd), revoked ? 0 : static_cast<int64_t>(kBytes)) << i;
  }
  // The frontend's own descriptors, and two of each buffer that is left.
  EXPECT_EQ(open_descriptors(), descriptors + kCount + 2 * (kCount - expected));
  // It answers at last: late answers are stale, those in time free.
  for (const BufferId id : buffers) frontend.unmap(id);
  ASSERT_TRUE(eventually([&] { return told() == kCount; }));
  EXPECT_EQ(rig.count(rig.ledger().stale), expected);
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), kCount - expected);
  EXPECT_EQ(open_descriptors(), descriptors);
}

INSTANTIATE_TEST_SUITE_P(Limits, GuiRevocationTest,
                         testing::Values(Limit{"bytes", {.orphan_bytes_max = 4 * kBytes}},
                                         Limit{"count", {.orphans_max = 4}},
                                         Limit{"age", {.orphan_age_max = milliseconds(50)}}),
                         [](const auto& param) { return param.param.name; });

// What was revoked is answered after its slot has a new buffer: that one is still held.
TEST(GuiFailureTest, a_stale_unmapped_after_a_revocation_frees_nothing) {
  GuiRig rig({.buffers_max = 1});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  const BufferId old = rig.create_buffer(kBytes);
  ASSERT_TRUE(rig.show(frontend, surface, old));
  rig.release_buffer(old);
  ASSERT_EQ(rig.state(old), State::kOrphan);
  const BufferId next = rig.create_buffer(kBytes);
  ASSERT_EQ(rig.count(rig.ledger().revoked.buffers), 1U);
  ASSERT_EQ(next.slot, old.slot);
  ASSERT_NE(next.generation, old.generation);
  ASSERT_TRUE(rig.show(frontend, surface, next));
  const uint32_t holders = rig.holders(next);
  ASSERT_NE(holders, 0U);
  const uint64_t stale = rig.count(rig.ledger().stale);
  for (int i = 0; i < 3; ++i) frontend.say_unmapped(old);
  ASSERT_TRUE(eventually([&] { return rig.count(rig.ledger().stale) == stale + 3; }));
  EXPECT_EQ(rig.holders(next), holders);
  EXPECT_EQ(rig.state(next), State::kLive);
  rig.release_buffer(next);
  rig.on_gui([] {});
  EXPECT_EQ(rig.state(next), State::kOrphan) << "the frontend maps it";
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), 0U);
  EXPECT_EQ(rig.freed(), std::vector<BufferId>{old});
  frontend.say_unmapped(next);
  ASSERT_TRUE(eventually([&] { return rig.count(rig.ledger().freed.buffers) == 1; }));
}

TEST(GuiFailureTest, a_large_buffer_is_given_back_whole_freed_or_revoked) {
  constexpr uint64_t kLarge = uint64_t{80} << 20;  // three steps
  for (const bool revoked : {false, true}) {
    GuiRig rig;
    const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
    auto frontend = rig.connect();
    frontend.answers_gone = false;
    const BufferId id = rig.create_buffer(kLarge);
    rig.on_gui([&] {
      for (uint64_t at = 0; at < kLarge; at += uint64_t{1} << 20)
        rig.gui->buffer(id)->data()[at] = 1;
    });
    ASSERT_TRUE(rig.show(frontend, surface, id));
    const int fd = frontend.buffers[id.generation].fd.get();
    EXPECT_EQ(allocated_bytes(fd), 80 * 4096);
    rig.release_buffer(id);
    EXPECT_EQ(rig.state(id), State::kOrphan);
    if (revoked) {
      rig.gui->set_limits({.orphans_max = 0});
    } else {
      frontend.say_unmapped(id);
    }
    ASSERT_TRUE(eventually([&] { return rig.freed().size() == 1; }));
    const auto& total = revoked ? rig.ledger().revoked : rig.ledger().freed;
    EXPECT_EQ(rig.count(total.bytes), kLarge);
    EXPECT_EQ(rig.count(rig.ledger().freeing.bytes), 0U);
    EXPECT_EQ(rig.count(rig.ledger().leaked.bytes), 0U);
    EXPECT_EQ(allocated_bytes(fd), 0);
  }
}

TEST(GuiFailureTest, orphans_make_room_for_what_the_guest_needs_now) {
  GuiRig rig({.buffers_max = 8, .bytes_max = 16 * kBytes});
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  auto frontend = rig.connect();
  frontend.answers_gone = false;
  for (int i = 0; i < 30; ++i) {
    const BufferId id = rig.create_buffer(kBytes);
    ASSERT_TRUE(rig.show(frontend, surface, id));
    rig.release_buffer(id);
  }
  EXPECT_EQ(rig.count(rig.ledger().orphan.buffers), 8U);
  (void)rig.create_buffer(15 * kBytes);
  EXPECT_EQ(rig.count(rig.ledger().orphan.bytes), kBytes);
}

TEST(GuiFailureTest, a_slow_frontend_hears_of_every_end_and_of_the_newest_state_only) {
  GuiRig rig({.drain_patience = seconds(60)});
  auto slow = rig.connect();
  std::vector<SurfaceId> shown;
  std::vector<BufferId> held;
  const auto show = [&](const std::string& title) {
    const BufferId id = rig.create_buffer(kBytes);
    const SurfaceId surface = rig.add_surface(title, kWidth, kHeight);
    rig.present(surface, id, kWidth, kHeight, kAll);
    return std::pair(surface, id);
  };
  for (int i = 0; i < 20; ++i) {
    const auto [surface, id] = show("early");
    ASSERT_TRUE(slow.receive_until(gui::Type::kFrame));
    shown.push_back(surface);
    held.push_back(id);
  }
  // Now it does not read any more. The socket is full long before the end of this.
  const SurfaceId stays = rig.add_surface("stays", kWidth, kHeight);
  for (int i = 0; i < 3000; ++i) {
    rig.on_gui([&] {
      rig.gui->update_surface(stays,
                              {.width = kWidth, .height = kHeight, .title = fmt::format("{}", i)});
    });
  }
  for (int i = 0; i < 500; ++i) {
    const auto [surface, id] = show("never seen");
    rig.remove_surface(surface);
    rig.release_buffer(id);
  }
  for (size_t i = 0; i < shown.size(); ++i) {
    rig.remove_surface(shown[i]);
    rig.release_buffer(held[i]);
  }
  ASSERT_TRUE(eventually([&] { return rig.count(rig.ledger().orphan.buffers) >= 20; }));
  ASSERT_TRUE(eventually([&] {
    slow.drain();
    return rig.freed().size() == 520;
  }));
  EXPECT_STREQ(slow.surfaces[stays].title, "2999");
  EXPECT_EQ(slow.surfaces.size(), 1U) << "every end was told of what it had seen";
  for (const SurfaceId surface : shown)
    EXPECT_EQ(std::ranges::count(slow.surfaces_gone, surface), 1) << surface;
  for (const BufferId id : held)
    EXPECT_EQ(std::ranges::count(slow.gone, id.generation, &gui::BufferGone::generation), 1);
  EXPECT_LT(slow.packets_received, 2500U) << "what changed while it was full was told once";
  EXPECT_TRUE(slow.buffers.empty());
  EXPECT_EQ(rig.count(rig.ledger().orphan.buffers), 0U);
  EXPECT_EQ(rig.count(rig.ledger().live.buffers), 0U);
}

TEST(GuiFailureTest, a_frontend_that_does_not_read_at_all_is_sent_off_and_what_it_held_is_revoked) {
  GuiRig rig({.drain_patience = milliseconds(100)});
  auto stuck = rig.connect();
  const BufferId buffer = rig.create_buffer(kBytes);
  const SurfaceId surface = rig.add_surface("w", kWidth, kHeight);
  rig.present(surface, buffer, kWidth, kHeight, kAll);
  ASSERT_TRUE(stuck.receive_until(gui::Type::kFrame));
  for (int i = 0; i < 5000 && rig.metric("lethe_gui_frontends_slow_total") == 0; ++i)
    rig.on_gui([&] {
      rig.gui->update_surface(surface,
                              {.width = kWidth, .height = kHeight, .title = fmt::format("{}", i)});
    });
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends_slow_total") == 1; }));
  ASSERT_TRUE(eventually([&] { return rig.metric("lethe_gui_frontends") == 0; }));
  EXPECT_NE(rig.holders(buffer), 0U) << "it may still map it";
  rig.release_buffer(buffer);
  EXPECT_EQ(rig.state(buffer), State::kOrphan);
  rig.gui->set_limits({.orphan_age_max = milliseconds(1)});
  EXPECT_TRUE(eventually([&] { return rig.count(rig.ledger().revoked.buffers) == 1; }));
  auto next = rig.connect();
  EXPECT_TRUE(next.receive_until(gui::Type::kSurface));
}

TEST(GuiFailureTest, who_does_not_say_hello_is_sent_off) {
  GuiRig rig({.drain_patience = milliseconds(50)});
  FakeFrontend silent(rig.path());
  ASSERT_TRUE(silent.receive_until(gui::Type::kBye));
  EXPECT_EQ(silent.bye, gui::ByeReason::kTooSlow);
  EXPECT_FALSE(silent.receive());
}

TEST(GuiFailureTest, a_flood_of_buffers_and_surfaces_keeps_memory_and_descriptors_flat) {
  GuiRig rig({.drain_patience = seconds(60), .ledger = {.orphan_age_max = seconds(60)}});
  auto reads = rig.connect();
  auto never_reads = rig.connect();
  never_reads.answers_gone = false;
  const size_t descriptors = open_descriptors();
  testing::internal::CaptureStderr();
  uint64_t resident = 0;
  size_t descriptors_max = 0;
  constexpr int kFlood = 100'000;
  constexpr int kATurn = 1000;
  for (int i = 0; i < kFlood; i += kATurn) {
    rig.on_gui([&] {
      for (int j = 0; j < kATurn; ++j) {
        const BufferId id = rig.gui->create_buffer(kBytes, rig.creator).value();
        const SurfaceId surface =
            rig.gui->add_surface({.width = kWidth, .height = kHeight}, rig.creator).value();
        (void)rig.gui->present(surface, rig.content(id, kWidth, kHeight), kAll);
        rig.gui->remove_surface(surface);
        rig.gui->release_buffer(id);
      }
      descriptors_max = std::max(descriptors_max, open_descriptors());
      rig.creator.freed.clear();
      rig.creator.done.clear();
    });
    reads.drain();
    if (i == kFlood / 10) resident = resident_bytes();
  }
  ASSERT_TRUE(eventually([&] {
    reads.drain();
    return rig.count(rig.ledger().freed.buffers) + rig.count(rig.ledger().orphan.buffers) == kFlood;
  }));
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_LE(std::ranges::count(log, '\n'), 20) << log;
  EXPECT_LT(resident_bytes(), resident + kGrowthMax);
  // Two for each buffer that a socket holds, or that waits for its release.
  EXPECT_LT(descriptors_max, descriptors + 1000);
  EXPECT_EQ(rig.count(rig.ledger().live.bytes), 0U);
  EXPECT_EQ(rig.count(rig.ledger().leaked.buffers), 0U);
  EXPECT_TRUE(reads.buffers.empty());
  never_reads.answers_gone = true;
  ASSERT_TRUE(eventually([&] {
    never_reads.drain();
    reads.drain();
    return rig.count(rig.ledger().orphan.buffers) == 0 &&
           rig.count(rig.ledger().freeing.buffers) == 0;
  }));
  EXPECT_EQ(rig.count(rig.ledger().freed.buffers), static_cast<uint64_t>(kFlood));
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST(GuiFailureTest, a_killed_vm_leaves_its_frontends_with_their_last_picture) {
  auto socket = std::make_unique<FakeGuiSocket>();
  const std::string path = socket->path();
  Child vm([&](int ready) {
    GuiRig rig({}, std::move(socket));
    const BufferId buffer = rig.create_buffer(kBytes);
    rig.on_gui([&] { std::memset(rig.gui->buffer(buffer)->data(), 0x42, kBytes); });
    rig.present(rig.add_surface("w", kWidth, kHeight), buffer, kWidth, kHeight, kAll);
    say_ready(ready);
    ::pause();
  });
  ASSERT_TRUE(vm.ready());
  const size_t descriptors = open_descriptors();
  {
    auto frontend = FakeFrontend::connect(path);
    ASSERT_TRUE(frontend.receive_until(gui::Type::kFrame));
    vm.kill();
    EXPECT_FALSE(frontend.receive()) << "the connection has ended";
    EXPECT_FALSE(frontend.bye);
    ASSERT_EQ(frontend.buffers.size(), 1U);
    EXPECT_EQ(frontend.buffers.begin()->second.data[kBytes - 1], 0x42);
  }
  EXPECT_EQ(open_descriptors(), descriptors);
}

}  // namespace
}  // namespace lethe
