// Block requests that make no sense (virtio 1.2, section 5.2.6), from a driver whose rings are in
// order.
#include "guests/hostile.h"
#include "kernel/check.h"
#include "kernel/memory.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint16_t kOut = VRING_DESC_F_NEXT;
constexpr uint16_t kIn = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;

virtio_blk_outhdr& header(Target& t) { return t.request().header; }

// Header of `type`, then data of `length` bytes that the device reads (kOut) or writes (kIn), then
// the status.
void send_request(Target& t, uint32_t type, uint64_t sector, uint32_t length, uint16_t flags) {
  t.lay_good_chain();
  header(t) = {type, 0, sector};
  set_desc(t, 1, physical(t.data()), length, flags, 2);
  send_head(t, 0);
}

void send_segment(Target& t, uint32_t type, uint32_t bytes, uint64_t sector, uint32_t sectors) {
  auto* segment = reinterpret_cast<virtio_blk_discard_write_zeroes*>(t.data());
  for (unsigned i = 0; i < kPageSize / sizeof(*segment); ++i) {
    segment[i] = {};
    segment[i].sector = sector;
    segment[i].num_sectors = sectors;
  }
  send_request(t, type, 0, bytes, kOut);
}

const Attack kAttacks[] = {
    {"a header alone", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].flags = 0;
       send_head(t, 0);
     }},
    {"a status alone", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       send_head(t, 2);
     }},
    {"a short header", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].len = 15;
       send_head(t, 0);
     }},
    {"an empty header", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].len = 0;
       send_head(t, 0);
     }},
    {"a status of no bytes", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[2].len = 0;
       send_head(t, 0);
     }},
    {"no status", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       header(t).type = VIRTIO_BLK_T_OUT;
       header(t).sector = 1500;
       set_desc(t, 1, physical(t.data()), kSectorSize, 0, 0);
       send_head(t, 0);
     }},
    {"a read into what is readable", kRefused,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_IN, 0, kSectorSize, kOut); }},
    {"a write from what is writable", kRefused,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_OUT, 1500, kSectorSize, kIn); }},
    {"a read of half a sector", kRefused,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_IN, 0, 100, kIn); }},
    {"a write of a sector and a byte", kRefused,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_OUT, 1500, kSectorSize + 1, kOut); }},
    {"a read of nothing", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].next = 2;
       send_head(t, 0);
     }},
    {"an id into no room", kRefused | kCompleted,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_GET_ID, 0, 1, kIn); }},
    {"a flush with data", kRefused | kCompleted,
     [](Target& t) { send_request(t, VIRTIO_BLK_T_FLUSH, ~uint64_t{0}, kSectorSize, kOut); }},
    {"a discard without segments", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       header(t).type = VIRTIO_BLK_T_DISCARD;
       t.queue().desc()[0].next = 2;
       send_head(t, 0);
     }},
    {"a discard of half a segment", kRefused,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_DISCARD, 8, 1500, 1); }},
    {"a discard of everything and more", kRefused,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_DISCARD, 16, 1500, 0xffffffff); }},
    {"a discard past 2^64", kRefused,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_DISCARD, 16, ~uint64_t{0}, 0xffffffff); }},
    {"zeroes past the end", kRefused,
     [](Target& t) {
       send_segment(t, VIRTIO_BLK_T_WRITE_ZEROES, 16, t.device().config64(0) - 1, 2);
     }},
    {"zeroes where the byte number wraps", kRefused,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_WRITE_ZEROES, 16, uint64_t{1} << 55, 1); }},
    {"256 segments of nothing", kRefused | kCompleted,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_WRITE_ZEROES, 4096, 1500, 0); }},
    {"256 segments, the last out of range", kRefused,
     [](Target& t) { send_segment(t, VIRTIO_BLK_T_WRITE_ZEROES, 4096, ~uint64_t{0}, 1); }},
    {"a secure erase, which nobody offered", kRefused,
     [](Target& t) { send_segment(t, 14, 16, 1500, 1); }},
    {"a zone report, which nobody offered", kRefused,
     [](Target& t) { send_request(t, 16, 0, kSectorSize, kIn); }},
    {"header and status in one place", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[2].addr = physical(&header(t));
       send_head(t, 0);
     }},
    {"data over the rings", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[1].addr = physical(t.queue().desc());
       send_head(t, 0);
     }},
};

}  // namespace

void blk_requests() {
  run_attacks(blk_target(), kAttacks);
  // With the rings full: everything is answered, or the device says that it needs a reset.
  Target& t = blk_target();
  t.restart();
  t.lay_good_chain();
  header(t) = {0xffffffff, 0xffffffff, ~uint64_t{0}};
  for (uint16_t i = 0; i < t.queue().size(); ++i) t.queue().publish(0);
  t.queue().kick_always();
  CHECK(t.observe(20000) != kIgnored);
  t.must_still_work();
}

}  // namespace hostile
