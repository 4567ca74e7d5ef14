#include "memory/chunk_mover.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>

#include "base/log.h"

namespace lethe {
namespace {

class UserfaultCarrier : public ChunkCarrier {
 public:
  explicit UserfaultCarrier(const Userfault& userfault) : x_userfault(userfault) {}
  MoveOutcome carry_out(uint8_t* guest, uint8_t* slot) override {
    return x_userfault.move(slot, guest, kChunkBytes);
  }
  MoveOutcome carry_in(uint8_t* slot, uint8_t* guest) override {
    return x_userfault.move(guest, slot, kChunkBytes);
  }
  [[nodiscard]] ChunkMover kind() const override { return ChunkMover::kUserfaultMove; }

 private:
  const Userfault& x_userfault;
};

uint64_t mappings_max() {
  unsigned long value = 0;
  std::FILE* const file = std::fopen("/proc/sys/vm/max_map_count", "re");
  if (file == nullptr) return 65530;
  if (std::fscanf(file, "%lu", &value) != 1) value = 65530;
  std::fclose(file);
  return value;
}

class MremapCarrier : public ChunkCarrier {
 public:
  MremapCarrier(const Userfault& userfault, PoolOps& ops, bool huge_pages)
      : x_userfault(userfault), x_ops(ops), x_huge_pages(huge_pages) {}

  MoveOutcome carry_out(uint8_t* guest, uint8_t* slot) override {
    // The slot is empty, but for its mapping.
    const int error = x_ops.remap(guest, slot, kChunkBytes);
    if (error != 0) mend(slot, "the scrub pool");
    return {.moved = error == 0 ? kChunkBytes : 0, .error = error};
  }

  MoveOutcome carry_in(uint8_t* slot, uint8_t* guest) override {
    const int error = x_ops.remap(slot, guest, kChunkBytes);
    if (error != 0) mend(guest, "guest memory");
    x_mappings.fetch_add(2, std::memory_order_relaxed);  // it, and what is left behind it
    // The new mapping has lost the registration; nothing in it is missing yet.
    (void)x_userfault.watch_missing(guest, kChunkBytes);
    return {.moved = error == 0 ? kChunkBytes : 0, .error = error};
  }

  [[nodiscard]] bool usable() const override {
    return x_mappings.load(std::memory_order_relaxed) < x_mappings_max;
  }
  [[nodiscard]] ChunkMover kind() const override { return ChunkMover::kMremap; }

 private:
  // Maps what a failed mremap may have unmapped; where it has not, MAP_FIXED_NOREPLACE refuses.
  // A hole must not stay: somebody else's mapping could come to lie in it.
  void mend(uint8_t* target, const char* what) const {
    if (x_ops.map_if_free(target, kChunkBytes) != 0) return;
    LETHE_LOG_LIMITED(LogModule::kMemory, "mremap failed half-way; 2 MiB of {} were mapped anew",
                      what);
    (void)::madvise(target, kChunkBytes, x_huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    (void)::madvise(target, kChunkBytes, MADV_DONTDUMP);
  }

  const Userfault& x_userfault;
  PoolOps& x_ops;
  const bool x_huge_pages;
  std::atomic<uint64_t> x_mappings{0};  // at most: giving a chunk to the same place again adds none
  const uint64_t x_mappings_max = mappings_max() / 4;
};

// Four pages: two of a guest's, two of an arena's.
class Trial {
 public:
  explicit Trial(PoolOps& ops) : x_ops(ops) {
    void* const area = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return;
    x_area = static_cast<uint8_t*>(area);
    // Small pages: moving one must not split a huge one.
    (void)::madvise(x_area, kSize, MADV_NOHUGEPAGE);
  }
  ~Trial() {
    if (x_area != nullptr) ::munmap(x_area, kSize);
  }
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  // 0 or an errno value; EIO: the kernel says it worked, and it did not.
  int move() {
    if (x_area == nullptr) return ENOMEM;
    int error = 0;
    const auto userfault = Userfault::open(x_ops, true, error);
    if (!userfault) return error;
    uint8_t* const arena = x_area + kSize / 2;
    *x_area = 1;
    if ((error = userfault->watch_missing(x_area, kSize / 2)) != 0) return error;
    if ((error = userfault->watch_nothing(arena, kSize / 2)) != 0) return error;
    if ((error = userfault->move(arena, x_area, kPageBytes).error) != 0) return error;
    if (*arena != 1) return EIO;
    *arena = 2;
    if ((error = userfault->move(x_area, arena, kPageBytes).error) != 0) return error;
    return *x_area == 2 ? 0 : EIO;
  }

  int remap() {
    if (x_area == nullptr) return ENOMEM;
    int error = 0;
    const auto userfault = Userfault::open(x_ops, false, error);
    if (!userfault) return error;
    uint8_t* const arena = x_area + kSize / 2;
    *x_area = 1;
    if ((error = userfault->watch_missing(x_area, kSize / 2)) != 0) return error;
    if ((error = x_ops.remap(x_area, arena, kPageBytes)) != 0) return error;
    if (*arena != 1) return EIO;
    *arena = 2;
    if ((error = x_ops.remap(arena, x_area, kPageBytes)) != 0) return error;
    return *x_area == 2 ? 0 : EIO;
  }

 private:
  static constexpr uint64_t kSize = 4 * kPageBytes;
  PoolOps& x_ops;
  uint8_t* x_area = nullptr;
};

}  // namespace

std::unique_ptr<ChunkCarrier> make_userfault_carrier(const Userfault& userfault) {
  return std::make_unique<UserfaultCarrier>(userfault);
}

std::unique_ptr<ChunkCarrier> make_mremap_carrier(const Userfault& userfault, PoolOps& ops,
                                                  bool huge_pages) {
  return std::make_unique<MremapCarrier>(userfault, ops, huge_pages);
}

ChunkMoverProbe probe_chunk_mover(PoolOps& ops) {
  const int moved = Trial(ops).move();
  if (moved == 0)
    return {ChunkMover::kUserfaultMove,
            "UFFDIO_MOVE works: freed memory moves to the pool and back"};
  const int remapped = Trial(ops).remap();
  if (remapped == 0)
    return {ChunkMover::kMremap,
            fmt::format("UFFDIO_MOVE does not work here ({}; Linux 6.8 has it); mremap does",
                        errno_text(moved))};
  if (remapped == EPERM || remapped == EACCES)
    return {ChunkMover::kNone,
            fmt::format("userfaultfd is not permitted ({}), so freed memory is discarded at once; "
                        "give access to /dev/userfaultfd or set vm.unprivileged_userfaultfd = 1",
                        errno_text(remapped))};
  return {ChunkMover::kNone,
          fmt::format("neither UFFDIO_MOVE ({}) nor mremap ({}) works here, so freed memory is "
                      "discarded at once",
                      errno_text(moved), errno_text(remapped))};
}

ChunkMoverProbe probe_chunk_mover() {
  static const ChunkMoverProbe probe = probe_chunk_mover(PoolOps::system());
  return probe;
}

}  // namespace lethe
