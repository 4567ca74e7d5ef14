// GPU commands that make no sense (virtio 1.2, section 5.7.6), and window commands too, from a
// driver whose rings are in order. Each must be answered with an error, and change nothing: after
// each the device still shows a picture and maps a blob.
#include "guests/hostile.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/virtio/windows.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint32_t kX8 = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
constexpr uint32_t kContext = Windows::kContext;
constexpr uint32_t kMapped = VIRTIO_GPU_RESP_OK_MAP_INFO;
constexpr uint32_t kSide = 8;
constexpr uint32_t kBytes = kSide * kSide * 4;
constexpr virtio_gpu_rect kWhole = {0, 0, kSide, kSide};
constexpr uint64_t kMmioHole = 0xc8000000;
constexpr uint32_t kAll = 0xffffffff;
// Resources that attacks find: a picture, a blob that is not mapped, one that is, and what no
// attack touches.
constexpr uint32_t kPicture = 1;
constexpr uint32_t kBlob = 2;
constexpr uint32_t kMappedBlob = 3;
constexpr uint32_t kMappedAt = 8 * kPageSize;
constexpr uint32_t kOwn = 50;
constexpr uint32_t kFree = 60;

GpuDriver& gpu() {
  static GpuDriver driver;
  static bool opened;
  if (!opened) CHECK(driver.open({.required = kGpuWindowFeatures}));
  opened = true;
  return driver;
}

uint8_t* memory() {
  static auto* pages = static_cast<uint8_t*>(alloc_pages(2));
  return pages;
}

volatile uint64_t* word_at(uint64_t offset) {
  return reinterpret_cast<volatile uint64_t*>(gpu().shared() + offset);
}

void set_up() {
  GpuDriver& g = gpu();
  g.restart();
  CHECK_EQ(g.context_create(kContext, window::kWindowCapset), kGpuOk);
  CHECK_EQ(g.create_2d(kPicture, kX8, kSide, kSide), kGpuOk);
  CHECK_EQ(g.attach(kPicture, memory(), kBytes), kGpuOk);
  constexpr uint32_t kBlobs[] = {kBlob, kMappedBlob};
  for (const uint32_t id : kBlobs) {
    CHECK_EQ(g.create_blob({.id = id, .context = kContext, .size = kPageSize}), kGpuOk);
  }
  CHECK_EQ(g.map_blob(kMappedBlob, kMappedAt), kMapped);
  *word_at(kMappedAt) = 0x5a5a;
}

// What was there works, and so do new things.
void must_still_work() {
  GpuDriver& g = gpu();
  CHECK(!g.device().needs_reset());
  CHECK_EQ(*word_at(kMappedAt), 0x5a5a);
  CHECK_EQ(g.create_2d(kOwn, kX8, kSide, kSide), kGpuOk);
  CHECK_EQ(g.attach(kOwn, memory(), kBytes), kGpuOk);
  CHECK_EQ(g.transfer(kOwn, kWhole, 0), kGpuOk);
  CHECK_EQ(g.set_scanout(0, kOwn, kWhole), kGpuOk);
  CHECK_EQ(g.flush(kOwn, kWhole), kGpuOk);
  CHECK_EQ(g.set_scanout(0, 0, kWhole), kGpuOk);
  CHECK_EQ(g.unref(kOwn), kGpuOk);
}

struct GpuAttack {
  const char* name;
  uint32_t (*send)(GpuDriver& g);  // the response's type
};

template <size_t N>
void run(const GpuAttack (&attacks)[N]) {
  set_up();
  for (const GpuAttack& a : attacks) {
    // Nothing is written as the answer to what is no command at all.
    const uint32_t response = a.send(gpu());
    if (response != 0 && !gpu_is_error(response)) {
      print("gpu attack %s: %x\n", a.name, response);
      check_failed(__FILE_NAME__, __LINE__, "the device refuses the attack");
    }
    must_still_work();
  }
  print("gpu: %lu attacks\n", N);
}

uint32_t send_header(GpuDriver& g, uint32_t type, size_t bytes = sizeof(virtio_gpu_ctrl_hdr)) {
  uint8_t request[512] = {};
  memcpy(request, &type, sizeof(type));
  return g.command(request, bytes);
}

// `count` and one entry really sent.
uint32_t attach_entry(GpuDriver& g, uint64_t address, uint32_t length, uint32_t count = 1) {
  static virtio_gpu_mem_entry entry;
  entry = {address, length, 0};
  const uint32_t type = g.attach(kPicture, &entry, count, sizeof(entry));
  return type;
}

