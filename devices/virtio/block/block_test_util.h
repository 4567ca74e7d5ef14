// What the block tests share: a disk in a temporary file, and a driver's requests to it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "devices/virtio/block/block.h"
#include "devices/virtio/fake_transport.h"

namespace lethe {

using Bytes = std::vector<uint8_t>;

inline Bytes random_bytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// A file that goes away with the object. On disk, not in memory, so that O_DIRECT works.
class TempDisk {
 public:
  explicit TempDisk(const Bytes& content) {
    char path[] = "/var/tmp/lethe-disk-XXXXXX";
    UniqueFd fd(::mkstemp(path));
    LETHE_ASSERT(fd.valid());
    x_path = path;
    LETHE_ASSERT(::pwrite(fd.get(), content.data(), content.size(), 0) ==
                 static_cast<ssize_t>(content.size()));
  }
  explicit TempDisk(size_t size) : TempDisk(Bytes()) { resize(size); }
  ~TempDisk() { ::unlink(x_path.c_str()); }
  TempDisk(const TempDisk&) = delete;
  TempDisk& operator=(const TempDisk&) = delete;

  [[nodiscard]] const std::string& path() const { return x_path; }
  void resize(size_t size) const {
    LETHE_ASSERT(::truncate(x_path.c_str(), static_cast<off_t>(size)) == 0);
  }
  [[nodiscard]] Bytes content() const {
    const UniqueFd fd(::open(x_path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status{};
    LETHE_ASSERT(::fstat(fd.get(), &status) == 0);
    Bytes bytes(static_cast<size_t>(status.st_size));
    LETHE_ASSERT(::pread(fd.get(), bytes.data(), bytes.size(), 0) == status.st_size);
    return bytes;
  }

 private:
  std::string x_path;
};

// A guest with a disk. Status -1 stands for a request that was not completed in time.
class BlockGuest {
 public:
  static constexpr GuestMemory::Range kRam{.start = GuestAddr{0}, .size = 256 * kMiB};

  explicit BlockGuest(const BlockOptions& options, uint16_t queue_size = 64,
                      uint64_t features = ~uint64_t{0})
      : x_device(BlockDevice::open(options).value()), x_guest(*x_memory, *x_device) {
    x_guest.start(features, queue_size);
  }

  FakeTransport& transport() { return x_guest; }
  FakeDriver& driver(uint16_t queue = 0) { return x_guest.driver(queue); }
  BlockDevice& device() { return *x_device; }
  const BlockCounters& counters() const { return x_device->counters(); }
  GuestHeap& heap() { return x_guest.heap(); }
  GuestMemory& memory() { return *x_memory; }

  // Buffers of a request: header, data (cut into `pieces`), status.
  struct Request {
    std::vector<FakeBuffer> buffers;
    GuestAddr data;
    GuestAddr status;
    size_t bytes = 0;
  };
  Request make(uint32_t type, uint64_t sector, size_t bytes, bool writable, size_t pieces = 1,
               uint64_t alignment = 4096) {
    const virtio_blk_outhdr header{.type = type, .ioprio = 0, .sector = sector};
    Request request;
    request.bytes = bytes;
    request.buffers.push_back({put(&header, sizeof header), sizeof header, false});
    request.data = heap().alloc(bytes + alignment, 4096);
    if (alignment < 4096) request.data.value += alignment;
    for (size_t i = 0; i < pieces && bytes > 0; ++i) {
      const size_t from = bytes * i / pieces;
      const size_t to = bytes * (i + 1) / pieces;
      request.buffers.push_back(
          {GuestAddr{request.data.value + from}, static_cast<uint32_t>(to - from), writable});
    }
    request.status = heap().alloc(1);
    EXPECT_TRUE(x_memory->store(request.status, uint8_t{0xee}));
    request.buffers.push_back({request.status, 1, true});
    return request;
  }
  uint8_t status(const Request& request) { return *x_memory->load<uint8_t>(request.status); }
  Bytes data(const Request& request) {
    Bytes bytes(request.bytes);
    EXPECT_TRUE(x_memory->read(request.data, bytes));
    return bytes;
  }

  // Sends it and waits: the status, or -1.
  int run(const Request& request, FakeDriver::Table table = FakeDriver::Table::kDirect,
          uint16_t queue = 0) {
    x_written = x_guest.request(queue, request.buffers, table);
    return x_written ? status(request) : -1;
  }
  // The bytes the device said it wrote, of the last request.
  [[nodiscard]] std::optional<uint32_t> written() const { return x_written; }

  int read(uint64_t sector, Bytes& to, size_t pieces = 1, uint64_t alignment = 4096) {
    const Request request = make(VIRTIO_BLK_T_IN, sector, to.size(), true, pieces, alignment);
    const int result = run(request);
    to = data(request);
    return result;
  }
  int write(uint64_t sector, const Bytes& from, size_t pieces = 1, uint64_t alignment = 4096) {
    const Request request = make(VIRTIO_BLK_T_OUT, sector, from.size(), false, pieces, alignment);
    EXPECT_TRUE(x_memory->write(request.data, from));
    return run(request);
  }
  int flush() { return run(make(VIRTIO_BLK_T_FLUSH, 0, 0, false)); }
  int range(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags = 0) {
    const virtio_blk_discard_write_zeroes range{
        .sector = sector, .num_sectors = sectors, .flags = flags};
    const Request request = make(type, 0, sizeof range, false);
    EXPECT_TRUE(x_memory->store(request.data, range));
    return run(request);
  }
  virtio_blk_config config() {
    uint8_t bytes[sizeof(virtio_blk_config)];
    x_device->read_config(0, bytes);
    virtio_blk_config result;
    std::memcpy(&result, bytes, sizeof result);
    return result;
  }

 private:
  GuestAddr put(const void* object, size_t size) {
    // SAFETY: the object's bytes.
    return heap().put({static_cast<const uint8_t*>(object), size});
  }
  std::unique_ptr<GuestMemory> x_memory = GuestMemory::create({&kRam, 1}, {}).value();
  std::unique_ptr<BlockDevice> x_device;
  FakeTransport x_guest;
  std::optional<uint32_t> x_written;
};

}  // namespace lethe
