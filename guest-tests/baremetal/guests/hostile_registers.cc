// Every width at every offset: BARs, configuration space, MSI-X, I/O ports. The device must be as
// good as new after a reset.
#include "guests/hostile.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/traps.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint32_t kDense = 72;        // bytes at the start of each region tried at every offset
constexpr uint32_t kSparseSteps = 48;  // and places in the rest of a BAR
constexpr uint16_t kConfigBytes = 256;
constexpr uint16_t kNoSuchVector = 0x1234;
constexpr uint64_t kPatterns[] = {~uint64_t{0}, 0, 0x5a5a5a5a5a5a5a5a, 0x0001000100010001};

uint64_t sink;

void read_all_widths(uint64_t address) {
  sink += mmio_read<uint8_t>(address);
  sink += mmio_read<uint16_t>(address);
  sink += mmio_read<uint32_t>(address);
  sink += mmio_read<uint64_t>(address);
}

void write_all_widths(uint64_t address, uint64_t value) {
  mmio_write<uint8_t>(address, static_cast<uint8_t>(value));
  mmio_write<uint16_t>(address, static_cast<uint16_t>(value));
  mmio_write<uint32_t>(address, static_cast<uint32_t>(value));
  mmio_write<uint64_t>(address, value);
}

template <typename F>
void for_each_bar(const PciFunction& f, F use) {
  for (unsigned i = 0; i < kPciBars; ++i) {
    const PciBar bar = read_bar(f, i);
    if (bar.size != 0 && !bar.is_io) {
      map_identity(bar.address, bar.size + 8, true);
      use(i, bar);
    }
    if (bar.is_64bit) ++i;
  }
}

// Offsets worth trying: all of them where registers are, some of the rest, and the end with what
// lies across it.
template <typename F>
void for_each_place(Target& t, const PciBar& bar, F use) {
  VirtioDevice& d = t.device();
  const uint64_t regions[] = {d.common_address(), d.isr_address(),  d.notify_address(),
                              d.config_address(), d.msix().table(), d.msix().pending()};
  for (const uint64_t region : regions) {
    if (region < bar.address || region >= bar.address + bar.size) continue;
    for (uint32_t i = 0; i < kDense; ++i) use(region + i);
  }
  for (uint32_t i = 0; i < kSparseSteps; ++i)
    use(bar.address + bar.size / kSparseSteps * i + i % 8);
  for (uint32_t i = 1; i <= 9; ++i) use(bar.address + bar.size - i);
}

// A function's header and capabilities as they were, put back.
struct SavedConfig {
  uint32_t words[kConfigBytes / 4];
};

void save_config(const PciFunction& f, SavedConfig& saved) {
  for (uint16_t i = 0; i < kConfigBytes / 4; ++i) {
    saved.words[i] = f.read32(static_cast<uint16_t>(i * 4));
  }
}

void restore_config(const PciFunction& f, const SavedConfig& saved) {
  f.write16(kPciCommand, 0);
  for (uint16_t i = 3; i < kConfigBytes / 4; ++i) {
    f.write32(static_cast<uint16_t>(i * 4), saved.words[i]);
  }
  f.write16(kPciCommand, static_cast<uint16_t>(saved.words[1]));
}

void check_restored(const PciFunction& f, const SavedConfig& saved) {
  for (uint16_t i = 0; i < 16; ++i) {
    if (i == 1) continue;  // the status half has bits that writes of ones clear
    CHECK_EQ(f.read32(static_cast<uint16_t>(i * 4)), saved.words[i]);
  }
}

}  // namespace

void registers(Target& target) {
  const PciFunction& pci = target.device().pci();
  target.device().msix().disable();  // garbage in its table must not become interrupts
  target.restart();
  for_each_bar(pci, [&](unsigned, const PciBar& bar) {
    for_each_place(target, bar, [](uint64_t at) { read_all_widths(at); });
  });
  target.good_request();  // reading has no effect, the ISR's bits aside
  for (const uint64_t pattern : kPatterns) {
    target.restart();
    for_each_bar(pci, [&](unsigned, const PciBar& bar) {
      for_each_place(target, bar, [&](uint64_t at) { write_all_widths(at, pattern); });
    });
    target.must_still_work();
  }
}