uint32_t blob_of(GpuDriver& g, uint64_t size, uint32_t mem = VIRTIO_GPU_BLOB_MEM_HOST3D,
                 uint32_t flags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE, uint64_t blob_id = 0,
                 uint32_t context = kContext) {
  return g.create_blob({.id = kFree,
                        .context = context,
                        .memory = mem,
                        .flags = flags,
                        .blob_id = blob_id,
                        .size = size});
}

constexpr GpuAttack kRequests[] = {
    {"no command", [](GpuDriver& g) { return send_header(g, 0); }},
    {"a command that does not exist", [](GpuDriver& g) { return send_header(g, 0x1ff); }},
    {"a response as a command", [](GpuDriver& g) { return send_header(g, kGpuOk); }},
    {"a cursor command", [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_MOVE_CURSOR); }},
    {"a 3D resource",
     [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_RESOURCE_CREATE_3D, 72); }},
    {"a 3D transfer",
     [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_TRANSFER_TO_HOST_3D, 72); }},
    {"a header cut short",
     [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_GET_DISPLAY_INFO, 8); }},
    {"a resource without its fields",
     [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D); }},
    {"an EDID without its screen",
     [](GpuDriver& g) { return send_header(g, VIRTIO_GPU_CMD_GET_EDID, 27); }},
    {"resource 0", [](GpuDriver& g) { return g.create_2d(0, kX8, kSide, kSide); }},
    {"a number that is taken", [](GpuDriver& g) { return g.create_2d(kBlob, kX8, kSide, kSide); }},
    {"no width", [](GpuDriver& g) { return g.create_2d(kFree, kX8, 0, kSide); }},
    {"no height", [](GpuDriver& g) { return g.create_2d(kFree, kX8, kSide, 0); }},
    {"wider than anything", [](GpuDriver& g) { return g.create_2d(kFree, kX8, 16385, 1); }},
    {"2^32 by 2^32", [](GpuDriver& g) { return g.create_2d(kFree, kX8, kAll, kAll); }},
    {"a size that wraps to 0",
     [](GpuDriver& g) { return g.create_2d(kFree, kX8, 0x10000, 0x10000); }},
    {"unref of nothing", [](GpuDriver& g) { return g.unref(kFree); }},
    {"unref of 0", [](GpuDriver& g) { return g.unref(0); }},
    {"4 billion entries, one sent",
     [](GpuDriver& g) { return attach_entry(g, physical(memory()), kBytes, kAll); }},
    {"2^28 entries, whose bytes wrap to 0",
     [](GpuDriver& g) { return attach_entry(g, physical(memory()), kBytes, 0x10000000); }},
    {"two entries, one sent",
     [](GpuDriver& g) { return attach_entry(g, physical(memory()), kBytes, 2); }},
    {"backing after RAM",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, ram_end(), kBytes) | g.transfer(kPicture, kWhole, 0);
     }},
    {"backing across RAM's end",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, ram_end() - 16, kBytes) | g.transfer(kPicture, kWhole, 0);
     }},
    {"backing in the MMIO hole",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, kMmioHole, kBytes) | g.transfer(kPicture, kWhole, 0);
     }},
    {"backing in the device's own BAR",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, physical(g.shared()), kBytes) | g.transfer(kPicture, kWhole, 0);
     }},
    {"backing that wraps around",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, ~uint64_t{0} - 15, kBytes) | g.transfer(kPicture, kWhole, 0);
     }},
    {"4 GiB of backing",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return attach_entry(g, physical(memory()), kAll) | g.transfer(kPicture, kWhole, 0);
     }},
    {"a transfer without backing",
     [](GpuDriver& g) {
       g.detach(kPicture);
       return g.transfer(kPicture, kWhole, 0);
     }},
    {"a transfer from 2^64",
     [](GpuDriver& g) {
       g.detach(kPicture);
       CHECK_EQ(g.attach(kPicture, memory(), kBytes), kGpuOk);
       return g.transfer(kPicture, kWhole, ~uint64_t{0} - 3);
     }},
    {"a transfer whose end wraps",
     [](GpuDriver& g) { return g.transfer(kPicture, {0, 0, kSide, kSide}, uint64_t{1} << 63); }},
    {"a transfer of 2^32 by 2^32",
     [](GpuDriver& g) { return g.transfer(kPicture, {0, 0, kAll, kAll}, 0); }},
    {"a transfer whose x wraps",
     [](GpuDriver& g) { return g.transfer(kPicture, {kAll, 0, 2, 1}, 0); }},
    {"a transfer of a blob", [](GpuDriver& g) { return g.transfer(kBlob, kWhole, 0); }},
    {"a screen that is not there",
     [](GpuDriver& g) { return g.set_scanout(16, kPicture, kWhole); }},
    {"a screen of what is not there", [](GpuDriver& g) { return g.set_scanout(0, kFree, kWhole); }},
    {"a screen larger than its resource",
     [](GpuDriver& g) { return g.set_scanout(0, kPicture, {0, 0, kSide, kSide + 1}); }},
    {"a screen whose edge wraps",
     [](GpuDriver& g) { return g.set_scanout(0, kPicture, {kAll, kAll, 9, 9}); }},
    {"a flush of a dead screen",
     [](GpuDriver& g) {
       CHECK_EQ(g.create_2d(kFree, kX8, kSide, kSide), kGpuOk);
       CHECK_EQ(g.set_scanout(0, kFree, kWhole), kGpuOk);
       CHECK_EQ(g.unref(kFree), kGpuOk);
       return g.flush(kFree, kWhole);
     }},
    {"context 0", [](GpuDriver& g) { return g.context_create(0, window::kWindowCapset); }},
    {"a context twice",
     [](GpuDriver& g) { return g.context_create(kContext, window::kWindowCapset); }},
    {"a context of virgl", [](GpuDriver& g) { return g.context_create(7, 1); }},
    {"the end of no context", [](GpuDriver& g) { return g.context_destroy(7); }},
    {"a resource into no context", [](GpuDriver& g) { return g.context_attach(7, kBlob); }},
    {"nothing into a context", [](GpuDriver& g) { return g.context_attach(kContext, kFree); }},
};

