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
  const std::string post = "curl -s --max-time 20 --unix-socket " + path("lethe/vm/api.sock") +
                           " -o " + path("out") + " -X POST http://vm/";
  ASSERT_EQ(std::system((post + "pause").c_str()), 0);
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const auto stamp = fs::last_write_time(path("disk.img"));
  EXPECT_FALSE(written_to(kBurst - 1)) << "it was too slow for this test";
  // What must not happen, and would soon, has no other sign than that it has not: 37 sectors' time.
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(fs::last_write_time(path("disk.img")), stamp);
  ASSERT_NO_FATAL_FAILURE(save("s2"));
  EXPECT_EQ(fs::last_write_time(path("disk.img")), stamp);
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_EQ(std::system((post + "resume").c_str()), 0);
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 1));
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

TEST_F(Snapshot, a_paused_vm_stays_paused) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  const std::string curl = "curl -s --max-time 20 --unix-socket " + path("lethe/vm/api.sock");
  ASSERT_EQ(std::system((curl + " -X POST http://vm/pause >" + path("out")).c_str()), 0);
  ASSERT_NO_FATAL_FAILURE(save("s"));
  ASSERT_EQ(std::system((curl + " http://vm/state >" + path("out")).c_str()), 0);
  EXPECT_THAT(read("out"), HasSubstr("\"paused\""));
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
    EXPECT_THAT(entry.path().string(), Not(HasSubstr(".tmp-")));
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  ASSERT_NO_FATAL_FAILURE(end_well("log"));
}

TEST_F(Snapshot, a_vm_killed_while_it_is_saved_leaves_a_whole_snapshot_or_none) {
  write_config("pages=4000");
  int whole = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string name = "s" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(run());
    const pid_t saver = fork();
    if (saver == 0) {
      (void)lethe("snapshot vm " + path(name));
      _exit(0);
    }
    // At another moment each time; the last ones when it is done.
    std::this_thread::sleep_for(milliseconds(5) * i * i);
    end_by_force();
    EXPECT_EQ(waitpid(saver, nullptr, 0), saver);
    if (!fs::exists(path(name))) continue;
    ++whole;
    ASSERT_NO_FATAL_FAILURE(restore(name, "again", {"--verify"}));
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 3));
    end_by_force();
  }
  RecordProperty("whole", whole);
}

}  // namespace
}  // namespace lethe::snapshots
