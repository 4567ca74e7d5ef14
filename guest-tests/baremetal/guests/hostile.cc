#include "guests/hostile.h"

#include <linux/virtio_balloon.h>
#include <linux/virtio_gpu.h>
#include <linux/virtio_ids.h>

#include "kernel/boot.h"
#include "kernel/cases.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint64_t kIgnoredMs = 20;
constexpr uint64_t kGoodSector = 5;
constexpr uint32_t kGoodBytes = 64;
constexpr uint32_t kInputBytes = 8;        // of an event
constexpr uint32_t kFrameBytes = 12 + 60;  // virtio's header and a frame

virtio_gpu_ctrl_hdr* gpu_response(Target& t) {
  return reinterpret_cast<virtio_gpu_ctrl_hdr*>(t.data() + kPageSize);
}

const char* outcome_name(Outcome outcome) {
  switch (outcome) {
    case kNeedsReset:
      return "needs reset";
    case kStatusError:
      return "error status";
    case kCompleted:
      return "completed";
    case kIgnored:
      return "ignored";
  }
  return "?";
}

}  // namespace

bool Target::is_blk() const { return virtio_id_ == VIRTIO_ID_BLOCK; }
bool Target::is_rng() const { return virtio_id_ == VIRTIO_ID_RNG; }
bool Target::is_balloon() const { return virtio_id_ == VIRTIO_ID_BALLOON; }
bool Target::is_gpu() const { return virtio_id_ == VIRTIO_ID_GPU; }

Target& Target::find() {
  if (data_ != nullptr) return *this;
  CHECK(device_.open(virtio_id_));
  data_ = static_cast<uint8_t*>(alloc_pages(3));
  request_ = alloc_page_as<BlkRequest>();
  device_.start(features_);
  queue_.open(device_, queue_index_, 0, kNoVector, false);
  must_still_work();
  return *this;
}

void Target::restart() {
  device_.start(features_);
  queue_.reopen();
  device_.driver_ok();
}

