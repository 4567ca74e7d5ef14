#include "vmm/boot/boot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "vmm/boot/bzimage.h"
#include "vmm/boot/elf.h"
#include "vmm/boot/layout.h"
#include "vmm/boot/test_images.h"

namespace lethe {
namespace {

using test::Bytes;
using test::TemporaryFile;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kMemory = 64 * kMiB;

std::unique_ptr<GuestMemory> make_memory(uint64_t size = kMemory) {
  const GuestMemory::Range range{GuestAddr{0}, size};
  auto memory = GuestMemory::create({&range, 1}, {.thp = false});
  EXPECT_TRUE(memory) << memory.error().text;
  return std::move(*memory);
}

// The error that loading `kernel` gives, "" if it loads.
std::string load_error(const Bytes& kernel, BootOptions options = {}, uint64_t size = kMemory) {
  const TemporaryFile file(kernel);
  options.kernel = file.path();
  const auto memory = make_memory(size);
  const auto state = load_guest(options, *memory, layout::kAcpiTables);
  if (state) return "";
  EXPECT_EQ(state.error().kind, ErrorClass::kConfig);
  EXPECT_EQ(state.error().text.find('\n'), std::string::npos) << "one line only";
  return state.error().text;
}

TEST(BootElf, enters_at_the_pvh_note_with_start_info_command_line_and_initrd) {
  const TemporaryFile kernel(test::make_elf());
  const TemporaryFile initrd(Bytes(5000, 0x77));
  const auto memory = make_memory();
  const auto state = load_guest(
      {.kernel = kernel.path(), .initrd = initrd.path(), .cmdline = "a=1 b"}, *memory, 0xE0000);
  ASSERT_TRUE(state) << state.error().text;
  EXPECT_EQ(state->mode, BootState::Mode::kProtected32);
  EXPECT_EQ(state->entry, 2 * kMiB);
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{2 * kMiB + 0x1FFF}), 0x5A);
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{2 * kMiB + 0x2000}), 0) << "bss is zero";
  EXPECT_EQ(memory->load<uint32_t>(GuestAddr{state->rbx}), 0x336EC578U);
  const auto modules = memory->load<uint64_t>(GuestAddr{state->rbx + 16});
  const auto initrd_at = memory->load<uint64_t>(GuestAddr{*modules});
  EXPECT_EQ(memory->load<uint64_t>(GuestAddr{*modules + 8}), 5000U);
  EXPECT_EQ(*initrd_at % 4096, 0U);
  EXPECT_LE(*initrd_at + 5000, kMemory);
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{*initrd_at + 4999}), 0x77);
  const auto cmdline_at = memory->load<uint64_t>(GuestAddr{state->rbx + 24});
  std::array<uint8_t, 6> cmdline{};
  ASSERT_TRUE(memory->read(GuestAddr{*cmdline_at}, cmdline));
  EXPECT_STREQ(reinterpret_cast<const char*>(cmdline.data()), "a=1 b");
  EXPECT_EQ(memory->load<uint64_t>(GuestAddr{state->rbx + 32}), 0xE0000U);
}

TEST(Boot, a_kernel_that_enters_the_bios_finds_a_reset_there) {
  const TemporaryFile kernel(test::make_elf());
  const auto memory = make_memory();
  ASSERT_TRUE(load_guest({.kernel = kernel.path()}, *memory, 0xE0000));
  std::array<uint8_t, 6> code{};
  ASSERT_TRUE(memory->read(GuestAddr{0xFFFF0}, code));
  EXPECT_THAT(code, testing::ElementsAre(0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE))
      << "mov dx, 0xcf9; mov al, 6; out dx, al";
}

TEST(BootElf, refuses_a_kernel_for_another_machine) {
  EXPECT_THAT(load_error(test::make_elf({.machine = EM_AARCH64})), HasSubstr("another machine"));
}

TEST(BootElf, refuses_a_kernel_without_pvh_entry) {
  EXPECT_THAT(load_error(test::make_elf({.pvh = false})), HasSubstr("CONFIG_PVH"));
}

