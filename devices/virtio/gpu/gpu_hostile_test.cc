// What a hostile guest sends. Each is refused by itself, and the device goes on.
#include <fstream>

#include "base/test_util.h"
#include "devices/virtio/gpu/gpu_test_util.h"
#include "devices/virtio/gpu/resources.h"
#include "devices/virtio/gpu/window_context.h"

namespace lethe {
namespace {

using Commands = FakeWindowCommands;
using namespace std::chrono_literals;

class GpuHostile : public GpuTest {
 protected:
  // A patient one: the flood's frontend reads only now and then.
  GpuHostile() : GpuTest({.buffers_max = 256, .bytes_max = 64 * kMiB, .drain_patience = 60s}) {}
  void goes_on() {
    // Of what was refused nothing is left: the only descriptors more are two for each buffer.
    EXPECT_TRUE(eventually([&] { return counter(ledger().freeing.buffers) == 0; }));
    const uint64_t buffers = counter(ledger().live.buffers) + counter(ledger().orphan.buffers);
    EXPECT_EQ(open_descriptors(), open + 2 * buffers);
    EXPECT_EQ(guest->create_2d(0xfffff, 8, 8), kOk);
    EXPECT_EQ(guest->unref(0xfffff), kOk);
    EXPECT_EQ(guest->transport().needs_reset_count(), 0U);
  }
  template <typename T>
  static std::span<const uint8_t> bytes(const T& value) {
    return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
  }
  static uint64_t resident() {
    std::ifstream statm("/proc/self/statm");
    uint64_t size = 0;
    uint64_t pages = 0;
    statm >> size >> pages;
    return pages * 4096;
  }
  size_t open = open_descriptors();  // once the device has started
};

TEST_F(GpuHostile, sizes_that_overflow_are_no_images) {
  for (const auto& [width, height] :
       std::vector<std::pair<uint32_t, uint32_t>>{{0, 1},
                                                  {1, 0},
                                                  {16385, 1},
                                                  {1, 16385},
                                                  {0x4000'0000, 4},
                                                  {0x8000'0000, 0x8000'0000},
                                                  {~0U, ~0U},
                                                  {~0U, 1},
                                                  {0x1'0000, 0x1'0000}})
    EXPECT_EQ(guest->create_2d(1, width, height), kBad) << width << "x" << height;
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
  goes_on();
}

TEST_F(GpuHostile, id_0_is_nothing) {
  EXPECT_EQ(guest->create_2d(0, 8, 8), kNoResource);
  EXPECT_EQ(guest->unref(0), kNoResource);
  EXPECT_EQ(guest->flush(0, {}), kNoResource);
  EXPECT_EQ(guest->transfer(0, {}, 0), kNoResource);
  EXPECT_EQ(guest->map(0, 0), kNoResource);
  EXPECT_EQ(guest->context_attach(0, 0), kNoContext);
  goes_on();
}

TEST_F(GpuHostile, an_id_in_use_is_refused_and_keeps_what_it_has) {
  ASSERT_EQ(guest->create_2d(1, 64, 64), kOk);
  EXPECT_EQ(guest->create_2d(1, 8, 8), kNoResource);
  EXPECT_EQ(guest->create_blob(1, 4096), kNoResource);
  EXPECT_EQ(guest->set_scanout(0, 1, {0, 0, 64, 64}), kOk);
  for (int i = 0; i < 100; ++i) {  // an id is used again at once
    EXPECT_EQ(guest->unref(1), kOk);
    EXPECT_EQ(guest->unref(1), kNoResource);
    EXPECT_EQ(guest->create_2d(1, 64, 64), kOk);
  }
  goes_on();
}

TEST_F(GpuHostile, rectangles_outside_are_refused) {
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  ASSERT_EQ(guest->create_2d(1, 64, 64), kOk);
  ASSERT_EQ(guest->attach(1, at, 64 * 64 * 4), kOk);
  for (const virtio_gpu_rect& r : std::vector<virtio_gpu_rect>{{0, 0, 65, 1},
                                                               {0, 0, 1, 65},
                                                               {64, 0, 1, 1},
                                                               {0, 64, 1, 1},
                                                               {1, 0, 64, 1},
                                                               {~0U, 0, 2, 1},
                                                               {0, ~0U, 1, 2},
                                                               {~0U, ~0U, ~0U, ~0U},
                                                               {0x8000'0000, 0, 0x8000'0001, 1}}) {
    EXPECT_EQ(guest->transfer(1, r, 0), kBad);
    EXPECT_EQ(guest->flush(1, r), kBad);
    EXPECT_EQ(guest->set_scanout(0, 1, r), kBad);
  }
  EXPECT_EQ(guest->set_scanout(0, 1, {0, 0, 0, 64}), kBad);
  EXPECT_EQ(guest->transfer(1, {0, 0, 0, 0}, 0), kOk);  // nothing, of nowhere
  goes_on();
}

TEST_F(GpuHostile, transfers_do_not_read_beyond_the_backing) {
  const GuestAddr at = guest->alloc(64 * 64 * 4);
  ASSERT_EQ(guest->create_2d(1, 64, 64), kOk);
  EXPECT_EQ(guest->transfer(1, {0, 0, 64, 64}, 0), kBad);  // there is none
  ASSERT_EQ(guest->attach(1, at, 64 * 64 * 4), kOk);
  for (const uint64_t offset : {uint64_t{1}, uint64_t{4}, uint64_t{64 * 64 * 4}, ~uint64_t{0},
                                ~uint64_t{0} - 64 * 64 * 4 + 1, uint64_t{1} << 63})
    EXPECT_EQ(guest->transfer(1, {0, 0, 64, 64}, offset), kBad) << offset;
  EXPECT_EQ(guest->transfer(1, {0, 0, 1, 1}, 64 * 64 * 4 - 3), kBad);
  EXPECT_EQ(guest->transfer(1, {0, 0, 1, 1}, 64 * 64 * 4 - 4), kOk);
  EXPECT_EQ(guest->detach(1), kOk);
  EXPECT_EQ(guest->detach(1), kBad);
  EXPECT_EQ(guest->transfer(1, {0, 0, 1, 1}, 0), kBad);
  goes_on();
}

TEST_F(GpuHostile, backing_outside_memory_is_refused_whole) {
  const GuestAddr at = guest->alloc(4096);
  ASSERT_EQ(guest->create_2d(1, 32, 32), kOk);
  for (const virtio_gpu_mem_entry& entry :
       std::vector<virtio_gpu_mem_entry>{{kMemory, 4096, 0},
                                         {kMemory - 1, 2, 0},
                                         {0, kMemory + 1, 0},
                                         {~uint64_t{0}, 1, 0},
                                         {~uint64_t{0} - 10, 11, 0},
                                         {uint64_t{1} << 63, ~0U, 0},
                                         {0xe000'0000, 4096, 0}}) {
    EXPECT_EQ(guest->attach(1, {{at.value, 4096, 0}, entry}), kBad);
    EXPECT_EQ(guest->transfer(1, {0, 0, 1, 1}, 0), kBad);  // not even the good half
    EXPECT_EQ(guest->create_blob(2, 4096, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {entry}), kBad);
  }
  EXPECT_EQ(guest->attach(1, at, 4096), kOk);
  EXPECT_EQ(guest->attach(1, at, 4096), kBad);  // twice
  goes_on();
}

TEST_F(GpuHostile, four_billion_entries_are_not_believed) {
  ASSERT_EQ(guest->create_2d(1, 32, 32), kOk);
  const uint64_t before = resident();
  std::vector<uint8_t> more(64 * 1024);  // zeros: entries of length 0
  for (const uint32_t count : {~0U, 0x1000'0000U, 0x8000'0000U, Backing::kEntriesMax + 1, 4097U}) {
    EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING,
                          virtio_gpu_resource_attach_backing{{}, 1, count}, more),
              kBad)
        << count;
    virtio_gpu_resource_create_blob blob{};
    blob.resource_id = 2;
    blob.blob_mem = VIRTIO_GPU_BLOB_MEM_GUEST;
    blob.nr_entries = count;
    blob.size = 4096;
    EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, blob, more), kBad);
  }
  EXPECT_LT(resident(), before + 32 * kMiB);
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING,
                        virtio_gpu_resource_attach_backing{{}, 1, 4096}, more),
            kOk);  // as many as there are, all empty
  EXPECT_EQ(guest->transfer(1, {0, 0, 1, 1}, 0), kBad);
  goes_on();
}

