// Whatever a guest does to the registers, the transport's promises hold after each step.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "base/log.h"
#include "devices/virtio/fake_hostile_guest.h"

namespace lethe {
namespace {

TEST(VirtioPciHostile, keeps_its_invariants_under_any_sequence_of_accesses) {
  ASSERT_TRUE(set_log_levels("off"));
  HostileGuest guest;
  const bool held = rc::check([&] {
    // Bytes at their full range from the first case on; up to 600 steps.
    const auto byte = rc::gen::resize(rc::kNominalSize, rc::gen::arbitrary<uint8_t>());
    const auto step = rc::gen::container<std::vector<uint8_t>>(HostileGuest::kStepBytes, byte);
    const auto steps =
        *rc::gen::scale(6.0, rc::gen::container<std::vector<std::vector<uint8_t>>>(step));
    guest.restore();
    for (size_t i = 0; i < steps.size(); ++i) {
      guest.step(steps[i]);
      if (const auto broken = guest.check()) RC_FAIL(*broken);
    }
  });
  EXPECT_TRUE(held);
  EXPECT_GT(guest.live_steps(), 0U);
  ASSERT_TRUE(set_log_levels("warn"));
}

}  // namespace
}  // namespace lethe