TEST(BootElf, refuses_a_truncated_kernel_at_every_length) {
  const Bytes whole = test::make_elf();
  for (const size_t length : {size_t{5}, size_t{63}, size_t{100}, test::kElfNoteAt + 3,
                              test::kElfSegmentAt, whole.size() - 1})
    EXPECT_THAT(load_error(Bytes(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length))),
                HasSubstr("truncated"))
        << length;
}

TEST(BootElf, refuses_segments_below_1_mib_and_outside_memory) {
  EXPECT_THAT(load_error(test::make_elf({.physical = 0x9000})), HasSubstr("1 MiB"));
  EXPECT_THAT(load_error(test::make_elf({.physical = kMemory - 0x1000})),
              HasSubstr("raise memory.size"));
  EXPECT_THAT(load_error(test::make_elf({.physical = UINT64_MAX - 0x1000})), HasSubstr("raise"));
  EXPECT_THAT(load_error(test::make_elf({.memory_size = UINT64_MAX})), HasSubstr("raise"));
  EXPECT_THAT(load_error(test::make_elf({.file_size = 0x3000, .memory_size = 0x2000})),
              HasSubstr("damaged"));
}

TEST(Boot, refuses_what_is_no_kernel) {
  EXPECT_THAT(load_error(Bytes(10000, 'x')), HasSubstr("neither an ELF file nor"));
  EXPECT_THAT(load_error({}), HasSubstr("neither an ELF file nor"));
}

TEST(Boot, names_key_and_file_when_a_file_is_missing_or_no_file) {
  const auto memory = make_memory();
  const auto missing = load_guest({.kernel = "/nonexistent/vmlinuz"}, *memory, 0);
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().text, HasSubstr("boot.kernel '/nonexistent/vmlinuz': No such file"));
  const auto folder = load_guest({.kernel = "/tmp"}, *memory, 0);
  ASSERT_FALSE(folder);
  EXPECT_THAT(folder.error().text, HasSubstr("not a regular file"));
  EXPECT_THAT(load_error(test::make_elf(), {.initrd = "/nonexistent/initrd"}),
              HasSubstr("boot.initrd '/nonexistent/initrd'"));
}

TEST(Boot, refuses_an_initrd_that_does_not_fit) {
  const TemporaryFile large(Bytes(20 * kMiB));
  EXPECT_THAT(load_error(test::make_elf(), {.initrd = large.path()}, 16 * kMiB),
              HasSubstr("does not fit into the guest's 16 MiB"));
  const TemporaryFile overlapping(Bytes(15 * kMiB - 4096));
  EXPECT_THAT(load_error(test::make_elf(), {.initrd = overlapping.path()}, 16 * kMiB),
              HasSubstr("together"));
  const TemporaryFile empty(Bytes{});
  EXPECT_THAT(load_error(test::make_elf(), {.initrd = empty.path()}), HasSubstr("is empty"));
}

TEST(Boot, refuses_a_command_line_that_is_too_long) {
  EXPECT_THAT(load_error(test::make_elf(), {.cmdline = std::string(5000, 'x')}),
              HasSubstr("takes 4095 at most"));
  EXPECT_THAT(load_error(test::make_bzimage(Bytes(4096), 0, 0),
                         {.cmdline = std::string(2048, 'x'), .unpack = false}),
              HasSubstr("takes 2047 at most"));
}

TEST(BootBzImage, is_entered_as_it_is_when_it_shall_not_be_unpacked) {
  Bytes code(0x3000, 0xCC);
  const TemporaryFile kernel(test::make_bzimage(code, 0, 0));
  const auto memory = make_memory();
  const auto state = load_guest({.kernel = kernel.path(), .unpack = false}, *memory, 0xE0000);
  ASSERT_TRUE(state) << state.error().text;
  EXPECT_EQ(state->mode, BootState::Mode::kLong64);
  EXPECT_EQ(state->entry, test::kBzPreferred + 0x200);
  EXPECT_EQ(memory->load<uint8_t>(GuestAddr{test::kBzPreferred + 0x2FFF}), 0xCC);
  const auto params = memory->load<boot_params>(GuestAddr{state->rsi});
  EXPECT_EQ(params->hdr.type_of_loader, 0xFF);
  EXPECT_EQ(params->acpi_rsdp_addr, 0xE0000U);
  EXPECT_EQ(params->e820_entries, 4);
  // The identity map covers the kernel: entry 8 of the first directory is 16 MiB.
  EXPECT_EQ(memory->load<uint64_t>(GuestAddr{state->cr3 + 2 * 4096 + 8 * 8}), (16 * kMiB) | 0x83);
}

