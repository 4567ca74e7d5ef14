// A frontend for tests: connects to a GUI channel, receives, maps, answers. And a place for the
// channel's socket, a creator that remembers what it heard, and what is left when all are gone.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "devices/gui/gui.h"
#include "devices/gui/protocol.h"

namespace lethe {

// A listening SOCK_SEQPACKET socket in a directory of its own.
class FakeGuiSocket {
 public:
  FakeGuiSocket();
  ~FakeGuiSocket();
  FakeGuiSocket(const FakeGuiSocket&) = delete;
  FakeGuiSocket& operator=(const FakeGuiSocket&) = delete;
  // For Gui::listen(); once.
  [[nodiscard]] UniqueFd take() { return std::move(x_fd); }
  [[nodiscard]] const std::string& path() const { return x_path; }

 private:
  std::string x_directory;
  std::string x_path;
  UniqueFd x_fd;
};

// One packet, and the descriptor that came with it.
struct FakePacket {
  std::array<uint8_t, gui::kMessageBytesMax> bytes{};
  size_t size = 0;
  UniqueFd descriptor;
  [[nodiscard]] gui::Type type() const {
    gui::MessageHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    return static_cast<gui::Type>(header.type);
  }
  template <typename Message>
  [[nodiscard]] Message as() const {
    Message message;
    std::memcpy(&message, bytes.data(), sizeof message);
    return message;
  }
};

class FakeFrontend {
 public:
  static constexpr std::chrono::milliseconds kPatience{10'000};

  // Connects; hello() is the caller's, or connect() below.
  explicit FakeFrontend(const std::string& path);
  // Connected, and welcome.
  static FakeFrontend connect(const std::string& path, uint32_t flags = 0);
  FakeFrontend(FakeFrontend&&) = default;
  ~FakeFrontend();

  void hello(uint32_t version = gui::kVersion, uint32_t flags = 0);
  // False if the socket is closed.
  bool send_raw(std::span<const uint8_t> packet, int descriptor = -1);
  template <typename Message>
  bool send(gui::Type type, Message message) {
    message.header = {static_cast<uint32_t>(type), sizeof message};
    return send_raw({reinterpret_cast<const uint8_t*>(&message), sizeof message});
  }
  // The next packet; none when `patience` is over, or the VM has closed the connection.
  std::optional<FakePacket> receive_raw(std::chrono::milliseconds patience = kPatience);
  // Receives the next packet, remembers what it says (below), and returns its type. With the
  // answers switched on, DoneReading and Unmapped are sent at once.
  std::optional<gui::Type> receive(std::chrono::milliseconds patience = kPatience);
  // Receives until one of type `type` came; false if none does.
  bool receive_until(gui::Type type, std::chrono::milliseconds patience = kPatience);
  // Receives what there is.
  void drain();

  void done_reading(SurfaceId surface, uint64_t frame) {
    send(gui::Type::kDoneReading, gui::DoneReading{{}, surface, frame});
  }
  // Unmaps and closes it first.
  void unmap(BufferId id);
  // Says so, whatever is true.
  void say_unmapped(BufferId id) {
    send(gui::Type::kUnmapped, gui::Unmapped{{}, id.slot, 0, id.generation});
  }

  bool answers_frames = true;
  bool answers_gone = true;

  struct Mapping {
    UniqueFd fd;
    const uint8_t* data = nullptr;
    uint64_t bytes = 0;
  };
  // What it was told last.
  std::map<SurfaceId, gui::Surface> surfaces;
  std::map<SurfaceId, gui::Frame> frames;
  std::map<SurfaceId, gui::Cursor> cursors;
  std::map<uint64_t, Mapping> buffers;   // by generation
  std::vector<gui::BufferGone> gone;     // all of them
  std::vector<SurfaceId> surfaces_gone;  // all of them
  std::optional<gui::ByeReason> bye;
  uint64_t frames_received = 0;
  uint64_t packets_received = 0;

  [[nodiscard]] int fd() const { return x_fd.get(); }

 private:
  void take_buffer(FakePacket& packet);
  UniqueFd x_fd;
};

// A creator of surfaces that remembers what it heard. Used on the gui thread; look at it through
// Gui::run_and_wait().
class FakeCreator : public SurfaceListener {
 public:
  struct Event {
    std::string what;  // "key", "motion", ...
    SurfaceId surface = 0;
    int64_t a = 0;
    int64_t b = 0;
    int64_t c = 0;
    int64_t d = 0;
    bool operator==(const Event&) const = default;
  };
  void key(SurfaceId s, uint32_t code, bool down) override { add({"key", s, code, down}); }
  void motion(SurfaceId s, uint32_t x, uint32_t y) override { add({"motion", s, x, y}); }
  void button(SurfaceId s, uint32_t code, bool down) override { add({"button", s, code, down}); }
  void wheel(SurfaceId s, int32_t v, int32_t h) override { add({"wheel", s, v, h}); }
  void focus(SurfaceId s, bool focused) override { add({"focus", s, focused}); }
  void configure(SurfaceId s, int32_t x, int32_t y, uint32_t w, uint32_t h) override {
    add({"configure", s, x, y, w, h});
  }
  void close(SurfaceId s) override { add({"close", s}); }
  void done_reading(SurfaceId s, uint64_t frame) override { done[s] = frame; }
  void released(BufferId id) override { freed.push_back(id); }

  std::vector<Event> events;
  std::map<SurfaceId, uint64_t> done;
  std::vector<BufferId> freed;

 private:
  void add(Event event) { events.push_back(std::move(event)); }
};

// Connects a SOCK_SEQPACKET socket; false if it is refused.
[[nodiscard]] bool connect_to(int socket, const std::string& path);
// Descriptors that this process has open.
[[nodiscard]] size_t open_descriptors();

// The sum over all labels of one metric.
class MetricSum : public MetricSink {
 public:
  explicit MetricSum(std::string_view name) : x_name(name) {}
  void counter(std::string_view name, std::string_view, uint64_t value, Labels) override {
    if (name == x_name) sum += static_cast<double>(value);
  }
  void gauge(std::string_view name, std::string_view, double value, Labels) override {
    if (name == x_name) sum += value;
  }
  void histogram(std::string_view, std::string_view, const Histogram::Snapshot&, Labels) override {}
  double sum = 0;

 private:
  std::string_view x_name;
};

// What a Gui holds that nobody uses: made when nobody does yet, asked when nobody does any more.
class IdleGui {
 public:
  explicit IdleGui(Gui& gui) : x_gui(gui), x_descriptors(open_descriptors()) {}
  // Its creators are gone, and its frontends' sockets closed. There is no buffer any more, not even
  // an orphan once none may be, and no descriptor but what waits for a frontend's process to exit,
  // which may be this one: two each.
  void expect_idle() const;

 private:
  Gui& x_gui;
  size_t x_descriptors;
};

}  // namespace lethe
