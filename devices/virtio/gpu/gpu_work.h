// virtio-gpu's side of the gui thread: the queues, and what its commands work on.
#pragma once

#include <linux/virtio_gpu.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/event_loop.h"
#include "devices/virtio/gpu/gpu.h"
#include "devices/virtio/gpu/resources.h"
#include "devices/virtio/gpu/screens.h"
#include "devices/virtio/gpu/window_context.h"

namespace lethe {

inline constexpr uint64_t gpu_bit(unsigned feature) { return uint64_t{1} << feature; }

// What the device's threads share: vCPU threads read and write the configuration.
struct GpuShared {
  GpuCounters counters;
  std::atomic<uint32_t> events{0};        // VIRTIO_GPU_EVENT_*
  std::atomic<bool> clear_posted{false};  // the gui thread will hear that events were cleared
  std::atomic<GpuWork*> work{nullptr};    // for what was posted: null once it is gone
};

class GpuWork {
 public:
  static constexpr uint32_t kContextsMax = 1024;
  // Of one wake-up, before the loop's other work has its turn.
  static constexpr unsigned kCommandsMax = 256;
  static constexpr uint64_t kCopyBytesMax = uint64_t{64} << 20;
  // How long after it cleared its events a driver may not yet have asked for display information
  // that has changed meanwhile, before it is told again.
  static constexpr std::chrono::milliseconds kTellAgain{100};

  GpuWork(const GuestMemory& memory, Gui& gui, HostWindow& window, ScreenInput* input,
          GpuShared& shared);
  ~GpuWork();
  [[nodiscard]] Result<> open(const GpuOptions& options);

  void start(uint64_t features, VirtioHost& host);
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick);
  void stop_queue(uint16_t index);
  void reset();
  // Snapshots (gpu_snapshot.cc): the polls that wait are answered when the queues go on.
  void freeze() { x_frozen = true; }
  void save(StateWriter& to) const;
  void restore(StateReader& from);
  // The driver has cleared its events.
  void events_cleared();

 private:
  static constexpr size_t kQueues = 2;
  struct Line {
    std::unique_ptr<Queue> queue;
    const EventFd* kick = nullptr;
    std::unique_ptr<EventLoop::Watch> watch;
  };
  struct Held {  // a poll that waits for events
    Chain chain;
    virtio_gpu_ctrl_hdr answer;
  };
  struct KeptPoll {        // of a frozen device; its chain comes with the next queue
    uint64_t context = 0;  // serial
    virtio_gpu_ctrl_hdr answer{};
  };
  struct Context {
    uint64_t serial = 0;
    std::unique_ptr<WindowContext> windows;  // null: not of the window capset
    std::optional<Held> poll;
  };
  // A command as it came, copied once.
  struct Request {
    const Chain& chain;
    std::array<uint8_t, 128> bytes{};
    size_t size = 0;
    virtio_gpu_ctrl_hdr header{};
    // The command's own structure; false if the request is shorter.
    template <typename T>
    [[nodiscard]] bool as(T& to) const {
      static_assert(sizeof(T) <= sizeof bytes);
      if (size < sizeof to) return false;
      std::memcpy(&to, bytes.data(), sizeof to);
      return true;
    }
  };
  // The largest of all, by far, is 1 KiB.
  struct Response {
    union {
      virtio_gpu_ctrl_hdr header;
      virtio_gpu_resp_display_info display;
      virtio_gpu_resp_edid edid;
      virtio_gpu_resp_capset_info capset_info;
      virtio_gpu_resp_map_info map;
      struct {
        virtio_gpu_ctrl_hdr header;
        window::Capset data;
      } capset;
    };
    size_t size = sizeof(virtio_gpu_ctrl_hdr);
  };
  using Handler = uint32_t (GpuWork::*)(const Request& request, Response& response);
  struct Command {
    uint64_t needs = 0;  // features
    size_t response_size = sizeof(virtio_gpu_ctrl_hdr);
    Handler handler = nullptr;
  };
  [[nodiscard]] static Command command(uint32_t type);

  void serve(uint16_t index);
  void serve_control(Chain chain);
  void serve_cursor(Chain chain);
  void drop_if_broken(uint16_t index);
  void answer(Chain& chain, const virtio_gpu_ctrl_hdr& header);
  void count_now();

  // 2D and blobs: gpu_commands.cc.
  uint32_t get_display_info(const Request& request, Response& response);
  uint32_t get_edid(const Request& request, Response& response);
  uint32_t create_2d(const Request& request, Response& response);
  uint32_t unref(const Request& request, Response& response);
  uint32_t set_scanout(const Request& request, Response& response);
  uint32_t set_scanout_blob(const Request& request, Response& response);
  uint32_t flush(const Request& request, Response& response);
  uint32_t transfer(const Request& request, Response& response);
  uint32_t attach_backing(const Request& request, Response& response);
  uint32_t detach_backing(const Request& request, Response& response);
  uint32_t create_blob(const Request& request, Response& response);
  uint32_t map_blob(const Request& request, Response& response);
  uint32_t unmap_blob(const Request& request, Response& response);
  // Contexts: gpu_contexts.cc.
  uint32_t get_capset_info(const Request& request, Response& response);
  uint32_t get_capset(const Request& request, Response& response);
  uint32_t context_create(const Request& request, Response& response);
  uint32_t context_destroy(const Request& request, Response& response);
  uint32_t context_attach(const Request& request, Response& response);
  uint32_t context_detach(const Request& request, Response& response);
  uint32_t submit(const Request& request, Response& response);
  [[nodiscard]] Context* find_context(uint32_t id);
  [[nodiscard]] Context* find_serial(uint64_t serial);
  void make_context(uint32_t id, uint64_t serial, bool windows);
  void hold_poll(Context& context, Chain chain, const virtio_gpu_ctrl_hdr& answer);
  void check_poll(uint32_t id);
  void finish_poll(Context& context);
  void keep_polls();
  bool poll_goes_on(Chain& chain);
  void save_contexts(StateWriter& to) const;
  [[nodiscard]] std::set<uint64_t> restore_contexts(StateReader& from);
  void save_polls(StateWriter& to) const;
  void restore_polls(StateReader& from);
  void resource_released(uint64_t home, uint32_t resource);
  void drop_contexts();
  void resized();

  const GuestMemory& x_memory;
  Gui& x_gui;
  GpuShared& x_shared;
  Resources x_resources;
  Screens x_screens;
  std::unordered_map<uint32_t, Context> x_contexts;
  uint64_t x_serials = 0;
  std::vector<uint8_t> x_scratch;  // commands of a SUBMIT_3D, entries of a backing
  bool x_poll_wanted = false;      // by the command that is being served

  bool x_frozen = false;
  std::map<uint16_t, KeptPoll> x_kept_polls;  // by head

  VirtioHost* x_host = nullptr;
  uint64_t x_features = 0;
  std::array<Line, kQueues> x_lines;
  uint64_t x_sizes = 0;  // counts changes of display information
  uint64_t x_sizes_told = 0;
  std::unique_ptr<EventLoop::Timer> x_tell_again;
};

}  // namespace lethe