TEST(BootBzImage, refuses_a_kernel_for_another_machine_and_a_damaged_header) {
  // `header` as a good image has it, but for what `change` does to it.
  const auto error_after = [](auto&& change) {
    Bytes image = test::make_bzimage(Bytes(0x1000), 0, 0);
    auto header = test::get<setup_header>(image, 0x1F1);
    change(header);
    test::put(image, 0x1F1, header);
    return load_error(image);
  };
  EXPECT_EQ(error_after([](setup_header&) {}), "");
  EXPECT_THAT(error_after([](setup_header& h) { h.xloadflags &= ~XLF_KERNEL_64; }),
              HasSubstr("(version 2.15): use an x86-64 kernel"));
  const auto damaged = HasSubstr("has a damaged setup header");
  EXPECT_THAT(error_after([](setup_header& h) { h.relocatable_kernel = 0; }), damaged);
  for (const uint32_t size : {uint32_t{0}, uint32_t{kGiB + 1}, UINT32_MAX})
    EXPECT_THAT(error_after([&](setup_header& h) { h.init_size = size; }), damaged) << size;
  for (const uint64_t address : {uint64_t{0}, kMiB - 1, kGiB + 1, UINT64_MAX})
    EXPECT_THAT(error_after([&](setup_header& h) { h.pref_address = address; }), damaged)
        << address;
  for (const uint64_t address : {kMiB, kGiB})
    EXPECT_THAT(error_after([&](setup_header& h) { h.pref_address = address; }), Not(damaged))
        << address;
  EXPECT_THAT(error_after([](setup_header& h) { h.header = 0; }),
              HasSubstr("neither an ELF file nor a Linux bzImage"));
}

TEST(BootBzImage, refuses_wrong_protocol_truncation_and_too_little_memory) {
  Bytes old = test::make_bzimage(Bytes(0x1000), 0, 0);
  old[0x206] = 0x0A;
  EXPECT_THAT(load_error(old), HasSubstr("64-bit boot protocol"));
  Bytes whole = test::make_bzimage(Bytes(0x1000), 0, 0);
  whole.resize(whole.size() - 100);
  EXPECT_THAT(load_error(whole), HasSubstr("truncated"));
  EXPECT_THAT(load_error(test::make_bzimage(Bytes(0x1000), 0, 0), {}, 16 * kMiB),
              HasSubstr("raise memory.size"));
}

TEST(BootBzImage, refuses_an_initrd_that_does_not_fit) {
  const Bytes kernel = test::make_bzimage(Bytes(0x1000), 0, 0);  // fills 16 to 20 MiB
  const auto error_with = [&](uint64_t bytes) {
    const TemporaryFile initrd{Bytes(bytes)};
    return load_error(kernel, {.initrd = initrd.path()}, 24 * kMiB);
  };
  EXPECT_EQ(error_with(4 * kMiB), "");
  EXPECT_THAT(error_with(4 * kMiB + 1), HasSubstr("below the initrd, the guest has 24 MiB: raise"));
  EXPECT_THAT(error_with(23 * kMiB + 1),
              HasSubstr("(23 MiB) does not fit into the guest's 24 MiB: raise memory.size"));
}

// A kernel whose unpacked image ends in a relocation table, as Linux's does: one place of each
// kind.
struct PackedKernel {
  Bytes plain;
  Bytes image;
};

constexpr uint64_t kKernelMap = 0xFFFF'FFFF'8000'0000;
constexpr uint32_t kPlace32 = 0x10, kPlaceInverse = 0x20, kPlace64 = 0x30;

PackedKernel make_packed_kernel(bool with_table = true) {
  PackedKernel kernel;
  kernel.plain = test::make_elf(
      {.physical = test::kBzPreferred, .file_size = kMiB, .memory_size = 2 * kMiB, .pvh = false});
  const auto place = [](uint32_t offset) {
    return static_cast<uint32_t>(kKernelMap + test::kBzPreferred + offset);
  };
  if (with_table)
    for (const uint32_t entry :
         {0U, place(kPlace64), 0U, place(kPlaceInverse), 0U, place(kPlace32)})
      test::put(kernel.plain, kernel.plain.size(), entry);
  const Bytes payload = test::pack_lz4(kernel.plain);
  Bytes code(64);
  code.insert(code.end(), payload.begin(), payload.end());
  kernel.image = test::make_bzimage(code, 64, static_cast<uint32_t>(payload.size()));
  return kernel;
}