TEST_F(GpuHostile, as_many_entries_as_are_allowed_are_taken) {
  const GuestAddr at = guest->alloc(8);
  std::vector<virtio_gpu_mem_entry> entries(200'000);  // no two of them touch
  for (size_t i = 0; i < entries.size(); ++i) entries[i] = {at.value + i % 2 * 4, 4, 0};
  std::swap(entries[0], entries[1]);
  ASSERT_EQ(guest->create_2d(1, 1024, 128), kOk);
  EXPECT_EQ(guest->attach(1, entries), kOk);
  EXPECT_EQ(guest->transfer(1, {0, 0, 1024, 128}, 0), kOk);
  goes_on();
}

TEST_F(GpuHostile, truncated_requests_are_refused) {
  for (const uint32_t type :
       {0x100U, 0x101U, 0x102U, 0x103U, 0x104U, 0x105U, 0x106U, 0x107U, 0x108U, 0x109U, 0x10aU,
        0x10cU, 0x10dU, 0x200U, 0x202U, 0x203U, 0x207U, 0x208U, 0x209U}) {
    std::array<uint8_t, 96> request{};
    std::memcpy(request.data(), &type, sizeof type);
    for (size_t size = 0; size < 32; ++size) {
      const uint32_t answer = guest->raw(std::span(request).first(size));
      if (size < sizeof(virtio_gpu_ctrl_hdr))
        EXPECT_EQ(guest->written(), 0U) << std::hex << type << " " << size;
      else if (type != VIRTIO_GPU_CMD_GET_DISPLAY_INFO && size < 28)
        EXPECT_GE(answer, uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC}) << std::hex << type << " " << size;
    }
  }
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
  goes_on();
}

