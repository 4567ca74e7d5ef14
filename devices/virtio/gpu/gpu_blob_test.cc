// Blobs, and the window in which the guest maps them. The test reads and writes where a vCPU would.
#include <fstream>

#include "base/test_util.h"
#include "devices/virtio/gpu/gpu_test_util.h"

namespace lethe {
namespace {

class GpuBlob : public GpuTest {
 protected:
  [[nodiscard]] uint8_t* bar(uint64_t offset) const {
    return device->shared_memory()->host + offset;
  }
  [[nodiscard]] uint32_t word(uint64_t offset) const {
    uint32_t value = 0;
    std::memcpy(&value, bar(offset), sizeof value);
    return value;
  }
  void set_word(uint64_t offset, uint32_t value) { std::memcpy(bar(offset), &value, sizeof value); }
  uint32_t scanout(uint32_t id, uint32_t width, uint32_t height, uint32_t stride,
                   uint32_t offset = 0, virtio_gpu_rect r = {},
                   uint32_t format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM) {
    virtio_gpu_set_scanout_blob command{};
    command.r = r.width == 0 ? virtio_gpu_rect{0, 0, width, height} : r;
    command.resource_id = id;
    command.width = width;
    command.height = height;
    command.format = format;
    command.strides[0] = stride;
    command.offsets[0] = offset;
    return guest->send(VIRTIO_GPU_CMD_SET_SCANOUT_BLOB, command);
  }
  // Mappings of this process that lie in the window.
  [[nodiscard]] size_t mappings() const {
    const auto start = reinterpret_cast<uint64_t>(bar(0));
    std::ifstream maps("/proc/self/maps");
    std::string line;
    size_t count = 0;
    while (std::getline(maps, line)) {
      const uint64_t at = std::stoull(line, nullptr, 16);
      count += at >= start && at < start + kWindow ? 1 : 0;
    }
    return count;
  }
};

TEST_F(GpuBlob, a_blob_is_the_memory_that_the_guest_maps_and_the_frontend_sees) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(guest->create_blob(1, 64 * 64 * 4), kOk);
  ASSERT_EQ(guest->map(1, 8192), kMapped);
  EXPECT_EQ(guest->answer<virtio_gpu_resp_map_info>().map_info,
            uint32_t{VIRTIO_GPU_MAP_CACHE_CACHED});
  EXPECT_EQ(guest->written(), sizeof(virtio_gpu_resp_map_info));
  ASSERT_EQ(scanout(1, 64, 64, 256), kOk);
  const auto frame = frame_of(frontend, 64);
  ASSERT_TRUE(frame);
  set_word(8192 + 4, 0xabcdef);  // no command in between
  EXPECT_EQ(pixel(frontend, *frame, 1, 0), 0xabcdefU);
}

TEST_F(GpuBlob, unmapping_ends_the_guests_access_before_the_answer) {
  ASSERT_EQ(guest->create_blob(1, 8192), kOk);
  ASSERT_EQ(guest->map(1, 0), kMapped);
  set_word(0, 1);
  ASSERT_EQ(guest->unmap(1), kOk);
  EXPECT_EQ(word(0), 0U);
  set_word(0, 2);  // goes nowhere
  ASSERT_EQ(guest->map(1, 4096), kMapped);
  EXPECT_EQ(word(4096), 1U);
  EXPECT_EQ(word(0), 2U);  // the guest's own memory, until something is mapped there
  ASSERT_EQ(guest->unref(1), kOk);
  EXPECT_EQ(word(4096), 0U);
}

TEST_F(GpuBlob, a_new_blob_is_empty_wherever_it_is_mapped) {
  for (uint32_t round = 0; round < 4; ++round) {
    set_word(0, 0x5ec2e7);
    ASSERT_EQ(guest->create_blob(1, 4096), kOk);
    ASSERT_EQ(guest->map(1, 0), kMapped);
    EXPECT_EQ(word(0), 0U);
    set_word(0, round + 1);
    ASSERT_EQ(guest->unref(1), kOk);
    EXPECT_EQ(word(0), 0U);
  }
}

TEST_F(GpuBlob, mapping_beyond_the_window_or_over_another_is_refused) {
  ASSERT_EQ(guest->create_blob(1, 8192), kOk);
  ASSERT_EQ(guest->create_blob(2, 8192), kOk);
  for (const uint64_t offset : {kWindow, kWindow - 4096, ~uint64_t{4095}, uint64_t{1} << 63,
                                uint64_t{1}, uint64_t{4095}, ~uint64_t{0}})
    EXPECT_EQ(guest->map(1, offset), kBad) << offset;
  ASSERT_EQ(guest->map(1, kWindow - 8192), kMapped);
  EXPECT_EQ(guest->map(1, 0), kBad);  // twice
  EXPECT_EQ(guest->map(2, kWindow - 8192), kBad);
  EXPECT_EQ(guest->map(2, kWindow - 12288), kBad);
  EXPECT_EQ(guest->map(2, kWindow - 16384), kMapped);
  EXPECT_EQ(guest->unmap(1), kOk);
  EXPECT_EQ(guest->unmap(1), kBad);
  EXPECT_EQ(guest->unmap(99), kNoResource);
  EXPECT_EQ(guest->map(99, 0), kNoResource);
}

TEST_F(GpuBlob, a_blob_as_large_as_the_window_fits_and_a_larger_one_does_not) {
  ASSERT_EQ(guest->create_blob(1, kWindow), kOk);
  ASSERT_EQ(guest->create_blob(2, kWindow + 1), kOk);
  EXPECT_EQ(guest->map(1, 0), kMapped);
  EXPECT_EQ(guest->unmap(1), kOk);
  EXPECT_EQ(guest->map(2, 0), kBad);
}

TEST_F(GpuBlob, only_plain_memory_of_a_sound_size_can_be_had) {
  virtio_gpu_resource_create_blob good{};
  good.resource_id = 1;
  good.blob_mem = VIRTIO_GPU_BLOB_MEM_HOST3D;
  good.blob_flags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE;
  good.size = 4096;
  const auto refuse = [&](auto change, uint32_t answer) {
    auto command = good;
    change(command);
    EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, command), answer);
  };
  refuse([](auto& c) { c.blob_mem = VIRTIO_GPU_BLOB_MEM_HOST3D_GUEST; }, kBad);
  refuse([](auto& c) { c.blob_mem = 0; }, kBad);
  refuse([](auto& c) { c.blob_id = 1; }, kBad);
  refuse([](auto& c) { c.blob_flags = 8; }, kBad);
  refuse([](auto& c) { c.size = 0; }, kBad);
  refuse([](auto& c) { c.size = (uint64_t{1} << 30) + 1; }, kBad);
  refuse([](auto& c) { c.size = ~uint64_t{0}; }, kBad);
  refuse([](auto& c) { c.resource_id = 0; }, kNoResource);
  refuse([](auto& c) { c.hdr.ctx_id = 5; }, kNoContext);
  refuse([](auto& c) { c.nr_entries = 1; }, kBad);
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, good), kOk);
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, good), kNoResource);  // id in use
}

