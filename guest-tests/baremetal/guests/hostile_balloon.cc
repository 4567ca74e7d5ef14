// A balloon driver that means harm to itself, its neighbours and the host (virtio 1.2,
// section 5.5), with rings in order. What it returns that it still needs is its own loss; canaries
// that it did not return must stay, the VMM must live, and the balloon must work for the next
// driver.
#include "guests/hostile.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/virtio/balloon.h"

using namespace kernel;

namespace hostile {
namespace {

constexpr uint64_t kMmioHole = 0xc8000000;
constexpr uint64_t k2MiB = uint64_t{2} << 20;
constexpr uint64_t kSettleMs = 3;
constexpr uint64_t kPfnsAtOnce = 4096;
constexpr uint8_t kCanary = 0x3c;

// A block to be returned, between two pages that are not.
struct Ground {
  uint8_t* before;
  uint8_t* block;  // 2 MiB
  uint8_t* after;
  uint32_t* pfns;  // kPfnsAtOnce
};

Ground& ground() {
  static Ground g = {};
  if (g.block == nullptr) {
    auto* memory = static_cast<uint8_t*>(alloc_pages(2 * k2MiB / kPageSize, k2MiB));
    g.before = memory + k2MiB - kPageSize;
    g.block = memory + k2MiB;
    g.after = static_cast<uint8_t*>(alloc_pages(1));
    g.pfns = static_cast<uint32_t*>(alloc_pages(kPfnsAtOnce * 4 / kPageSize));
  }
  return g;
}

BalloonDriver& balloon() {
  static BalloonDriver driver;
  static bool opened = false;
  if (!opened) CHECK(driver.open({}));
  opened = true;
  return driver;
}

uint32_t pfn(uint64_t address) { return static_cast<uint32_t>(address / kPageSize); }

void prepare() {
  Ground& g = ground();
  memset(g.before, kCanary, 64);
  memset(g.after, kCanary, 64);
  for (uint64_t at = 0; at < k2MiB; at += 0x40000) g.block[at] = kCanary;
}

// After an attack: canaries, then a driver that starts anew and returns a block in both ways.
void must_still_work(const char* attack) {
  Ground& g = ground();
  BalloonDriver& d = balloon();
  bool intact = true;
  for (unsigned i = 0; i < 64; ++i) intact &= g.before[i] == kCanary && g.after[i] == kCanary;
  if (!intact) print("attack %s\n", attack);
  CHECK(intact);
  d.restart({});
  g.block[0] = kCanary;
  const Buffer b = writable(g.block, k2MiB);
  d.queue(BalloonQueue::kReport).submit_and_wait(&b, 1);
  CHECK_EQ(g.block[0], 0);
  g.block[kPageSize] = kCanary;
  const uint32_t page = pfn(physical(g.block)) + 1;
  d.inflate(&page, 1);
  d.deflate(&page, 1);
  CHECK_EQ(g.block[kPageSize], 0);
  CHECK(!d.device().needs_reset());
}

struct BalloonAttack {
  const char* name;
  // What it sends must be answered, or the device must say that it needs a reset.
  BalloonQueue queue;
  void (*send)(BalloonDriver& d);
};

template <size_t N>
void run(const BalloonAttack (&attacks)[N]) {
  BalloonDriver& d = balloon();
  for (const BalloonAttack& attack : attacks) {
    prepare();
    d.restart({});
    attack.send(d);
    Virtqueue& queue = d.queue(attack.queue);
    // Statistics are kept until the host wants to know again.
    const bool kept = attack.queue == BalloonQueue::kStats;
    const bool answered = wait_until([&] { return queue.has_used() || d.device().needs_reset(); },
                                     kept ? kSettleMs : kSoonMs);
    if (!answered && !kept) {
      print("attack %s is not answered\n", attack.name);
      CHECK(answered);
    }
    must_still_work(attack.name);
  }
  print("balloon: %lu attacks\n", N);
}

void send(Virtqueue& queue, const Buffer& b) {
  queue.publish(queue.add(&b, 1));
  queue.kick_always();
}

Buffer range(uint64_t address, uint64_t bytes) {
  return writable(reinterpret_cast<void*>(address), bytes);
}

void send_pfns(BalloonDriver& d, size_t count, BalloonQueue queue = BalloonQueue::kInflate) {
  send(d.queue(queue), readable(ground().pfns, count * 4));
}

void report(BalloonDriver& d, uint64_t address, uint64_t bytes) {
  send(d.queue(BalloonQueue::kReport), range(address, bytes));
}

void send_one_pfn(BalloonDriver& d, uint32_t number) {
  ground().pfns[0] = number;
  send_pfns(d, 1);
}

void send_pfn_bytes(BalloonDriver& d, uint32_t bytes) {
  ground().pfns[0] = pfn(physical(ground().block));
  ground().pfns[1] = pfn(physical(ground().after));  // whole only from 8 bytes on
  send(d.queue(BalloonQueue::kInflate), readable(ground().pfns, bytes));
}

// The command line and the start info: the VMM put them somewhere low, and this kernel has copies.
void send_low_pages(BalloonDriver& d) {
  size_t count = 0;
  for (uint32_t number = 0; number < 0x100; ++number) {
    if (number != 8) ground().pfns[count++] = number;  // 8: where other CPUs start
  }
  send_pfns(d, count);
}

const BalloonAttack kPageAttacks[] = {
    {"page 0xffffffff", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_one_pfn(d, 0xffffffff); }},
    {"page after RAM", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_one_pfn(d, pfn(ram_end())); }},
    {"page in the MMIO hole", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_one_pfn(d, pfn(kMmioHole)); }},
    {"page of the APIC", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_one_pfn(d, 0xfee00); }},
    {"page of the balloon's own registers", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_one_pfn(d, pfn(d.device().common_address())); }},
    {"pages of the command line", BalloonQueue::kInflate, send_low_pages},
    {"a page 4096 times", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       for (size_t i = 0; i < kPfnsAtOnce; ++i) ground().pfns[i] = pfn(physical(ground().block));
       send_pfns(d, kPfnsAtOnce);
     }},
    {"pages backwards, each twice", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       for (uint32_t i = 0; i < 1024; ++i) {
         ground().pfns[i] = pfn(physical(ground().block)) + 511 - i / 2;
       }
       send_pfns(d, 1024);
     }},
    {"good and bad by turns", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       for (uint32_t i = 0; i < 512; ++i) {
         ground().pfns[i] = i % 2 == 0 ? pfn(physical(ground().block)) + i : 0xfffffff0 + i % 16;
       }
       send_pfns(d, 512);
     }},
    {"a run across the end of RAM", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       for (uint32_t i = 0; i < 512; ++i) ground().pfns[i] = pfn(ram_end()) - 1 + i;
       send_pfns(d, 512);
     }},
    {"no page numbers", BalloonQueue::kInflate, [](BalloonDriver& d) { send_pfn_bytes(d, 0); }},
    {"half a page number", BalloonQueue::kInflate, [](BalloonDriver& d) { send_pfn_bytes(d, 2); }},
    {"a page number and three quarters", BalloonQueue::kInflate,
     [](BalloonDriver& d) { send_pfn_bytes(d, 7); }},
    {"page numbers for the device to write", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       send(d.queue(BalloonQueue::kInflate), writable(ground().pfns, 4096));
     }},
    {"the page that holds the numbers", BalloonQueue::kInflate,
     [](BalloonDriver& d) {
       for (size_t i = 0; i < 1024; ++i) ground().pfns[i] = pfn(physical(ground().pfns));
       send_pfns(d, 1024);
     }},
    {"deflate of what is not in the balloon", BalloonQueue::kDeflate,
     [](BalloonDriver& d) {
       ground().pfns[0] = 0xffffffff;
       ground().pfns[1] = pfn(physical(ground().after));
       send_pfns(d, 2, BalloonQueue::kDeflate);
     }},
    {"deflate of half a number", BalloonQueue::kDeflate,
     [](BalloonDriver& d) { send(d.queue(BalloonQueue::kDeflate), readable(ground().pfns, 3)); }},
};