void config_space(Target& target) {
  const PciFunction& pci = target.device().pci();
  static SavedConfig saved;
  save_config(pci, saved);
  for (const uint64_t pattern : kPatterns) {
    for (uint16_t at = 0; at + 8 <= kConfigBytes; ++at) {
      const uint64_t ecam = pci.ecam_address(at);
      CHECK(ecam != 0);
      read_all_widths(ecam);
      write_all_widths(ecam, pattern);
      if (at % 16 == 15) restore_config(pci, saved);
    }
    restore_config(pci, saved);
    check_restored(pci, saved);
    target.must_still_work();
  }
  // Through the ports, at every byte of address and data.
  for (uint16_t at = 0; at < kConfigBytes; at = static_cast<uint16_t>(at + 4)) {
    for (uint16_t port = 0xcf8; port < 0xd00; ++port) {
      if (port == 0xcf9) continue;  // resets the machine
      out32(0xcf8, 0x80000000 | (uint32_t{pci.slot} << 11) | at);
      sink += in8(port);
      sink += in16(port);
      sink += in32(port);
      out8(port, 0xff);
      if (port != 0xcf8) out16(port, 0xffff);
      out32(port, 0xffffffff);
    }
    if (at % 16 == 12) restore_config(pci, saved);
  }
  restore_config(pci, saved);
  check_restored(pci, saved);
  target.must_still_work();
  // The host bridge, functions that are not there, and what ECAM has beyond bus 0 and the classic
  // 256.
  const PciFunction others[] = {{0, 0}, {0, 1}, {pci.slot, 1}, {31, 7}};
  for (const PciFunction& other : others) {
    for (uint16_t at = 0; at + 8 <= 4096; at = static_cast<uint16_t>(at + 61)) {
      read_all_widths(other.ecam_address(at));
      if (other.slot != 0 || other.function != 0) {
        write_all_widths(other.ecam_address(at), ~uint64_t{0});
      }
    }
  }
  for (uint16_t at = 256; at + 8 <= 4096; at = static_cast<uint16_t>(at + 61)) {
    read_all_widths(pci.ecam_address(at));
    write_all_widths(pci.ecam_address(at), ~uint64_t{0});
  }
  const uint64_t ecam = PciFunction{0, 0}.ecam_address(0);
  for (uint64_t at = ecam + (1 << 20) - 4; at < ecam + (8 << 20); at += (1 << 20) - 3) {
    read_all_widths(at);
    write_all_widths(at, 0);
  }
  target.must_still_work();
}

// The window of section 4.1.4.9 aimed at nothing.
void config_window(Target& target) {
  const PciFunction& pci = target.device().pci();
  static SavedConfig saved;
  save_config(pci, saved);
  uint8_t window = 0;
  for (uint8_t at = 0; (at = find_capability(pci, kPciCapVendor, at)) != 0;) {
    if (pci.read8(static_cast<uint16_t>(at + 3)) == VIRTIO_PCI_CAP_PCI_CFG) window = at;
  }
  CHECK(window != 0);
  const auto field = [&](unsigned at) { return static_cast<uint16_t>(window + at); };
  const uint32_t offsets[] = {0,      1,      3,          0x14,       0xffc,
                              0x3fff, 0x7ffe, 0x80000000, 0xfffffffe, 0xffffffff};
  const uint32_t lengths[] = {0, 1, 2, 3, 4, 8, 0xffffffff};
  for (unsigned bar = 0; bar < 8; ++bar) {
    target.restart();
    for (const uint32_t offset : offsets) {
      for (const uint32_t length : lengths) {
        pci.write8(field(4), static_cast<uint8_t>(bar));
        pci.write32(field(8), offset);
        pci.write32(field(12), length);
        sink += pci.read32(field(16));
        sink += pci.read8(field(17));
        pci.write32(field(16), 0xffffffff);
        pci.write16(field(18), 0);
      }
    }
    target.must_still_work();
  }
  pci.write8(field(4), 0xff);
  pci.write32(field(16), 1);
  restore_config(pci, saved);
  check_restored(pci, saved);
  target.must_still_work();
}

