// Nonsense in the rings and descriptor tables (virtio 1.2, section 2.7). Every device walks them
// with the same code, so each must survive the same list.
#include "guests/hostile.h"
#include "kernel/check.h"
#include "kernel/memory.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint64_t kMmioHole = 0xc8000000;
constexpr uint64_t kEcam = 0xe0000000;
constexpr uint64_t kLapic = 0xfee00000;

// The flag with which the target's data would go the right way.
uint16_t right_way(Target& t) { return t.device_writes() ? VRING_DESC_F_WRITE : 0; }

// A good chain whose data descriptor is replaced.
void send_data_at(Target& t, uint64_t address, uint32_t length) {
  t.lay_good_chain();
  vring_desc& d = t.queue().desc()[t.is_blk() ? 1 : 0];
  d.addr = address;
  d.len = length;
  send_head(t, 0);
}

void send_loop_of_one(Target& t) {
  t.lay_good_chain();
  set_desc(t, 0, physical(t.data()), 16, static_cast<uint16_t>(right_way(t) | VRING_DESC_F_NEXT),
           0);
  send_head(t, 0);
}

void send_loop_of_all(Target& t) {
  t.lay_good_chain();
  for (uint16_t i = 0; i < t.queue().size(); ++i) {
    set_desc(t, i, physical(t.data()), 1, static_cast<uint16_t>(right_way(t) | VRING_DESC_F_NEXT),
             static_cast<uint16_t>((i + 1) % t.queue().size()));
  }
  send_head(t, 3);
}

// More than 2^32 bytes, the most a chain may have (section 2.7.5.2), all of it in RAM.
void send_too_long(Target& t) {
  t.lay_good_chain();
  const auto part = static_cast<uint32_t>(k4GiB / (t.queue().size() - 2u) + kPageSize);
  static void* const scratch = alloc_pages(part / kPageSize + 1);
  const uint16_t last = static_cast<uint16_t>(t.queue().size() - 1);
  for (uint16_t i = 0; i <= last; ++i) {
    const auto flags = static_cast<uint16_t>(right_way(t) | (i == last ? 0 : VRING_DESC_F_NEXT));
    set_desc(t, i, physical(scratch), part, flags, static_cast<uint16_t>(i + 1));
  }
  if (t.is_blk()) {
    set_desc(t, 0, physical(&t.request().header), 16, VRING_DESC_F_NEXT, 1);
    for (uint16_t i = 1; i <= last; ++i) t.queue().desc()[i].flags |= VRING_DESC_F_WRITE;
    set_desc(t, last, physical(&t.request().status), 1, VRING_DESC_F_WRITE, 0);
  }
  send_head(t, 0);
}