const BalloonAttack kReportAttacks[] = {
    {"report after RAM", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, ram_end(), k2MiB); }},
    {"report across the end of RAM", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, ram_end() - kPageSize, k2MiB); }},
    {"report of the MMIO hole", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, kMmioHole, k2MiB); }},
    {"report that overflows", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, ~uint64_t{0} - 4095, k2MiB); }},
    {"report of 4 GiB", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, physical(ground().block), 0xffffffff); }},
    {"report of nothing", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, physical(ground().block), 0); }},
    // A part of a page is not free because the rest of it is.
    {"report from the middle of a page", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, physical(ground().before) + 1024, kPageSize); }},
    {"report to the middle of a page", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, physical(ground().after), 64); }},
    {"report of one byte", BalloonQueue::kReport,
     [](BalloonDriver& d) { report(d, physical(ground().after), 1); }},
    {"report of readable memory", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       send(d.queue(BalloonQueue::kReport), readable(ground().after, kPageSize));
     }},
    {"the same block in every descriptor", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       Buffer chain[64];
       for (Buffer& b : chain) b = range(physical(ground().block), k2MiB);
       Virtqueue& queue = d.queue(BalloonQueue::kReport);
       queue.publish(queue.add(chain, 64));
       queue.kick_always();
     }},
    {"ranges that overlap by half", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       Buffer chain[63];
       for (unsigned i = 0; i < 63; ++i) {
         chain[i] = range(physical(ground().block) + i * 0x8000, 0x10000);
       }
       Virtqueue& queue = d.queue(BalloonQueue::kReport);
       queue.publish(queue.add(chain, 63));
       queue.kick_always();
     }},
    {"a ring full of the same block", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       Virtqueue& queue = d.queue(BalloonQueue::kReport);
       const Buffer b = range(physical(ground().block), k2MiB);
       while (queue.room() > 0) queue.publish(queue.add(&b, 1));
       queue.kick_always();
     }},
    {"reported and inflated at once", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       for (uint32_t i = 0; i < 512; ++i) ground().pfns[i] = pfn(physical(ground().block)) + i;
       send_pfns(d, 512);
       report(d, physical(ground().block), k2MiB);
     }},
    {"a reset at once", BalloonQueue::kReport,
     [](BalloonDriver& d) {
       for (unsigned i = 0; i < 30; ++i) {
         const Buffer b = range(physical(ground().block), k2MiB);
         Virtqueue& queue = d.queue(BalloonQueue::kReport);
         while (queue.room() > 0) queue.publish(queue.add(&b, 1));
         queue.kick_always();
         if (i % 2 == 0) d.device().reset();
         d.restart({});
       }
       report(d, physical(ground().block), k2MiB);
     }},
};

