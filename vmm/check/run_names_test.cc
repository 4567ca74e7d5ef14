// Which names guests run under, and how much memory they may take together.
#include "vmm/check/run_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "vmm/check/memory_budget.h"

namespace lethe {
namespace {

class RunNamesTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-names-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
  }
  void TearDown() override { std::filesystem::remove_all(x_dir); }
  [[nodiscard]] RunDirRoots roots() const {
    return {.xdg = x_dir, .run_user = "", .temporary = ""};
  }
  std::string x_dir;
};

TEST_F(RunNamesTest, every_guest_has_a_valid_name_of_its_own) {
  const auto names = RunNames::create(roots());
  ASSERT_TRUE(names);
  EXPECT_EQ(names->of("boot-1.x_y"), "check-1-boot-1.x_y");
  std::set<std::string> all;
  for (const std::string& guest :
       {std::string("a"), std::string("A"), std::string("a b"), std::string("a-b"),
        std::string("a/b"), std::string(""), std::string("\xc3\xa4"), std::string(300, 'x'),
        std::string(301, 'x'), std::string(36, 'x')}) {
    const std::string name = names->of(guest);
    EXPECT_TRUE(valid_vm_name(name)) << name;
    EXPECT_TRUE(all.insert(name).second) << name;
    EXPECT_EQ(names->of(guest), name);
  }
}

TEST_F(RunNamesTest, checks_side_by_side_have_a_slot_each_and_the_lowest_free_one) {
  auto first = RunNames::create(roots());
  auto second = RunNames::create(roots());
  auto third = RunNames::create(roots());
  ASSERT_TRUE(first && second && third);
  EXPECT_EQ(first->of("a"), "check-1-a");
  EXPECT_EQ(second->of("a"), "check-2-a");
  EXPECT_EQ(third->of("a"), "check-3-a");
  second = host_error("over");
  EXPECT_EQ(RunNames::create(roots())->of("a"), "check-2-a");
}

TEST_F(RunNamesTest, locks_are_no_vms) {
  const auto names = RunNames::create(roots());
  ASSERT_TRUE(names);
  EXPECT_THAT(running_vms(roots()), testing::IsEmpty());
}

TEST(StableHash, never_changes) {
  EXPECT_EQ(stable_hash(""), 0xecba3df2c3383c52u);
  EXPECT_EQ(stable_hash("boot"), 0x729985ff4ac3fau);
}

TEST(MemoryBudget, guests_stay_within_it) {
  MemoryBudget budget(100);
  EXPECT_TRUE(budget.fits(60));
  budget.take(60);
  EXPECT_TRUE(budget.fits(40));
  EXPECT_FALSE(budget.fits(41));
  EXPECT_FALSE(budget.fits(UINT64_MAX));
  budget.take(40);
  EXPECT_FALSE(budget.fits(1));
  budget.give_back(60);
  budget.give_back(40);
  // One that never fits runs alone.
  EXPECT_TRUE(budget.too_large(101));
  EXPECT_TRUE(budget.fits(101));
  budget.take(101);
  EXPECT_FALSE(budget.fits(1));
}

TEST(MemoryBudget, a_guest_takes_its_memory_and_more) {
  VmConfig config;
  config.memory.size_bytes = 256 * kMiB;
  EXPECT_EQ(memory_of(config), (256 + 64 + 32) * kMiB);
  config.memory.policy = MemoryPolicy::kDiscard;
  EXPECT_EQ(memory_of(config), (256 + 32) * kMiB);
  config.gui.enabled = true;
  config.gui.width = 1024;
  config.gui.height = 1024;
  config.gui.screens = 2;
  EXPECT_EQ(memory_of(config), (256 + 32 + 8) * kMiB);
  config.memory.backing = MemoryBacking::kHugetlb;
  EXPECT_EQ(memory_of(config), (32 + 8) * kMiB);
  EXPECT_GT(available_memory(), 0u);
}

}  // namespace
}  // namespace lethe
