// Blobs: memory of the host's that the guest maps through the device's shared memory region.
#include "guests/gui.h"
#include "kernel/apic.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/smp.h"
#include "kernel/virtio/blk.h"

using namespace kernel;

namespace gui {
namespace {

constexpr uint32_t kX8 = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
constexpr uint32_t kContext = Windows::kContext;
constexpr uint64_t kBlobBytes = 4 * kPageSize;
constexpr uint32_t kMapped = VIRTIO_GPU_RESP_OK_MAP_INFO;

// One word a page: the rest of a page comes and goes with it.
void write_words(uint64_t offset, uint64_t bytes, uint64_t tag) {
  auto* base = reinterpret_cast<volatile uint64_t*>(gpu().shared() + offset);
  for (uint64_t at = 0; at < bytes; at += kPageSize) base[at / 8 + 3] = tag + at;
}

// Each page has the tag, or, for `tag` 0, is empty.
void check_words(uint64_t offset, uint64_t bytes, uint64_t tag) {
  auto* base = reinterpret_cast<volatile uint64_t*>(gpu().shared() + offset);
  for (uint64_t at = 0; at < bytes; at += kPageSize) {
    CHECK_EQ(base[at / 8 + 3], tag == 0 ? 0 : tag + at);
  }
}

void make(uint32_t id, uint64_t size) {
  CHECK_EQ(gpu().create_blob({.id = id, .context = kContext, .size = size}), kGpuOk);
}

GpuDriver& gpu_with_context() {
  GpuDriver& g = fresh_gpu();
  CHECK_EQ(g.context_create(kContext, window::kWindowCapset), kGpuOk);
  return g;
}

}  // namespace

void blobs() {
  GpuDriver& g = gpu_with_context();
  const uint64_t region = g.device().shared_length();
  check_words(0, kBlobBytes, 0);  // nothing is mapped: reads zero, and nobody dies
  make(1, kBlobBytes);
  uint32_t map_info = 0;
  CHECK_EQ(g.map_blob(1, 0, &map_info), kMapped);
  CHECK_EQ(map_info & VIRTIO_GPU_MAP_CACHE_MASK, VIRTIO_GPU_MAP_CACHE_CACHED);
  check_words(0, kBlobBytes, 0);
  write_words(0, kBlobBytes, 0x1111);
  check_words(0, kBlobBytes, 0x1111);
  CHECK_EQ(g.unmap_blob(1), kGpuOk);
  check_words(0, kBlobBytes, 0);
  // It keeps what was written, wherever it is mapped; at the region's very end, too.
  CHECK_EQ(g.map_blob(1, region - kBlobBytes), kMapped);
  check_words(region - kBlobBytes, kBlobBytes, 0x1111);
  check_words(0, kBlobBytes, 0);
  // Two side by side do not meet.
  make(2, kPageSize);
  CHECK_EQ(g.map_blob(2, region - kBlobBytes - kPageSize), kMapped);
  write_words(region - kBlobBytes - kPageSize, kPageSize, 0x2222);
  check_words(region - kBlobBytes, kBlobBytes, 0x1111);
  CHECK_EQ(g.unref(2), kGpuOk);  // while mapped: Linux does not, others may
  check_words(region - kBlobBytes - kPageSize, kPageSize, 0);
  check_words(region - kBlobBytes, kBlobBytes, 0x1111);
  CHECK_EQ(g.unmap_blob(1), kGpuOk);
  CHECK(gpu_is_error(g.unmap_blob(1)));
  CHECK_EQ(g.unref(1), kGpuOk);
  check_words(region - kBlobBytes, kBlobBytes, 0);
}

// What a blob held is not seen by the next one, nor where it was mapped.
void blob_reuse() {
  GpuDriver& g = gpu_with_context();
  for (uint64_t round = 1; round <= 8; ++round) {
    const uint64_t offset = round % 3 * kPageSize;
    make(7, kBlobBytes);
    CHECK_EQ(g.map_blob(7, offset), kMapped);
    check_words(offset, kBlobBytes, 0);
    write_words(offset, kBlobBytes, round << 32);
    CHECK_EQ(g.unmap_blob(7), kGpuOk);
    // Nothing mapped: writes go nowhere that anyone sees later.
    write_words(offset, kBlobBytes, 0xdead0000);
    CHECK_EQ(g.unref(7), kGpuOk);
  }
}

void guest_blobs() {
  GpuDriver& g = gpu_with_context();
  auto* memory = static_cast<uint8_t*>(alloc_pages(2));
  const virtio_gpu_mem_entry entries[] = {{physical(memory), kPageSize, 0},
                                          {physical(memory) + kPageSize, kPageSize, 0}};
  const GpuDriver::Blob blob = {
      .id = 1, .memory = VIRTIO_GPU_BLOB_MEM_GUEST, .flags = 0, .size = 2 * kPageSize};
  CHECK_EQ(g.create_blob(blob, entries, 2), kGpuOk);
  CHECK(gpu_is_error(g.map_blob(1, 0)));
  const GpuDriver::ScanoutBlob shown = {.scanout = 0,
                                        .id = 1,
                                        .r = {0, 0, kSide, kSide},
                                        .width = kSide,
                                        .height = kSide,
                                        .format = kX8,
                                        .stride = kSide * 4};
  CHECK_EQ(g.set_scanout_blob(shown), kGpuOk);
  CHECK_EQ(g.flush(1, kWhole), kGpuOk);
  CHECK_EQ(g.flush(1, {1, 2, 3, 4}), kGpuOk);
  CHECK_EQ(g.unref(1), kGpuOk);
}

void scanout_blobs() {
  GpuDriver& g = gpu_with_context();
  make(1, kBlobBytes);
  CHECK_EQ(g.map_blob(1, 0), kMapped);
  GpuDriver::ScanoutBlob shown = {.scanout = 0,
                                  .id = 1,
                                  .r = {0, 0, kSide, kSide},
                                  .width = kSide,
                                  .height = kSide,
                                  .format = kX8,
                                  .stride = kSide * 4};
  CHECK_EQ(g.set_scanout_blob(shown), kGpuOk);
  write_words(0, kBlobBytes, 0x00ff8800);
  CHECK_EQ(g.flush(1, kWhole), kGpuOk);
  auto refuse = [&](auto change) {
    GpuDriver::ScanoutBlob s = shown;
    change(s);
    CHECK(gpu_is_error(g.set_scanout_blob(s)));
  };
  refuse([](auto& s) { s.stride = kSide * 4 - 4; });
  refuse([](auto& s) { s.stride = 0xfffffffc; });
  refuse([](auto& s) { s.offset = kBlobBytes; });
  refuse([](auto& s) { s.offset = 0xfffffffc; });
  refuse([](auto& s) { s.width = s.height = 0xffffffff; });
  refuse([](auto& s) { s.r.width = kSide + 1; });
  refuse([](auto& s) { s.format = 5; });
  refuse([](auto& s) { s.scanout = 99; });
  refuse([](auto& s) { s.id = 99; });
  CHECK_EQ(g.flush(1, kWhole), kGpuOk);
  CHECK_EQ(g.unref(1), kGpuOk);
  check_words(0, kBlobBytes, 0);
}

// A reset with everything in use: nothing of it is left, and everything works again.
void device_reset() {
  for (unsigned round = 0; round < 3; ++round) {
    GpuDriver& g = fresh_gpu();
    Windows w;
    w.open(g);
    const WindowBuffer b = w.make_buffer(2, kPageSize, kBytes);
    write_words(kPageSize, kBytes, 0x3333);
    w.create(1, 0, 0, kSide, kSide, window::kWindowVisible);
    w.attach(1, b, kSide, kSide);
    w.damage(1, 0, 0, kSide, kSide, 1);
    CHECK_EQ(w.commit(), kGpuOk);
    static auto* memory = static_cast<uint8_t*>(alloc_pages(1));
    CHECK_EQ(g.create_2d(3, kX8, kSide, kSide), kGpuOk);
    CHECK_EQ(g.attach(3, memory, kBytes), kGpuOk);
    CHECK_EQ(g.set_scanout(0, 3, kWhole), kGpuOk);
    w.start_poll();
    if (round == 1) continue;  // restarted with a poll under way
    g.device().reset();
    check_words(0, kPageSize + kBytes, 0);
    g.restart();
    CHECK(gpu_is_error(g.unref(2)));
    CHECK(gpu_is_error(g.context_attach(kContext, 3)));
  }
}

// The machine is reset with buffers mapped and shown. The second boot finds none of it. A mark on
// the disk tells the boots apart.
void reboot_once() {
  static BlkDevice disk;
  disk.open({.required = feature(VIRTIO_BLK_F_FLUSH)});
  auto* sector = static_cast<uint8_t*>(alloc_pages(1));
  constexpr uint64_t kSector = 1500;
  static const char mark[] = "gui rebooted";
  CHECK_EQ(disk.read(kSector, sector, kSectorSize), VIRTIO_BLK_S_OK);
  const bool marked = memcmp(sector, mark, sizeof(mark)) == 0;
  print("%s boot\n", marked ? "second" : "first");
  memset(sector, 0, kSectorSize);
  if (!marked) memcpy(sector, mark, sizeof(mark));
  CHECK_EQ(disk.write(kSector, sector, kSectorSize), VIRTIO_BLK_S_OK);
  CHECK_EQ(disk.request(VIRTIO_BLK_T_FLUSH, 0, nullptr, 0, false), VIRTIO_BLK_S_OK);
  check_words(0, kPageSize + kBytes, 0);
  Windows w;
  w.open(gpu());
  const WindowBuffer b = w.make_buffer(2, kPageSize, kBytes);
  check_words(kPageSize, kBytes, 0);
  write_words(kPageSize, kBytes, 0x4444);
  w.create(1, 0, 0, kSide, kSide, window::kWindowVisible);
  w.attach(1, b, kSide, kSide);
  CHECK_EQ(w.commit(), kGpuOk);
  print("window shown\n");
  if (marked) return;
  out8(0xcf9, 0x06);
  wait_until([] { return false; }, kSoonMs);
  CHECK(false && "the machine reset");
}

// A window, until the host sends a byte; then the machine is reset, with the window still there.
void reboot_forever() {
  Windows w;
  w.open(gpu());
  const WindowBuffer b = w.make_buffer(2, kPageSize, kBytes);
  check_words(kPageSize, kBytes, 0);
  write_words(kPageSize, kBytes, 0x4444);
  w.create(1, 0, 0, kSide, kSide, window::kWindowVisible);
  w.title(1, "reboots");
  w.attach(1, b, kSide, kSide);
  CHECK_EQ(w.commit(), kGpuOk);
  print("window shown\n");
  wait_for_byte();
  out8(0xcf9, 0x06);
  wait_until([] { return false; }, kSoonMs);
  CHECK(false && "the machine reset");
}

namespace {

volatile bool stop;
volatile uint64_t touched;

// Reads and writes where blobs come and go. Faults, or an exit KVM can't answer, end the VM.
void touch_all_the_time(unsigned) {
  auto* base = reinterpret_cast<volatile uint64_t*>(gpu().shared());
  while (!stop) {
    for (uint64_t page = 0; page < 8; ++page) {
      base[page * kPageSize / 8 + 9] = page;
      touched = touched + 1;
    }
  }
}

}  // namespace

// One CPU uses the region while the other maps and unmaps there.
void two_cpus() {
  GpuDriver& g = gpu_with_context();
  lapic_init();
  CHECK_EQ(start_other_cpus(touch_all_the_time), 1);
  CHECK_SOON(touched > 0);
  for (uint32_t round = 0; round < 100; ++round) {
    make(1, kBlobBytes);
    make(2, kBlobBytes);
    CHECK_EQ(g.map_blob(1, round % 4 * kPageSize), kMapped);
    CHECK_EQ(g.map_blob(2, (round % 4 + 4) * kPageSize), kMapped);
    if (round % 2 == 0) CHECK_EQ(g.unmap_blob(1), kGpuOk);
    CHECK_EQ(g.unref(1), kGpuOk);
    CHECK_EQ(g.unmap_blob(2), kGpuOk);
    CHECK_EQ(g.unref(2), kGpuOk);
    if (round % 50 == 49) {
      g.restart();
      CHECK_EQ(g.context_create(kContext, window::kWindowCapset), kGpuOk);
    }
  }
  const uint64_t before = touched;
  CHECK_SOON(touched > before);
  stop = true;
}

}  // namespace gui
