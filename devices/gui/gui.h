// A VM's GUI, the host's side: what there is to see (surfaces and the buffers behind them), the
// ledger of shared buffers, and the frontends that look (gui.sock). It outlives the machine: over a
// reboot the frontends stay.
//
//   virtio-gpu --surfaces, frames--> Gui --GUI channel (devices/gui/protocol.h)--> frontends
//   virtio-gpu <--keys, sizes, done-- Gui <-------------------------------------- frontends
//
// Threading: one thread, "gui", runs the loop; virtio-gpu and virtio-input live on it too, so that
// nothing between a guest's damage and a frontend's wake-up changes threads. Everything here is for
// that thread unless it says otherwise; other threads go through loop().post().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/metrics.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/gui/ledger.h"
#include "devices/gui/protocol.h"
#include "devices/gui/shared_buffer.h"

namespace lethe {

struct Rect {
  uint32_t x = 0;
  uint32_t y = 0;
  uint32_t width = 0;
  uint32_t height = 0;
  [[nodiscard]] bool empty() const { return width == 0 || height == 0; }
  bool operator==(const Rect&) const = default;
};

using SurfaceId = uint64_t;  // 0: none

struct SurfaceState {
  gui::SurfaceKind kind = gui::SurfaceKind::kScreen;
  uint32_t flags = 0;  // gui::kSurface...
  SurfaceId parent = 0;
  int32_t x = 0;
  int32_t y = 0;
  uint32_t width = 0;
  uint32_t height = 0;
  uint32_t output = 0;
  std::string title{};  // cut to what the protocol holds, at a character
  bool operator==(const SurfaceState&) const = default;
};

// Where a surface's pixels are. The creator has checked that they lie within the buffer.
struct SurfaceContent {
  BufferId buffer{};  // none: nothing to show
  uint64_t offset = 0;
  uint32_t stride = 0;
  uint32_t format = 0;  // VIRTIO_GPU_FORMAT_*
  uint32_t width = 0;
  uint32_t height = 0;
  bool operator==(const SurfaceContent&) const = default;
};

struct CursorContent {
  SurfaceContent image{};  // of 32 bits a pixel; no buffer: no cursor
  uint32_t hot_x = 0;
  uint32_t hot_y = 0;
};

// What a surface's creator hears of it. Numbers are checked against the protocol's limits.
class SurfaceListener {
 public:
  virtual ~SurfaceListener() = default;
  virtual void key(SurfaceId surface, uint32_t code, bool down) = 0;
  virtual void motion(SurfaceId surface, uint32_t x, uint32_t y) = 0;  // within the surface
  virtual void button(SurfaceId surface, uint32_t code, bool down) = 0;
  virtual void wheel(SurfaceId surface, int32_t vertical, int32_t horizontal) = 0;
  virtual void focus(SurfaceId surface, bool focused) = 0;
  virtual void configure(SurfaceId surface, int32_t x, int32_t y, uint32_t width,
                         uint32_t height) = 0;
  virtual void close(SurfaceId surface) = 0;
  // Every frontend has read the frame that present() gave this number, or is too slow to be waited
  // for (GuiOptions::read_patience), or there is none. Numbers may be skipped, never go back.
  virtual void done_reading(SurfaceId surface, uint64_t frame) = 0;
  // The buffer that was given back by release_buffer() is free now: no frontend maps it, or it was
  // revoked.
  virtual void released(BufferId buffer) = 0;
};

// A screen, for those that are no frontends: the control API.
struct ScreenView {
  uint32_t output = 0;  // its number, from 0
  uint32_t width = 0;   // of the surface, which may show nothing
  uint32_t height = 0;
  SurfaceContent content{};
  UniqueFd pixels{};  // a descriptor of the content's buffer, for reading; none: nothing is shown
};

struct GuiOptions {
  std::string vm_name{};
  // Live and orphan; fewer if that takes more descriptors (two each) than the process may have.
  uint32_t buffers_max = 16384;
  uint64_t bytes_max = 1u << 30;  // of live and orphan buffers
  unsigned frontends_max = 8;     // up to ShareLedger::kHoldersMax
  // How long a frontend may leave its socket full, or take for its Hello.
  std::chrono::milliseconds drain_patience{5000};
  // How long a frontend's DoneReading is waited for.
  std::chrono::milliseconds read_patience{100};
  LedgerLimits ledger{};
};

class Gui {
 public:
  // Makes the thread. Nothing listens yet.
  explicit Gui(const GuiOptions& options);
  ~Gui();  // says Bye to the frontends; every surface and listener must be gone

  [[nodiscard]] EventLoop& loop();  // any thread
  // Runs `work` on the gui thread and waits. Not from that thread.
  void run_and_wait(std::function<void()> work);
  // Serves frontends that connect to the listening SOCK_SEQPACKET socket. Any thread.
  [[nodiscard]] Result<> listen(UniqueFd socket);
  void report_metrics(MetricSink& sink) const;  // any thread
  // Of orphans. Any other thread: they wait for the gui thread.
  [[nodiscard]] LedgerLimits limits() const;
  void set_limits(const LedgerLimits& limits);
  // `listener` hears on the gui thread when a frontend gives a surface the keyboard's focus while
  // none had it, and when none has it any more. Null: nobody; then it is not called any more when
  // this returns. Any other thread.
  void set_focus_listener(std::function<void(bool)> listener);
  // `listener` hears on the gui thread of each frontend that has come (true) or gone, and how many
  // are connected now. As with set_focus_listener().
  void set_frontend_listener(std::function<void(bool, uint64_t)> listener);
  [[nodiscard]] ShareLedger& ledger();  // set_free_per_iteration(), counters(): any thread

  // By their numbers. `with_pixels`: their descriptors too. Any other thread: it waits.
  [[nodiscard]] std::vector<ScreenView> screens(bool with_pixels = false) const;
  // As a frontend's Configure does. False: there is no such screen. Any other thread: it waits.
  bool resize_screen(uint32_t output, uint32_t width, uint32_t height);

  // Fails when limits or the host are exhausted. `listener` hears released(); it must outlive the
  // buffer's release or call forget_listener().
  [[nodiscard]] Result<BufferId> create_buffer(uint64_t bytes, SurfaceListener& listener);
  // Null for what is not LIVE. Valid until release_buffer().
  [[nodiscard]] const SharedBuffer* buffer(BufferId id) const;
  // The guest gave it up. Surfaces that show it must have been given other content before (else
  // they lose it here). Returns at once; released() follows.
  void release_buffer(BufferId id);

  // Fails when there are gui::kSurfacesMax.
  [[nodiscard]] Result<SurfaceId> add_surface(const SurfaceState& state, SurfaceListener& listener);
  void update_surface(SurfaceId id, const SurfaceState& state);
  // New content, or damage in the old one (clipped to it). The number for done_reading().
  uint64_t present(SurfaceId id, const SurfaceContent& content, const Rect& damage);
  void set_cursor(SurfaceId id, const CursorContent& cursor);
  void remove_surface(SurfaceId id);
  // No call of the listener follows: its surfaces are removed, its buffers given back.
  void forget_listener(SurfaceListener& listener);

 private:
  struct Impl;
  std::unique_ptr<Impl> x_impl;
};

}  // namespace lethe
