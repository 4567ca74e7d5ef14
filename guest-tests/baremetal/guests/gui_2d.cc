// The 2D part: resources whose pixels are copied, scanouts, the cursor, what a monitor says.
#include "guests/gui.h"
#include "guests/picture.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace gui {
namespace {

constexpr uint32_t kFormats[] = {
    VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
    VIRTIO_GPU_FORMAT_A8R8G8B8_UNORM, VIRTIO_GPU_FORMAT_X8R8G8B8_UNORM,
    VIRTIO_GPU_FORMAT_R8G8B8A8_UNORM, VIRTIO_GPU_FORMAT_X8B8G8R8_UNORM,
    VIRTIO_GPU_FORMAT_A8B8G8R8_UNORM, VIRTIO_GPU_FORMAT_R8G8B8X8_UNORM};
constexpr uint32_t kX8 = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
constexpr uint32_t kEdidBlock = 128;
constexpr uint32_t kCursorSide = 64;

virtio_gpu_resp_display_info info;
virtio_gpu_resp_edid edid;

uint8_t* memory() {
  static auto* pages = static_cast<uint8_t*>(alloc_pages(8));
  return pages;
}

uint32_t screens() { return static_cast<uint32_t>(option_number("screens", 1)); }

// virtio 1.2, section 5.7.6.8: EDID 1.4, the first block.
void check_edid(uint32_t scanout, uint32_t width, uint32_t height) {
  CHECK_EQ(gpu().edid(scanout, &edid), VIRTIO_GPU_RESP_OK_EDID);
  CHECK(edid.size >= kEdidBlock && edid.size % kEdidBlock == 0 && edid.size <= sizeof(edid.edid));
  static const uint8_t header[] = {0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0};
  CHECK_EQ(memcmp(edid.edid, header, sizeof(header)), 0);
  for (uint32_t block = 0; block < edid.size; block += kEdidBlock) {
    uint8_t sum = 0;
    for (uint32_t i = 0; i < kEdidBlock; ++i)
      sum = static_cast<uint8_t>(sum + edid.edid[block + i]);
    CHECK_EQ(sum, 0);
  }
  // The preferred mode: the first detailed timing.
  const uint8_t* t = edid.edid + 54;
  CHECK_EQ(t[2] | (t[4] & 0xf0u) << 4, width);
  CHECK_EQ(t[5] | (t[7] & 0xf0u) << 4, height);
}

void make(uint32_t id, uint32_t format) {
  CHECK_EQ(gpu().create_2d(id, format, kSide, kSide), kGpuOk);
  CHECK_EQ(gpu().attach(id, memory(), kBytes), kGpuOk);
}

}  // namespace

void features() {
  GpuDriver& g = fresh_gpu();
  CHECK(g.has(VIRTIO_GPU_F_VIRGL));  // Linux 6.1 asks for it before it makes contexts
  CHECK(g.has(VIRTIO_GPU_F_EDID));
  CHECK(g.has(VIRTIO_GPU_F_RESOURCE_BLOB));
  CHECK(g.has(VIRTIO_GPU_F_CONTEXT_INIT));
  CHECK_EQ(g.scanouts(), screens());
  CHECK_EQ(g.capsets(), 1);
  virtio_gpu_resp_capset_info capset = {};
  CHECK_EQ(g.capset_info(0, &capset), VIRTIO_GPU_RESP_OK_CAPSET_INFO);
  CHECK_EQ(capset.capset_id, window::kWindowCapset);
  CHECK_EQ(capset.capset_max_size, sizeof(window::Capset));
  window::Capset contents = {};
  CHECK_EQ(g.capset(window::kWindowCapset, capset.capset_max_version, &contents, sizeof(contents)),
           VIRTIO_GPU_RESP_OK_CAPSET);
  CHECK_EQ(contents.version, window::kVersion);
  CHECK_EQ(contents.windows_max, window::kWindowsMax);
  CHECK_EQ(contents.command_bytes_max, window::kCommandBytesMax);
  CHECK_EQ(contents.event_bytes, sizeof(window::Event));
  CHECK(gpu_is_error(g.capset_info(1, &capset)));
  CHECK(gpu_is_error(g.capset(1, 1, &contents, sizeof(contents))));
  // Section 4.1.4.7: the region that blobs are mapped in.
  CHECK_EQ(g.device().shared_id(), VIRTIO_GPU_SHM_ID_HOST_VISIBLE);
  CHECK_EQ(g.device().shared_length(), option_number("window_memory", uint64_t{512} << 20));
}

