// A guest with a virtio-gpu, played in this process: FakeTransport and FakeDriver are its transport
// and its driver, the Gui behind the device is the real one.
#pragma once

#include <linux/virtio_gpu.h>

#include <cstring>
#include <span>
#include <vector>

#include "bench/gui_bench.h"
#include "devices/gui/gui.h"
#include "devices/virtio/fake_transport.h"
#include "devices/virtio/gpu/gpu.h"
#include "devices/virtio/gpu/window_protocol.h"
#include "memory/guest_memory.h"

namespace lethe {

class GuiGuest {
 public:
  static constexpr uint32_t kContext = 1;
  static constexpr uint64_t kHeapBytes = 32 * kMiB;

  // `picture_bytes` of guest memory for pictures, from address 0 on; the driver's rings behind.
  GuiGuest(Gui& gui, uint64_t picture_bytes, ScreenInput* input = nullptr)
      : x_memory(make_memory(picture_bytes + kHeapBytes)),
        x_gpu(make_gpu(*x_memory, gui, input)),
        x_transport(*x_memory, *x_gpu, GuestAddr{picture_bytes}) {
    x_transport.start(~(uint64_t{1} << VIRTIO_RING_F_INDIRECT_DESC));
    x_request = x_transport.heap().alloc(64 * 1024);
    x_response = x_transport.heap().alloc(4096);
  }

  // The context, with a ring for events.
  void open_context(uint32_t ring_blob) {
    virtio_gpu_ctx_create create{};
    create.hdr.type = VIRTIO_GPU_CMD_CTX_CREATE;
    create.hdr.ctx_id = kContext;
    create.context_init = window::kWindowCapset;
    must(create);
    make_blob(ring_blob, 64 * 1024);
    window::SetEventRing ring{{window::kSetEventRing, sizeof ring}, ring_blob, 0};
    submit(ring);
  }
  void make_blob(uint32_t id, uint64_t bytes) {
    virtio_gpu_resource_create_blob blob{};
    blob.hdr.type = VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB;
    blob.hdr.ctx_id = kContext;
    blob.resource_id = id;
    blob.blob_mem = VIRTIO_GPU_BLOB_MEM_HOST3D;
    blob.blob_flags = VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE;
    blob.size = (bytes + 4095) & ~uint64_t{4095};
    must(blob);
    virtio_gpu_ctx_resource attach{};
    attach.hdr.type = VIRTIO_GPU_CMD_CTX_ATTACH_RESOURCE;
    attach.hdr.ctx_id = kContext;
    attach.resource_id = id;
    must(attach);
  }
  // A visible window of this size that shows blob `id`, which is made.
  void make_window(uint32_t id, uint32_t blob, uint32_t width, uint32_t height) {
    make_blob(blob, uint64_t{width} * height * 4);
    submit(window::WindowCreate{{window::kWindowCreate, sizeof(window::WindowCreate)},
                                id,
                                0,
                                window::kWindowVisible,
                                0,
                                0,
                                width,
                                height,
                                0});
    submit(window::WindowAttach{{window::kWindowAttach, sizeof(window::WindowAttach)},
                                id,
                                blob,
                                0,
                                width * 4,
                                VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM,
                                width,
                                height});
  }

  // Sends window commands; waits for the answer.
  template <typename Command>
  void submit(const Command& command) {
    prepare_submit(command);
    send();
    finish();
  }
  // The same in three steps: lays the request out, makes it known to the device, takes the answer.
  template <typename Command>
  void prepare_submit(const Command& command) {
    virtio_gpu_cmd_submit submit{};
    submit.hdr.type = VIRTIO_GPU_CMD_SUBMIT_3D;
    submit.hdr.ctx_id = kContext;
    submit.size = sizeof command;
    std::vector<uint8_t> bytes(sizeof submit + sizeof command);
    std::memcpy(bytes.data(), &submit, sizeof submit);
    std::memcpy(bytes.data() + sizeof submit, &command, sizeof command);
    prepare(bytes);
  }
  template <typename Request>
  void must(const Request& request) {
    prepare_request(request);
    send();
    finish();
  }
  template <typename Request>
  void prepare_request(const Request& request) {
    // SAFETY: a struct of the UAPI, looked at as its bytes.
    prepare({reinterpret_cast<const uint8_t*>(&request), sizeof request});
  }
  void send() {
    x_transport.driver(0).publish();
    x_transport.kick_if_wanted(0);
  }
  void finish() {
    const auto used = x_transport.driver(0).wait_used(x_transport.interrupt(0),
                                                      deadline_in(FakeTransport::kPatience));
    virtio_gpu_ctrl_hdr header{};
    if (!used || used->written < sizeof header) give_up("the GPU does not answer");
    // SAFETY: the same, to be filled.
    if (!x_memory->read(x_response, {reinterpret_cast<uint8_t*>(&header), sizeof header}))
      give_up("no such guest memory");
    if (header.type >= VIRTIO_GPU_RESP_ERR_UNSPEC) give_up("the GPU refuses a command");
  }
  [[nodiscard]] uint8_t* picture() const { return x_memory->regions().front().host; }

 private:
  static std::unique_ptr<GuestMemory> make_memory(uint64_t bytes) {
    const GuestMemory::Range range{GuestAddr{0}, bytes};
    auto memory = GuestMemory::create({&range, 1}, {});
    if (!memory) give_up(memory.error().text.c_str());
    return std::move(*memory);
  }
  static std::unique_ptr<GpuDevice> make_gpu(const GuestMemory& memory, Gui& gui,
                                             ScreenInput* input) {
    auto made = GpuDevice::create(
        memory, gui, {.screens = 1, .width = 1280, .height = 800, .window_memory = 256 * kMiB},
        input);
    if (!made) give_up(made.error().text.c_str());
    return std::move(*made);
  }
  void prepare(std::span<const uint8_t> request) {
    if (!x_memory->write(x_request, request)) give_up("no such guest memory");
    const FakeBuffer chain[] = {{x_request, static_cast<uint32_t>(request.size()), false},
                                {x_response, 4096, true}};
    if (!x_transport.driver(0).prepare(chain, FakeDriver::Table::kDirect))
      give_up("the ring is full");
  }

  std::unique_ptr<GuestMemory> x_memory;
  std::unique_ptr<GpuDevice> x_gpu;
  FakeTransport x_transport;
  GuestAddr x_request;
  GuestAddr x_response;
};

}  // namespace lethe