// A writable descriptor before a readable one (section 2.7.4.2 asks for the reverse).
void send_wrong_order(Target& t) {
  t.lay_good_chain();
  set_desc(t, 0, physical(t.data()), 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
  set_desc(t, 1, physical(t.data()), 16, VRING_DESC_F_NEXT, 2);
  set_desc(t, 2, physical(&t.request().status), 1, VRING_DESC_F_WRITE, 0);
  send_head(t, 0);
}

void send_wrong_way(Target& t) {
  const uint16_t count = t.lay_good_chain();
  for (uint16_t i = 0; i < count; ++i) t.queue().desc()[i].flags ^= VRING_DESC_F_WRITE;
  send_head(t, 0);
}

void send_index_jump(Target& t, uint16_t by) {
  t.lay_good_chain();
  t.queue().avail()->idx = static_cast<uint16_t>(t.queue().avail()->idx + by);
  t.queue().kick_always();
}

// The same chain twice at once: the device may serve both, or refuse.
void send_twice(Target& t) {
  t.lay_good_chain();
  t.queue().publish(0);
  send_head(t, 0);
}

const Attack kAttacks[] = {
    {"head is the queue's size", kNeedsReset, [](Target& t) { send_head(t, t.queue().size()); }},
    {"head 0xffff", kNeedsReset, [](Target& t) { send_head(t, 0xffff); }},
    {"next out of range", kNeedsReset,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].flags |= VRING_DESC_F_NEXT;
       t.queue().desc()[0].next = t.queue().size();
       send_head(t, 0);
     }},
    {"next 0xffff", kNeedsReset,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].flags |= VRING_DESC_F_NEXT;
       t.queue().desc()[0].next = 0xffff;
       send_head(t, 0);
     }},
    {"loop of one", kNeedsReset, send_loop_of_one},
    {"loop of all", kNeedsReset, send_loop_of_all},
    {"2^32 bytes and more", kRefused, send_too_long},
    {"avail index jumps past the size", kNeedsReset,
     [](Target& t) { send_index_jump(t, static_cast<uint16_t>(t.queue().size() + 1)); }},
    {"avail index jumps by half the numbers", kNeedsReset,
     [](Target& t) { send_index_jump(t, 0x8000); }},
    {"avail index goes back", kNeedsReset, [](Target& t) { send_index_jump(t, 0xffff); }},
    {"data after RAM", kRefused, [](Target& t) { send_data_at(t, ram_end(), 512); }},
    {"data across RAM's end", kRefused, [](Target& t) { send_data_at(t, ram_end() - 256, 512); }},
    {"data in the MMIO hole", kRefused, [](Target& t) { send_data_at(t, kMmioHole, 512); }},
    {"data in ECAM", kRefused, [](Target& t) { send_data_at(t, kEcam, 512); }},
    {"data in the APIC", kRefused, [](Target& t) { send_data_at(t, kLapic, 512); }},
    {"data in a BAR", kRefused,
     [](Target& t) { send_data_at(t, t.device().common_address(), 512); }},
    {"data above everything", kRefused, [](Target& t) { send_data_at(t, uint64_t{1} << 52, 512); }},
    {"data at 2^63", kRefused, [](Target& t) { send_data_at(t, uint64_t{1} << 63, 512); }},
    {"data wraps around", kRefused, [](Target& t) { send_data_at(t, ~uint64_t{0} - 255, 512); }},
    {"data is all ones", kRefused, [](Target& t) { send_data_at(t, ~uint64_t{0}, 0xffffffff); }},
    {"4 GiB - 1 of data", kRefused,
     [](Target& t) { send_data_at(t, physical(t.data()), 0xffffffff); }},
    {"4 GiB - 512 of data from 0", kRefused, [](Target& t) { send_data_at(t, 0, 0xfffffe00); }},
    {"2 GiB of data", kRefused, [](Target& t) { send_data_at(t, physical(t.data()), 0x80000000); }},
    {"no data in a data descriptor", kRefused | kCompleted,
     [](Target& t) { send_data_at(t, physical(t.data()), 0); }},
    {"no data, at no address", kRefused | kCompleted,
     [](Target& t) { send_data_at(t, ~uint64_t{0}, 0); }},
    {"writable before readable", kRefused | kCompleted, send_wrong_order},
    {"every direction reversed", kRefused | kCompleted, send_wrong_way},
    {"unknown flags", kRefused | kCompleted,
     [](Target& t) {
       t.lay_good_chain();
       t.queue().desc()[0].flags |= 0xfff8;
       send_head(t, 0);
     }},
    {"a chain twice", kRefused | kCompleted, send_twice},
};

// A table of its own in guest memory, and descriptor 0 that points there.
vring_desc* table() {
  static auto* page = static_cast<vring_desc*>(alloc_pages(2));
  return page;
}

void lay_table(Target& t) {
  const uint16_t count = t.lay_good_chain();
  memcpy(table(), t.queue().desc(), count * sizeof(vring_desc));
  set_desc(t, 0, physical(table()), static_cast<uint32_t>(count * sizeof(vring_desc)),
           VRING_DESC_F_INDIRECT, 0);
}

void send_table_of(Target& t, uint32_t length) {
  lay_table(t);
  t.queue().desc()[0].len = length;
  send_head(t, 0);
}