void send_statistics(BalloonDriver& d, uint32_t bytes) {
  memset(ground().pfns, 0xff, 256);
  send(d.queue(BalloonQueue::kStats), readable(ground().pfns, bytes));
}

void hint_id(BalloonDriver& d, uint32_t id, uint32_t bytes = 4) {
  ground().pfns[0] = id;
  send(d.queue(BalloonQueue::kHint), readable(ground().pfns, bytes));
}

const BalloonAttack kOtherAttacks[] = {
    {"statistics of no length", BalloonQueue::kStats,
     [](BalloonDriver& d) { send_statistics(d, 0); }},
    {"statistics of one byte", BalloonQueue::kStats,
     [](BalloonDriver& d) { send_statistics(d, 1); }},
    {"statistics of nine bytes", BalloonQueue::kStats,
     [](BalloonDriver& d) { send_statistics(d, 9); }},
    {"statistics and one byte", BalloonQueue::kStats,
     [](BalloonDriver& d) { send_statistics(d, 11); }},
    {"statistics of 1638 entries and a bit", BalloonQueue::kStats,
     [](BalloonDriver& d) { send_statistics(d, kPfnsAtOnce * 4); }},
    {"statistics of 2 MiB", BalloonQueue::kStats,
     [](BalloonDriver& d) {
       send(d.queue(BalloonQueue::kStats), readable(ground().block, k2MiB));
     }},
    {"statistics for the device to write", BalloonQueue::kStats,
     [](BalloonDriver& d) { send(d.queue(BalloonQueue::kStats), writable(ground().pfns, 100)); }},
    {"a ring full of statistics", BalloonQueue::kStats,
     [](BalloonDriver& d) {
       const Buffer b = readable(ground().pfns, 40);
       Virtqueue& queue = d.queue(BalloonQueue::kStats);
       while (queue.room() > 0) queue.publish(queue.add(&b, 1));
       queue.kick_always();
       wait_until([] { return false; }, kSettleMs);
     }},
    {"hints of no command", BalloonQueue::kHint,
     [](BalloonDriver& d) {
       send(d.queue(BalloonQueue::kHint), range(physical(ground().after), kPageSize));
     }},
    {"command 0xffffffff", BalloonQueue::kHint,
     [](BalloonDriver& d) {
       hint_id(d, 0xffffffff);
       send(d.queue(BalloonQueue::kHint), range(physical(ground().after), kPageSize));
     }},
    {"the command that is none", BalloonQueue::kHint,
     [](BalloonDriver& d) {
       hint_id(d, VIRTIO_BALLOON_CMD_ID_DONE);
       send(d.queue(BalloonQueue::kHint), range(physical(ground().after), kPageSize));
     }},
    {"a command of one byte", BalloonQueue::kHint, [](BalloonDriver& d) { hint_id(d, 2, 1); }},
    {"a command of five bytes", BalloonQueue::kHint, [](BalloonDriver& d) { hint_id(d, 2, 5); }},
    {"a command and a block in one chain", BalloonQueue::kHint,
     [](BalloonDriver& d) {
       ground().pfns[0] = 2;
       const Buffer chain[] = {readable(ground().pfns, 4),
                               range(physical(ground().after), kPageSize)};
       Virtqueue& queue = d.queue(BalloonQueue::kHint);
       queue.publish(queue.add(chain, 2));
       queue.kick_always();
     }},
    {"stop, and stop again", BalloonQueue::kHint,
     [](BalloonDriver& d) {
       hint_id(d, VIRTIO_BALLOON_CMD_ID_STOP);
       hint_id(d, VIRTIO_BALLOON_CMD_ID_STOP);
     }},
    {"a balloon of 16 TiB", BalloonQueue::kDeflate,
     [](BalloonDriver& d) {
       d.set_actual(0xffffffff);
       mmio_write<uint32_t>(d.device().config_address(), 0xffffffff);       // the host's field
       mmio_write<uint32_t>(d.device().config_address() + 12, 0x12345678);  // poison, late
       ground().pfns[0] = pfn(physical(ground().block));
       send_pfns(d, 1, BalloonQueue::kDeflate);
     }},
};

}  // namespace

