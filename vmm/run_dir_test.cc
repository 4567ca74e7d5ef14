#include "vmm/run_dir.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <thread>

namespace lethe {
namespace {

using testing::HasSubstr;

class RunDirTest : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-run-XXXXXX";
    ASSERT_NE(::mkdtemp(made), nullptr);
    x_base = made;
    x_roots = {x_base, x_base + "/user", x_base + "/tmp"};
  }
  void TearDown() override { std::filesystem::remove_all(x_base); }

  std::string error(const std::string& name) {
    const auto made = RunDir::create(name, x_roots);
    if (made) return "made " + made->path();
    EXPECT_EQ(made.error().text.find('\n'), std::string::npos);
    return made.error().text;
  }
  static mode_t mode(const std::string& path) {
    struct stat status{};
    return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
  }
  std::string x_base;
  RunDirRoots x_roots;
};

TEST_F(RunDirTest, is_private_and_locked_and_removed_at_the_end) {
  std::string path;
  {
    const auto dir = RunDir::create("vm", x_roots);
    ASSERT_TRUE(dir) << dir.error().text;
    path = dir->path();
    EXPECT_EQ(path, x_base + "/lethe/vm");
    EXPECT_EQ(mode(path), 0700u);
    EXPECT_EQ(mode(x_base + "/lethe"), 0700u);
    std::ifstream lock(path + "/lock");
    pid_t pid = 0;
    lock >> pid;
    EXPECT_EQ(pid, ::getpid());
    std::ofstream(path + "/api.sock") << "";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(std::filesystem::exists(x_base + "/lethe"));
}

TEST_F(RunDirTest, second_start_says_which_process_has_the_name) {
  const auto first = RunDir::create("vm", x_roots, "/etc/lethe/we\x1b b.toml");
  ASSERT_TRUE(first);
  EXPECT_THAT(error("vm"), testing::MatchesRegex(
                               "'vm' is running already, as process " + std::to_string(::getpid()) +
                               ", since 20..-..-.. ..:..:.., from '/etc/lethe/we.x1b b.toml': stop "
                               "that one \\(lethe stop vm\\), or give another --name"));
  EXPECT_THAT(error("other"), HasSubstr("made "));
  EXPECT_TRUE(std::filesystem::exists(first->path() + "/lock"));
}

TEST_F(RunDirTest, tells_who_has_a_name_and_its_config_as_seen_from_elsewhere) {
  const auto dir = RunDir::create("vm", x_roots, "web.toml");
  ASSERT_TRUE(dir);
  dir->set_ready();
  const auto vm = find_running_vm("vm", x_roots);
  ASSERT_TRUE(vm);
  EXPECT_EQ(vm->config, std::filesystem::current_path().string() + "/web.toml");
  EXPECT_NEAR(static_cast<double>(vm->since), static_cast<double>(::time(nullptr)), 5);
  // Lines in a name would be lines of the lock.
  const auto other = RunDir::create("other", x_roots, "a\nb.toml");
  ASSERT_TRUE(other);
  other->set_ready();
  EXPECT_EQ(find_running_vm("other", x_roots)->config, "");
}

TEST_F(RunDirTest, what_a_detached_vm_said_stays_until_its_name_is_used_again) {
  const std::string path = run_dir_path("vm", x_roots);
  {
    const auto dir = RunDir::create("vm", x_roots);
    ASSERT_TRUE(dir);
    for (const char* name : {kMessagesName, kLastConsoleName, kApiSocketName})
      std::ofstream(path + "/" + name) << "said";
  }
  EXPECT_TRUE(std::filesystem::exists(path + "/" + kMessagesName));
  EXPECT_TRUE(std::filesystem::exists(path + "/" + kLastConsoleName));
  EXPECT_FALSE(std::filesystem::exists(path + "/" + kApiSocketName));
  EXPECT_TRUE(running_vms(x_roots).empty());
  {
    const auto dir = RunDir::create("vm", x_roots);
    ASSERT_TRUE(dir);
    EXPECT_FALSE(std::filesystem::exists(path + "/" + kMessagesName));
    EXPECT_FALSE(std::filesystem::exists(path + "/" + kLastConsoleName));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(RunDirTest, name_is_free_again_after_the_end) {
  for (int i = 0; i < 3; ++i) EXPECT_THAT(error("vm"), HasSubstr("made "));
}

TEST_F(RunDirTest, stale_directory_is_emptied_and_reused) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // Dies without its destructors, as after SIGKILL.
    const auto dir = RunDir::create("vm", x_roots);
    if (dir) std::ofstream(dir->path() + "/api.sock") << "stale";
    ::_exit(dir ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(std::filesystem::exists(x_base + "/lethe/vm/api.sock"));
  const auto dir = RunDir::create("vm", x_roots);
  ASSERT_TRUE(dir) << dir.error().text;
  EXPECT_FALSE(std::filesystem::exists(dir->path() + "/api.sock"));
}

TEST_F(RunDirTest, moving_keeps_the_lock) {
  auto first = RunDir::create("vm", x_roots);
  ASSERT_TRUE(first);
  const RunDir moved = std::move(*first);
  EXPECT_THAT(error("vm"), HasSubstr("running already"));
}

TEST_F(RunDirTest, falls_back_when_there_is_no_xdg_directory) {
  for (const char* xdg : {"", "relative/path"}) {
    x_roots.xdg = xdg;
    EXPECT_EQ(error("vm"), "made " + x_base + "/tmp/vm");
    EXPECT_EQ(mode(x_base + "/tmp"), 0700u);
  }
  ASSERT_EQ(::mkdir((x_base + "/user").c_str(), 0700), 0);
  EXPECT_EQ(error("vm"), "made " + x_base + "/user/lethe/vm");
}

TEST_F(RunDirTest, wide_open_directory_of_ours_is_made_private) {
  x_roots.xdg = "";
  ASSERT_EQ(::mkdir(x_roots.temporary.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(x_roots.temporary.c_str(), 0777), 0);
  EXPECT_THAT(error("vm"), HasSubstr("made "));
  EXPECT_EQ(mode(x_roots.temporary), 0700u);
}

TEST_F(RunDirTest, link_in_the_way_is_refused) {
  x_roots.xdg = "";
  ASSERT_EQ(::mkdir((x_base + "/elsewhere").c_str(), 0700), 0);
  ASSERT_EQ(::symlink((x_base + "/elsewhere").c_str(), x_roots.temporary.c_str()), 0);
  EXPECT_THAT(error("vm"), HasSubstr("is no directory: remove it"));
  EXPECT_TRUE(std::filesystem::is_empty(x_base + "/elsewhere"));
}

TEST_F(RunDirTest, directory_of_another_user_is_refused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can make a directory of another user";
  x_roots.xdg = "";
  ASSERT_EQ(::mkdir(x_roots.temporary.c_str(), 0777), 0);
  ASSERT_EQ(::chown(x_roots.temporary.c_str(), 12345, 12345), 0);
  EXPECT_THAT(error("vm"), HasSubstr("belongs to user 12345"));
}

TEST_F(RunDirTest, file_in_the_way_is_refused) {
  std::ofstream(x_base + "/lethe") << "";
  EXPECT_THAT(error("vm"), HasSubstr("is no directory"));
}

TEST_F(RunDirTest, missing_xdg_directory_is_named) {
  x_roots.xdg = x_base + "/gone";
  EXPECT_THAT(error("vm"), HasSubstr("'" + x_base + "/gone': is missing or no directory"));
}

TEST_F(RunDirTest, unwritable_directory_is_named) {
  // /proc refuses mkdir to everyone, root too.
  x_roots.xdg = "/proc";
  EXPECT_THAT(error("vm"), HasSubstr("run-time directory '/proc/lethe': "));
}

TEST_F(RunDirTest, racing_starts_never_share_a_name) {
  constexpr int kProcesses = 6;
  constexpr int kRounds = 300;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child > 0) continue;
    const std::string mark = x_base + "/mark";
    for (int i = 0; i < kRounds; ++i) {
      const auto dir = RunDir::create("vm", x_roots);
      if (!dir && dir.error().text.find("is running already") == std::string::npos) {
        std::fprintf(stderr, "%s\n", dir.error().text.c_str());
        ::_exit(1);
      }
      if (!dir) continue;
      const int fd = ::open(mark.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
      if (fd < 0) ::_exit(2);
      ::close(fd);
      ::sched_yield();
      if (::unlink(mark.c_str()) != 0) ::_exit(3);
    }
    ::_exit(0);
  }
  for (int p = 0; p < kProcesses; ++p) {
    int status = -1;
    ASSERT_GT(::waitpid(-1, &status, 0), 0);
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
}

TEST_F(RunDirTest, path_too_long_for_sockets_is_refused) {
  x_roots.xdg = x_base + "/" + std::string(70, 'd');
  ASSERT_EQ(::mkdir(x_roots.xdg.c_str(), 0700), 0);
  EXPECT_THAT(error("vm"), HasSubstr("too long for sockets"));
}

TEST_F(RunDirTest, lists_the_vms_that_run_and_no_others) {
  EXPECT_TRUE(running_vms(x_roots).empty());
  EXPECT_FALSE(std::filesystem::exists(x_base + "/lethe"));
  const auto b = RunDir::create("b", x_roots);
  const auto a = RunDir::create("a", x_roots);
  ASSERT_TRUE(a && b);
  for (const auto* vm : {&a, &b}) (*vm)->set_ready();
  // What a crash leaves: a lock that no one holds.
  std::filesystem::create_directory(x_base + "/lethe/crashed");
  std::ofstream(x_base + "/lethe/crashed/lock") << ::getpid() << "\n";
  std::ofstream(x_base + "/lethe/crashed/api.sock") << "";
  std::filesystem::create_directory(x_base + "/lethe/Bad Name");
  std::ofstream(x_base + "/lethe/file") << "";
  const std::vector<RunningVm> found = running_vms(x_roots);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].name, "a");
  EXPECT_EQ(found[1].name, "b");
  EXPECT_EQ(found[1].path, b->path());
  EXPECT_EQ(found[1].pid, std::to_string(::getpid()));
}

TEST_F(RunDirTest, a_name_that_does_not_run_is_told_with_those_that_do) {
  EXPECT_EQ(find_running_vm("x", x_roots).error().text, "'x' does not run, nor does any other VM");
  const auto a = RunDir::create("a", x_roots);
  const auto b = RunDir::create("b", x_roots);
  ASSERT_TRUE(a && b);
  b->set_ready();  // who looks for b does not wait for a
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(find_running_vm("b", x_roots)->name, "b");
  EXPECT_EQ(find_running_vm("../x", x_roots).error().text, "'../x' does not run; running: a, b");
  EXPECT_LT(std::chrono::steady_clock::now() - before, kReadyPatience / 2);
}

TEST_F(RunDirTest, a_vm_that_starts_is_found_once_its_sockets_are_there) {
  for (const bool by_name : {true, false}) {
    SCOPED_TRACE(by_name);
    const auto dir = RunDir::create("vm", x_roots);
    ASSERT_TRUE(dir);
    std::atomic<bool> ready = false;
    auto found_ready = std::async(std::launch::async, [&] {
      const bool found =
          by_name ? find_running_vm("vm", x_roots).has_value() : running_vms(x_roots).size() == 1;
      return found && ready;
    });
    // Nothing may happen: long enough for one that does not wait to be seen.
    EXPECT_EQ(found_ready.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    ready = true;
    dir->set_ready();
    EXPECT_TRUE(found_ready.get());
  }
}

TEST_F(RunDirTest, a_vm_that_ends_while_it_starts_is_not_found) {
  auto dir = std::make_optional(RunDir::create("vm", x_roots));
  ASSERT_TRUE(*dir);
  const auto before = std::chrono::steady_clock::now();
  auto found = std::async(std::launch::async, [&] { return find_running_vm("vm", x_roots); });
  EXPECT_EQ(found.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  dir.reset();
  EXPECT_FALSE(found.get());
  EXPECT_LT(std::chrono::steady_clock::now() - before, kReadyPatience);
}

TEST_F(RunDirTest, a_vm_that_takes_long_to_start_is_found_all_the_same) {
  const auto dir = RunDir::create("vm", x_roots);
  ASSERT_TRUE(dir);
  const auto before = std::chrono::steady_clock::now();
  EXPECT_TRUE(find_running_vm("vm", x_roots));
  EXPECT_GE(std::chrono::steady_clock::now() - before, kReadyPatience);
}

TEST_F(RunDirTest, starts_while_others_look_whether_it_runs) {
  // Who looks (running_vms) holds the lock of a dead VM for a moment.
  std::filesystem::create_directories(x_base + "/lethe/vm");
  std::ofstream(x_base + "/lethe/vm/lock") << "1\n";
  const UniqueFd looker(::open((x_base + "/lethe/vm/lock").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::flock(looker.get(), LOCK_SH | LOCK_NB), 0);
  std::thread end_of_look([&] {
    // As long as a look may take: create() tries again meanwhile, which nobody can see.
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    (void)::flock(looker.get(), LOCK_UN);
  });
  const auto dir = RunDir::create("vm", x_roots);
  EXPECT_TRUE(dir) << dir.error().text;
  end_of_look.join();
  // Someone who keeps it is another VM.
  EXPECT_THAT(error("vm"), HasSubstr("'vm' is running already"));
}

}  // namespace
}  // namespace lethe
