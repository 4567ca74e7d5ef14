// One frontend on the GUI channel: what it was told, what it still has to be told, and what it
// says.
//
// Its memory is fixed when it connects: an entry for each slot of surfaces and of buffers. A slot
// that is used again is first told gone, so the frontend never knows more than one thing of it.
//
// Threading: the gui thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "devices/gui/channel_message.h"
#include "devices/gui/gui_core.h"

namespace lethe {

class ChannelClient {
 public:
  using Clock = std::chrono::steady_clock;

  ChannelClient(GuiCore& core, UniqueFd socket, unsigned holder);
  ~ChannelClient();
  // Fails when the host is out of descriptors.
  [[nodiscard]] Result<> start();

  // What has changed. Sends what the socket takes.
  void surface_changed(uint32_t slot);
  void content_changed(uint32_t slot, const Rect& damage, bool whole);
  void cursor_changed(uint32_t slot);
  void buffer_gone(BufferId id);

  // Nothing more is sent or heard; the core removes it at the next settle().
  void send_off(gui::ByeReason reason);
  void hang_up();
  // Its process has: takes what it sent before, then hangs up.
  void exited();
  [[nodiscard]] bool ended() const { return x_ended; }
  // The surface that has this frontend's keyboard; 0: none. It may be gone.
  [[nodiscard]] SurfaceId focused() const { return x_focus.surface; }
  // Tells the listeners that keys and buttons are up and the focus is gone.
  void let_go();
  // No call of the listener may follow.
  void forget_listener(const SurfaceListener& listener);

  // The newest frame of the surface that the guest need not wait for, as far as this one goes.
  [[nodiscard]] uint64_t done_frame(uint32_t slot) const;
  // Gives up waiting for what lags since `since` or longer; when the next one began to lag.
  std::optional<Clock::time_point> lose_patience(Clock::time_point since);

 private:
  enum class Sent : uint8_t { kYes, kFull, kLater, kFailed };

  struct Shown {  // a slot of surfaces, as this frontend knows it
    SurfaceId known = 0;
    bool state_due = false;
    bool content_due = false;
    bool cursor_due = false;
    bool whole = false;    // damage is everything
    bool waiting = false;  // for DoneReading of `sent`
    bool slow = false;     // not waited for
    Rect damage;           // since `sent`
    uint64_t sent = 0;     // frame
    uint64_t done = 0;     // frame
    BufferId sent_buffer;
    Clock::time_point lags_since;
    [[nodiscard]] bool lags() const { return waiting || content_due; }
  };
  struct Held {  // a key or button that is down
    uint32_t code = 0;
    bool button = false;
    SurfaceId surface = 0;
    SurfaceListener* listener = nullptr;
  };

  // channel_client.cc
  void pump();
  bool pump_surface(uint32_t slot);
  bool pump_content(uint32_t slot);
  bool pump_cursor(uint32_t slot);
  bool offer(BufferId id);
  template <typename Message>
  bool send(const Message& message, int descriptor = -1) {
    return send_bytes(bytes_of(message), descriptor);
  }
  // False if the socket does not take it: then it is sent later, from the state.
  bool send_bytes(std::span<const uint8_t> packet, int descriptor);
  Sent send_packet(std::span<const uint8_t> packet, int descriptor);
  void wait_for_room(bool watch_socket);
  void try_again();
  void stop_waiting();
  void make_due(uint32_t slot);
  void begin_lag(Shown& shown);

  // channel_input.cc
  bool read_message();
  void handle(std::span<const uint8_t> packet);
  void refuse(gui::ByeReason reason, const char* why);
  void on(const gui::Hello& message);
  void on(const gui::DoneReading& message);
  void on(const gui::Unmapped& message);
  void on(const gui::Key& message);
  void on(const gui::Motion& message);
  void on(const gui::Button& message);
  void on(const gui::Wheel& message);
  void on(const gui::Focus& message);
  void on(const gui::Configure& message);
  void on(const gui::Close& message);
  template <typename Message>
  [[nodiscard]] SurfaceRecord* target(const Message& message);
  void press(SurfaceId surface, uint32_t code, bool down, bool button);
  void lift(const Held& held, SurfaceId preferred);
  void read_done(uint32_t slot);

  GuiCore& x_core;
  const UniqueFd x_socket;
  const unsigned x_holder;
  std::unique_ptr<EventLoop::Watch> x_readable;
  std::unique_ptr<EventLoop::Watch> x_writable;  // while the socket is full
  std::unique_ptr<EventLoop::Timer> x_retry;     // the same, without a descriptor
  std::unique_ptr<EventLoop::Timer> x_patience;
  bool x_welcomed = false;
  bool x_view_only = false;
  bool x_full = false;
  bool x_waits = false;  // nothing got through since the socket was full; patience runs
  bool x_ended = false;
  char x_name[sizeof(gui::Hello::name)] = "?";

  std::vector<Shown> x_shown;     // by slot of surfaces
  SlotSet x_surfaces_due;         // something of them has to be sent
  std::vector<uint64_t> x_known;  // by slot of buffers: the generation it was given; 0: none
  SlotSet x_gone_due;             // buffers
  std::vector<Held> x_held;
  Held x_focus;  // surface and listener
};

}  // namespace lethe
