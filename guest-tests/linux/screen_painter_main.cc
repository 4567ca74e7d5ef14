// Runs in a Linux guest: takes the screen by DRM (a dumb buffer and DIRTYFB, as X and Wayland use
// without 3D) and paints what screen_pattern.h says for each key that is pressed. It prints
// kReady when the screen is painted for the first time, and runs until the guest ends.
#include <dirent.h>
#include <fcntl.h>
#include <libdrm/drm.h>
#include <libdrm/drm_mode.h>
#include <linux/input.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "guest-tests/linux/screen_pattern.h"

namespace {

using lethe::screen_pattern::Damage;
using namespace lethe::screen_pattern;

[[noreturn]] void give_up(const char* what) {
  std::printf("screen_painter: %s: %m\n", what);
  std::exit(1);
}

class Screen {
 public:
  Screen() : x_fd(open("/dev/dri/card0", O_RDWR | O_CLOEXEC)) {
    if (x_fd < 0) give_up("/dev/dri/card0");
    make_buffer();
    show();
  }
  // Damages are within the screen.
  void paint(const Damage& damage, uint32_t pixel) const {
    for (uint32_t y = damage.y; y < damage.y + damage.height; ++y)
      std::fill_n(x_pixels + size_t{y} * x_stride / 4 + damage.x, damage.width, pixel);
    drm_clip_rect clip{static_cast<uint16_t>(damage.x), static_cast<uint16_t>(damage.y),
                       static_cast<uint16_t>(damage.x + damage.width),
                       static_cast<uint16_t>(damage.y + damage.height)};
    drm_mode_fb_dirty_cmd dirty{};
    dirty.fb_id = x_framebuffer;
    dirty.num_clips = 1;
    dirty.clips_ptr = reinterpret_cast<uintptr_t>(&clip);
    call(DRM_IOCTL_MODE_DIRTYFB, dirty, "DIRTYFB");
  }

 private:
  template <typename T>
  void call(unsigned long request, T& argument, const char* what) const {
    if (ioctl(x_fd, request, &argument) != 0) give_up(what);
  }
  void make_buffer() {
    drm_mode_create_dumb buffer{};
    buffer.width = kWidth;
    buffer.height = kHeight;
    buffer.bpp = 32;
    call(DRM_IOCTL_MODE_CREATE_DUMB, buffer, "CREATE_DUMB");
    drm_mode_map_dumb map{};
    map.handle = buffer.handle;
    call(DRM_IOCTL_MODE_MAP_DUMB, map, "MAP_DUMB");
    void* const mapped = mmap(nullptr, buffer.size, PROT_READ | PROT_WRITE, MAP_SHARED, x_fd,
                              static_cast<off_t>(map.offset));
    if (mapped == MAP_FAILED) give_up("mmap");
    // SAFETY: the mapping is page aligned and as long as the kernel says the buffer is.
    x_pixels = static_cast<uint32_t*>(mapped);
    x_stride = buffer.pitch;
    drm_mode_fb_cmd framebuffer{};
    framebuffer.width = kWidth;
    framebuffer.height = kHeight;
    framebuffer.pitch = buffer.pitch;
    framebuffer.bpp = 32;
    framebuffer.depth = 24;
    framebuffer.handle = buffer.handle;
    call(DRM_IOCTL_MODE_ADDFB, framebuffer, "ADDFB");
    x_framebuffer = framebuffer.fb_id;
  }
  // The first connector and the first CRTC: virtio-gpu's screen 0.
  void show() {
    uint32_t connector = 0;
    uint32_t crtc = 0;
    drm_mode_card_res resources{};
    call(DRM_IOCTL_MODE_GETRESOURCES, resources, "GETRESOURCES");
    if (resources.count_connectors == 0 || resources.count_crtcs == 0) give_up("no screen");
    std::vector<uint32_t> connectors(resources.count_connectors);
    std::vector<uint32_t> crtcs(resources.count_crtcs);
    resources.connector_id_ptr = reinterpret_cast<uintptr_t>(connectors.data());
    resources.crtc_id_ptr = reinterpret_cast<uintptr_t>(crtcs.data());
    resources.count_fbs = resources.count_encoders = 0;
    call(DRM_IOCTL_MODE_GETRESOURCES, resources, "GETRESOURCES");
    connector = connectors[0];
    crtc = crtcs[0];
    drm_mode_crtc mode{};
    mode.mode = find_mode(connector);
    mode.mode_valid = 1;
    mode.crtc_id = crtc;
    mode.fb_id = x_framebuffer;
    mode.set_connectors_ptr = reinterpret_cast<uintptr_t>(&connector);
    mode.count_connectors = 1;
    call(DRM_IOCTL_MODE_SETCRTC, mode, "SETCRTC");
  }
  [[nodiscard]] drm_mode_modeinfo find_mode(uint32_t connector) const {
    drm_mode_get_connector query{};
    query.connector_id = connector;
    call(DRM_IOCTL_MODE_GETCONNECTOR, query, "GETCONNECTOR");
    std::vector<drm_mode_modeinfo> modes(query.count_modes);
    query.modes_ptr = reinterpret_cast<uintptr_t>(modes.data());
    query.count_props = query.count_encoders = 0;
    call(DRM_IOCTL_MODE_GETCONNECTOR, query, "GETCONNECTOR");
    for (const auto& mode : modes)
      if (mode.hdisplay == kWidth && mode.vdisplay == kHeight) return mode;
    give_up("no mode of the size");
  }

  int x_fd;
  uint32_t* x_pixels = nullptr;
  uint32_t x_stride = 0;  // bytes
  uint32_t x_framebuffer = 0;
};

std::vector<pollfd> open_inputs() {
  std::vector<pollfd> inputs;
  DIR* const folder = opendir("/dev/input");
  if (folder == nullptr) give_up("/dev/input");
  while (const dirent* const entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (!name.starts_with("event")) continue;
    const int fd = open(("/dev/input/" + name).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) inputs.push_back({fd, POLLIN, 0});
  }
  closedir(folder);
  return inputs;
}

// Paints what the key asks for; `number` counts the frames.
void paint_for(uint16_t key, const Screen& screen, uint32_t& number) {
  for (const Damage& damage : kDamages)
    if (key == damage.key) screen.paint(damage, colour(++number));
  if (key != kAnimationKey) return;
  timespec next{};
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (uint32_t i = 0; i < kAnimationFrames; ++i) {
    screen.paint(kAnimationDamage, colour(++number));
    next.tv_nsec += kAnimationPeriodMs * 1'000'000;
    if (next.tv_nsec >= 1'000'000'000) {
      next.tv_nsec -= 1'000'000'000;
      ++next.tv_sec;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, nullptr);
  }
}

}  // namespace

int main() {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const Screen screen;
  uint32_t number = 0;
  screen.paint({"", 0, 0, 0, 0, kWidth, kHeight}, colour(number));
  std::vector<pollfd> inputs = open_inputs();
  if (inputs.empty()) give_up("no input devices");
  std::printf("%s\n", kReady);
  while (poll(inputs.data(), inputs.size(), -1) > 0) {
    for (const pollfd& input : inputs) {
      if ((input.revents & POLLIN) == 0) continue;
      input_event event{};
      if (read(input.fd, &event, sizeof event) != sizeof event) give_up("read of an input device");
      if (event.type == EV_KEY && event.value == 1) paint_for(event.code, screen, number);
    }
  }
  give_up("poll");
}