constexpr GpuAttack kBlobAttacks[] = {
    {"a blob of nothing", [](GpuDriver& g) { return blob_of(g, 0); }},
    {"a blob of 2^63", [](GpuDriver& g) { return blob_of(g, uint64_t{1} << 63); }},
    {"a blob of all ones", [](GpuDriver& g) { return blob_of(g, ~uint64_t{0}); }},
    {"a blob over the limit", [](GpuDriver& g) { return blob_of(g, (uint64_t{1} << 30) + 4096); }},
    {"a blob of no kind", [](GpuDriver& g) { return blob_of(g, kPageSize, 0); }},
    {"a blob of unknown kind", [](GpuDriver& g) { return blob_of(g, kPageSize, 9); }},
    {"a blob of somebody else's id",
     [](GpuDriver& g) {
       return blob_of(g, kPageSize, VIRTIO_GPU_BLOB_MEM_HOST3D, VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE,
                      5);
     }},
    {"a blob in a number that is taken",
     [](GpuDriver& g) {
       return g.create_blob({.id = kPicture, .context = kContext, .size = kPageSize});
     }},
    {"blob 0",
     [](GpuDriver& g) { return g.create_blob({.id = 0, .context = kContext, .size = 4096}); }},
    {"mapped at the region's end",
     [](GpuDriver& g) { return g.map_blob(kBlob, g.device().shared_length()); }},
    {"mapped beyond the region", [](GpuDriver& g) { return g.map_blob(kBlob, uint64_t{1} << 62); }},
    {"mapped where the end wraps",
     [](GpuDriver& g) { return g.map_blob(kBlob, ~uint64_t{0} - 4095); }},
    {"mapped at no page", [](GpuDriver& g) { return g.map_blob(kBlob, 100); }},
    {"mapped over another", [](GpuDriver& g) { return g.map_blob(kBlob, kMappedAt); }},
    {"mapped twice", [](GpuDriver& g) { return g.map_blob(kMappedBlob, 0); }},
    {"mapped twice at one place", [](GpuDriver& g) { return g.map_blob(kMappedBlob, kMappedAt); }},
    {"a picture mapped", [](GpuDriver& g) { return g.map_blob(kPicture, 0); }},
    {"nothing mapped", [](GpuDriver& g) { return g.map_blob(kFree, 0); }},
    {"unmapped, never mapped", [](GpuDriver& g) { return g.unmap_blob(kBlob); }},
    {"a picture unmapped", [](GpuDriver& g) { return g.unmap_blob(kPicture); }},
    {"unmapped when it is gone",
     [](GpuDriver& g) {
       CHECK_EQ(blob_of(g, kPageSize), kGpuOk);
       CHECK_EQ(g.map_blob(kFree, 0), kMapped);
       *word_at(0) = 7;
       CHECK_EQ(g.unref(kFree), kGpuOk);  // while mapped
       CHECK_EQ(*word_at(0), 0);
       return g.unmap_blob(kFree);
     }},
    {"backing for a blob", [](GpuDriver& g) { return g.attach(kBlob, memory(), kBytes); }},
    {"a blob's screen past its end",
     [](GpuDriver& g) {
       return g.set_scanout_blob({.scanout = 0,
                                  .id = kBlob,
                                  .r = {0, 0, 32, 33},
                                  .width = 32,
                                  .height = 33,
                                  .format = kX8,
                                  .stride = 128});
     }},
    {"a picture as a blob's screen",
     [](GpuDriver& g) {
       return g.set_scanout_blob({.scanout = 0,
                                  .id = kPicture,
                                  .r = kWhole,
                                  .width = 1u << 31,
                                  .height = 2,
                                  .format = kX8,
                                  .stride = 4});
     }},
};

