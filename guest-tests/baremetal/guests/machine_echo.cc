// A guest to talk to over the serial port: what is typed comes back in brackets. q powers off, as
// the power button does, r resets, f floods the console.
#include "guests/machine.h"
#include "kernel/cpu.h"
#include "kernel/print.h"

using namespace kernel;

namespace machine {
namespace {

constexpr uint16_t kData = 0x3F8;
constexpr uint16_t kLineStatus = 0x3FD;
constexpr uint8_t kDataReady = 0x01;
constexpr uint16_t kEventPort = 0x604;
constexpr uint8_t kEventPowerButton = 0x01;
constexpr int kFloodLines = 2500;  // of 32 bytes

}  // namespace

void echo() {
  print("echo is ready\n");
  for (;;) {
    if ((in8(kEventPort) & kEventPowerButton) != 0) {
      print("power button pressed\n");
      poweroff();
    }
    if ((in8(kLineStatus) & kDataReady) == 0) continue;
    const uint8_t key = in8(kData);
    print("[%c]\n", key);
    if (key == 'q') poweroff();
    if (key == 'r') reset_register();
    if (key == 'f')
      for (int i = 1; i <= kFloodLines; ++i) print("flood %09d ..............\n", i);
  }
}

}  // namespace machine
