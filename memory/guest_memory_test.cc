#include "memory/guest_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace lethe {
namespace {

constexpr uint64_t kPage = 4096;
// The machine's own shape in small: RAM from 0, a hole, RAM from 4 GiB.
constexpr GuestMemory::Range kLow{GuestAddr{0}, 4 * kMiB};
constexpr GuestMemory::Range kHigh{GuestAddr{4 * kGiB}, 2 * kMiB};

std::unique_ptr<GuestMemory> make(const GuestMemoryOptions& options = {}) {
  const std::array ranges{kLow, kHigh};
  return GuestMemory::create(ranges, options).value();
}

// The VmFlags of the mapping that `address` lies in, as smaps shows them.
std::string vm_flags(const void* address) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2)
      inside = begin <= wanted && wanted < end;
    if (inside && line.starts_with("VmFlags:")) return line + " ";
  }
  return "";
}

struct ProcessSize {
  uint64_t mapped = 0;  // bytes
  uint64_t resident = 0;
};
ProcessSize process_size() {
  std::ifstream statm("/proc/self/statm");
  ProcessSize size;
  statm >> size.mapped >> size.resident;
  return {size.mapped * kPage, size.resident * kPage};
}

TEST(GuestAddr, plus_refuses_to_pass_two_to_the_64) {
  EXPECT_EQ(GuestAddr{1}.plus(2)->value, 3U);
  EXPECT_EQ(GuestAddr{UINT64_MAX - 1}.plus(1)->value, UINT64_MAX);
  EXPECT_FALSE(GuestAddr{UINT64_MAX}.plus(1).has_value());
}

TEST(GuestMemory, copies_round_trip_in_each_region) {
  const auto memory = make();
  for (const GuestAddr at : {GuestAddr{0}, GuestAddr{kLow.size - 5}, GuestAddr{4 * kGiB + 7}}) {
    const std::array<uint8_t, 5> out{1, 2, 3, 4, 5};
    std::array<uint8_t, 5> in{};
    ASSERT_TRUE(memory->write(at, out));
    ASSERT_TRUE(memory->read(at, in));
    EXPECT_EQ(in, out);
  }
  ASSERT_TRUE(memory->store(GuestAddr{64}, uint32_t{0x11223344}));
  EXPECT_EQ(memory->load<uint16_t>(GuestAddr{64}), 0x3344) << "little-endian";
}

TEST(GuestMemory, new_memory_reads_zero) {
  EXPECT_EQ(make()->load<uint64_t>(GuestAddr{4 * kGiB}), 0U);
}

TEST(GuestMemory, refuses_ranges_that_leave_a_region) {
  const auto memory = make();
  struct Case {
    const char* what;
    uint64_t address;
    uint64_t length;
  };
  for (const auto& [what, address, length] :
       std::initializer_list<Case>{{"crosses the end", kLow.size - 1, 2},
                                   {"begins at the end", kLow.size, 1},
                                   {"begins in the hole", 3 * kGiB, 1},
                                   {"ends where the next begins", 4 * kGiB - 1, 1},
                                   {"crosses into the next", 4 * kGiB - 1, 2},
                                   {"crosses the last end", 4 * kGiB + kHigh.size - 8, 9},
                                   {"spans everything", 0, 4 * kGiB + kHigh.size},
                                   {"address and length wrap to inside", UINT64_MAX, 2},
                                   {"length wraps to inside", 4 * kGiB, UINT64_MAX - 4 * kGiB + 2},
                                   {"longest length", 0, UINT64_MAX},
                                   {"last address", UINT64_MAX, 1}}) {
    EXPECT_FALSE(memory->slice(GuestAddr{address}, length).has_value()) << what;
    if (length > kMiB) continue;
    std::vector<uint8_t> buffer(length, 0xee);
    EXPECT_FALSE(memory->read(GuestAddr{address}, buffer)) << what;
    EXPECT_EQ(std::count(buffer.begin(), buffer.end(), 0xee), static_cast<long>(length)) << what;
    EXPECT_FALSE(memory->write(GuestAddr{address}, buffer)) << what;
  }
}

TEST(GuestMemory, refused_write_leaves_the_part_inside_alone) {
  const auto memory = make();
  const std::array<uint8_t, 2> bytes{1, 1};
  EXPECT_FALSE(memory->write(GuestAddr{kLow.size - 1}, bytes));
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{kLow.size - 1}), 0);
}