// SUBMIT_3D that says `size`, with `bytes` of zeroes behind it.
uint32_t submit_of(GpuDriver& g, uint32_t context, uint32_t size, size_t bytes) {
  static auto* zeroes = static_cast<uint8_t*>(alloc_pages(32));
  virtio_gpu_cmd_submit r = {};
  r.hdr.type = VIRTIO_GPU_CMD_SUBMIT_3D;
  r.hdr.ctx_id = context;
  r.size = size;
  return g.command(&r, sizeof(r), zeroes, bytes);
}

template <typename T>
uint32_t submit_one(GpuDriver& g, const T& command) {
  static T copy;
  copy = command;
  return g.submit(kContext, &copy, sizeof(copy));
}

uint32_t ring_of(GpuDriver& g, uint32_t id) {
  return submit_one(g, window::SetEventRing{{window::kSetEventRing, 16}, id, 0});
}

constexpr GpuAttack kWindows[] = {
    {"commands in no context", [](GpuDriver& g) { return submit_of(g, 9, 16, 16); }},
    {"commands that are zeroes", [](GpuDriver& g) { return submit_of(g, kContext, 64, 64); }},
    {"more commands than sent", [](GpuDriver& g) { return submit_of(g, kContext, 4096, 16); }},
    {"4 GiB of commands", [](GpuDriver& g) { return submit_of(g, kContext, kAll, 16); }},
    {"more commands than may be",
     [](GpuDriver& g) { return submit_of(g, kContext, 0x10004, 0x10004); }},
    {"half a command", [](GpuDriver& g) { return submit_of(g, kContext, 6, 6); }},
    {"events into nothing", [](GpuDriver& g) { return ring_of(g, kFree); }},
    {"events into a picture", [](GpuDriver& g) { return ring_of(g, kPicture); }},
    {"a window of 2^32 by 2^32",
     [](GpuDriver& g) {
       return submit_one(
           g, window::WindowCreate{{window::kWindowCreate, 40}, 1, 0, 1, 0, 0, kAll, kAll, 0});
     }},
    {"a window that is its own parent",
     [](GpuDriver& g) {
       return submit_one(g,
                         window::WindowCreate{{window::kWindowCreate, 40}, 1, 1, 1, 0, 0, 8, 8, 0});
     }},
    {"a title without an end",
     [](GpuDriver& g) {
       window::WindowTitle title = {{window::kWindowTitle, sizeof(title)}, 1, 0, {}};
       memset(title.title, 'x', sizeof(title.title));
       return submit_one(g, title);
     }},
    {"damage to no window",
     [](GpuDriver& g) {
       return submit_one(g, window::WindowDamage{{window::kWindowDamage, 32}, 1, 0, 0, 1, 1, 1});
     }},
    {"a picture attached to no window",
     [](GpuDriver& g) {
       return submit_one(g,
                         window::WindowAttach{
                             {window::kWindowAttach, 40}, 3, kPicture, 0, 32, kX8, kSide, kSide});
     }},
    {"a poll that is not the last",
     [](GpuDriver& g) {
       static window::Poll polls[2];
       polls[0] = polls[1] = {{window::kPoll, sizeof(window::Poll)}, 0, 0};
       return g.submit(kContext, polls, sizeof(polls));
     }},
};

}  // namespace

