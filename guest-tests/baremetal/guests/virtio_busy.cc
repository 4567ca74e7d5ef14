// A guest that never rests: it writes to its disk, reads back, compares and says so, as fast as it
// can. It tells what comes from outside: another size of the disk, the power button, keys.
#include "guests/virtio.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/virtio/blk.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr uint16_t kSleepControl = 0x600;
constexpr uint8_t kSleepS5 = (5 << 2) | 0x20;
constexpr uint16_t kEventPort = 0x604;
constexpr uint8_t kEventPowerButton = 0x01;
constexpr uint16_t kLineStatus = kSerialPort + 5;
constexpr uint8_t kDataReady = 0x01;
constexpr uint64_t kSectors = 64;  // of the disk's end, which is used

void tell_capacity(BlkDevice& disk) {
  static uint64_t told;
  const uint64_t capacity = disk.capacity();
  if (capacity == told) return;
  told = capacity;
  print("capacity %lu\n", capacity);
}

}  // namespace

void busy() {
  static BlkDevice disk;
  disk.open({});
  auto* const data = static_cast<uint64_t*>(alloc_pages(1));
  for (uint64_t tick = 1;; ++tick) {
    tell_capacity(disk);
    const uint64_t sector = disk.capacity() - 1 - tick % kSectors;
    data[0] = tick;
    data[63] = ~tick;
    CHECK_EQ(disk.write(sector, data, kSectorSize), VIRTIO_BLK_S_OK);
    data[0] = data[63] = 0;
    CHECK_EQ(disk.read(sector, data, kSectorSize), VIRTIO_BLK_S_OK);
    CHECK_EQ(data[0], tick);
    CHECK_EQ(data[63], ~tick);
    print("tick %lu\n", tick);
    if ((in8(kEventPort) & kEventPowerButton) != 0) {
      print("power button pressed\n");
      out8(kSleepControl, kSleepS5);
    }
    if ((in8(kLineStatus) & kDataReady) != 0 && in8(kSerialPort) == 'q') return;
  }
}

}  // namespace virtio