TEST(GuestMemory, empty_ranges_are_inside_up_to_a_regions_end) {
  const auto memory = make();
  EXPECT_EQ(memory->slice(GuestAddr{0}, 0)->size, 0U);
  EXPECT_EQ(memory->slice(GuestAddr{kLow.size}, 0)->size, 0U);
  EXPECT_FALSE(memory->slice(GuestAddr{kLow.size + 1}, 0).has_value());
  EXPECT_TRUE(memory->read(GuestAddr{0}, {}));
}

TEST(GuestMemory, slice_is_the_memory_that_copies_see) {
  const auto memory = make();
  const IoSlice slice = memory->slice(GuestAddr{4 * kGiB + 16}, 4).value();
  EXPECT_EQ(slice.size, 4U);
  std::memcpy(slice.data, "abcd", 4);
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{4 * kGiB + 17}), 'b');
}

TEST(GuestMemory, host_addresses_are_congruent_to_guest_addresses_modulo_2_mib) {
  const std::array ranges{GuestMemory::Range{GuestAddr{0}, 16 * kMiB},
                          GuestMemory::Range{GuestAddr{33 * kMiB}, 3 * kMiB},
                          GuestMemory::Range{GuestAddr{4 * kGiB + kPage}, kPage}};
  for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kShared}) {
    const auto memory = GuestMemory::create(ranges, {.backing = backing}).value();
    ASSERT_EQ(memory->regions().size(), 3U);
    for (const MemoryRegion& region : memory->regions()) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(region.host) % (2 * kMiB),
                region.start.value % (2 * kMiB));
      std::memset(region.host, 1, region.size);  // all of it is there
    }
  }
}

TEST(GuestMemory, a_terabyte_is_reserved_lazily) {
  [[maybe_unused]] const uint64_t before = process_size().resident;
  const std::array ranges{GuestMemory::Range{GuestAddr{0}, 3 * kGiB},
                          GuestMemory::Range{GuestAddr{4 * kGiB}, kTiB - 3 * kGiB}};
  for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kShared}) {
    const auto memory = GuestMemory::create(ranges, {.backing = backing});
    ASSERT_TRUE(memory.has_value()) << memory.error().text;
    EXPECT_EQ((*memory)->total_bytes(), kTiB);
    EXPECT_TRUE((*memory)->store(GuestAddr{kTiB + kGiB - 8}, uint64_t{1}));
#if !defined(LETHE_TSAN)  // whose shadow of what is unmapped counts as resident
    EXPECT_LT(process_size().resident, before + 64 * kMiB);
#endif
  }
}

TEST(GuestMemory, refused_mapping_names_the_size_and_a_way_out) {
  const GuestMemory::Range range{GuestAddr{0}, 1 << 17 | uint64_t{1} << 47};
  const auto memory = GuestMemory::create({&range, 1}, {});
  ASSERT_FALSE(memory.has_value());
  EXPECT_NE(memory.error().text.find("guest RAM"), std::string::npos) << memory.error().text;
  EXPECT_NE(memory.error().text.find("memory.size"), std::string::npos) << memory.error().text;
  const GuestMemory::Range round{GuestAddr{0}, uint64_t{1} << 50};
  EXPECT_NE(GuestMemory::create({&round, 1}, {}).error().text.find("1048576 GiB"),
            std::string::npos);
}

TEST(GuestMemory, unordered_or_overlapping_ranges_are_a_bug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::array overlapping{kLow, GuestMemory::Range{GuestAddr{kLow.size - kPage}, kPage}};
  EXPECT_DEATH((void)GuestMemory::create(overlapping, {}), "assertion failed");
  const GuestMemory::Range unaligned{GuestAddr{0}, 100};
  EXPECT_DEATH((void)GuestMemory::create({&unaligned, 1}, {}), "assertion failed");
}

