// Block requests (virtio 1.2, section 5.2.6). Reads use the disk's lower half, whose sectors hold
// their number as text; writes use the upper half, with content that differs from run to run.
#include "guests/virtio.h"
#include "kernel/boot.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"
#include "kernel/virtio/blk.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr uint64_t kWriteSector = 1024;

BlkDevice& open_disk(uint64_t required = 0, uint64_t optional = 0) {
  static BlkDevice disk;
  BlkDevice::Options options;
  options.required = required;
  options.optional = optional;
  disk.open(options);
  return disk;
}

uint8_t* buffer() {
  static auto* page = static_cast<uint8_t*>(alloc_pages(2));
  return page;
}

// Touching each byte is dear, so a pattern is one word every 64 bytes.
void fill(uint8_t* data, uint32_t length, uint64_t seed) {
  for (uint32_t i = 0; i < length; i += 64) *reinterpret_cast<uint64_t*>(data + i) = seed + i;
}

bool is_filled(const uint8_t* data, uint32_t length, uint64_t seed) {
  for (uint32_t i = 0; i < length; i += 64) {
    if (*reinterpret_cast<const uint64_t*>(data + i) != seed + i) return false;
  }
  return true;
}

void check_writes_back(BlkDevice& disk, uint64_t sector, uint32_t length) {
  const uint64_t seed = read_tsc();
  fill(buffer(), length, seed);
  CHECK_EQ(disk.write(sector, buffer(), length), VIRTIO_BLK_S_OK);
  memset(buffer(), 0, length);
  CHECK_EQ(disk.read(sector, buffer(), length), VIRTIO_BLK_S_OK);
  CHECK(is_filled(buffer(), length, seed));
}

uint8_t send_segment(BlkDevice& disk, uint32_t type, uint64_t sector, uint32_t sectors,
                     uint32_t flags) {
  static virtio_blk_discard_write_zeroes segment;
  segment = {};
  segment.sector = sector;
  segment.num_sectors = sectors;
  segment.flags = flags;
  return disk.request(type, 0, &segment, sizeof(segment), false);
}

}  // namespace

void blk_config() {
  BlkDevice& disk = open_disk();
  CHECK_EQ(disk.capacity(), option_number("sectors", 2048));
  const uint8_t generation = disk.device().config_generation();
  CHECK_EQ(disk.capacity(), option_number("sectors", 2048));
  CHECK_EQ(disk.device().config_generation(), generation);  // nothing has changed
  // Any width, and what lies behind the fields reads as something without harm.
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < 8; ++i) bytes |= uint64_t{disk.device().config<uint8_t>(i)} << (8 * i);
  CHECK_EQ(bytes, disk.capacity());
  CHECK_EQ(disk.device().config<uint16_t>(0), disk.capacity() & 0xffff);
}

void blk_read() {
  BlkDevice& disk = open_disk();
  const uint64_t sectors[] = {0, 1, 7, 511, 1023};
  for (const uint64_t sector : sectors) {
    memset(buffer(), 0, kSectorSize);
    uint32_t used_length = 0;
    CHECK_EQ(disk.request(VIRTIO_BLK_T_IN, sector, buffer(), kSectorSize, true, &used_length),
             VIRTIO_BLK_S_OK);
    CHECK(sector_has_its_text(buffer(), sector));
    CHECK_EQ(used_length, kSectorSize + 1);
  }
  CHECK_EQ(disk.read(8, buffer(), 8 * kSectorSize), VIRTIO_BLK_S_OK);
  for (uint32_t i = 0; i < 8; ++i) CHECK(sector_has_its_text(buffer() + i * kSectorSize, 8 + i));

  // The same into buffers that are split at will, the header too (section 5.2.6.3: the framing is
  // the driver's choice).
  static virtio_blk_outhdr header;
  header = {VIRTIO_BLK_T_IN, 0, 3};
  static uint8_t status;
  status = kStatusUnwritten;
  memset(buffer(), 0, 2 * kSectorSize);
  auto* h = reinterpret_cast<uint8_t*>(&header);
  const Buffer parts[] = {readable(h, 5),
                          readable(h + 5, 11),
                          writable(buffer(), 100),
                          writable(buffer() + 100, 412),
                          writable(buffer() + 512, 512),
                          writable(&status, 1)};
  CHECK_EQ(disk.queue().submit_and_wait(parts, 6), 2 * kSectorSize + 1);
  CHECK_EQ(__atomic_load_n(&status, __ATOMIC_ACQUIRE), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), 3));
  CHECK(sector_has_its_text(buffer() + 512, 4));
}

