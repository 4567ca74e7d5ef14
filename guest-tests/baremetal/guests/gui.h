// The cases of gui.elf, by theme.
#pragma once

#include "kernel/virtio/gpu.h"
#include "kernel/virtio/windows.h"

namespace gui {

// The GPU, opened the first time with all that windows need.
kernel::GpuDriver& gpu();
// The same, after a reset: nothing of what was before is left.
kernel::GpuDriver& fresh_gpu();

inline constexpr uint32_t kSide = 32;  // of the small resources most cases use
inline constexpr virtio_gpu_rect kWhole = {0, 0, kSide, kSide};
// What a resource of kSide squared has in memory.
inline constexpr uint32_t kBytes = kSide * kSide * 4;

// What somebody outside does, a person or a test.
inline constexpr uint64_t kOutsideMs = 120'000;
// Waits for a byte on the serial port, and takes it; fails a CHECK when none comes.
void wait_for_byte();

// gui_2d.cc
void features();
void display();
void formats();
void transfers();
void backing();
void scanouts();
void cursor();
void screen();
void resize();

// gui_blob.cc
void blobs();
void blob_reuse();
void guest_blobs();
void scanout_blobs();
void device_reset();
void reboot_once();
void reboot_forever();
void two_cpus();

// gui_windows.cc
void windows();
void released();
void polls();
void window_errors();
void many_windows();
void churn();

// gui_input.cc
void input_config();
void input_status();
void input_events();
void input_held();

}  // namespace gui
