#include "devices/legacy/rtc/rtc.h"

#include <ctime>

namespace lethe {
namespace {

// MC146818A data sheet, "Address map".
enum Register : uint8_t {
  kSeconds = 0x00,
  kMinutes = 0x02,
  kHours = 0x04,
  kWeekday = 0x06,  // 1 is Sunday
  kDay = 0x07,
  kMonth = 0x08,
  kYear = 0x09,
  kA = 0x0a,
  kB = 0x0b,
  kC = 0x0c,
  kD = 0x0d,
  kFirstRam = 0x0e,
};
constexpr uint8_t kADivider32kRate1024 = 0x26;  // update in progress (bit 7) is never set
constexpr uint8_t kB24Hours = 0x02;             // binary mode (bit 2) is off: BCD
constexpr uint8_t kDValid = 0x80;

uint8_t bcd(int value) { return static_cast<uint8_t>(((value / 10) << 4) | (value % 10)); }

}  // namespace

Rtc::Rtc() : x_clock([] { return static_cast<int64_t>(std::time(nullptr)); }) {}

uint8_t Rtc::read_register() const {
  switch (x_index) {
    case kA:
      return kADivider32kRate1024;
    case kB:
      return kB24Hours;
    case kC:
      return 0;  // no interrupt is ever pending
    case kD:
      return kDValid;
    default:
      break;
  }
  if (x_index >= kFirstRam && x_index != kRtcCenturyIndex) return x_ram[x_index];

  // Each register is read from the clock as it is then. Drivers read the seconds before and after
  // the others and start again if they differ.
  const auto now = static_cast<time_t>(x_clock());
  struct tm utc{};
  if (::gmtime_r(&now, &utc) == nullptr) return 0;
  switch (x_index) {
    case kSeconds:
      return bcd(utc.tm_sec);
    case kMinutes:
      return bcd(utc.tm_min);
    case kHours:
      return bcd(utc.tm_hour);
    case kWeekday:
      return bcd(utc.tm_wday + 1);
    case kDay:
      return bcd(utc.tm_mday);
    case kMonth:
      return bcd(utc.tm_mon + 1);
    case kYear:
      return bcd(utc.tm_year % 100);
    case kRtcCenturyIndex:
      return bcd((utc.tm_year + 1900) / 100);
    default:
      return 0;  // the alarm
  }
}

void Rtc::bus_read(uint64_t offset, std::span<uint8_t> data) {
  MutexLock lock(x_mutex);
  for (uint8_t& byte : data) byte = offset++ == 1 ? read_register() : 0xff;
}

void Rtc::bus_write(uint64_t offset, std::span<const uint8_t> data) {
  MutexLock lock(x_mutex);
  for (const uint8_t byte : data) {
    if (offset == 0) {
      x_index = byte & (kBytes - 1);  // bit 7 masks NMI on a PC; there is none to mask
    } else if (offset == 1 && x_index >= kFirstRam) {
      x_ram[x_index] = byte;  // the century byte too: it is stored and never read back
    }
    ++offset;
  }
}

// The time is the host's: nothing of it is kept.
void Rtc::save(StateWriter& to) {
  MutexLock lock(x_mutex);
  to.begin_section("rtc", 1);
  to.number(x_index);
  to.bytes(x_ram);
  to.end_section();
}

void Rtc::restore(StateReader& from) {
  MutexLock lock(x_mutex);
  from.begin_section("rtc", 1);
  x_index = from.number<uint8_t>() % kBytes;
  from.bytes_into(x_ram);
  from.end_section();
}

}  // namespace lethe
