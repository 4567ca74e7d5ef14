// What holds for a VM and its disks while it is saved, after that, and when that fails (label kvm).
#include <sys/stat.h>

#include <atomic>
#include <functional>
#include <thread>

#include "guest-tests/snapshot_test_util.h"

namespace lethe::snapshots {
namespace {

TEST_F(Snapshot, a_changed_disk_is_refused_unless_told_otherwise) {
  write_config("", 1, true);
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  std::ofstream(path("disk.img"), std::ios::in | std::ios::out) << "somebody was here";
  expect_refused("restore " + path("s"), 2, "disk.img' is not as it was");
  ASSERT_NO_FATAL_FAILURE(restore("s", "again", {"--changed-disks"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

// A rate limit has most of a round's writes wait in the ring: the guest has asked for them, and
// only the guest that goes on may find them done.
class SnapshotOfWrites : public Snapshot {
 protected:
  static constexpr uint64_t kBurst = 80;
  static constexpr uint64_t kBurstAt = 1536 * 512;  // baremetal/guests/snapshot.cc

  // A sector in 8 ms, and memory that takes the disk a while.
  void run_writer() {
    write_config("pages=8000 burst=80", 1, true, "64M", "bandwidth_max = \"64K\"\n");
    ASSERT_NO_FATAL_FAILURE(start({"run", path("vm.toml")}, "log"));
    ASSERT_TRUE(eventually([this] { return written_to(1) && !written_to(8); }, kDeadline));
  }
  // The burst under way has come so far: its number is in each of its sectors.
  [[nodiscard]] bool written_to(uint64_t sector) const {
    return round_in(0) != 0 && round_in(sector) == round_in(0);
  }
  [[nodiscard]] uint64_t round_in(uint64_t sector) const {
    std::ifstream disk(path("disk.img"), std::ios::binary);
    disk.seekg(static_cast<std::streamoff>(kBurstAt + sector * 512));
    uint64_t round = 0;
    // SAFETY: the object's bytes.
    disk.read(reinterpret_cast<char*>(&round), sizeof round);
    return round;
  }
};

TEST_F(SnapshotOfWrites, what_waits_in_a_disk_is_not_written_once_it_is_saved) {
  ASSERT_NO_FATAL_FAILURE(run_writer());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  EXPECT_FALSE(written_to(kBurst - 1)) << "it was too slow for this test";
  const uint64_t before = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 2));
  EXPECT_EQ(count_rounds(read("again")).first, before + 1);
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(SnapshotOfWrites, a_vm_that_stays_paused_does_not_write_to_its_disk) {
  ASSERT_NO_FATAL_FAILURE(run_writer());
  ask("POST", "/pause");
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const auto stamp = fs::last_write_time(path("disk.img"));
  EXPECT_FALSE(written_to(kBurst - 1)) << "it was too slow for this test";
  // What must not happen, and would soon, has no other sign than that it has not: 37 sectors' time.
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(fs::last_write_time(path("disk.img")), stamp);
  ASSERT_NO_FATAL_FAILURE(save("s2"));
  EXPECT_EQ(fs::last_write_time(path("disk.img")), stamp);
  const uint64_t now = count_rounds(read("log")).last;
  ask("POST", "/resume");
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 1));
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

TEST_F(Snapshot, a_paused_vm_stays_paused) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ask("POST", "/pause");
  EXPECT_THAT(ask("POST", "/snapshot", "{\"dir\":\"" + path("s") + "\"}"), HasSubstr(path("s")));
  EXPECT_THAT(ask("GET", "/state"), HasSubstr("\"paused\""));
  end_by_force();
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, a_snapshot_that_fails_leaves_the_vm_running_and_nothing_by_its_name) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(start({"run", path("vm.toml")}, "log", 1 << 20));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", 10));
  expect_refused("snapshot vm " + path("no/s"), 1, "No such file or directory");
  fs::create_directory(path("there"));
  expect_refused("snapshot vm " + path("there") + " --stop", 1, "is there already");
  // The disk is full: a file of this process may have 1 MiB.
  expect_refused("snapshot vm " + path("s") + " --stop", 1, "File too large");
  EXPECT_FALSE(fs::exists(path("s")));
  for (const auto& entry : fs::directory_iterator(x_dir))
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".unfinished-")));
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