uint16_t Target::lay_good_chain() {
  if (is_blk()) {
    request_->header = {VIRTIO_BLK_T_IN, 0, kGoodSector};
    request_->status = kStatusUnwritten;
    set_desc(*this, 0, physical(&request_->header), sizeof(request_->header), VRING_DESC_F_NEXT, 1);
    set_desc(*this, 1, physical(data_), kSectorSize, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
    set_desc(*this, 2, physical(&request_->status), 1, VRING_DESC_F_WRITE, 0);
    return 3;
  }
  if (is_gpu()) {
    auto* request = reinterpret_cast<virtio_gpu_ctrl_hdr*>(data_);
    memset(request, 0, sizeof(*request));
    request->type = VIRTIO_GPU_CMD_GET_DISPLAY_INFO;
    gpu_response(*this)->type = 0;
    set_desc(*this, 0, physical(request), sizeof(*request), VRING_DESC_F_NEXT, 1);
    set_desc(*this, 1, physical(gpu_response(*this)), sizeof(virtio_gpu_resp_display_info),
             VRING_DESC_F_WRITE, 0);
    return 2;
  }
  uint32_t length = kGoodBytes;
  if (virtio_id_ == VIRTIO_ID_NET) {
    memset(data_, 0, kFrameBytes);
    length = kFrameBytes;
  } else if (virtio_id_ == VIRTIO_ID_INPUT) {
    memset(data_, 0, kInputBytes);
    length = kInputBytes;
  } else if (is_reporting()) {
    length = kPageSize;
  } else if (is_balloon()) {
    // Pages of which nothing else is known: those that data_ is followed by.
    auto* pfns = reinterpret_cast<uint32_t*>(data_);
    length = 2 * sizeof(*pfns);
    for (uint32_t i = 0; i < 2; ++i) {
      pfns[i] = static_cast<uint32_t>(physical(data_) / kPageSize) + 1 + i;
    }
  } else if (!is_rng()) {
    memcpy(data_, "still here\n", 11);
    length = 11;
  }
  set_desc(*this, 0, physical(data_), length, device_writes() ? VRING_DESC_F_WRITE : 0, 0);
  return 1;
}

void Target::good_request() {
  memset(data_, is_balloon() ? 0x5a : 0, kSectorSize);
  if (is_balloon()) data_[kPageSize] = 0x5a;
  lay_good_chain();
  send_head(*this, 0);
  CHECK_SOON(queue_.has_used());
  const vring_used_elem& e = queue_.used()->ring[queue_.last_used() % queue_.size()];
  CHECK_EQ(e.id, 0);
  if (is_blk()) {
    CHECK_EQ(request_->status, VIRTIO_BLK_S_OK);
    CHECK_EQ(e.len, kSectorSize + 1);
    CHECK(sector_has_its_text(data_, kGoodSector));
  } else if (is_gpu()) {
    CHECK_EQ(e.len, sizeof(virtio_gpu_resp_display_info));
    CHECK_EQ(gpu_response(*this)->type, VIRTIO_GPU_RESP_OK_DISPLAY_INFO);
  } else if (is_rng()) {
    CHECK(e.len > 0 && e.len <= kGoodBytes);
  } else {
    CHECK_EQ(e.len, 0);
    // The balloon took the page, and gave another.
    if (is_balloon()) CHECK_EQ(data_[is_reporting() ? 0 : kPageSize], 0);
  }
  CHECK(!device_.needs_reset());
}

Outcome Target::observe(uint64_t wait_ms) {
  bool broken = false;
  wait_until([&] { return queue_.has_used() || (broken = device_.needs_reset()); }, wait_ms);
  // Both may come, in either order: what is worse counts.
  if (broken || device_.needs_reset()) return kNeedsReset;
  if (!queue_.has_used()) return kIgnored;
  if (is_gpu()) {
    return gpu_response(*this)->type >= VIRTIO_GPU_RESP_ERR_UNSPEC ? kStatusError : kCompleted;
  }
  if (!is_blk()) return kCompleted;
  const uint8_t status = __atomic_load_n(&request_->status, __ATOMIC_ACQUIRE);
  return status == VIRTIO_BLK_S_IOERR || status == VIRTIO_BLK_S_UNSUPP ? kStatusError : kCompleted;
}

void Target::must_still_work() {
  restart();
  good_request();
}

Target& blk_target() {
  static Target target("blk", VIRTIO_ID_BLOCK, 0);
  return target.find();
}
Target& rng_target() {
  static Target target("rng", VIRTIO_ID_RNG, 0);
  return target.find();
}
Target& console_target() {
  static Target target("console", VIRTIO_ID_CONSOLE, 1);
  return target.find();
}
Target& inflate_target() {
  static Target target("inflate", VIRTIO_ID_BALLOON, 0);
  return target.find();
}
Target& report_target() {
  // The first index after inflate's and deflate's: no other queue is negotiated.
  static Target target("report", VIRTIO_ID_BALLOON, 2, feature(VIRTIO_BALLOON_F_REPORTING));
  return target.find();
}
Target& gpu_target() {
  static Target target("gpu", VIRTIO_ID_GPU, 0);
  return target.find();
}
Target& input_target() {
  static Target target("input", VIRTIO_ID_INPUT, 1);
  return target.find();
}
Target& vsock_target() {
  static Target target("vsock", VIRTIO_ID_VSOCK, 1);
  return target.find();
}
Target& net_target() {
  static Target target("net", VIRTIO_ID_NET, 1);
  return target.find();
}

void run_attacks(Target& target, const Attack* attacks, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    target.restart();
    attacks[i].send(target);
    const bool may_ignore = (attacks[i].expected & kIgnored) != 0;
    const Outcome outcome = target.observe(may_ignore ? kIgnoredMs : kSoonMs);
    if ((outcome & attacks[i].expected) == 0) {
      print("attack %s on %s: %s\n", attacks[i].name, target.name(), outcome_name(outcome));
      check_failed(__FILE_NAME__, __LINE__, "the device answers the attack as it should");
    }
    target.must_still_work();
  }
  print("%s: %lu attacks\n", target.name(), count);
}

uint64_t ram_end() {
  uint64_t end = 0;
  for (size_t i = 0; i < boot_info().memmap_count; ++i) {
    const auto& e = boot_info().memmap[i];
    if (e.type == kMemmapRam && e.addr < k4GiB && e.addr + e.size > end) end = e.addr + e.size;
  }
  return end;
}