void display() {
  const auto width = static_cast<uint32_t>(option_number("width", 1280));
  const auto height = static_cast<uint32_t>(option_number("height", 800));
  CHECK_EQ(fresh_gpu().display_info(&info), VIRTIO_GPU_RESP_OK_DISPLAY_INFO);
  for (uint32_t i = 0; i < VIRTIO_GPU_MAX_SCANOUTS; ++i) {
    const auto& mode = info.pmodes[i];
    CHECK_EQ(mode.enabled, i < screens() ? 1 : 0);
    if (i >= screens()) continue;
    CHECK_EQ(mode.r.width, width);
    CHECK_EQ(mode.r.height, height);
    check_edid(i, width, height);
  }
  CHECK(gpu_is_error(gpu().edid(screens(), &edid)));
  CHECK(gpu_is_error(gpu().edid(0xffffffff, &edid)));
}

void formats() {
  GpuDriver& g = fresh_gpu();
  uint32_t id = 1;
  for (const uint32_t format : kFormats) {
    make(id, format);
    CHECK_EQ(g.transfer(id, kWhole, 0), kGpuOk);
    CHECK_EQ(g.set_scanout(0, id, kWhole), kGpuOk);
    CHECK_EQ(g.flush(id, kWhole), kGpuOk);
    ++id;
  }
  const uint32_t wrong[] = {0, 5, 66, 122, 0xffffffff};
  for (const uint32_t format : wrong) CHECK(gpu_is_error(g.create_2d(100, format, 8, 8)));
  CHECK_EQ(g.set_scanout(0, 0, kWhole), kGpuOk);
  while (--id > 0) {
    CHECK_EQ(g.detach(id), kGpuOk);
    CHECK_EQ(g.unref(id), kGpuOk);
  }
  CHECK(gpu_is_error(g.unref(1)));
}

// Rectangles of every kind, and what lies outside.
void transfers() {
  GpuDriver& g = fresh_gpu();
  make(1, kX8);
  const virtio_gpu_rect good[] = {{0, 0, 1, 1},
                                  {kSide - 1, kSide - 1, 1, 1},
                                  {3, 5, 7, 11},
                                  {0, 9, kSide, 1},
                                  {17, 0, 1, kSide}};
  for (const auto& r : good) {
    CHECK_EQ(g.transfer(1, r, (uint64_t{r.y} * kSide + r.x) * 4), kGpuOk);
    CHECK_EQ(g.flush(1, r), kGpuOk);
  }
  const virtio_gpu_rect bad[] = {{0, 0, kSide + 1, 1},
                                 {0, 0, 1, kSide + 1},
                                 {kSide, 0, 1, 1},
                                 {1, 0, kSide, 1},
                                 {0xffffffff, 0, 2, 1},
                                 {0, 0xfffffff0, 1, 0x20},
                                 {0, 0, 0xffffffff, 0xffffffff}};
  for (const auto& r : bad) {
    CHECK(gpu_is_error(g.transfer(1, r, 0)));
    CHECK(gpu_is_error(g.flush(1, r)));
    CHECK(gpu_is_error(g.set_scanout(0, 1, r)));
  }
  CHECK(gpu_is_error(g.transfer(1, kWhole, 4)));  // the last line's end is not there
  CHECK(gpu_is_error(g.transfer(1, kWhole, ~uint64_t{0})));
  CHECK(gpu_is_error(g.transfer(2, kWhole, 0)));
  CHECK_EQ(g.transfer(1, kWhole, 0), kGpuOk);
}

// Backing in pieces of every size, and its absence.
void backing() {
  GpuDriver& g = fresh_gpu();
  CHECK_EQ(g.create_2d(1, kX8, kSide, kSide), kGpuOk);
  CHECK(gpu_is_error(g.transfer(1, kWhole, 0)));  // none yet
  static virtio_gpu_mem_entry pieces[64];
  const uint32_t lengths[] = {1, 4095, 3, 61, 700, 4096};
  uint32_t count = 0;
  for (uint32_t left = kBytes, i = 0; left > 0; ++i, ++count) {
    const uint32_t wanted = lengths[i % 6];
    const uint32_t length = wanted < left ? wanted : left;
    pieces[count] = {physical(memory()) + i * 13, length, 0};
    left -= length;
  }
  CHECK_EQ(g.attach(1, pieces, count, count * sizeof(pieces[0])), kGpuOk);
  CHECK_EQ(g.transfer(1, kWhole, 0), kGpuOk);
  CHECK_EQ(g.transfer(1, {5, 6, 7, 8}, (6 * kSide + 5) * 4), kGpuOk);
  CHECK_EQ(g.detach(1), kGpuOk);
  CHECK(gpu_is_error(g.transfer(1, kWhole, 0)));
  CHECK_EQ(g.attach(1, memory(), kBytes - 4), kGpuOk);  // a pixel is missing
  CHECK(gpu_is_error(g.transfer(1, kWhole, 0)));
  CHECK_EQ(g.transfer(1, {0, 0, kSide, kSide - 1}, 0), kGpuOk);
  CHECK_EQ(g.unref(1), kGpuOk);
}