// What this process sees of a snapshot while another one makes it.
class Unfinished : public Snapshot {
 protected:
  void TearDown() override {
    end_saving();
    Snapshot::TearDown();
  }
  // Another thread saves it; `x_saved` has how that went after end_saving().
  void begin_saving(const std::string& name, const std::string& more = "") {
    x_saver = std::thread([this, words = "snapshot vm " + path(name) + " " + more] {
      x_saved = lethe(words);
      x_ended = true;
    });
  }
  void end_saving() {
    if (x_saver.joinable()) x_saver.join();
    x_ended = false;
  }
  // Without a pause between two looks: what it waits for may last for a moment. Saving may have
  // ended before.
  void wait_while_saving(const std::function<bool()>& condition) const {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (!condition() && !x_ended) ASSERT_LT(std::chrono::steady_clock::now(), deadline);
  }
  // The directory in which the snapshot grows; empty: there is none.
  [[nodiscard]] std::string temporary(const std::string& name) const {
    for (const auto& entry : fs::directory_iterator(x_dir))
      if (entry.path().filename().string().starts_with(name + ".unfinished-"))
        return entry.path().filename();
    return {};
  }
  [[nodiscard]] bool has_begun(const std::string& name, const std::string& file) const {
    struct stat status{};
    const std::string at = temporary(name);
    return !at.empty() && ::stat(path(at + "/" + file).c_str(), &status) == 0 &&
           status.st_blocks > 0;
  }
  // The guest goes on from some round: of the last ones nothing is in the log of a VM that was
  // killed. Or, if it `may_be_refused`, it is, and shows nothing of the guest.
  void expect_whole(const std::string& name, bool may_be_refused = false) {
    ASSERT_NO_FATAL_FAILURE(restore(name, "again", {"--verify"}));
    bool refused = false;
    int status = 0;
    ASSERT_TRUE(eventually(
        [&] {
          refused = waitpid(x_pid, &status, WNOHANG) == x_pid;
          return refused || count_rounds(read("again")).last != 0;
        },
        kDeadline));
    if (refused) {
      x_pid = -1;
      EXPECT_TRUE(may_be_refused) << read("again");
      EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 2) << read("again");
      EXPECT_THAT(read("again"), Not(HasSubstr("round")));
    } else {
      ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 3));
      EXPECT_GT(count_rounds(read("again")).first, 1u);
    }
    end_by_force();
  }
  std::thread x_saver;
  std::atomic<bool> x_ended = false;
  Ran x_saved;
};

TEST_F(Unfinished, a_vm_killed_while_it_is_saved_leaves_a_whole_snapshot_or_none) {
  write_config("pages=4000");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("old"));
  end_by_force();
  const std::function<bool()> moments[] = {
      [&] { return !temporary("s").empty(); }, [&] { return has_begun("s", "memory"); },
      [&] { return has_begun("s", "state"); }, [&] { return fs::exists(path("s")); }};
  int half = 0;
  // The moments last for milliseconds, and this process may look away: some tries for each.
  for (int i = 0; i < 12; ++i) {
    ASSERT_NO_FATAL_FAILURE(run());
    begin_saving("s");
    ASSERT_NO_FATAL_FAILURE(wait_while_saving(moments[i % 4]));
    end_by_force();
    end_saving();
    const std::string left_over = temporary("s");
    EXPECT_NE(left_over.empty(), !fs::exists(path("s"))) << "one of them";
    if (left_over.empty()) {
      ASSERT_NO_FATAL_FAILURE(expect_whole("s"));
    } else {
      ++half;
      ASSERT_NO_FATAL_FAILURE(expect_whole(left_over, true));
      ASSERT_NO_FATAL_FAILURE(run());
      ASSERT_NO_FATAL_FAILURE(save("s"));
      end_by_force();
      EXPECT_EQ(temporary("s"), "") << "the next one clears what is left";
    }
    fs::remove_all(path("s"));
  }
  EXPECT_GT(half, 0) << "no VM was killed before its snapshot was whole";
  ASSERT_NO_FATAL_FAILURE(expect_whole("old"));
}

// Somebody takes the name while the snapshot is made: only commit() finds that.
TEST_F(Unfinished, a_snapshot_that_gets_no_name_leaves_the_vm_running_or_paused_as_it_was) {
  write_config("pages=16000", 1, false, "128M");  // written for long enough to be in time
  ASSERT_NO_FATAL_FAILURE(run());
  for (const bool paused : {false, true}) {
    if (paused) ask("POST", "/pause");
    for (const char* how : {"", "--stop"}) {
      begin_saving("s", how);
      ASSERT_NO_FATAL_FAILURE(wait_while_saving([&] { return !temporary("s").empty(); }));
      std::error_code error;
      fs::create_directory(path("s"), error);
      end_saving();
      EXPECT_EQ(x_saved.code, 1) << "or the name was taken too late";
      EXPECT_THAT(x_saved.err, HasSubstr("File exists"));
      EXPECT_EQ(temporary("s"), "");
      EXPECT_TRUE(fs::is_empty(path("s")));
      fs::remove(path("s"));
      EXPECT_THAT(ask("GET", "/state"), HasSubstr(paused ? "\"paused\"" : "\"running\"")) << how;
    }
    if (paused) ask("POST", "/resume");
    const uint64_t now = count_rounds(read("log")).last;
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  }
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

TEST_F(Snapshot, what_the_control_api_has_set_comes_back) {
  write_config("", 1, true);
  ASSERT_NO_FATAL_FAILURE(start({"run", path("vm.toml"), "--set", "memory.auto=true"}, "log"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", 10));
  ask("PUT", "/memory", R"({"auto": false, "balloon_target": 4194304})");
  ask("PATCH", "/disks/0", R"({"iops_max": 1234567})");
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 1));
  const std::string memory = ask("GET", "/memory");
  EXPECT_THAT(memory, HasSubstr("\"auto\":false"));
  EXPECT_THAT(memory, HasSubstr("\"balloon_target\":4194304"));
  EXPECT_THAT(ask("GET", "/disks"), HasSubstr("\"iops_max\":1234567"));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

}  // namespace
}  // namespace lethe::snapshots
