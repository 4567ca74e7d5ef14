// Snapshot and restore of running guests (label kvm): a bare-metal guest counts, checks its memory,
// writes and reads a disk, and says where it is; whatever is done to its VM, no round may be lost,
// done twice or wrong (baremetal/guests/snapshot.cc).
#include <algorithm>
#include <atomic>
#include <thread>

#include "guest-tests/snapshot_test_util.h"
#include "vmm/kvm/cpu_features.h"
#include "vmm/snapshot/snapshot_dir.h"

namespace lethe::snapshots {
namespace {

TEST_F(Snapshot, a_killed_vm_goes_on_from_its_snapshot) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const uint64_t then = count_rounds(read("log")).last;
  // It runs on by itself.
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", then + 20));
  end_by_force();
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_goes_on("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, two_cpus_and_a_disk_go_on) {
  write_config("", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, nobody_resumes_a_vm_that_ends_when_it_is_saved) {
  write_config("pages=2000", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  std::atomic<bool> saved = false;
  std::thread others([&] {
    const std::string lethe = (program_folder() / "lethe").string();
    while (!saved) (void)std::system((lethe + " resume vm >/dev/null 2>&1").c_str());
  });
  save("s", "--stop");
  saved = true;
  others.join();
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 50));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, twenty_in_a_row_of_a_busy_guest) {
  write_config("pages=2000", 2, true);
  ASSERT_NO_FATAL_FAILURE(run());
  for (int i = 0; i < 20; ++i) {
    ASSERT_NO_FATAL_FAILURE(save("s" + std::to_string(i))) << i;
    if (i > 0) fs::remove_all(path("s" + std::to_string(i - 1)));
  }
  const uint64_t now = count_rounds(read("log")).last;
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("log", now + 10));
  ASSERT_NO_FATAL_FAILURE(save("last", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  ASSERT_NO_FATAL_FAILURE(restore("last", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 1000 / 2));
  expect_nothing_lost("again", "log");
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, a_restored_vm_can_be_saved_at_once_and_restored_again) {
  write_config("pages=2000");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s0", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  for (int i = 0; i < 5; ++i) {
    const std::string log = "log" + std::to_string(i);
    ASSERT_NO_FATAL_FAILURE(restore("s" + std::to_string(i), log));
    ASSERT_NO_FATAL_FAILURE(wait_for_rounds(log, 1));
    ASSERT_NO_FATAL_FAILURE(save("s" + std::to_string(i + 1), "--stop"));
    EXPECT_EQ(wait_for_end(), 6);
  }
  ASSERT_NO_FATAL_FAILURE(restore("s5", "again", {"--verify"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 600));  // every page was looked at
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
}

TEST_F(Snapshot, two_vms_run_from_one_snapshot_under_two_names) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  expect_refused("restore " + path("s"), 1, "'vm' is running already");
  const pid_t first = x_pid;
  ASSERT_NO_FATAL_FAILURE(restore("s", "again", {"--name", "vm-2"}));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 10));
  ASSERT_NO_FATAL_FAILURE(end_well("again"));
  kill(first, SIGKILL);
  EXPECT_EQ(waitpid(first, nullptr, 0), first);
}

TEST_F(Snapshot, memory_that_holds_nothing_costs_nothing) {
  write_config("pages=256", 1, false, "512M");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s"));
  const std::string command = "du -sB1 " + path("s") + " | cut -f1 >" + path("out");
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_LT(std::stoul(read("out")), (1U + 3U) << 20);  // its own 1 MiB, code and tables
  EXPECT_EQ(fs::file_size(path("s/memory")), 512U << 20);
}

TEST_F(Snapshot, wrong_versions_truncated_and_altered_files_are_refused) {
  write_config("pages=64");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  const std::string restore_it = "restore --non-interactive " + path("s");
  flip("s/state", 8);
  expect_refused(restore_it, 2, "it has version 65, this lethe reads 1");
  flip("s/state", 8);
  const auto state_bytes = fs::file_size(path("s/state"));
  for (const uint64_t at : {uint64_t{30}, state_bytes / 2, state_bytes - 1}) {
    flip("s/state", at);
    expect_refused(restore_it, 2, "altered");
    flip("s/state", at);
  }
  fs::copy_file(path("s/state"), path("state"));
  fs::resize_file(path("s/state"), state_bytes - 1);
  expect_refused(restore_it, 2, "truncated or altered");
  fs::rename(path("state"), path("s/state"));
  fs::copy_file(path("s/memory"), path("memory"));
  fs::resize_file(path("s/memory"), fs::file_size(path("memory")) - 4096);
  expect_refused(restore_it, 2, "truncated or altered");
  fs::rename(path("memory"), path("s/memory"));
  // The guest's code, which it needs for its first instruction; and with --verify any page.
  flip("s/memory", 0x10'0000 + 100);
  expect_refused(restore_it, 2, "its memory was altered");
  expect_refused(restore_it + " --verify", 2, "its memory was altered");
  flip("s/memory", 0x10'0000 + 100);
  ASSERT_NO_FATAL_FAILURE(restore("s", "again"));
  ASSERT_NO_FATAL_FAILURE(wait_for_rounds("again", 5));
}

// The snapshot of a guest that was told of a feature that no processor has: a reserved bit.
TEST_F(Snapshot, a_processor_without_a_feature_that_the_guest_was_told_of_is_refused) {
  write_config("pages=64");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  const auto files = open_snapshot(path("s"));
  ASSERT_TRUE(files.has_value());
  std::vector<uint8_t> sections(files->sections().begin(), files->sections().end());
  constexpr std::string_view kName("\5\0\0\0cpuid", 9);  // as StateWriter::begin_section() has it
  const auto found = std::ranges::search(sections, kName);
  ASSERT_EQ(found.size(), kName.size());
  StateReader reader({found.begin(), sections.end()});
  auto cpuid = restore_cpuid(reader);
  ASSERT_TRUE(cpuid.has_value());
  std::ranges::find(*cpuid, 1U, &kvm_cpuid_entry2::function)->ecx |= 1U << 16;
  StateWriter writer;
  save_cpuid(*cpuid, writer);
  std::ranges::copy(writer.take(), found.begin());
  const std::vector<uint8_t> state = make_state_file(sections);
  // SAFETY: the vector's bytes.
  std::ofstream(path("s/state"), std::ios::binary)
      .write(reinterpret_cast<const char*>(state.data()), std::ssize(state));
  expect_refused("restore --non-interactive " + path("s"), 2,
                 "lacks features that the guest uses: CPUID 0x1.0 ecx bits 0x10000");
}

TEST_F(Snapshot, a_restored_vm_can_run_detached) {
  write_config("");
  ASSERT_NO_FATAL_FAILURE(run());
  ASSERT_NO_FATAL_FAILURE(save("s", "--stop"));
  EXPECT_EQ(wait_for_end(), 6);
  const Ran started = lethe("restore --detach " + path("s"));
  ASSERT_EQ(started.code, 0) << started.err;
  const Ran listed = lethe("ps");
  EXPECT_THAT(listed.out, HasSubstr("vm"));
  // It runs: it can be saved once more.
  ASSERT_NO_FATAL_FAILURE(save("s2"));
  EXPECT_EQ(lethe("kill vm").code, 0);
  // One that can't be restored says so, and is not left running.
  flip("s/state", 30);
  expect_refused("restore --detach " + path("s"), 2, "altered");
}

}  // namespace
}  // namespace lethe::snapshots