void scanouts() {
  GpuDriver& g = fresh_gpu();
  make(1, kX8);
  make(2, kX8);
  for (uint32_t i = 0; i < screens(); ++i) {
    CHECK_EQ(g.set_scanout(i, 1, {i % 2 * 16, 0, 16, kSide}), kGpuOk);
  }
  CHECK_EQ(g.transfer(1, kWhole, 0), kGpuOk);
  CHECK_EQ(g.flush(1, kWhole), kGpuOk);
  CHECK_EQ(g.set_scanout(0, 2, kWhole), kGpuOk);
  CHECK_EQ(g.flush(2, {4, 4, 8, 8}), kGpuOk);
  CHECK_EQ(g.set_scanout(0, 0, kWhole), kGpuOk);
  CHECK_EQ(g.set_scanout(0, 0, {0, 0, 0, 0}), kGpuOk);
  CHECK_EQ(g.set_scanout(screens(), 1, kWhole), VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID);
  CHECK_EQ(g.set_scanout(0xffffffff, 1, kWhole), VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID);
  CHECK_EQ(g.set_scanout(0, 3, kWhole), VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
  // Shown while it goes away: the screen shows nothing then.
  CHECK_EQ(g.set_scanout(0, 1, kWhole), kGpuOk);
  CHECK_EQ(g.unref(1), kGpuOk);
  CHECK(gpu_is_error(g.flush(1, kWhole)));
  CHECK_EQ(g.unref(2), kGpuOk);
}

void cursor() {
  GpuDriver& g = fresh_gpu();
  CHECK_EQ(g.create_2d(1, VIRTIO_GPU_FORMAT_B8G8R8A8_UNORM, kCursorSide, kCursorSide), kGpuOk);
  CHECK_EQ(g.attach(1, memory(), kCursorSide * kCursorSide * 4), kGpuOk);
  CHECK_EQ(g.transfer(1, {0, 0, kCursorSide, kCursorSide}, 0), kGpuOk);
  g.update_cursor(0, 1, 10, 20, 3, 4);
  g.move_cursor(0, 11, 21);
  g.move_cursor(0, 0xffffffff, 0xffffffff);
  g.update_cursor(0, 99, 0, 0, 0, 0);           // no such resource
  g.update_cursor(screens(), 1, 0, 0, 0, 0);    // no such screen
  g.update_cursor(0, 1, 0, 0, 0xffffffff, 64);  // its hot spot is outside
  g.update_cursor(0, 0, 0, 0, 0, 0);            // hidden
  CHECK_EQ(g.unref(1), kGpuOk);
  CHECK(!g.device().needs_reset());
}

// The picture of picture::screen(), by two transfers and a flush; then waits for a byte on the
// serial port, which the host sends when it has looked.
void screen() {
  using namespace picture;
  GpuDriver& g = fresh_gpu();
  constexpr uint32_t kPixels = kScreenWidth * kScreenHeight;
  auto* pixels = static_cast<uint32_t*>(alloc_pages(kPixels * 4 / kPageSize + 1));
  picture::screen({pixels, kScreenWidth, kScreenHeight});
  CHECK_EQ(g.create_2d(1, kX8, kScreenWidth, kScreenHeight), kGpuOk);
  CHECK_EQ(g.attach(1, pixels, kPixels * 4), kGpuOk);
  CHECK_EQ(g.set_scanout(0, 1, {0, 0, kScreenWidth, kScreenHeight}), kGpuOk);
  CHECK_EQ(g.transfer(1, {0, 0, 100, kScreenHeight}, 0), kGpuOk);
  CHECK_EQ(g.transfer(1, {100, 0, kScreenWidth - 100, kScreenHeight}, 400), kGpuOk);
  CHECK_EQ(g.flush(1, {0, 0, kScreenWidth, kScreenHeight}), kGpuOk);
  print("shown\n");
  wait_for_byte();
  CHECK_EQ(g.set_scanout(0, 0, kWhole), kGpuOk);
  CHECK_EQ(g.unref(1), kGpuOk);
}

// The window of a frontend changes its size: the device tells, and offers the new mode.
void resize() {
  GpuDriver& g = fresh_gpu();
  const uint64_t events_read = g.device().config_address();
  const uint64_t events_clear = events_read + 4;
  CHECK_EQ(mmio_read<uint32_t>(events_read), 0);
  print("waiting for another size\n");
  CHECK(wait_until([&] { return mmio_read<uint32_t>(events_read) == VIRTIO_GPU_EVENT_DISPLAY; },
                   kOutsideMs));
  mmio_write<uint32_t>(events_clear, VIRTIO_GPU_EVENT_DISPLAY);
  CHECK_EQ(mmio_read<uint32_t>(events_read), 0);
  CHECK_EQ(g.display_info(&info), VIRTIO_GPU_RESP_OK_DISPLAY_INFO);
  const virtio_gpu_rect& r = info.pmodes[0].r;
  check_edid(0, r.width, r.height);
  print("size %ux%u\n", r.width, r.height);
}

}  // namespace gui
