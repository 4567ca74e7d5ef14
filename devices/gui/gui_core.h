// What is behind Gui: surfaces, buffers, and the frontends they are shown to. All of it is for the
// gui thread, but for the counters.
//
// Frontends are told the state, not events: each has a set of surfaces that differ from what it was
// last told, and a set of buffers that it has to be told are gone (ChannelClient). So a frontend
// costs the same memory however slowly it reads, and nothing is lost.
//
// A surface's creator is called from the loop only, never from within a call of its own: what it
// has to hear is kept and told by settle().
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "devices/gui/gui.h"
#include "devices/gui/slot_set.h"

namespace lethe {

class ChannelClient;

struct SurfaceRecord {
  SurfaceId id = 0;  // 0: the slot is not in use
  SurfaceListener* listener = nullptr;
  SurfaceState state;
  SurfaceContent content;
  CursorContent cursor;
  uint64_t frame = 0;      // what present() gave last
  uint64_t done_told = 0;  // what done_reading() said last
};

struct BufferRecord {
  SharedBuffer memory;
  uint64_t generation = 0;
  SurfaceListener* listener = nullptr;  // null: nobody wants to hear of it
  uint32_t shown = 0;                   // surfaces and cursors that show it
  uint64_t left = 0;                    // bytes that are not given back yet
};

struct GuiCounters {
  std::atomic<uint64_t> frontends{0};  // now
  std::atomic<uint64_t> frontends_total{0};
  std::atomic<uint64_t> frames{0};
  std::atomic<uint64_t> input_events{0};
  std::atomic<uint64_t> refused_messages{0};   // bad, or input of a frontend that may only look
  std::atomic<uint64_t> refused_frontends{0};  // too many, or out of descriptors
  std::atomic<uint64_t> slow_frontends{0};     // sent off
};

class GuiCore final : private ShareLedger::Owner {
 public:
  // How long no frontend is accepted after the host was out of descriptors.
  static constexpr std::chrono::milliseconds kAcceptPause{200};

  GuiCore(EventLoop& loop, const GuiOptions& options);
  ~GuiCore() override;
  // Says Bye to all frontends and forgets them. Nothing of the loop's is left then.
  void close();

  // Gui's own functions.
  [[nodiscard]] Result<> listen(UniqueFd socket);
  [[nodiscard]] Result<BufferId> create_buffer(uint64_t bytes, SurfaceListener& listener);
  [[nodiscard]] const SharedBuffer* buffer(BufferId id) const;
  void release_buffer(BufferId id);
  [[nodiscard]] Result<SurfaceId> add_surface(const SurfaceState& state, SurfaceListener& listener);
  void update_surface(SurfaceId id, const SurfaceState& state);
  uint64_t present(SurfaceId id, const SurfaceContent& content, const Rect& damage);
  void set_cursor(SurfaceId id, const CursorContent& cursor);
  void remove_surface(SurfaceId id);
  void forget_listener(SurfaceListener& listener);
  void set_limits(const LedgerLimits& limits);
  void set_focus_listener(std::function<void(bool)> listener);
  void set_frontend_listener(std::function<void(bool, uint64_t)> listener) {
    x_frontend_listener = std::move(listener);
  }

  // For ChannelClient.
  [[nodiscard]] EventLoop& loop() { return x_loop; }
  [[nodiscard]] const GuiOptions& options() const { return x_options; }
  [[nodiscard]] ShareLedger& ledger() { return x_ledger; }
  [[nodiscard]] const ShareLedger& ledger() const { return x_ledger; }
  [[nodiscard]] GuiCounters& counters() { return x_counters; }
  [[nodiscard]] const GuiCounters& counters() const { return x_counters; }
  // A surface's slot is in its id.
  static uint32_t slot_of(SurfaceId id) { return static_cast<uint32_t>(id % gui::kSurfacesMax); }
  [[nodiscard]] const SurfaceRecord& surface_at(uint32_t slot) const { return x_surfaces[slot]; }
  [[nodiscard]] SurfaceRecord* find_surface(SurfaceId id);
  [[nodiscard]] bool was_given(SurfaceId id) const {
    return id / gui::kSurfacesMax <= x_surfaces_made;
  }
  // Some living surface of the listener's, `preferred` if it is one; 0: there is none.
  [[nodiscard]] SurfaceId surface_of(const SurfaceListener& listener, SurfaceId preferred) const;
  // done_reading() may be due.
  void check_done(uint32_t slot);
  // A frontend lags behind from now on.
  void watch_patience();
  // FREE buffers are released soon.
  void schedule_pass();
  // A client's focus, or its surface, may be another one.
  void check_focus();
  // A client has ended; it is removed soon.
  void schedule_settle();

 private:
  // A frontend's process, by its bit in the ledger. It stays when the connection ends, until the
  // process does: only then its mappings are gone for sure.
  struct Holder {
    std::unique_ptr<ChannelClient> client;
    UniqueFd pidfd;
    std::unique_ptr<EventLoop::Watch> exit_watch;
    bool exited = false;
    uint64_t departed = 0;  // when its connection ended, counted; 0: connected
    [[nodiscard]] bool used() const { return pidfd.valid(); }
  };

  Release release(BufferId id, uint64_t bytes, bool revoked) override;
  bool revoke(BufferId id, uint64_t bytes, uint32_t holders) override;

  // Of those that have not ended.
  template <typename Call>
  void for_clients(Call&& call);
  [[nodiscard]] bool room_for(uint64_t bytes) const;
  bool make_room();
  [[nodiscard]] BufferRecord* live_buffer(BufferId id);
  void set_content(SurfaceContent& content, const SurfaceContent& next);
  void hide_buffer(BufferId id);
  void run_pass();
  void enforce_limits();
  void check_patience();
  void settle();
  void settle_surface(uint32_t slot);

  void watch_listener();
  void accept_frontends();
  void add_client(UniqueFd socket);
  [[nodiscard]] Holder* free_holder();
  void holder_exited(unsigned holder);
  void remove_client(Holder& holder);
  void count_frontend(bool came);

  EventLoop& x_loop;
  const GuiOptions x_options;
  GuiCounters x_counters;
  ShareLedger x_ledger;
  std::function<void(bool)> x_focus_listener;
  bool x_focused = false;  // what it was told
  std::function<void(bool, uint64_t)> x_frontend_listener;
  std::vector<SurfaceRecord> x_surfaces;
  std::vector<uint32_t> x_surfaces_free;  // slots
  uint64_t x_surfaces_made = 0;
  std::vector<BufferRecord> x_buffers;
  struct Released {
    SurfaceListener* listener;
    BufferId id;
  };
  std::vector<Released> x_released;  // to be told
  SlotSet x_done_checks;             // surfaces

  UniqueFd x_socket;
  std::unique_ptr<EventLoop::Watch> x_accept_watch;
  std::unique_ptr<EventLoop::Timer> x_accept_timer;
  std::array<Holder, ShareLedger::kHoldersMax> x_holders;
  uint64_t x_departures = 0;

  std::unique_ptr<EventLoop::Timer> x_limits_timer;
  ShareLedger::Clock::time_point x_limits_due =
      ShareLedger::Clock::time_point::max();  // the timer's
  std::unique_ptr<EventLoop::Timer> x_patience_timer;
  bool x_patience_watched = false;
  bool x_pass_posted = false;
  bool x_settle_posted = false;
  bool x_closed = false;
};

}  // namespace lethe
