// A driver that means harm. Each attack is sent to a device that has just been set up; then the
// device must have noticed in one of the ways the attack names, and after a reset it must serve a
// good request. That the VMM's process lives on is proved by the guest going on.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernel/virtio/blk.h"
#include "kernel/virtio/queue.h"
#include "kernel/virtio/transport.h"

namespace hostile {

// What may come of an attack; an attack names the ones that are right.
enum Outcome : unsigned {
  kNeedsReset = 1,   // DEVICE_NEEDS_RESET in the status
  kStatusError = 2,  // completed, with a status byte that is not OK (block and GPU)
  kCompleted = 4,    // completed, and nothing says it failed
  kIgnored = 8,      // nothing happens, for a while
};
inline constexpr unsigned kRefused = kNeedsReset | kStatusError;

// A device under attack: block, rng, the transmit queue of the console, of a network card or of
// vsock, the balloon's inflate or reporting queue, the GPU's control queue, an input device's
// status queue. `features` are what the queue needs, indirect descriptors aside.
class Target {
 public:
  Target(const char* name, unsigned virtio_id, uint16_t queue_index, uint64_t features = 0)
      : name_(name),
        virtio_id_(virtio_id),
        queue_index_(queue_index),
        features_(features | kernel::feature(VIRTIO_RING_F_INDIRECT_DESC)) {}

  const char* name() const { return name_; }
  bool is_blk() const;
  bool is_rng() const;
  bool is_balloon() const;
  bool is_gpu() const;
  bool is_reporting() const { return is_balloon() && device_writes(); }
  uint64_t features() const { return features_; }
  kernel::VirtioDevice& device() { return device_; }
  kernel::Virtqueue& queue() { return queue_; }
  // Whether the device only reads from the chains of this queue, or only writes to them.
  bool device_writes() const { return is_rng() || (is_balloon() && queue_index_ != 0); }

  // Finds the device, allocates its rings and tries it; the first time only.
  Target& find();
  // Resets and sets up, up to DRIVER_OK.
  void restart();
  // Descriptors 0.. of the table become a good chain; returns how many.
  uint16_t lay_good_chain();
  void good_request();
  // Waits for what comes, and forgets it. `wait_ms` bounds the wait for kIgnored.
  Outcome observe(uint64_t wait_ms);
  // restart(), then a good request.
  void must_still_work();

  uint8_t* data() { return data_; }
  kernel::BlkRequest& request() { return *request_; }

 private:
  const char* name_;
  unsigned virtio_id_;
  uint16_t queue_index_;
  uint64_t features_;
  kernel::VirtioDevice device_;
  kernel::Virtqueue queue_;
  uint8_t* data_ = nullptr;
  kernel::BlkRequest* request_ = nullptr;
};

Target& blk_target();
Target& rng_target();
Target& console_target();
Target& inflate_target();
Target& report_target();
Target& gpu_target();
Target& input_target();
Target& vsock_target();
Target& net_target();

struct Attack {
  const char* name;
  unsigned expected;  // Outcomes, or-ed
  void (*send)(Target& target);
};

void run_attacks(Target& target, const Attack* attacks, size_t count);

template <size_t N>
void run_attacks(Target& target, const Attack (&attacks)[N]) {
  run_attacks(target, attacks, N);
}

// First address after the RAM below 4 GiB.
uint64_t ram_end();
// Makes heads visible and kicks, whatever the device wants.
void send_head(Target& target, uint16_t head);
void set_desc(Target& target, uint16_t index, uint64_t address, uint32_t length, uint16_t flags,
              uint16_t next);

// hostile_ring.cc: on each of the devices.
void rings(Target& target);
void indirect(Target& target);
// hostile_setup.cc
void setup(Target& target);
void doorbells(Target& target);
// hostile_registers.cc
void registers(Target& target);
void config_space(Target& target);
void config_window(Target& target);
void msix(Target& target);
void moved_bars();
void ports();
// hostile_blk.cc
void blk_requests();
// hostile_balloon.cc
void balloon_pages();
void balloon_reports();
void balloon_others();
void balloon_own_rings();
void balloon_own_kernel();
// hostile_balloon_race.cc: needs a second CPU.
void balloon_race();
// hostile_gpu.cc
void gpu_requests();
void gpu_blobs();
void gpu_windows();
void gpu_floods();
// hostile_fuzz.cc
void fuzz();
// hostile_race.cc: needs a second CPU.
void race();

}  // namespace hostile