void gpu_requests() {
  run(kRequests);
  // The cursor queue: nothing of it is answered, nothing of it breaks anything.
  GpuDriver& g = gpu();
  static uint8_t bytes[256];
  constexpr size_t kLengths[] = {1, 24, 55, 256};
  constexpr uint32_t kTypes[] = {0, kAll, VIRTIO_GPU_CMD_UPDATE_CURSOR};
  for (const size_t length : kLengths) {
    for (const uint32_t type : kTypes) {
      memset(bytes, 0xff, sizeof(bytes));
      memcpy(bytes, &type, sizeof(type) < length ? sizeof(type) : length);
      const Buffer b = readable(bytes, length);
      g.cursor_queue().submit_and_wait(&b, 1);
      must_still_work();
    }
  }
  // An answer that there is no room for.
  virtio_gpu_ctrl_hdr request = {};
  request.type = VIRTIO_GPU_CMD_GET_DISPLAY_INFO;
  constexpr uint32_t kRooms[] = {0, 1, 23, 24, 100};
  for (const uint32_t room : kRooms) {
    const Buffer both[] = {readable(&request, sizeof(request)), writable(bytes, room)};
    CHECK(g.control().submit_and_wait(both, room == 0 ? 1 : 2) <= room);
    must_still_work();
  }
}

void gpu_blobs() {
  run(kBlobAttacks);
  // A guest's blob with no memory behind it: shown or not, nothing is read.
  GpuDriver& g = gpu();
  (void)blob_of(g, kPageSize, VIRTIO_GPU_BLOB_MEM_GUEST, 0);
  (void)g.set_scanout_blob({.scanout = 0,
                            .id = kFree,
                            .r = kWhole,
                            .width = kSide,
                            .height = kSide,
                            .format = kX8,
                            .stride = kSide * 4});
  (void)g.flush(kFree, kWhole);
  (void)g.unref(kFree);
  must_still_work();
}

void gpu_windows() {
  run(kWindows);
  // The event ring goes away while it is used.
  GpuDriver& g = gpu();
  Windows w;
  g.restart();
  w.open(g, 40);
  const WindowBuffer b = w.make_buffer(41, kPageSize, kPageSize);
  w.create(1, 0, 0, kSide, kSide, window::kWindowVisible);
  w.attach(1, b, kSide, kSide);
  CHECK_EQ(w.commit(), kGpuOk);
  w.start_poll();
  CHECK_EQ(g.unmap_blob(40), kGpuOk);
  CHECK_EQ(g.unref(40), kGpuOk);
  w.damage(1, 0, 0, kSide, kSide, 1);
  CHECK_EQ(w.commit(), kGpuOk);
  CHECK_EQ(g.context_destroy(kContext), kGpuOk);
  set_up();
  must_still_work();
}

// As much of everything as the device gives; then all of it goes, and everything works.
void gpu_floods() {
  set_up();
  GpuDriver& g = gpu();
  constexpr uint32_t kMany = 1500;
  uint32_t made = 0;
  while (made < kMany && g.create_2d(1000 + made, kX8, kSide, kSide) == kGpuOk) ++made;
  print("%u pictures\n", made);
  CHECK(made > 100);
  uint32_t large = 0;
  while (large < 64 && g.create_2d(5000 + large, kX8, 8192, 8192) == kGpuOk) ++large;
  print("%u pictures of 256 MiB\n", large);
  CHECK(large < 64);  // there is a limit
  while (large > 0) CHECK_EQ(g.unref(5000 + --large), kGpuOk);
  while (made > 0) CHECK_EQ(g.unref(1000 + --made), kGpuOk);
  uint32_t contexts = 2;
  while (contexts < kMany && g.context_create(contexts, window::kWindowCapset) == kGpuOk) {
    ++contexts;
  }
  print("%u contexts\n", contexts - 1);
  CHECK(contexts > 2);
  while (contexts > 2) CHECK_EQ(g.context_destroy(--contexts), kGpuOk);
  must_still_work();
  // Left for the reset to clear away.
  for (uint32_t i = 0; i < 200; ++i) {
    CHECK_EQ(g.create_blob({.id = 1000 + i, .context = kContext, .size = kPageSize}), kGpuOk);
    CHECK_EQ(g.map_blob(1000 + i, (16 + i) * kPageSize), kMapped);
  }
  set_up();
  CHECK_EQ(*word_at(16 * kPageSize), 0);
  must_still_work();
}

}  // namespace hostile
