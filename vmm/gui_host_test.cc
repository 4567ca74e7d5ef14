#include "vmm/gui_host.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>

namespace lethe {
namespace {

class GuiHost : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-guih-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_dir = made;
    x_config.name = "vm";
    auto run_dir = RunDir::create("vm", {x_dir, x_dir + "/user", x_dir + "/tmp"});
    ASSERT_TRUE(run_dir) << run_dir.error().text;
    x_run_dir.emplace(std::move(*run_dir));
  }
  void TearDown() override {
    x_run_dir.reset();
    std::filesystem::remove_all(x_dir);
  }
  static size_t threads() {
    size_t count = 0;
    for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
      ++count;
    return count;
  }
  std::string x_dir;
  VmConfig x_config;
  Events x_events;
  std::optional<RunDir> x_run_dir;
};

TEST_F(GuiHost, makes_nothing_for_a_vm_without_a_gui) {
  const size_t before = threads();
  const auto gui = make_gui(x_config, *x_run_dir, x_events);
  ASSERT_TRUE(gui);
  EXPECT_EQ(*gui, nullptr);
  EXPECT_EQ(threads(), before);
  EXPECT_FALSE(std::filesystem::exists(x_run_dir->path() + "/gui.sock"));
}

TEST_F(GuiHost, listens_on_a_private_socket_with_the_configs_limits) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  rlimit low = limit;
  low.rlim_cur = 256;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  x_config.gui = {.enabled = true,
                  .free_per_iteration = 7,
                  .orphan_bytes_max = 4096,
                  .orphans_max = 5,
                  .orphan_ms_max = 60};
  const auto gui = make_gui(x_config, *x_run_dir, x_events);
  ASSERT_TRUE(gui) << gui.error().text;
  ASSERT_NE(*gui, nullptr);
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(low.rlim_cur, limit.rlim_max);
  EXPECT_EQ((*gui)->ledger().free_per_iteration(), 7u);
  const LedgerLimits limits = (*gui)->limits();
  EXPECT_EQ(limits.orphan_bytes_max, 4096u);
  EXPECT_EQ(limits.orphans_max, 5u);
  EXPECT_EQ(limits.orphan_age_max, std::chrono::milliseconds(60));

  const std::string path = x_run_dir->path() + "/gui.sock";
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  const UniqueFd client(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
  EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
            0);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST_F(GuiHost, limits_change_while_it_runs) {
  x_config.gui.enabled = true;
  const auto gui = make_gui(x_config, *x_run_dir, x_events);
  ASSERT_TRUE(gui);
  (*gui)->set_limits({.orphan_bytes_max = 1, .orphans_max = 2});
  EXPECT_EQ((*gui)->limits().orphan_bytes_max, 1u);
  EXPECT_EQ((*gui)->limits().orphans_max, 2u);
}

}  // namespace
}  // namespace lethe
