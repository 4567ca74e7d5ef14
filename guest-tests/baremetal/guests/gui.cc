// Screens, windows, keyboard and pointer, as good drivers use them. hostile_gpu.cc is the other
// half. Pixels are only drawn here; that they are seen is what ../../gui_test.cc looks at.
#include "guests/gui.h"

#include "kernel/cases.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"

using namespace kernel;

namespace gui {
namespace {

GpuDriver driver;
bool opened;

}  // namespace

GpuDriver& gpu() {
  if (!opened) CHECK(driver.open({}));
  opened = true;
  return driver;
}

void wait_for_byte() {
  CHECK(wait_until([] { return (in8(kSerialPort + 5) & 1) != 0; }, kOutsideMs));
  in8(kSerialPort);
}

GpuDriver& fresh_gpu() {
  if (opened) driver.restart();
  return gpu();
}

}  // namespace gui

void guest_main() {
  using namespace gui;
  static const Case cases[] = {
      {"features", features},
      {"display", display},
      {"formats", formats},
      {"transfers", transfers},
      {"backing", backing},
      {"scanouts", scanouts},
      {"cursor", cursor},
      {"screen", screen, true},
      {"resize", resize, true},
      {"blobs", blobs},
      {"blob-reuse", blob_reuse},
      {"guest-blobs", guest_blobs},
      {"scanout-blobs", scanout_blobs},
      {"device-reset", device_reset},
      {"reboot-once", reboot_once, true},
      {"reboot-forever", reboot_forever, true},
      {"two-cpus", two_cpus, true},
      {"windows", windows},
      {"released", released},
      {"polls", polls},
      {"window-errors", window_errors},
      {"many-windows", many_windows},
      {"churn", churn, true},
      {"input-config", input_config},
      {"input-status", input_status},
      {"input-events", input_events, true},
      {"input-held", input_held, true},
  };
  run_cases("gui", cases);
}
