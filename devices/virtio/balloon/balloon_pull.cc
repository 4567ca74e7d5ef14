#include "devices/virtio/balloon/balloon_pull.h"

#include "devices/virtio/balloon/balloon_work.h"

namespace lethe {

void BalloonPull::start(uint64_t, std::function<void(uint64_t)>,
                        std::function<void(PullResult)> done) {
  done({.text = "not built yet"});
}
void BalloonPull::stop(const char*) {}
void BalloonPull::hinting_began() {}
void BalloonPull::hinting_ended() {}
void BalloonPull::hinted(uint64_t) {}
void BalloonPull::actual_changed() {}
void BalloonPull::target_changed() {
  x_work.shared().num_pages.store(x_work.shared().target_pages.load());
}

}  // namespace lethe
