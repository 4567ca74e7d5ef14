// The cases of balloon.elf, by theme.
#pragma once

#include <stdint.h>

#include "kernel/virtio/balloon.h"

namespace balloon {

inline constexpr uint64_t k2MiB = uint64_t{2} << 20;
inline constexpr unsigned kOrder2MiB = 9;

// A block of 2 MiB is written and read at a few places only: its first word, its last, and words of
// pages in between. What the words should be follows from the tag.
void write_block(uint64_t address, uint64_t tag);
// The same words, all of `poison` in every 4 bytes: what a kernel that poisons does at free().
void poison_block(uint64_t address, uint32_t poison);
// Fails a CHECK unless all words are those that write_block() wrote.
void check_block(uint64_t address, uint64_t tag);
// The same for [begin, end) of the block's bytes only, multiples of 4 KiB.
void check_block_part(uint64_t address, uint64_t tag, uint64_t begin, uint64_t end);
// Fails a CHECK unless the block reads as memory that was returned: `poison` in every 4 bytes. With
// `old=ok` on the command line (policy lazy), each word may be the old one as well.
void check_returned(uint64_t address, uint64_t old_tag, uint32_t poison);
void check_returned_part(uint64_t address, uint64_t old_tag, uint32_t poison, uint64_t begin,
                         uint64_t end);

// The balloon, opened the first time; what it must have fails a CHECK if it has not.
kernel::BalloonDriver& driver();

// balloon_queues.cc
void negotiation();
void inflate();
void inflate_single_pages();
void statistics();
void reporting();
void reporting_parts();
void hinting();
void poison();
void reset_with_reports();

// balloon_return.cc
void memory_return();
void host_driven();
void isolation_bound();

// balloon_smp.cc: needs a second CPU.
void return_beside_a_busy_cpu();

}  // namespace balloon