void balloon_pages() { run(kPageAttacks); }
void balloon_reports() { run(kReportAttacks); }
void balloon_others() { run(kOtherAttacks); }

// The rings of the queue that reports, of another queue, and of another device: gone when the host
// looks for them next. The guest can't know what happens to these queues; every other one goes on.
void balloon_own_rings() {
  BalloonDriver& d = balloon();
  Target& other = rng_target();
  const BalloonQueue victims[] = {BalloonQueue::kReport, BalloonQueue::kInflate,
                                  BalloonQueue::kStats, BalloonQueue::kHint};
  for (const BalloonQueue victim : victims) {
    prepare();
    d.restart({});
    Virtqueue& rings = d.queue(victim);
    const uint64_t parts[] = {physical(rings.used()), physical(rings.avail()),
                              physical(rings.desc())};
    for (const uint64_t part : parts) report(d, part, kPageSize);
    wait_until([&] { return d.device().needs_reset(); }, 20);
    for (unsigned i = 0; i < 3; ++i) rings.kick_always();
    wait_until([] { return false; }, kSettleMs);
    other.good_request();
    must_still_work("own rings");
  }
  // The other device's, by the balloon: that device may stand still, the balloon may not.
  prepare();
  d.restart({});
  other.restart();
  report(d, physical(other.queue().avail()), kPageSize);
  CHECK_SOON(d.queue(BalloonQueue::kReport).has_used());
  other.queue().kick_always();
  wait_until([] { return false; }, kSettleMs);
  must_still_work("the rings of another device");
  other.must_still_work();
}

// Everything, its own code, stack and page tables included. It can't go on; the VMM must say so and
// end in good order.
void balloon_own_kernel() {
  BalloonDriver& d = balloon();
  print("returning the kernel\n");
  // It lies from 1 MiB on. The pool takes whole chunks, all of whose pages are there.
  for (uint64_t page = 0; page < k2MiB; page += kPageSize)
    asm volatile("addb $0, (%0)" : : "r"(page) : "memory");  // page 0, too: no null pointer here
  report(d, 0, k2MiB);
  wait_until([] { return false; }, kSoonMs);
  check_failed(__FILE_NAME__, __LINE__, "a kernel that is gone does not run");
}

}  // namespace hostile