void blk_write() {
  BlkDevice& disk = open_disk();
  check_writes_back(disk, kWriteSector, kSectorSize);
  check_writes_back(disk, kWriteSector + 8, 16 * kSectorSize);
  check_writes_back(disk, disk.capacity() - 1, kSectorSize);
  CHECK_EQ(disk.read(kWriteSector - 1, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), kWriteSector - 1));
}

void blk_flush() {
  BlkDevice& disk = open_disk(feature(VIRTIO_BLK_F_FLUSH));
  check_writes_back(disk, kWriteSector + 32, kSectorSize);
  CHECK_EQ(disk.request(VIRTIO_BLK_T_FLUSH, 0, nullptr, 0, false), VIRTIO_BLK_S_OK);
}

void blk_discard() {
  BlkDevice& disk = open_disk(feature(VIRTIO_BLK_F_DISCARD));
  CHECK(disk.device().config<uint32_t>(offsetof(virtio_blk_config, max_discard_sectors)) > 0);
  CHECK(disk.device().config<uint32_t>(offsetof(virtio_blk_config, max_discard_seg)) > 0);
  check_writes_back(disk, kWriteSector + 64, 2 * kSectorSize);
  const uint64_t seed = read_tsc();
  fill(buffer(), kSectorSize, seed);
  CHECK_EQ(disk.write(kWriteSector + 80, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_DISCARD, kWriteSector + 64, 16, 0), VIRTIO_BLK_S_OK);
  CHECK_EQ(disk.read(kWriteSector + 80, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(is_filled(buffer(), kSectorSize, seed));  // the neighbour is as it was
  // Section 5.2.6.2: beyond the end is an error; UNMAP and unknown flags are not for discard.
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_DISCARD, disk.capacity() - 1, 2, 0), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_DISCARD, ~uint64_t{0}, 2, 0), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_DISCARD, kWriteSector + 64, 1, 1), VIRTIO_BLK_S_UNSUPP);
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_DISCARD, kWriteSector + 64, 1, 2), VIRTIO_BLK_S_UNSUPP);
}

void blk_write_zeroes() {
  BlkDevice& disk = open_disk(feature(VIRTIO_BLK_F_WRITE_ZEROES));
  CHECK(disk.device().config<uint32_t>(offsetof(virtio_blk_config, max_write_zeroes_sectors)) > 0);
  for (uint32_t flags = 0; flags <= VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP; ++flags) {
    check_writes_back(disk, kWriteSector + 128, 3 * kSectorSize);
    CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_WRITE_ZEROES, kWriteSector + 128, 2, flags),
             VIRTIO_BLK_S_OK);
    uint64_t third = *reinterpret_cast<uint64_t*>(buffer() + 2 * kSectorSize);
    CHECK_EQ(disk.read(kWriteSector + 128, buffer(), 3 * kSectorSize), VIRTIO_BLK_S_OK);
    for (uint32_t i = 0; i < 2 * kSectorSize; i += 8) {
      CHECK_EQ(*reinterpret_cast<uint64_t*>(buffer() + i), 0);
    }
    CHECK_EQ(*reinterpret_cast<uint64_t*>(buffer() + 2 * kSectorSize), third);
  }
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_WRITE_ZEROES, disk.capacity(), 1, 0),
           VIRTIO_BLK_S_IOERR);
  CHECK_EQ(send_segment(disk, VIRTIO_BLK_T_WRITE_ZEROES, kWriteSector, 1, 2), VIRTIO_BLK_S_UNSUPP);
}

