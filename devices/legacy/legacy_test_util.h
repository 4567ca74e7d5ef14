// What the legacy devices' tests share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "devices/bus.h"
#include "devices/byte_stream.h"
#include "devices/interrupt.h"
#include "devices/legacy/machine_control.h"

namespace lethe {

class RecordingControl : public MachineControl {
 public:
  void guest_power_off() override { events.emplace_back("off"); }
  void guest_reset() override { events.emplace_back("reset"); }
  void guest_panicked() override { events.emplace_back("panic"); }
  void guest_debug_exit(uint32_t value) override {
    events.push_back("exit " + std::to_string(value));
  }
  std::vector<std::string> events;
};

class CountingInterrupt : public Interrupt {
 public:
  void signal() override { ++count; }
  std::atomic<int> count{0};
};

// A sink with a given amount of room.
class TestSink : public ByteSink {
 public:
  size_t write(std::span<const uint8_t> bytes) override {
    const size_t count = std::min(bytes.size(), room);
    text.append(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count));
    room -= count;
    return count;
  }
  void add_room_listener(std::function<void()> listener) override {
    listeners.push_back(std::move(listener));
  }
  void make_room(size_t bytes) {
    room += bytes;
    for (const auto& listener : listeners) listener();
  }
  size_t room = SIZE_MAX;
  std::string text;
  std::vector<std::function<void()>> listeners;
};

inline void out8(BusDevice& device, uint64_t offset, uint8_t value) {
  device.bus_write(offset, std::span<const uint8_t>(&value, 1));
}
inline uint8_t in8(BusDevice& device, uint64_t offset) {
  uint8_t value = 0x5a;
  device.bus_read(offset, std::span<uint8_t>(&value, 1));
  return value;
}

// Every size and offset a guest can produce, with every kind of byte; the device may do what it
// likes, but must not touch memory beyond the span (ASan watches) nor stop the process.
inline void access_every_way(BusDevice& device, uint64_t ports) {
  for (const size_t size : {size_t{1}, size_t{2}, size_t{4}, size_t{8}}) {
    for (uint64_t offset = 0; offset < ports + 8; ++offset) {
      for (const int fill : {0x00, 0x01, 0x5a, 0x80, 0xff}) {
        std::vector<uint8_t> data(size, static_cast<uint8_t>(fill));
        device.bus_write(offset, data);
        device.bus_read(offset, data);
      }
    }
  }
}

}  // namespace lethe