TEST_F(GpuBlob, a_blob_that_is_not_mappable_is_not_mapped) {
  virtio_gpu_resource_create_blob command{};
  command.resource_id = 1;
  command.blob_mem = VIRTIO_GPU_BLOB_MEM_HOST3D;
  command.size = 4096;
  ASSERT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, command), kOk);
  EXPECT_EQ(guest->map(1, 0), kBad);
  ASSERT_EQ(guest->create_2d(2, 32, 32), kOk);
  EXPECT_EQ(guest->map(2, 0), kBad);
}

TEST_F(GpuBlob, guest_memory_is_copied_when_it_is_flushed) {
  FakeFrontend frontend = connect();
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  paint(at, 64, 64, 100);
  ASSERT_EQ(
      guest->create_blob(1, 64 * 64 * 4, 0, VIRTIO_GPU_BLOB_MEM_GUEST,
                         {{at.value, 64 * 32 * 4, 0}, {at.value + 64 * 32 * 4, 64 * 32 * 4, 0}}),
      kOk);
  EXPECT_EQ(guest->map(1, 0), kBad);
  ASSERT_EQ(scanout(1, 64, 64, 256), kOk);
  const auto frame = frame_of(frontend, 64);
  ASSERT_TRUE(frame);
  EXPECT_EQ(pixel(frontend, *frame, 63, 63), 100U + 64 * 64 - 1);
  paint(at, 64, 64, 5000);
  EXPECT_EQ(guest->flush(1, {8, 8, 8, 8}), kOk);
  EXPECT_EQ(pixel(frontend, *frame, 8, 8), 5000U + 8 * 64 + 8);
  EXPECT_EQ(pixel(frontend, *frame, 7, 8), 100U + 8 * 64 + 7);
  EXPECT_EQ(guest->detach(1), kOk);  // while it is shown
  EXPECT_EQ(guest->flush(1, {0, 0, 64, 64}), kOk);
  EXPECT_EQ(pixel(frontend, *frame, 0, 0), 100U);
}

TEST_F(GpuBlob, guest_memory_must_hold_the_blob) {
  const GuestAddr at = guest->alloc(8192);
  EXPECT_EQ(guest->create_blob(1, 8193, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{at.value, 8192, 0}}), kBad);
  EXPECT_EQ(guest->create_blob(1, 8192, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{at.value, 8192, 0}}), kOk);
}