void msix(Target& target) {
  VirtioDevice& d = target.device();
  Msix& m = d.msix();
  lapic_init();
  target.restart();
  // Vectors that the table does not have read back as none (section 4.1.5.1.2).
  const uint16_t wrong[] = {static_cast<uint16_t>(m.size()), kNoSuchVector, 0x7fff};
  for (const uint16_t vector : wrong) {
    d.start(target.features());
    target.queue().reopen();
    d.select_queue(target.queue().index());
    d.set_common16(VIRTIO_PCI_COMMON_Q_MSIX, vector);
    CHECK_EQ(d.common16(VIRTIO_PCI_COMMON_Q_MSIX), kNoVector);
    d.set_common16(VIRTIO_PCI_COMMON_MSIX, vector);
    CHECK_EQ(d.common16(VIRTIO_PCI_COMMON_MSIX), kNoVector);
    d.driver_ok();
    target.good_request();
  }
  // Entries whose address or data is no interrupt of this machine, unmasked and then used. The
  // guest keeps interrupts off; the delivery modes that would hit it anyway (SMI, NMI, INIT) are
  // left out.
  struct Entry {
    uint32_t address, address_high, data;
  };
  const Entry entries[] = {
      {0, 0, 0},
      {0xfee00000, 0xffffffff, 0x60},
      {0xfee00000, 0x00000001, 0x60},
      {0xffffffff, 0xffffffff, 0xffff00ff},
      {0xfeeff000, 0, 0x60},
      {0xfee00000, 0, 0x00},
      {0xfee0000c, 0, 0x0160},
      {0xfee00000, 0, 0x0360},
      {0xfee00000, 0, 0x0760},
      {0xfee00000, 0, 0xc060},
      {0x00001000, 0, 0x60},
  };
  for (const Entry& e : entries) {
    d.start(target.features());
    target.queue().reopen();
    m.enable();
    for (uint64_t at = m.table(); at < m.table() + 16 * m.size(); at += 16) {
      mmio_write<uint32_t>(at, e.address);
      mmio_write<uint32_t>(at + 4, e.address_high);
      mmio_write<uint32_t>(at + 8, e.data);
      mmio_write<uint32_t>(at + 12, 0);
    }
    d.select_queue(target.queue().index());
    d.set_common16(VIRTIO_PCI_COMMON_Q_MSIX, 0);
    d.set_common16(VIRTIO_PCI_COMMON_MSIX, 0);
    d.driver_ok();
    target.good_request();
    // A change of configuration notifies as well: break it.
    send_head(target, 0xffff);
    CHECK_SOON(d.needs_reset());
    m.mask_all(true);
    m.disable();
  }
  for (uint64_t at = m.table(); at < m.table() + 16 * m.size(); at += 16) {
    mmio_write<uint32_t>(at + 12, 1);
  }
  target.must_still_work();
  // Section 2.1.2: a running device that comes to need a reset says so by its configuration
  // interrupt.
  static unsigned notified;
  set_trap_handler(kVectorFirst, [](TrapFrame&) {
    ++notified;
    lapic_eoi();
  });
  m.enable();
  m.route(0, kVectorFirst, lapic_id());
  d.start(target.features());
  target.queue().reopen();
  d.set_common16(VIRTIO_PCI_COMMON_MSIX, 0);
  CHECK_EQ(d.common16(VIRTIO_PCI_COMMON_MSIX), 0);
  d.driver_ok();
  // What earlier entries sent to this CPU is still pending: take it, and nothing else.
  for (unsigned v = 0x10; v < kVectorSpurious; ++v) {
    if (v >= 0x20 && v != kVectorFirst) set_trap_handler(v, [](TrapFrame&) { lapic_eoi(); });
  }
  interrupts_on();
  wait_until([] { return false; }, 2);
  CHECK_EQ(notified, 0);
  send_head(target, 0xffff);
  CHECK(wait_until([] { return __atomic_load_n(&notified, __ATOMIC_SEQ_CST) > 0; }));
  interrupts_off();
  m.disable();
  target.must_still_work();
}

