// What a `state` file may hold, for everything that reads one and needs no KVM: its header, config,
// table of memory, CPUID and legacy devices. The checksum is no guard against who makes
// files on purpose, so the sections are fuzzed behind it.
#include <cstdint>
#include <vector>

#include "base/assert.h"

#include "devices/legacy/acpi_power/acpi_power.h"
#include "devices/legacy/ioapic/ioapic.h"
#include "devices/legacy/legacy_test_util.h"
#include "devices/legacy/rtc/rtc.h"
#include "devices/legacy/serial/serial.h"
#include "vmm/kvm/cpu_features.h"
#include "vmm/snapshot/snapshot.h"

namespace lethe {
namespace {

struct FuzzRoute final : MsiRoute {
  void signal() override {}
  void set_message(const MsiMessage&) override {}
};
struct FuzzController final : MsiController {
  Result<std::unique_ptr<MsiRoute>> make_route() override {
    return Result<std::unique_ptr<MsiRoute>>(std::make_unique<FuzzRoute>());
  }
};

// The input as the content of a section that the reader expects.
std::vector<uint8_t> section(std::string_view name, std::span<const uint8_t> content) {
  StateWriter writer;
  writer.text(name);
  writer.number(uint32_t{1});
  writer.number(uint64_t{content.size()});
  std::vector<uint8_t> all = writer.take();
  all.insert(all.end(), content.begin(), content.end());
  return all;
}

template <typename Device>
void restore(Device& device, std::string_view name, std::span<const uint8_t> bytes) {
  const auto wrapped = section(name, bytes);
  StateReader reader(wrapped);
  device.restore(reader);
  // What was taken is in order: it can be written down, and read again.
  StateWriter writer;
  device.save(writer);
  const auto again = writer.take();
  StateReader second(again);
  device.restore(second);
  LETHE_ASSERT(second.ok());
}

void fuzz(std::span<const uint8_t> bytes) {
  (void)check_state_file(bytes);
  {
    const auto wrapped = section("config", bytes);
    StateReader reader(wrapped);
    (void)restore_config({}, reader);
  }
  {
    const auto wrapped = section("memory", bytes);
    StateReader reader(wrapped);
    if (const auto table = restore_table(64 * kMiB, reader))
      for (const MemoryBlock& block : table->blocks)
        LETHE_ASSERT(block.offset() < 64 * kMiB && block.pages != 0);
  }
  {
    const auto wrapped = section("cpuid", bytes);
    StateReader reader(wrapped);
    if (const auto cpuid = restore_cpuid(reader)) (void)check_cpu_features(*cpuid, {});
  }
  EventLoop loop;
  CountingInterrupt interrupt;
  TestSink sink;
  RecordingControl control;
  Serial serial(loop, interrupt, sink);
  restore(serial, "serial", bytes);
  Rtc rtc;
  restore(rtc, "rtc", bytes);
  AcpiPower power(control, interrupt);
  restore(power, "acpi-power", bytes);
  FuzzController controller;
  Ioapic ioapic(controller);
  const auto line = ioapic.make_line(4);
  restore(ioapic, "ioapic", bytes);
}

}  // namespace
}  // namespace lethe

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lethe::fuzz({data, size});
  return 0;
}
