// Bytes between consoles of the guest and the host's terminal, log or socket, with back pressure in
// both directions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace lethe {

// Where a console's output goes.
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  // Takes as many of the bytes, from the first on, as there is room for, and returns how many. Any
  // thread; never blocks. After a short count the room listeners are called once there is room.
  virtual size_t write(std::span<const uint8_t> bytes) = 0;
  // `listener` runs on the event loop's thread, holding no lock of the sink. It must stay valid for
  // as long as that loop runs. Before the loop runs, or on its thread.
  virtual void add_room_listener(std::function<void()> listener) = 0;
};

// Where the host's input goes: the console that has the terminal's keys.
class ByteReceiver {
 public:
  virtual ~ByteReceiver() = default;
  // Takes as many of the bytes as there is room for and returns how many. Event loop's thread;
  // never blocks. After a short count the caller stops reading from its source, keeps the rest, and
  // goes on when the room listener is called.
  virtual size_t receive(std::span<const uint8_t> bytes) = 0;
  // One listener; it runs on the event loop's thread. Before the loop runs, or on its thread.
  virtual void set_room_listener(std::function<void()> listener) = 0;
};

}  // namespace lethe
