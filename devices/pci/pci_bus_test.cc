#include "devices/pci/pci_bus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "devices/pci/fake_machine.h"

namespace lethe {
namespace {

constexpr uint64_t kLow = 0xC000'0000;

// A function with a 32-bit BAR 0 and a 64-bit BAR 2, each a register that keeps one byte.
class TwoBars final : public PciFunction {
 public:
  explicit TwoBars(const PciEnvironment& environment, uint64_t size32 = 0x1000,
                   uint64_t size64 = 0x10000, bool prefetchable = false)
      : PciFunction(environment, {.vendor = 0x1234, .device = 0x5678}, "two bars") {
    MutexLock lock(x_mutex);
    if (size32 > 0) x_config.add_bar(0, size32, PciBarKind::kMemory32);
    if (size64 > 0) x_config.add_bar(2, size64, PciBarKind::kMemory64, prefetchable);
  }
  ~TwoBars() override { unmap_bars(); }
  std::array<uint8_t, 3> bytes{};

 private:
  void bar_read(unsigned bar, uint64_t, std::span<uint8_t> data) override { data[0] = bytes[bar]; }
  void bar_write(unsigned bar, uint64_t, std::span<const uint8_t> data) override {
    bytes[bar] = data[0];
  }
};

class PciBusTest : public testing::Test {
 protected:
  TwoBars* add(uint64_t size32 = 0x1000, uint64_t size64 = 0x10000) {
    auto made = std::make_unique<TwoBars>(machine.pci->environment(), size32, size64);
    TwoBars* const raw = made.get();
    slot = machine.pci->add_device(std::move(made)).value();
    return raw;
  }
  FakeMachine machine;
  uint8_t slot = 0;
};

TEST_F(PciBusTest, has_a_host_bridge_in_slot_0) {
  EXPECT_EQ(machine.config_read(0, PCI_VENDOR_ID, 4), 0x0008'1b36U);
  EXPECT_EQ(machine.config_read(0, PCI_CLASS_DEVICE, 2), 0x0600U);
  EXPECT_EQ(machine.config_read(0, PCI_HEADER_TYPE, 1), 0U);
}

TEST_F(PciBusTest, absent_functions_read_all_ones_and_ignore_writes) {
  const uint64_t before = machine.pci->unclaimed();
  EXPECT_EQ(machine.config_read(5, PCI_VENDOR_ID, 4), 0xffff'ffffU);
  EXPECT_EQ(machine.config_read(0, 1 << 12, 4), 0xffff'ffffU);  // 00:00.1
  machine.config_write(5, PCI_COMMAND, 2, 2);
  EXPECT_EQ(machine.pci->unclaimed(), before + 3);
}

TEST_F(PciBusTest, ecam_takes_every_size_at_any_alignment) {
  EXPECT_EQ(machine.config_read(0, 1, 2), 0x081bU);
  EXPECT_EQ(machine.config_read(0, 3, 1), 0x00U);
  EXPECT_EQ(machine.config_read(0, 1, 4), 0x0000'081bU);
  EXPECT_EQ(machine.config_read(0, 0, 8), 0x0000'0000'0008'1b36U);
  EXPECT_EQ(machine.config_read(0, 0x100, 4), 0U);
  // Across the end of the function's 4 KiB: nobody answers that.
  EXPECT_EQ(machine.config_read(0, 0xffe, 4), 0xffff'ffffU);
}

TEST_F(PciBusTest, ports_see_what_ecam_sees) {
  add();
  for (uint32_t reg = 0; reg < 256; reg += 4) {
    machine.out(0xCF8, 0x8000'0000U | uint32_t{slot} << 11 | reg, 4);
    const auto expected = machine.config_read(slot, reg, 4);
    EXPECT_EQ(machine.in(0xCFC, 4), expected);
    EXPECT_EQ(machine.in(0xCFE, 2), expected >> 16);
    EXPECT_EQ(machine.in(0xCFD, 1), expected >> 8 & 0xff);
  }
  machine.out(0xCF8, 0x8000'003CU | uint32_t{slot} << 11, 4);
  machine.out(0xCFC, 0x77, 1);
  EXPECT_EQ(machine.config_read(slot, PCI_INTERRUPT_LINE, 1), 0x77U);
}

TEST_F(PciBusTest, ports_need_the_enable_bit_and_bus_0) {
  machine.out(0xCF8, 0, 4);
  EXPECT_EQ(machine.in(0xCFC, 4), 0xffff'ffffU);
  machine.out(0xCF8, 0x8001'0000, 4);
  EXPECT_EQ(machine.in(0xCFC, 4), 0xffff'ffffU);
  machine.out(0xCF8, 0x8000'0000, 4);
  EXPECT_EQ(machine.in(0xCFC, 4), 0x0008'1b36U);
  EXPECT_EQ(machine.in(0xCF8, 4), 0x8000'0000U);
}

TEST_F(PciBusTest, only_whole_writes_change_the_address_register) {
  machine.out(0xCF8, 0x8000'0000, 4);
  machine.out(0xCF8, 0x0000, 2);
  machine.out(0xCF8, 0x00, 1);
  machine.out(0xCFA, 0x0000, 2);
  machine.out(0xCF9, 0x06, 1);  // no reset control register is set: nobody
  EXPECT_EQ(machine.in(0xCF8, 4), 0x8000'0000U);
  EXPECT_EQ(machine.in(0xCF8, 2), 0xffffU);
  EXPECT_EQ(machine.in(0xCF9, 1), 0xffU);
}

TEST_F(PciBusTest, byte_accesses_to_0xcf9_reach_the_reset_control_register) {
  struct Reset final : BusDevice {
    void bus_read(uint64_t offset, std::span<uint8_t> data) override {
      EXPECT_EQ(offset, 0U);
      data[0] = 0x42;
    }
    void bus_write(uint64_t offset, std::span<const uint8_t> data) override {
      EXPECT_EQ(offset, 0U);
      EXPECT_EQ(data.size(), 1U);
      written = data[0];
    }
    int written = -1;
  } reset;
  machine.pci->set_reset_control(reset);
  machine.out(0xCF8, 0x8000'0600, 4);  // bits of a dword write at 0xCF9 are none of its
  EXPECT_EQ(reset.written, -1);
  EXPECT_EQ(machine.in(0xCF8, 4), 0x8000'0600U);
  machine.out(0xCF9, 0x06, 1);
  EXPECT_EQ(reset.written, 0x06);
  EXPECT_EQ(machine.in(0xCF9, 1), 0x42U);
  EXPECT_EQ(machine.in(0xCF8, 4), 0x8000'0600U);
}

TEST_F(PciBusTest, places_bars_aligned_apart_and_enabled) {
  add(0x1000, 0x10000);
  EXPECT_EQ(slot, 1);
  add(0x100000, 0x1000);
  EXPECT_EQ(slot, 2);
  EXPECT_EQ(machine.config_read(1, PCI_BASE_ADDRESS_0, 4), kLow);
  EXPECT_EQ(machine.config_read(1, PCI_BASE_ADDRESS_2, 8) & ~0xfULL, kLow + 0x10000);
  EXPECT_EQ(machine.config_read(2, PCI_BASE_ADDRESS_0, 4), kLow + 0x100000);
  EXPECT_EQ(machine.config_read(2, PCI_BASE_ADDRESS_2, 8) & ~0xfULL, kLow + 0x200000);
  EXPECT_EQ(machine.config_read(2, PCI_COMMAND, 2), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

TEST_F(PciBusTest, a_64_bit_bar_too_large_for_the_low_window_goes_to_the_high_one) {
  TwoBars* const big = add(0x1000, 8 * kGiB);
  EXPECT_EQ(big->bar_mapped_at(2), FakeMachine::kHighWindow.start);
  machine.write(FakeMachine::kHighWindow.start + 8 * kGiB - 1, 7, 1);
  EXPECT_EQ(big->bytes[2], 7);
}

TEST_F(PciBusTest, a_prefetchable_64_bit_bar_goes_to_the_high_window_first) {
  auto made = std::make_unique<TwoBars>(machine.pci->environment(), 0x1000, 0x10000, true);
  TwoBars* const function = made.get();
  ASSERT_TRUE(machine.pci->add_device(std::move(made)));
  EXPECT_EQ(function->bar_mapped_at(0), kLow);
  EXPECT_EQ(function->bar_mapped_at(2), FakeMachine::kHighWindow.start);
  EXPECT_EQ(machine.config_read(1, PCI_BASE_ADDRESS_2, 4) & 0xf,
            uint64_t{PCI_BASE_ADDRESS_MEM_PREFETCH | PCI_BASE_ADDRESS_MEM_TYPE_64});
}

TEST_F(PciBusTest, refuses_a_function_when_slots_or_windows_are_used_up) {
  auto huge = std::make_unique<TwoBars>(machine.pci->environment(), 0, 32 * kGiB);
  EXPECT_FALSE(machine.pci->add_device(std::move(huge)));
  for (int i = 1; i < 32; ++i) add(0x1000, 0);
  EXPECT_EQ(slot, 31);
  EXPECT_FALSE(
      machine.pci->add_device(std::make_unique<TwoBars>(machine.pci->environment(), 0x1000, 0)));
}

TEST_F(PciBusTest, a_moved_bar_answers_at_its_new_place_only) {
  TwoBars* const function = add();
  machine.write(kLow, 1, 1);
  EXPECT_EQ(function->bytes[0], 1);
  machine.config_write(slot, PCI_BASE_ADDRESS_0, 0xD000'0000, 4);
  machine.write(kLow, 2, 1);
  EXPECT_EQ(function->bytes[0], 1);
  machine.write(0xD000'0000, 3, 1);
  EXPECT_EQ(function->bytes[0], 3);
  EXPECT_EQ(machine.read(kLow, 4), 0xffff'ffffU);
  // The 64-bit one, to the high window, by its two halves.
  const uint64_t high = FakeMachine::kHighWindow.start + 0x10000;
  machine.config_write(slot, PCI_BASE_ADDRESS_2, high & 0xffff'ffff, 4);
  machine.config_write(slot, PCI_BASE_ADDRESS_3, high >> 32, 4);
  EXPECT_EQ(function->bar_mapped_at(2), high);
  machine.write(high + 0xffff, 9, 1);
  EXPECT_EQ(function->bytes[2], 9);
}

TEST_F(PciBusTest, a_bar_answers_only_while_memory_decode_is_on) {
  TwoBars* const function = add();
  machine.config_write(slot, PCI_COMMAND, 0, 2);
  machine.write(kLow, 1, 1);
  EXPECT_EQ(function->bytes[0], 0);
  EXPECT_EQ(machine.read(kLow, 1), 0xffU);
  machine.config_write(slot, PCI_COMMAND, PCI_COMMAND_MEMORY, 1);
  machine.write(kLow, 1, 1);
  EXPECT_EQ(function->bytes[0], 1);
}

TEST_F(PciBusTest, a_bar_outside_the_windows_is_not_mapped_but_reads_back) {
  TwoBars* const function = add();
  const std::array<uint64_t, 6> outside{0,           kMiB,        0xBFFF'F000,
                                        0xE000'0000, 0xFEE0'0000, 0xFFFF'F000};
  for (const uint64_t address : outside) {
    const uint64_t refused = function->pci_counters().bars_refused;
    machine.config_write(slot, PCI_BASE_ADDRESS_0, address, 4);
    EXPECT_EQ(machine.config_read(slot, PCI_BASE_ADDRESS_0, 4), address);
    EXPECT_EQ(function->bar_mapped_at(0), std::nullopt);
    EXPECT_EQ(function->pci_counters().bars_refused, refused + 1);
  }
  machine.config_write(slot, PCI_BASE_ADDRESS_0, 0xDFFF'F000, 4);
  EXPECT_EQ(function->bar_mapped_at(0), 0xDFFF'F000U);
  // A 64-bit BAR that would begin in the high window and end beyond it.
  const BusRange high = FakeMachine::kHighWindow;
  machine.config_write(slot, PCI_BASE_ADDRESS_2, (high.start + high.size), 8);
  EXPECT_EQ(function->bar_mapped_at(2), std::nullopt);
  machine.config_write(slot, PCI_BASE_ADDRESS_2, ~0ULL, 8);
  EXPECT_EQ(function->bar_mapped_at(2), std::nullopt);
}

TEST_F(PciBusTest, a_bar_over_ram_is_not_mapped_even_inside_a_window) {
  const GuestMemory::Range ram{GuestAddr{0}, kMiB};
  auto memory = GuestMemory::create({&ram, 1}, {.thp = false});
  Bus ports("ports");
  Bus mmio("mmio");
  const PciEnvironment environment{.mmio = mmio,
                                   .msi = machine.msi,
                                   .doorbells = machine.doorbells,
                                   .device_memory = machine.device_memory,
                                   .memory = **memory,
                                   .windows = {.low = {0x80000, 0x100000}}};
  TwoBars function(environment, 0x1000, 0);
  function.set_bar_address(0, 0xff000);
  function.enable();
  EXPECT_EQ(function.bar_mapped_at(0), std::nullopt);
  function.set_bar_address(0, 0x100000);
  EXPECT_EQ(function.bar_mapped_at(0), 0x100000U);
}

TEST_F(PciBusTest, a_bar_over_another_is_mapped_once_that_one_leaves) {
  TwoBars* const first = add();
  TwoBars* const second = add();
  const uint64_t place = second->bar_mapped_at(0).value();
  machine.config_write(1, PCI_BASE_ADDRESS_0, place, 4);
  EXPECT_EQ(first->bar_mapped_at(0), std::nullopt);
  machine.write(place, 5, 1);
  EXPECT_EQ(first->bytes[0], 0);
  EXPECT_EQ(second->bytes[0], 5);
  machine.config_write(2, PCI_BASE_ADDRESS_0, kLow, 4);
  EXPECT_EQ(second->bar_mapped_at(0), kLow);
  EXPECT_EQ(first->bar_mapped_at(0), place);
  machine.write(place, 6, 1);
  EXPECT_EQ(first->bytes[0], 6);
}

TEST_F(PciBusTest, two_bars_of_one_function_can_change_places) {
  TwoBars* const function = add(0x10000, 0x10000);
  const auto low = function->bar_mapped_at(0);
  const auto high = function->bar_mapped_at(2);
  std::array<uint8_t, 16> bars{};
  machine.config_write(slot, PCI_COMMAND, 0, 2);
  machine.config_write(slot, PCI_BASE_ADDRESS_0, *high, 4);
  machine.config_write(slot, PCI_BASE_ADDRESS_2, *low, 8);
  machine.config_write(slot, PCI_COMMAND, PCI_COMMAND_MEMORY, 2);
  EXPECT_EQ(function->bar_mapped_at(0), high);
  EXPECT_EQ(function->bar_mapped_at(2), low);
  // And with decoding on, in one write that holds both.
  std::memcpy(bars.data(), &*low, 4);
  std::memcpy(bars.data() + 8, &*high, 8);
  EXPECT_TRUE(function->config_write(PCI_BASE_ADDRESS_0, bars));
  EXPECT_EQ(function->bar_mapped_at(0), low);
  EXPECT_EQ(function->bar_mapped_at(2), high);
}

std::vector<uint8_t> saved(PciBus& bus) {
  StateWriter writer;
  bus.save(writer);
  return writer.take();
}

TEST_F(PciBusTest, restores_bars_that_changed_places_and_the_address_register) {
  add();
  const uint64_t first = machine.pci->function(slot)->bar_mapped_at(0).value();
  const uint8_t first_slot = slot;
  add();
  const uint64_t second = machine.pci->function(slot)->bar_mapped_at(0).value();
  // By way of a third place, as a guest does it.
  machine.config_write(first_slot, PCI_BASE_ADDRESS_0, kLow + 0x10'0000, 4);
  machine.config_write(slot, PCI_BASE_ADDRESS_0, first, 4);
  machine.config_write(first_slot, PCI_BASE_ADDRESS_0, second, 4);
  machine.out(0xCF8, 0x8000'0840U, 4);
  const auto state = saved(*machine.pci);

  FakeMachine other;
  TwoBars* functions[2];
  for (TwoBars*& function : functions) {
    auto made = std::make_unique<TwoBars>(other.pci->environment());
    function = made.get();
    ASSERT_TRUE(other.pci->add_device(std::move(made)).has_value());
  }
  StateReader reader(state);
  ASSERT_TRUE(other.pci->restore(reader).has_value());
  EXPECT_EQ(functions[0]->bar_mapped_at(0), second);
  EXPECT_EQ(functions[1]->bar_mapped_at(0), first);
  EXPECT_EQ(other.in(0xCF8, 4), 0x8000'0840U);
  EXPECT_EQ(saved(*other.pci), state);
}

TEST_F(PciBusTest, a_saved_bar_over_another_or_outside_the_windows_is_not_mapped) {
  add();
  add();
  auto state = saved(*machine.pci);
  const uint32_t first = static_cast<uint32_t>(*machine.pci->function(1)->bar_mapped_at(0));
  const uint32_t second = static_cast<uint32_t>(*machine.pci->function(2)->bar_mapped_at(0));
  const auto replace = [&](uint32_t from, uint32_t to) {
    const auto* raw = reinterpret_cast<const uint8_t*>(&from);
    const auto at = std::search(state.begin(), state.end(), raw, raw + sizeof from);
    ASSERT_NE(at, state.end());
    std::memcpy(&*at, &to, sizeof to);
  };
  for (const uint32_t target : {first, uint32_t{0x1000}}) {
    replace(target == first ? second : first, target);
    FakeMachine other;
    for (int i = 0; i < 2; ++i)
      (void)other.pci->add_device(std::make_unique<TwoBars>(other.pci->environment()));
    StateReader reader(state);
    ASSERT_TRUE(other.pci->restore(reader).has_value());
    if (target == first) {
      EXPECT_EQ(other.pci->function(1)->bar_mapped_at(0), first);
      EXPECT_FALSE(other.pci->function(2)->bar_mapped_at(0).has_value());
    } else {
      EXPECT_FALSE(other.pci->function(1)->bar_mapped_at(0).has_value());
    }
  }
}

TEST_F(PciBusTest, state_of_other_functions_is_refused) {
  add();
  const auto state = saved(*machine.pci);
  FakeMachine none;
  StateReader left_over(state);
  EXPECT_FALSE(none.pci->restore(left_over).has_value());
  for (size_t size = 0; size < state.size(); ++size) {
    FakeMachine other;
    (void)other.pci->add_device(std::make_unique<TwoBars>(other.pci->environment()));
    StateReader reader(std::span(state).first(size));
    EXPECT_FALSE(other.pci->restore(reader).has_value()) << size;
  }
}

TEST_F(PciBusTest, leaves_nothing_on_the_buses_when_destroyed) {
  add();
  machine.pci.reset();
  EXPECT_EQ(machine.read(kLow, 4), 0xffff'ffffU);
  EXPECT_EQ(machine.read(PciBus::kEcamStart, 4), 0xffff'ffffU);
  EXPECT_EQ(machine.in(0xCFC, 4), 0xffff'ffffU);
}

}  // namespace
}  // namespace lethe
