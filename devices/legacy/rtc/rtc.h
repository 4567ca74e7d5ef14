// The CMOS clock and RAM (MC146818) at ports 0x70 and 0x71.
#pragma once

#include <array>
#include <functional>

#include "base/mutex.h"
#include "base/state.h"
#include "devices/bus.h"

namespace lethe {

inline constexpr uint16_t kRtcPort = 0x70;  // index, then data
inline constexpr uint16_t kRtcPorts = 2;
inline constexpr uint8_t kRtcCenturyIndex = 0x32;  // for the FADT's CENTURY field

// Time of day: the host's, UTC, BCD, 24 hours; guests can read it, not set it (writes are ignored).
// No alarm, no periodic interrupt. Bytes of CMOS RAM are kept. Any thread: it locks.
class Rtc : public BusDevice {
 public:
  // Seconds since 1970-01-01 UTC, 0 up to the year 9999.
  using Clock = std::function<int64_t()>;
  Rtc();
  explicit Rtc(Clock clock) : x_clock(std::move(clock)) {}

  // Snapshots, while no vCPU runs. restore() is for a device as made; the file may be anybody's.
  void save(StateWriter& to) LETHE_EXCLUDES(x_mutex);
  void restore(StateReader& from) LETHE_EXCLUDES(x_mutex);

  void bus_read(uint64_t offset, std::span<uint8_t> data) override;
  void bus_write(uint64_t offset, std::span<const uint8_t> data) override;

 private:
  static constexpr size_t kBytes = 128;
  uint8_t read_register() const LETHE_REQUIRES(x_mutex);

  Clock x_clock;
  Mutex x_mutex;
  uint8_t x_index LETHE_GUARDED_BY(x_mutex) = 0;
  std::array<uint8_t, kBytes> x_ram LETHE_GUARDED_BY(x_mutex){};
};

}  // namespace lethe