void send_head(Target& target, uint16_t head) {
  target.queue().publish(head);
  target.queue().kick_always();
}

void set_desc(Target& target, uint16_t index, uint64_t address, uint32_t length, uint16_t flags,
              uint16_t next) {
  target.queue().desc()[index] = {address, length, flags, next};
}

}  // namespace hostile

void guest_main() {
  using namespace hostile;
  static const Case cases[] = {
      {"rings-blk", [] { rings(blk_target()); }},
      {"rings-rng", [] { rings(rng_target()); }},
      {"rings-console", [] { rings(console_target()); }},
      {"rings-inflate", [] { rings(inflate_target()); }},
      {"rings-report", [] { rings(report_target()); }},
      {"rings-gpu", [] { rings(gpu_target()); }, true},
      {"rings-input", [] { rings(input_target()); }, true},
      {"rings-vsock", [] { rings(vsock_target()); }, true},
      {"rings-net", [] { rings(net_target()); }, true},
      {"indirect-blk", [] { indirect(blk_target()); }},
      {"indirect-rng", [] { indirect(rng_target()); }},
      {"indirect-console", [] { indirect(console_target()); }},
      {"indirect-inflate", [] { indirect(inflate_target()); }},
      {"indirect-report", [] { indirect(report_target()); }},
      {"indirect-gpu", [] { indirect(gpu_target()); }, true},
      {"indirect-input", [] { indirect(input_target()); }, true},
      {"indirect-vsock", [] { indirect(vsock_target()); }, true},
      {"indirect-net", [] { indirect(net_target()); }, true},
      {"setup-blk", [] { setup(blk_target()); }},
      {"setup-rng", [] { setup(rng_target()); }},
      {"setup-console", [] { setup(console_target()); }},
      {"setup-inflate", [] { setup(inflate_target()); }},
      {"setup-report", [] { setup(report_target()); }},
      {"setup-gpu", [] { setup(gpu_target()); }, true},
      {"setup-input", [] { setup(input_target()); }, true},
      {"setup-vsock", [] { setup(vsock_target()); }, true},
      {"setup-net", [] { setup(net_target()); }, true},
      {"doorbells-blk", [] { doorbells(blk_target()); }},
      {"doorbells-rng", [] { doorbells(rng_target()); }},
      {"doorbells-console", [] { doorbells(console_target()); }},
      {"doorbells-inflate", [] { doorbells(inflate_target()); }},
      {"doorbells-report", [] { doorbells(report_target()); }},
      {"doorbells-gpu", [] { doorbells(gpu_target()); }, true},
      {"doorbells-input", [] { doorbells(input_target()); }, true},
      {"doorbells-vsock", [] { doorbells(vsock_target()); }, true},
      {"doorbells-net", [] { doorbells(net_target()); }, true},
      {"registers-blk", [] { registers(blk_target()); }},
      {"registers-rng", [] { registers(rng_target()); }},
      {"registers-console", [] { registers(console_target()); }},
      {"registers-inflate", [] { registers(inflate_target()); }},
      {"registers-report", [] { registers(report_target()); }},
      {"registers-gpu", [] { registers(gpu_target()); }, true},
      {"registers-input", [] { registers(input_target()); }, true},
      {"registers-vsock", [] { registers(vsock_target()); }, true},
      {"registers-net", [] { registers(net_target()); }, true},
      {"config-space", [] { config_space(blk_target()); }},
      {"config-window", [] { config_window(blk_target()); }},
      {"msix", [] { msix(blk_target()); }},
      {"moved-bars", moved_bars},
      {"ports", ports},
      {"blk-requests", blk_requests},
      {"balloon-pages", balloon_pages},
      {"balloon-reports", balloon_reports},
      {"balloon-others", balloon_others},
      {"balloon-own-rings", balloon_own_rings},
      {"balloon-own-kernel", balloon_own_kernel, true},
      {"balloon-race", balloon_race, true},
      {"gpu-requests", gpu_requests, true},
      {"gpu-blobs", gpu_blobs, true},
      {"gpu-windows", gpu_windows, true},
      {"gpu-floods", gpu_floods, true},
      {"fuzz", fuzz},
      {"race", race, true},
  };
  run_cases("hostile", cases);
}