TEST(BootBzImage, is_unpacked_at_its_preferred_place_without_kaslr) {
  const TemporaryFile file(make_packed_kernel().image);
  const auto memory = make_memory();
  const auto state = load_guest({.kernel = file.path(), .cmdline = "nokaslr"}, *memory, 0);
  ASSERT_TRUE(state) << state.error().text;
  EXPECT_EQ(state->entry, test::kBzPreferred);
  EXPECT_EQ(memory->load<uint64_t>(GuestAddr{test::kBzPreferred + kPlace64}),
            0x5A5A'5A5A'5A5A'5A5A);
  const auto params = memory->load<boot_params>(GuestAddr{state->rsi});
  EXPECT_EQ(params->hdr.loadflags & KASLR_FLAG, 0);
}

TEST(BootBzImage, kaslr_moves_it_and_applies_its_relocations_consistently) {
  const TemporaryFile file(make_packed_kernel().image);
  std::set<uint64_t> starts;
  std::set<uint64_t> deltas;
  for (int i = 0; i < 40; ++i) {
    const auto memory = make_memory();
    const auto state = load_guest({.kernel = file.path()}, *memory, 0);
    ASSERT_TRUE(state) << state.error().text;
    const uint64_t start = state->entry;
    EXPECT_EQ(start % (2 * kMiB), 0U);
    EXPECT_GE(start, test::kBzPreferred);
    EXPECT_LE(start + 4 * kMiB, kMemory) << "init_size must fit";
    const uint64_t delta =
        *memory->load<uint64_t>(GuestAddr{start + kPlace64}) - 0x5A5A'5A5A'5A5A'5A5A;
    EXPECT_EQ(delta % (2 * kMiB), 0U);
    EXPECT_LT(delta, kGiB);
    EXPECT_EQ(*memory->load<uint32_t>(GuestAddr{start + kPlace32}),
              static_cast<uint32_t>(0x5A5A'5A5A + delta));
    EXPECT_EQ(*memory->load<uint32_t>(GuestAddr{start + kPlaceInverse}),
              static_cast<uint32_t>(0x5A5A'5A5A - delta));
    EXPECT_NE(memory->load<boot_params>(GuestAddr{state->rsi})->hdr.loadflags & KASLR_FLAG, 0);
    starts.insert(start);
    deltas.insert(delta);
  }
  EXPECT_GT(starts.size(), 5U) << "40 boots at the same few places";
  EXPECT_GT(deltas.size(), 20U);
}

TEST(BootBzImage, refuses_a_damaged_payload_or_relocation_table) {
  PackedKernel kernel = make_packed_kernel();
  Bytes damaged = kernel.image;
  std::fill(damaged.begin() + test::kBzSetupBytes + 64 + 8,
            damaged.begin() + test::kBzSetupBytes + 64 + 60, uint8_t{0xFF});
  EXPECT_THAT(load_error(damaged), HasSubstr("can't be unpacked"));
  Bytes huge = kernel.image;
  test::put(huge, huge.size() - 4, uint32_t{0xFFFF'FFFF});
  EXPECT_THAT(load_error(huge), HasSubstr("damaged"));
  // 0x5A5A5A5A is no place inside the kernel.
  EXPECT_THAT(load_error(make_packed_kernel(false).image), HasSubstr("relocation table"));
}

TEST(BootBzImage, leaves_other_payloads_to_the_guest) {
  const TemporaryFile file(test::make_bzimage(Bytes(0x3000, 0x1F), 0x100, 0x1000));
  const auto memory = make_memory();
  const auto state = load_guest({.kernel = file.path()}, *memory, 0);
  ASSERT_TRUE(state) << state.error().text;
  EXPECT_EQ(state->entry, test::kBzPreferred + 0x200);
}

}  // namespace
}  // namespace lethe