void blk_get_id() {
  BlkDevice& disk = open_disk();
  memset(buffer(), 0x55, VIRTIO_BLK_ID_BYTES);
  CHECK_EQ(disk.request(VIRTIO_BLK_T_GET_ID, 0, buffer(), VIRTIO_BLK_ID_BYTES, true),
           VIRTIO_BLK_S_OK);
  buffer()[VIRTIO_BLK_ID_BYTES] = 0;
  print("id \"%s\"\n", reinterpret_cast<const char*>(buffer()));
}

void blk_past_end() {
  BlkDevice& disk = open_disk();
  const uint64_t end = disk.capacity();
  CHECK_EQ(disk.read(end - 1, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK_EQ(disk.read(end, buffer(), kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.read(end - 1, buffer(), 2 * kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.write(end, buffer(), kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.write(end - 1, buffer(), 2 * kSectorSize), VIRTIO_BLK_S_IOERR);
  // Where sector * 512 does not fit in 64 bits, and where it wraps to a small number.
  CHECK_EQ(disk.read(~uint64_t{0}, buffer(), kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.read(uint64_t{1} << 55, buffer(), kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.write((uint64_t{1} << 55) + kWriteSector, buffer(), kSectorSize),
           VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.read(0, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), 0));
}

void blk_unsupported() {
  BlkDevice& disk = open_disk();
  CHECK_EQ(disk.request(0x4c455448, 0, buffer(), kSectorSize, true), VIRTIO_BLK_S_UNSUPP);
  CHECK_EQ(disk.request(0x4c455448, 0, nullptr, 0, false), VIRTIO_BLK_S_UNSUPP);
  CHECK_EQ(disk.read(1, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), 1));
}

// A disk that the config makes read-only says so, and fails every request that would change it.
void blk_read_only() {
  BlkDevice& disk = open_disk(feature(VIRTIO_BLK_F_RO));
  CHECK_EQ(disk.write(2, buffer(), kSectorSize), VIRTIO_BLK_S_IOERR);
  CHECK_EQ(disk.read(2, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), 2));
  const uint8_t zeroes = send_segment(disk, VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 0);
  CHECK(zeroes == VIRTIO_BLK_S_IOERR || zeroes == VIRTIO_BLK_S_UNSUPP);
  const uint8_t discard = send_segment(disk, VIRTIO_BLK_T_DISCARD, 2, 1, 0);
  CHECK(discard == VIRTIO_BLK_S_IOERR || discard == VIRTIO_BLK_S_UNSUPP);
  CHECK_EQ(disk.read(2, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK(sector_has_its_text(buffer(), 2));
  // The feature may not be refused into a writable disk.
  disk.device().start(0);
}

// With boot.on_reboot = "restart" a reset starts the machine again, as new but for its disks: the
// mark of the first boot is on the disk when the second one looks.
void reboot_once() {
  BlkDevice& disk = open_disk(feature(VIRTIO_BLK_F_FLUSH));
  const uint64_t sector = kWriteSector + 256;
  static const char mark[] = "rebooted once";
  CHECK_EQ(disk.read(sector, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  const bool marked = memcmp(buffer(), mark, sizeof(mark)) == 0;
  print("%s boot\n", marked ? "second" : "first");
  memset(buffer(), 0, kSectorSize);
  if (!marked) memcpy(buffer(), mark, sizeof(mark));
  CHECK_EQ(disk.write(sector, buffer(), kSectorSize), VIRTIO_BLK_S_OK);
  CHECK_EQ(disk.request(VIRTIO_BLK_T_FLUSH, 0, nullptr, 0, false), VIRTIO_BLK_S_OK);
  if (marked) return;
  out8(0xcf9, 0x06);
  wait_until([] { return false; }, kSoonMs);
  CHECK(false && "the machine reset");
}

}  // namespace virtio
