#include "devices/virtio/kick_watch.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "devices/virtio/fake_transport.h"
#include "devices/virtio/input/input.h"
#include "devices/virtio/loop_test_util.h"
#include "devices/virtio/rng/rng.h"

namespace lethe {
namespace {

// To be deaf for good, with a line in a log, would be worse: a driver can reset its device.
void expect_reset_without_descriptors(VirtioDevice& device, const std::function<void()>& settle) {
  LETHE_SKIP_UNDER_UBSAN();
  constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 64 * kMiB};
  const auto memory = GuestMemory::create({&kRam, 1}, {}).value();
  FakeTransport guest(*memory, device);
  guest.start();
  guest.stop_queue(0);
  settle();
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  for (const unsigned more : {0U, 1U}) {  // 1: for a duplicate of the kick, but not for its watch
    const int lowest = ::dup(0);
    ::close(lowest);
    rlimit tight = before;
    tight.rlim_cur = static_cast<rlim_t>(lowest) + more;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
    guest.restart_queue(0);
    const bool told = guest.wait_needs_reset(more + 1);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_TRUE(told) << more;
    guest.stop_queue(0);
    settle();  // the duplicate is closed
  }
  EXPECT_EQ(guest.needs_reset_reason(), KickWatch::kFailure);
  guest.reset();
  guest.start();
  settle();
  EXPECT_EQ(guest.needs_reset_count(), 0U) << "it can be had back";
}

TEST(KickWatchTest, an_input_device_out_of_descriptors_needs_a_reset) {
  IoThread thread{"test-gui"};
  const auto keyboard = InputDevice::make_keyboard(thread.loop());
  expect_reset_without_descriptors(*keyboard, [&] { thread.run_and_wait([] {}); });
}

TEST(KickWatchTest, an_rng_out_of_descriptors_needs_a_reset) {
  OnLoop<RngDevice> rng([](EventLoop& loop) { return RngDevice::open(loop, "").value(); });
  expect_reset_without_descriptors(*rng, [&] { rng.run([] {}); });
}

}  // namespace
}  // namespace lethe