TEST_F(GpuBlob, scanouts_of_blobs_stay_within_them) {
  ASSERT_EQ(guest->create_blob(1, 64 * 64 * 4), kOk);
  ASSERT_EQ(scanout(1, 64, 64, 256), kOk);
  EXPECT_EQ(scanout(1, 64, 64, 252), kBad);     // lines overlap
  EXPECT_EQ(scanout(1, 64, 64, 257), kBad);     // pixels are not aligned
  EXPECT_EQ(scanout(1, 64, 64, 256, 4), kBad);  // one pixel too far
  EXPECT_EQ(scanout(1, 64, 64, 0xffff'fffc), kBad);
  EXPECT_EQ(scanout(1, 64, 64, 256, 0xffff'fffc), kBad);
  EXPECT_EQ(scanout(1, ~0U, ~0U, ~0U & ~3U), kBad);
  EXPECT_EQ(scanout(1, 0x4000'0000, 1, 0), kBad);  // 4 * width overflows 32 bits
  EXPECT_EQ(scanout(1, 64, 64, 256, 0, {1, 0, 64, 64}), kBad);
  EXPECT_EQ(scanout(1, 64, 64, 256, 0, {~0U, 0, 2, 64}), kBad);
  EXPECT_EQ(scanout(1, 64, 64, 256, 0, {}, 5), kBad);
  EXPECT_EQ(scanout(9, 64, 64, 256), kNoResource);
  EXPECT_EQ(guest->set_scanout(0, 1, {0, 0, 64, 64}), kNoResource);  // it is no 2D one
  EXPECT_EQ(scanout(1, 32, 16, 256, 48 * 256), kOk);
  ASSERT_EQ(guest->create_2d(2, 64, 64), kOk);
  EXPECT_EQ(scanout(2, 64, 64, 256), kNoResource);
}

// As a driver that allocates first fit does when windows are resized all the time.
TEST_F(GpuBlob, ten_thousand_random_resizes_leave_the_window_whole) {
  std::map<uint64_t, std::pair<uint64_t, uint32_t>> taken;  // offset: bytes, id
  uint32_t random = 12345;
  const auto next = [&](uint32_t below) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % below;
  };
  uint32_t id = 0;
  const size_t open = open_descriptors();
  for (int i = 0; i < 10'000; ++i) {
    if (taken.size() >= 40 || (!taken.empty() && next(3) == 0)) {
      auto victim = std::next(taken.begin(), next(static_cast<uint32_t>(taken.size())));
      ASSERT_EQ(guest->unmap(victim->second.second), kOk);
      ASSERT_EQ(guest->unref(victim->second.second), kOk);
      ASSERT_EQ(word(victim->first), 0U);
      taken.erase(victim);
      continue;
    }
    const uint64_t bytes = (1 + next(64)) * 4096ULL;
    uint64_t offset = 0;
    for (const auto& [start, entry] : taken) {
      if (start - offset >= bytes) break;
      offset = start + entry.first;
    }
    if (offset + bytes > kWindow) continue;
    ++id;
    ASSERT_EQ(guest->create_blob(id, bytes), kOk);
    ASSERT_EQ(guest->map(id, offset), kMapped);
    ASSERT_EQ(word(offset), 0U);
    set_word(offset, id);
    set_word(offset + bytes - 4, id);
    taken[offset] = {bytes, id};
  }
  for (const auto& [offset, entry] : taken) {
    EXPECT_EQ(word(offset), entry.second);
    EXPECT_EQ(word(offset + entry.first - 4), entry.second);
  }
  on_gui([] {});  // gauges follow the answers
  EXPECT_EQ(counter(device->counters().mappings), taken.size());
  // A mapping each, a gap behind each, and the kernel may not have merged every gap.
  EXPECT_LE(mappings(), 4 * taken.size() + 8);
  for (const auto& [offset, entry] : taken) ASSERT_EQ(guest->unref(entry.second), kOk);
  EXPECT_LE(mappings(), 8U);
  EXPECT_TRUE(eventually([&] { return counter(ledger().freeing.buffers) == 0; }));
  EXPECT_EQ(counter(ledger().live.bytes), 0U);
  EXPECT_EQ(open_descriptors(), open);
}

TEST_F(GpuBlob, a_reset_takes_everything_out_of_the_window) {
  FakeFrontend frontend = connect();
  ASSERT_EQ(guest->create_blob(1, 64 * 64 * 4), kOk);
  ASSERT_EQ(guest->map(1, 0), kMapped);
  set_word(0, 1);
  set_word(kWindow - 4, 2);  // where nothing is
  ASSERT_EQ(scanout(1, 64, 64, 256), kOk);
  ASSERT_TRUE(frame_of(frontend, 64));
  guest->transport().reset();
  EXPECT_EQ(word(0), 0U);
  EXPECT_EQ(word(kWindow - 4), 0U);
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
  EXPECT_EQ(counter(device->counters().resources), 0U);
  ASSERT_TRUE(frontend.receive_until(gui::Type::kBufferGone));
  guest->restart();
  EXPECT_EQ(guest->unref(1), kNoResource);
  EXPECT_EQ(guest->create_blob(1, 4096), kOk);
}

}  // namespace
}  // namespace lethe