void send_table_at(Target& t, uint64_t address, uint32_t length) {
  lay_table(t);
  t.queue().desc()[0].addr = address;
  t.queue().desc()[0].len = length;
  send_head(t, 0);
}

// More entries than the queue has (section 2.7.5.3.1 forbids it to drivers).
void send_long_table(Target& t) {
  t.lay_good_chain();
  const auto entries = static_cast<uint16_t>(t.queue().size() + 8);
  CHECK(entries * sizeof(vring_desc) <= 2 * kPageSize);
  for (uint16_t i = 0; i < entries; ++i) {
    const bool last = i + 1 == entries;
    const auto flags = static_cast<uint16_t>((right_way(t)) | (last ? 0 : VRING_DESC_F_NEXT));
    table()[i] = {physical(t.data()), 1, flags, static_cast<uint16_t>(i + 1)};
  }
  set_desc(t, 0, physical(table()), static_cast<uint32_t>(entries * sizeof(vring_desc)),
           VRING_DESC_F_INDIRECT, 0);
  send_head(t, 0);
}

const Attack kIndirectAttacks[] = {
    {"empty table", kNeedsReset, [](Target& t) { send_table_of(t, 0); }},
    {"half an entry", kNeedsReset, [](Target& t) { send_table_of(t, 8); }},
    {"an entry and a half", kNeedsReset, [](Target& t) { send_table_of(t, 24); }},
    {"4 GiB of table", kNeedsReset, [](Target& t) { send_table_of(t, 0xfffffff0); }},
    {"4 GiB - 1 of table", kNeedsReset, [](Target& t) { send_table_of(t, 0xffffffff); }},
    {"table after RAM", kNeedsReset, [](Target& t) { send_table_at(t, ram_end(), 32); }},
    {"table across RAM's end", kNeedsReset,
     [](Target& t) { send_table_at(t, ram_end() - 16, 32); }},
    {"table in the MMIO hole", kNeedsReset, [](Target& t) { send_table_at(t, kMmioHole, 32); }},
    {"table wraps around", kNeedsReset, [](Target& t) { send_table_at(t, ~uint64_t{0} - 15, 32); }},
    {"indirect in indirect", kNeedsReset,
     [](Target& t) {
       lay_table(t);
       table()[0] = {physical(table()), 16, VRING_DESC_F_INDIRECT, 0};
       send_head(t, 0);
     }},
    {"indirect and next", kNeedsReset,
     [](Target& t) {
       lay_table(t);
       t.queue().desc()[0].flags = VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT;
       t.queue().desc()[0].next = 1;
       send_head(t, 0);
     }},
    {"next out of the table", kNeedsReset,
     [](Target& t) {
       lay_table(t);
       table()[0].flags |= VRING_DESC_F_NEXT;
       table()[0].next = static_cast<uint16_t>(t.queue().desc()[0].len / sizeof(vring_desc));
       send_head(t, 0);
     }},
    {"loop in the table", kNeedsReset,
     [](Target& t) {
       lay_table(t);
       table()[0].flags |= VRING_DESC_F_NEXT;
       table()[0].next = 0;
       send_head(t, 0);
     }},
    {"data of an entry after RAM", kRefused,
     [](Target& t) {
       lay_table(t);
       table()[t.is_blk() ? 1 : 0].addr = ram_end();
       send_head(t, 0);
     }},
    {"more entries than the queue", kRefused | kCompleted, send_long_table},
};

}  // namespace

void rings(Target& target) { run_attacks(target, kAttacks); }

void indirect(Target& target) {
  run_attacks(target, kIndirectAttacks);
  // Not an attack: the write flag of a descriptor that names a table means nothing
  // (section 2.7.5.3.2).
  target.restart();
  lay_table(target);
  target.queue().desc()[0].flags = VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE;
  send_head(target, 0);
  CHECK(target.observe(20000) == kCompleted);
  if (target.is_blk()) CHECK_EQ(target.request().status, VIRTIO_BLK_S_OK);
  target.must_still_work();
}

}  // namespace hostile