TEST(GuestMemory, is_left_out_of_core_dumps_and_advised_about_huge_pages) {
  const bool kernel_has_thp = ::access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) == 0;
  if (!kernel_has_thp) std::puts("not checked: this kernel has no transparent huge pages");
  for (const MemoryBacking backing : {MemoryBacking::kAnonymous, MemoryBacking::kShared}) {
    for (const bool thp : {true, false}) {
      const auto memory = make({.backing = backing, .thp = thp});
      for (const MemoryRegion& region : memory->regions()) {
        const std::string flags = vm_flags(region.host);
        EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
        if (!kernel_has_thp) continue;
        EXPECT_EQ(flags.find(" hg ") != std::string::npos, thp) << flags;
        EXPECT_EQ(flags.find(" nh ") != std::string::npos, !thp) << flags;
      }
    }
  }
}

TEST(GuestMemory, shared_backing_is_a_sealed_file_with_the_same_content) {
  const auto memory = make({.backing = MemoryBacking::kShared});
  for (const MemoryRegion& region : memory->regions()) {
    ASSERT_GE(region.fd, 0);
    ASSERT_TRUE(memory->store(region.start, uint32_t{0xabcd}));
    uint32_t in_file = 0;
    ASSERT_EQ(::pread(region.fd, &in_file, sizeof in_file, 0), ssize_t{sizeof in_file});
    EXPECT_EQ(in_file, 0xabcdU);
    EXPECT_EQ(::fcntl(region.fd, F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(::fcntl(region.fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    EXPECT_NE(::ftruncate(region.fd, 0), 0);
  }
}

TEST(GuestMemory, anonymous_backing_has_no_file) { EXPECT_EQ(make()->regions()[0].fd, -1); }

TEST(GuestMemory, hugetlb_backing_works_or_says_how_to_get_huge_pages) {
  const GuestMemory::Range range{GuestAddr{0}, 3 * kMiB};  // not a whole number of huge pages
  const auto memory = GuestMemory::create({&range, 1}, {.backing = MemoryBacking::kHugetlb});
  if (!memory) {
    std::printf("no huge pages here: %s\n", memory.error().text.c_str());
    EXPECT_NE(memory.error().text.find("nr_hugepages"), std::string::npos) << memory.error().text;
    return;
  }
  const MemoryRegion region = (*memory)->regions()[0];
  EXPECT_EQ(region.size, range.size);
  EXPECT_FALSE((*memory)->slice(GuestAddr{3 * kMiB}, 1).has_value());
  EXPECT_TRUE((*memory)->store(GuestAddr{3 * kMiB - 4}, uint32_t{7}));
}

TEST(GuestMemory, destruction_unmaps) {
  auto memory = make();
  uint8_t* const host = memory->regions()[0].host;
  EXPECT_NE(vm_flags(host), "");
  memory.reset();
  EXPECT_EQ(vm_flags(host), "");
}

TEST(GuestMemory, what_was_mapped_for_alignment_is_given_back) {
  const uint64_t before = process_size().mapped;
  const GuestMemory::Range range{GuestAddr{kMiB}, kMiB};  // never where the kernel puts it
  auto memory = GuestMemory::create({&range, 1}, {}).value();
  EXPECT_LT(process_size().mapped, before + range.size + kMiB / 2);
  memory.reset();
  EXPECT_LT(process_size().mapped, before + kMiB / 2);
}

// A page of memory of the test's own, as a device would have behind a BAR.
class DevicePage {
 public:
  DevicePage()
      : x_at(static_cast<uint8_t*>(
            ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    EXPECT_NE(x_at, MAP_FAILED);
  }
  ~DevicePage() { ::munmap(x_at, kPage); }
  DevicePage(const DevicePage&) = delete;
  DevicePage& operator=(const DevicePage&) = delete;
  [[nodiscard]] uint8_t* host() const { return x_at; }

 private:
  uint8_t* x_at;
};

TEST(GuestMemory, added_region_is_reached_by_copies_but_not_by_slices) {
  const auto memory = make();
  const DevicePage page;
  const GuestAddr at{8 * kGiB};
  ASSERT_TRUE(memory->add_region(at, kPage, page.host()).has_value());
  EXPECT_TRUE(memory->store(at, uint8_t{9}));
  EXPECT_EQ(page.host()[0], 9);
  EXPECT_FALSE(memory->slice(at, 1).has_value());
  EXPECT_EQ(memory->regions().size(), 3U);
  EXPECT_EQ(memory->total_bytes(), kLow.size + kHigh.size) << "device memory is not RAM";
}

TEST(GuestMemory, an_empty_slice_between_device_memory_and_ram_is_rams) {
  const auto memory = make();
  const DevicePage page;
  ASSERT_TRUE(memory->add_region(GuestAddr{4 * kGiB - kPage}, kPage, page.host()).has_value());
  const auto slice = memory->slice(GuestAddr{4 * kGiB}, 0);
  ASSERT_TRUE(slice.has_value());
  EXPECT_EQ(slice->data, memory->regions()[2].host);
  EXPECT_FALSE(memory->slice(GuestAddr{4 * kGiB - kPage}, 0).has_value());
}

TEST(GuestMemory, regions_stay_sorted) {
  const auto memory = make();
  const DevicePage page;
  ASSERT_TRUE(memory->add_region(GuestAddr{kGiB}, kPage, page.host()).has_value());
  const auto regions = memory->regions();
  EXPECT_TRUE(std::is_sorted(regions.begin(), regions.end(),
                             [](const auto& a, const auto& b) { return a.start < b.start; }));
}

TEST(GuestMemory, overlapping_region_is_refused) {
  const auto memory = make();
  const DevicePage page;
  EXPECT_FALSE(memory->add_region(GuestAddr{kLow.size - kPage}, kPage, page.host()).has_value());
  EXPECT_FALSE(memory->add_region(GuestAddr{4 * kGiB}, kPage, page.host()).has_value());
  EXPECT_TRUE(memory->add_region(GuestAddr{kLow.size}, kPage, page.host()).has_value());
  EXPECT_FALSE(memory->add_region(GuestAddr{kLow.size}, kPage, page.host()).has_value());
  EXPECT_EQ(memory->regions().size(), 3U) << "a refused region is not there";
}

TEST(GuestMemory, ram_cannot_be_removed) {
  const auto memory = make();
  EXPECT_FALSE(memory->remove_region(GuestAddr{0}));
  EXPECT_TRUE(memory->slice(GuestAddr{0}, 1).has_value());
}

TEST(GuestMemory, remove_region_waits_for_lookups_under_way) {
  const auto memory = make();
  const DevicePage page;
  ASSERT_TRUE(memory->add_region(GuestAddr{8 * kGiB}, kPage, page.host()).has_value());
  std::atomic<bool> removed{false};
  std::thread remover;
  {
    const auto map = memory->map();
    remover = std::thread([&] {
      EXPECT_TRUE(memory->remove_region(GuestAddr{8 * kGiB}));
      removed = true;
    });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (memory->regions().size() == 3 && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    EXPECT_EQ(memory->regions().size(), 2U) << "new lookups miss it at once";
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_FALSE(removed) << "this thread could still be copying";
    EXPECT_NE(map->find(GuestAddr{8 * kGiB}, 1), nullptr);
  }
  remover.join();
  EXPECT_TRUE(removed);
}

TEST(GuestMemory, lookups_stay_right_while_regions_come_and_go) {
  const auto memory = make();
  constexpr GuestAddr kDevice{8 * kGiB};
  ASSERT_TRUE(memory->store(GuestAddr{0}, uint64_t{0x5151}));
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> hits{0};
  std::atomic<uint64_t> misses{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      std::array<uint8_t, 1024> copy{};
      while (!stop.load()) {
        if (memory->load<uint64_t>(GuestAddr{0}) != 0x5151) ++wrong;
        if (!memory->slice(GuestAddr{4 * kGiB}, kHigh.size)) ++wrong;
        if (!memory->read(kDevice, copy)) {
          ++misses;
          continue;
        }
        ++hits;
        for (const uint8_t byte : copy)
          if (byte != copy[0] || byte == 0) ++wrong;
      }
    });
  }
  // Each region has content of its own and is unmapped the moment remove_region() returns: a copy
  // that was still under way would fault.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  uint64_t rounds = 0;
  while ((rounds < 20 || hits == 0 || misses == 0) && std::chrono::steady_clock::now() < deadline) {
    ++rounds;
    const DevicePage page;
    std::memset(page.host(), static_cast<int>(rounds % 255 + 1), kPage);
    ASSERT_TRUE(memory->add_region(kDevice, kPage, page.host()).has_value());
    std::this_thread::yield();
    ASSERT_TRUE(memory->remove_region(kDevice));
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(hits, 0U);
  EXPECT_GT(misses, 0U);
  EXPECT_GE(rounds, 20U);
}

}  // namespace
}  // namespace lethe
