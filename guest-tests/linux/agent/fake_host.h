// A host for tests: takes commands as the device does, and complains of what that would refuse.
#pragma once

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "guest-tests/linux/agent/host.h"

namespace lethe::agent {

struct FakeWindow {
  window::WindowCreate state{};
  std::string title;
  window::WindowAttach content{};
  uint32_t frames = 0;
  uint32_t serial = 0;  // of the last frame
};

class FakeHost final : public Host {
 public:
  FakeHost() : x_event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  // What the test sets.
  bool shares_memory = true;                      // Buffer::fd()
  bool answers_done = true;                       // kEventDone at once
  std::function<void(uint32_t window)> on_frame;  // called when the frame is told
  // What it sees.
  std::map<uint32_t, FakeWindow> windows;
  std::vector<std::string> complaints;
  uint32_t buffers = 0;  // alive

  // The pixel of a window that the host would show, without its unused byte.
  [[nodiscard]] uint32_t pixel(uint32_t number, uint32_t x, uint32_t y) const {
    const auto& content = windows.at(number).content;
    uint32_t value = 0;
    std::memcpy(&value,
                x_memory.at(content.resource_id).first + content.offset +
                    uint64_t{y} * content.stride + uint64_t{x} * 4,
                4);
    return value & 0xFF'FFFF;
  }
  [[nodiscard]] const FakeWindow* by_title(const std::string& title) const {
    for (const auto& [number, window] : windows)
      if (window.title == title) return &window;
    return nullptr;
  }
  void push(window::EventType type, uint32_t number, uint32_t a = 0, uint32_t b = 0, uint32_t c = 0,
            uint32_t d = 0) {
    window::Event event{};
    event.type = type;
    event.window = number;
    event.a = a;
    event.b = b;
    event.c = c;
    event.d = d;
    x_events.push_back(event);
    eventfd_write(x_event.get(), 1);
  }

  [[nodiscard]] Result<std::unique_ptr<Buffer>> make_buffer(uint64_t bytes) override {
    return std::unique_ptr<Buffer>(new FakeBuffer(*this, bytes));
  }
  [[nodiscard]] Result<> submit(std::span<const uint8_t> commands) override {
    if (commands.size() > window::kCommandBytesMax) complain("a submission that is too long");
    while (!commands.empty()) {
      window::CommandHeader header{};
      std::memcpy(&header, commands.data(), sizeof(header));
      if (header.bytes < sizeof(header) || header.bytes > commands.size() || header.bytes % 4 != 0)
        return host_error("a command of {} bytes", header.bytes);
      execute(header.command, commands.first(header.bytes));
      commands = commands.subspan(header.bytes);
    }
    return {};
  }
  [[nodiscard]] int event_fd() const override { return x_event.get(); }
  [[nodiscard]] Result<> take_events(const EventHandler& handler) override {
    eventfd_t count = 0;
    eventfd_read(x_event.get(), &count);
    for (const window::Event& event : std::exchange(x_events, {})) handler(event);
    return {};
  }

 private:
  class FakeBuffer final : public Buffer {
   public:
    FakeBuffer(FakeHost& host, uint64_t bytes)
        : x_host(host),
          x_id(host.x_next++),
          x_bytes((bytes + 4095) / 4096 * 4096),
          x_fd(memfd_create("fake-host", MFD_CLOEXEC)) {
      static_cast<void>(ftruncate(x_fd.get(), static_cast<off_t>(x_bytes)));
      x_data = static_cast<uint8_t*>(
          mmap(nullptr, x_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, x_fd.get(), 0));
      host.x_memory[x_id] = {x_data, x_bytes};
      ++host.buffers;
    }
    ~FakeBuffer() override {
      // The host keeps a buffer that it shows.
      for (const auto& [number, window] : x_host.windows)
        if (window.content.resource_id == x_id) x_host.complain("a shown buffer is given back");
      x_host.x_memory.erase(x_id);
      munmap(x_data, x_bytes);
      --x_host.buffers;
      x_host.push(window::kEventReleased, 0, x_id);
    }
    [[nodiscard]] uint32_t resource_id() const override { return x_id; }
    [[nodiscard]] uint8_t* data() const override { return x_data; }
    [[nodiscard]] uint64_t bytes() const override { return x_bytes; }
    [[nodiscard]] int fd() const override { return x_host.shares_memory ? x_fd.get() : -1; }

   private:
    FakeHost& x_host;
    uint32_t x_id;
    uint64_t x_bytes;
    UniqueFd x_fd;
    uint8_t* x_data = nullptr;
  };

  void complain(std::string text) { complaints.push_back(std::move(text)); }

  template <typename T>
  T take(std::span<const uint8_t> bytes) {
    T command{};
    if (bytes.size() == sizeof(T))
      std::memcpy(&command, bytes.data(), sizeof(T));
    else
      complain("a command of the wrong size");
    return command;
  }

  FakeWindow& known(uint32_t number) {
    if (!windows.contains(number)) complain("no window " + std::to_string(number));
    return windows[number];
  }

  void set_state(const window::WindowCreate& state) {
    FakeWindow& window = known(state.window);
    if (state.width == 0 || state.height == 0 || state.width > window::kSidePixelsMax ||
        state.height > window::kSidePixelsMax || (state.flags & ~window::kWindowFlags) != 0)
      complain("a window's state is out of range");
    if (state.parent != 0 && (!windows.contains(state.parent) || state.parent == state.window))
      complain("no parent " + std::to_string(state.parent));
    window.state = state;
  }

  void attach(const window::WindowAttach& command) {
    FakeWindow& window = known(command.window);
    const auto memory = x_memory.find(command.resource_id);
    if (memory == x_memory.end())
      complain("no resource " + std::to_string(command.resource_id));
    else if (command.stride < command.width * 4 ||
             command.offset + uint64_t{command.stride} * command.height > memory->second.second)
      complain("content beyond its buffer");
    window.content = command;
  }

  void damage(const window::WindowDamage& command) {
    FakeWindow& window = known(command.window);
    if (command.width == 0 || command.x + command.width > window.content.width ||
        command.y + command.height > window.content.height)
      complain("damage beyond the content");
    ++window.frames;
    window.serial = command.serial;
    if (on_frame) on_frame(command.window);
    if (answers_done) push(window::kEventDone, command.window, command.serial);
  }

  void execute(uint32_t code, std::span<const uint8_t> bytes) {
    switch (code) {
      case window::kWindowCreate: {
        const auto command = take<window::WindowCreate>(bytes);
        if (command.window == 0 || !windows.try_emplace(command.window).second)
          complain("window " + std::to_string(command.window) + " is there already");
        set_state(command);
        break;
      }
      case window::kWindowGeometry:
        set_state(take<window::WindowCreate>(bytes));
        break;
      case window::kWindowTitle: {
        const auto command = take<window::WindowTitle>(bytes);
        known(command.window)
            .title.assign(command.title, strnlen(command.title, sizeof(command.title)));
        break;
      }
      case window::kWindowAttach:
        attach(take<window::WindowAttach>(bytes));
        break;
      case window::kWindowDamage:
        damage(take<window::WindowDamage>(bytes));
        break;
      case window::kWindowDestroy: {
        const auto command = take<window::WindowDestroy>(bytes);
        known(command.window);
        windows.erase(command.window);
        break;
      }
      default:
        complain("unknown command " + std::to_string(code));
    }
  }

  UniqueFd x_event;
  std::vector<window::Event> x_events;
  std::map<uint32_t, std::pair<uint8_t*, uint64_t>> x_memory;
  uint32_t x_next = 1;
};

}  // namespace lethe::agent
