// Pull: free memory taken from the guest now, not when the guest gets round to it.
#pragma once

#include <functional>

#include "devices/virtio/balloon/balloon.h"

namespace lethe {

class BalloonWork;

// Threading: the balloon's thread.
class BalloonPull {
 public:
  explicit BalloonPull(BalloonWork& work) : x_work(work) {}

  void start(uint64_t bytes, std::function<void(uint64_t)> progress,
             std::function<void(PullResult)> done);
  // Ends it, if it runs: the driver is gone.
  void stop(const char* why);

  // From the queues and the configuration.
  void hinting_began();
  void hinting_ended();
  void hinted(uint64_t bytes);
  void actual_changed();
  void target_changed();

 private:
  BalloonWork& x_work;
};

}  // namespace lethe