TEST_F(GpuHostile, a_response_that_does_not_fit_means_that_nothing_was_done) {
  ASSERT_EQ(guest->create_blob(1, 4096), kOk);
  virtio_gpu_resource_map_blob map{};
  map.hdr.type = VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB;
  map.resource_id = 1;
  EXPECT_EQ(guest->raw(bytes(map), {}, sizeof(virtio_gpu_resp_map_info) - 1),
            uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  EXPECT_EQ(guest->written(), sizeof(virtio_gpu_ctrl_hdr));
  EXPECT_EQ(guest->unmap(1), kBad);  // it is not mapped
  virtio_gpu_resource_create_2d create{{}, 2, VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM, 8, 8};
  create.hdr.type = VIRTIO_GPU_CMD_RESOURCE_CREATE_2D;
  for (uint32_t room = 0; room < sizeof(virtio_gpu_ctrl_hdr); ++room)
    EXPECT_EQ(guest->raw(bytes(create), {}, room), 0U);
  EXPECT_EQ(guest->unref(2), kNoResource);
  for (const uint32_t type : {VIRTIO_GPU_CMD_GET_DISPLAY_INFO, VIRTIO_GPU_CMD_GET_EDID,
                              VIRTIO_GPU_CMD_GET_CAPSET_INFO, VIRTIO_GPU_CMD_GET_CAPSET}) {
    virtio_gpu_get_capset request{};
    request.hdr.type = type;
    request.capset_id = type == VIRTIO_GPU_CMD_GET_CAPSET ? window::kWindowCapset : 0;
    EXPECT_EQ(guest->raw(bytes(request), {}, sizeof(virtio_gpu_ctrl_hdr)),
              uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  }
  goes_on();
}

TEST_F(GpuHostile, unknown_commands_are_answered_with_an_error) {
  for (const uint32_t type : {0U, 0xffU, 0x10bU, 0x10eU, 0x204U, 0x205U, 0x206U, 0x20aU, 0x300U,
                              0x301U, 0x1100U, 0x1200U, ~0U}) {
    std::array<uint8_t, 96> request{};
    std::memcpy(request.data(), &type, sizeof type);
    EXPECT_EQ(guest->raw(request), uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC}) << std::hex << type;
  }
  goes_on();
}

TEST_F(GpuHostile, commands_of_features_that_were_not_taken_are_unknown) {
  guest->restart(uint64_t{1} << VIRTIO_F_VERSION_1);
  EXPECT_EQ(guest->create_blob(1, 4096), uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  EXPECT_EQ(guest->context_create(1), uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  EXPECT_EQ(guest->send(VIRTIO_GPU_CMD_GET_EDID, virtio_gpu_cmd_get_edid{}),
            uint32_t{VIRTIO_GPU_RESP_ERR_UNSPEC});
  goes_on();
}

TEST_F(GpuHostile, memory_has_a_limit_and_comes_back) {
  uint32_t id = 0;
  while (guest->create_2d(id + 1, 1024, 1024) == kOk) ++id;  // 4 MiB each
  EXPECT_EQ(id, 16U);
  EXPECT_EQ(guest->answer<virtio_gpu_ctrl_hdr>().type, kNoMemory);
  EXPECT_EQ(guest->create_blob(100, 4096), kNoMemory);
  for (uint32_t i = 1; i <= id; ++i) EXPECT_EQ(guest->unref(i), kOk);
  for (id = 0; guest->create_blob(id + 1, 4096) == kOk;) ++id;
  EXPECT_EQ(id, 256U);
  for (uint32_t i = 1; i <= id; ++i) EXPECT_EQ(guest->unref(i), kOk);
  goes_on();
}

TEST_F(GpuHostile, guest_blobs_that_cost_no_buffer_have_a_limit_too) {
  const GuestAddr at = guest->alloc(4096);
  uint32_t id = 0;
  while (guest->create_blob(id + 1, 4096, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{at.value, 4096, 0}}) ==
         kOk)
    ++id;
  EXPECT_EQ(id, Resources::kResourcesMax);
  EXPECT_EQ(guest->unref(1), kOk);
  EXPECT_EQ(guest->create_blob(1, 4096, 0, VIRTIO_GPU_BLOB_MEM_GUEST, {{at.value, 4096, 0}}), kOk);
}

TEST_F(GpuHostile, attachments_of_resources_to_contexts_have_a_limit) {
  constexpr uint32_t kContexts = 512;
  constexpr uint32_t kResources = Resources::kAttachmentsMax / kContexts;
  for (uint32_t i = 1; i <= kContexts + 1; ++i) ASSERT_EQ(guest->context_create(i, 0), kOk);
  for (uint32_t i = 1; i <= kResources + 1; ++i)
    ASSERT_EQ(guest->create_blob(i, 4096, 0, VIRTIO_GPU_BLOB_MEM_GUEST), kOk);
  for (uint32_t context = 1; context <= kContexts; ++context)
    for (uint32_t id = 1; id <= kResources; ++id)
      ASSERT_EQ(guest->context_attach(context, id), kOk) << context << " " << id;
  const auto more = [&](uint32_t id) { return guest->context_attach(kContexts + 1, id); };
  EXPECT_EQ(more(1), kNoMemory);
  EXPECT_EQ(guest->context_attach(1, 1), kOk) << "it is already";
  // There is room again for each way that one can end.
  EXPECT_EQ(guest->context_detach(1, 1), kOk);
  EXPECT_EQ(guest->context_detach(1, 1), kBad);
  EXPECT_EQ(more(1), kOk);
  EXPECT_EQ(more(2), kNoMemory);
  EXPECT_EQ(guest->context_destroy(2), kOk);
  for (uint32_t id = 2; id <= kResources + 1; ++id) EXPECT_EQ(more(id), kOk);
  EXPECT_EQ(guest->context_attach(1, 1), kNoMemory);
  EXPECT_EQ(guest->unref(kResources + 1), kOk);
  EXPECT_EQ(guest->context_attach(1, 1), kOk);
  EXPECT_EQ(guest->context_attach(3, 1), kOk) << "it is already";
  EXPECT_EQ(guest->context_create(2, 0), kOk);
  EXPECT_EQ(guest->context_attach(2, 1), kNoMemory);
  guest->restart();
  EXPECT_EQ(guest->context_create(1, 0), kOk);
  EXPECT_EQ(guest->create_2d(1, 8, 8), kOk);
  EXPECT_EQ(guest->context_attach(1, 1), kOk);
  EXPECT_EQ(guest->unref(1), kOk);
}

TEST_F(GpuHostile, a_dead_resource_is_not_scanned_out) {
  ASSERT_EQ(guest->create_2d(1, 64, 64), kOk);
  ASSERT_EQ(guest->set_scanout(0, 1, {0, 0, 64, 64}), kOk);
  EXPECT_EQ(guest->unref(1), kOk);  // while it is scanned out
  EXPECT_EQ(guest->flush(1, {0, 0, 64, 64}), kNoResource);
  EXPECT_EQ(guest->set_scanout(0, 1, {0, 0, 64, 64}), kNoResource);
  EXPECT_EQ(guest->set_scanout(1, 0, {}), uint32_t{VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID});
  EXPECT_EQ(guest->set_scanout(~0U, 0, {}), uint32_t{VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID});
  goes_on();
}

TEST_F(GpuHostile, contexts_have_a_limit) {
  uint32_t id = 0;
  while (guest->context_create(id + 1, 0) == kOk) ++id;
  EXPECT_EQ(id, 1024U);
  ASSERT_EQ(guest->create_blob(1, 4096), kOk);
  for (uint32_t i = 1; i <= id; ++i) {
    ASSERT_EQ(guest->context_attach(i, 1), kOk);
    ASSERT_EQ(guest->context_destroy(i), kOk);
    ASSERT_EQ(guest->context_create(i, 0), kOk);
  }
  for (uint32_t i = 1; i <= id; ++i) ASSERT_EQ(guest->context_attach(i, 1), kOk);
  goes_on();
}

TEST_F(GpuHostile, window_commands_of_wrong_sizes_fail_the_rest) {
  ASSERT_EQ(guest->context_create(1), kOk);
  const auto header = [](uint32_t command, uint32_t size) {
    Commands commands;
    const window::CommandHeader h{command, size};
    return commands.add_raw(bytes(h));
  };
  for (uint32_t command = 0; command < 12; ++command)
    for (const uint32_t size : {0U, 4U, 8U, 7U, 12U, 0xffff'fff8U, ~0U})
      EXPECT_EQ(guest->submit(1, header(command, size).bytes()), kBad) << command << " " << size;
  EXPECT_EQ(guest->submit(1, std::array<uint8_t, 4>{}), kBad);
  EXPECT_EQ(guest->submit(1, {}), kOk);
  // A command behind a poll.
  EXPECT_EQ(guest->submit(1, Commands().poll(0).create(1).bytes()), kBad);
  // More bytes than a submission may have; more than there are.
  std::vector<uint8_t> large(window::kCommandBytesMax + 4);
  EXPECT_EQ(guest->submit(1, large), kBad);
  virtio_gpu_cmd_submit lying{};
  lying.hdr.type = VIRTIO_GPU_CMD_SUBMIT_3D;
  lying.hdr.ctx_id = 1;
  for (const uint32_t size : {1U, 65536U, ~0U}) {
    lying.size = size;
    EXPECT_EQ(guest->raw(bytes(lying)), kBad) << size;
  }
  goes_on();
}

TEST_F(GpuHostile, windows_that_break_a_rule_are_refused) {
  ASSERT_EQ(guest->context_create(1), kOk);
  ASSERT_EQ(guest->create_blob(1, 32 * 32 * 4, 1), kOk);
  ASSERT_EQ(guest->context_attach(1, 1), kOk);
  const auto run = [&](const Commands& commands) { return guest->submit(1, commands.bytes()); };
  ASSERT_EQ(run(Commands().create(1).attach(1, 1)), kOk);
  EXPECT_EQ(run(Commands().create(0)), kBad);
  EXPECT_EQ(run(Commands().create(1)), kBad);
  EXPECT_EQ(run(Commands().create(2, 0, 1)), kBad);
  EXPECT_EQ(run(Commands().create(2, 1, 16385)), kBad);
  EXPECT_EQ(run(Commands().create(2, 1, 1, 0x10)), kBad);
  EXPECT_EQ(run(Commands().create(2, 1, 1, 0, 3)), kBad);
  EXPECT_EQ(run(Commands().create(2, 1, 1, 0, 2)), kBad);  // its own parent
  EXPECT_EQ(run(Commands().title(9, "")), kBad);
  EXPECT_EQ(run(Commands().damage(9, 0)), kBad);
  EXPECT_EQ(run(Commands().destroy(9)), kBad);
  EXPECT_EQ(run(Commands().attach(9, 1)), kBad);
  EXPECT_EQ(run(Commands().attach(1, 1, 33, 32)), kBad);
  EXPECT_EQ(run(Commands().attach(1, 1, 32, 32, 4)), kBad);
  EXPECT_EQ(run(Commands().attach(1, 1, 32, 32, ~uint64_t{3})), kBad);
  EXPECT_EQ(run(Commands().attach(1, 1, 32, 0x4000'0000)), kBad);
  EXPECT_EQ(run(Commands().damage(1, 0, ~0U, ~0U, ~0U, ~0U)), kOk);  // clipped to nothing
  window::WindowTitle endless{{}, 1, 0, {}};
  std::memset(endless.title, 'x', sizeof endless.title);
  EXPECT_EQ(run(Commands().add(window::kWindowTitle, endless)), kBad);
  // Rings: too small, of a kind that is not mapped, twice.
  ASSERT_EQ(guest->create_blob(3, 575, 1), kOk);
  ASSERT_EQ(guest->context_attach(1, 3), kOk);
  EXPECT_EQ(run(Commands().ring(3)), kBad);
  EXPECT_EQ(run(Commands().ring(1).ring(1)), kBad);
  EXPECT_EQ(run(Commands().ring(0).ring(1)), kOk);
  goes_on();
}

TEST_F(GpuHostile, windows_have_a_limit_of_all_contexts_together) {
  uint32_t windows = 0;
  uint32_t refused = 0;
  for (uint32_t context = 1; context <= 3; ++context) {
    ASSERT_EQ(guest->context_create(context), kOk);
    for (uint32_t id = 1; id <= window::kWindowsMax + 1; ++id) {
      const uint32_t answer = guest->submit(context, Commands().create(id).bytes());
      windows += answer == kOk ? 1 : 0;
      if (answer != kOk) refused = answer;
    }
  }
  EXPECT_EQ(windows, gui::kSurfacesMax - 1);  // a screen is one
  EXPECT_EQ(refused, kNoMemory);              // the last of them, in the third context
  for (uint32_t context = 1; context <= 3; ++context)
    EXPECT_EQ(guest->context_destroy(context), kOk);
  goes_on();
}

TEST_F(GpuHostile, a_broken_ring_needs_a_reset_and_comes_back) {
  guest->transport().driver(0).raw_publish(9999);
  guest->transport().kick(0);
  ASSERT_TRUE(guest->transport().wait_needs_reset());
  guest->restart();
  goes_on();
}

// Buffers that a frontend is shown and windows, which are many; buffers that nobody sees, which are
// quick: 100,000 of each of the two.
TEST_F(GpuHostile, a_hundred_thousand_come_and_go_at_no_cost) {
  FakeFrontend frontend = connect();
  ASSERT_TRUE(frontend.receive_until(gui::Type::kSurface));
  open = open_descriptors();
  ASSERT_EQ(guest->context_create(1), kOk);
  Commands batch;
  batch.create(100).attach(100, 1);
  for (uint32_t i = 1; i <= 50; ++i) batch.create(i).attach(i, 1).destroy(i);
  batch.destroy(100);
  const auto shown = [&](uint32_t rounds) {
    for (uint32_t i = 0; i < rounds; ++i) {
      ASSERT_EQ(guest->create_blob(1, 32 * 32 * 4, 1), kOk);
      ASSERT_EQ(guest->context_attach(1, 1), kOk);
      ASSERT_EQ(guest->map(1, 0), kMapped);
      ASSERT_EQ(guest->submit(1, batch.bytes()), kOk);
      ASSERT_EQ(guest->unref(1), kOk);
      if (i % 16 == 0) frontend.drain();
    }
  };
  shown(100);
  guest->flood(1000);
  on_gui([] {});
  const size_t descriptors = open_descriptors();
  const uint64_t memory_before = resident();
  testing::internal::CaptureStderr();
  shown(2000);  // 100,000 windows
  guest->flood(100'000);
  on_gui([] {});
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_LE(std::ranges::count(log, '\n'), 100) << log.substr(0, 2000);
  frontend.drain();
  on_gui([] {});
  // What is on its way to be released has two descriptors, the frontend one.
  EXPECT_LT(open_descriptors(), descriptors + 600);
  // AddressSanitizer keeps up to 256 MiB of what was freed.
#if __has_feature(address_sanitizer)
  constexpr uint64_t kKept = 256 * kMiB;
#else
  constexpr uint64_t kKept = 0;
#endif
  EXPECT_LT(resident(), memory_before + kKept + 32 * kMiB);
  EXPECT_EQ(counter(ledger().live.buffers), 0U);
  EXPECT_TRUE(eventually([&] {
    frontend.drain();
    return counter(ledger().orphan.buffers) == 0 && frontend.buffers.empty();
  }));
  goes_on();
}

// 1000 damages of 4 MiB each, of memory that has to be copied, in one submission.
TEST_F(GpuHostile, a_submission_copies_no_more_than_its_limit) {
  const uint32_t side = 1024;
  const GuestAddr at = guest->alloc(side * side * 4);
  ASSERT_EQ(guest->context_create(1), kOk);
  ASSERT_EQ(guest->create_blob(1, side * side * 4, 0, VIRTIO_GPU_BLOB_MEM_GUEST,
                               {{at.value, side * side * 4, 0}}),
            kOk);
  ASSERT_EQ(guest->context_attach(1, 1), kOk);
  ASSERT_EQ(guest->submit(1, Commands().create(1).attach(1, 1, side, side).bytes()), kOk);
  Commands damages;
  for (uint32_t i = 0; i < 1000; ++i) damages.damage(1, i, 0, 0, side, side);
  on_gui([] {});
  const uint64_t before = counter(device->counters().bytes_copied);
  EXPECT_EQ(guest->submit(1, damages.bytes()), kBad);  // 4000 MiB
  on_gui([] {});
  EXPECT_LE(counter(device->counters().bytes_copied) - before,
            WindowContext::kCopyBytesMax + side * side * 4);
  goes_on();
}

// Each transfer uses up a wake-up's budget: all are answered, in wake-ups of their own.
TEST_F(GpuHostile, more_work_than_a_wake_up_does_is_done_by_the_next_ones) {
  const uint32_t side = 4096;
  ASSERT_EQ(guest->create_2d(1, side, side), kOk);
  ASSERT_EQ(guest->attach(1, {{kMemory / 2, side * side * 4, 0}}), kOk);
  virtio_gpu_transfer_to_host_2d command{{}, {0, 0, side, side}, 0, 1, 0};
  command.hdr.type = VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D;
  const GuestAddr request = guest->alloc(sizeof command);
  const GuestAddr response = guest->alloc(4096);
  ASSERT_TRUE(memory->store(request, command));
  const std::array<FakeBuffer, 2> buffers{FakeBuffer{request, sizeof command, false},
                                          FakeBuffer{response, 64, true}};
  FakeDriver& driver = guest->transport().driver(GpuDevice::kControlQueue);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(driver.add(buffers));
  guest->transport().kick(GpuDevice::kControlQueue);  // once
  const Deadline deadline = deadline_in(FakeTransport::kPatience);
  for (int i = 0; i < 4; ++i)
    ASSERT_TRUE(driver.wait_used(guest->transport().interrupt(GpuDevice::kControlQueue), deadline))
        << i;
  on_gui([] {});
  EXPECT_EQ(counter(device->counters().bytes_copied), 4ULL * side * side * 4);
}

}  // namespace
}  // namespace lethe
