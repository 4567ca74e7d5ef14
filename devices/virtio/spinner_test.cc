#include "devices/virtio/spinner.h"

#include <gtest/gtest.h>

namespace lethe {
namespace {

constexpr std::chrono::microseconds kTime{200};

// How often finds() looks at all before it gives up for good; each time in vain.
unsigned spins_in_vain(Spinner& spinner) {
  for (unsigned spins = 0;; ++spins) {
    bool looked = false;
    EXPECT_FALSE(spinner.finds([&] {
      looked = true;
      return false;
    }));
    if (!looked) return spins;
  }
}

// Sleeps so short that spinning would have paid off; on a busy host not each of them is.
void earn(Spinner& spinner) {
  for (int tries = 0; tries < 1000; ++tries) {
    spinner.sleeps();
    spinner.woke();
    if (spinner.finds([] { return true; })) return;
  }
  FAIL() << "no wake-up was soon";
}

TEST(Spinner, does_not_look_before_it_has_paid_off) {
  Spinner spinner(kTime);
  EXPECT_EQ(spins_in_vain(spinner), 0u);
  spinner.woke();  // without a sleep
  EXPECT_EQ(spins_in_vain(spinner), 0u);
}

TEST(Spinner, gives_up_after_looks_in_vain_and_starts_again_after_a_find) {
  Spinner spinner(kTime);
  ASSERT_NO_FATAL_FAILURE(earn(spinner));
  const unsigned patience = spins_in_vain(spinner);
  EXPECT_GT(patience, 1u);
  EXPECT_EQ(spins_in_vain(spinner), 0u);
  ASSERT_NO_FATAL_FAILURE(earn(spinner));
  EXPECT_FALSE(spinner.finds([] { return false; }));
  EXPECT_TRUE(spinner.finds([] { return true; }));
  EXPECT_EQ(spins_in_vain(spinner), patience);
}

}  // namespace
}  // namespace lethe