// BARs put over RAM, over the APICs, over ECAM, over each other and at the top of the address
// space; in between the devices are used where they can be reached.
void moved_bars() {
  Target& t = blk_target();
  Target& other = rng_target();
  const PciFunction& pci = t.device().pci();
  for_each_bar(pci, [&](unsigned index, const PciBar& bar) {
    const auto mask = ~(bar.size - 1);
    const uint64_t rng_bar = other.device().common_address() & mask;
    const uint64_t places[] = {0,
                               0x100000 & mask,
                               ram_end() & mask,
                               0xe0000000 & mask,
                               0xfec00000 & mask,
                               0xfee00000 & mask,
                               0xfffff000 & mask,
                               rng_bar,
                               k4GiB,
                               (uint64_t{1} << 51) & mask,
                               ~uint64_t{0} & mask};
    for (const uint64_t place : places) {
      if (place >= k4GiB && !bar.is_64bit) continue;
      t.restart();
      const uint16_t command = pci.read16(kPciCommand);
      // With decoding on, in two halves: in between it is somewhere else still.
      write_bar_address(pci, index, place, bar.is_64bit);
      t.lay_good_chain();
      t.queue().publish(0);
      mmio_write<uint16_t>(t.device().notify_address(), 0);  // nobody there, or somebody
      if (place != rng_bar) other.must_still_work();
      // RAM is still RAM.
      t.data()[0] = 0x5a;
      CHECK_EQ(t.data()[0], 0x5a);
      // Back, through the ports: the BAR may lie over ECAM.
      const auto offset = static_cast<uint16_t>(kPciBar0 + 4 * index);
      pci.write32_by_ports(kPciCommand, 0);
      pci.write32_by_ports(offset, static_cast<uint32_t>(bar.address));
      if (bar.is_64bit) {
        pci.write32_by_ports(static_cast<uint16_t>(offset + 4),
                             static_cast<uint32_t>(bar.address >> 32));
      }
      pci.write32_by_ports(kPciCommand, command);
      t.must_still_work();
      other.must_still_work();
    }
  });
}

// Every port in every width, but those that end the VM.
void ports() {
  const auto ends_the_vm = [](unsigned port) {
    return port == 0xf4 || port == 0xcf9 || port == 0x64 || port == 0x600 || port == 0x505 ||
           port == 0x92;
  };
  // COM1 carries this guest's words.
  const auto is_serial = [](unsigned port) { return port >= 0x3f8 && port < 0x400; };
  for (unsigned port = 0; port < 0x1000; ++port) {
    const auto p = static_cast<uint16_t>(port);
    sink += in8(p);
    sink += in16(p);
    sink += in32(p);
    bool skip = false;
    for (unsigned i = 0; i < 4; ++i) skip |= ends_the_vm(port + i) || is_serial(port + i);
    if (skip) continue;
    out8(p, 0xff);
    out16(p, 0xffff);
    out32(p, 0xffffffff);
  }
  for (unsigned port = 0x1000; port <= 0xffff; port += 251) {
    sink += in32(static_cast<uint16_t>(port));
    out32(static_cast<uint16_t>(port), 0);
  }
  sink += in32(0xffff);
  // The UART in widths it does not have; then as it was.
  for (uint16_t p = kSerialPort + 1; p < kSerialPort + 8; ++p) {
    out16(p, 0);
    out32(p, 0);
    sink += in32(p);
  }
  serial_init();
  out8(0x21, 0xff);
  out8(0xa1, 0xff);
  // One instruction with a large count, to a register and from one.
  static uint8_t bytes[4096];
  out8_string(0x80, bytes, sizeof(bytes));
  void* to = bytes;
  size_t count = sizeof(bytes);
  asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(uint16_t{0x71}) : "memory");
  CHECK_EQ(count, 0);
  // Memory where nothing is, across the hole.
  for (uint64_t at = 0xc0000000; at < k4GiB - 8; at += (2 << 20) - 3) {
    const bool apic = (at >> 16) == 0xfee0 || (at >> 16) == 0xfec0;
    if (!apic) sink += mmio_read<uint64_t>(at);
  }
  blk_target().must_still_work();
}

}  // namespace hostile
