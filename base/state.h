// How the state of a part of a VM is written down for a snapshot, and read back: numbers in little
// endian and byte strings with a length, in named sections that nest.
//
// What is read comes from a file that anybody may have changed: a reader never looks past the end
// of its section. The first thing that does not fit makes it fail for good; every read after that
// gives zeros, so a part reads all it wants and asks once, with check(). Numbers that it will use
// as sizes, indices or addresses it must still validate itself, as if the guest had sent them.
//
// Threading: none of its own.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace lethe {

class StateWriter {
 public:
  // Keeps at most `bytes_max`: what goes beyond makes it too long for good, and nothing more is
  // kept.
  explicit StateWriter(uint64_t bytes_max = UINT64_MAX) : x_bytes_max(bytes_max) {}

  template <std::unsigned_integral T>
  void number(T value) {
    if (!has_room(sizeof value)) return;
    for (size_t i = 0; i < sizeof value; ++i)
      x_bytes.push_back(static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i)));
  }
  void boolean(bool value) { number(static_cast<uint8_t>(value)); }
  // At most 4 GiB - 1.
  void bytes(std::span<const uint8_t> value);
  void text(std::string_view value);
  // Everything written until `end_section` belongs to the section. Names are told apart by the
  // reader: a section of another name, or of another version, is an error there.
  void begin_section(std::string_view name, uint32_t version);
  void end_section();

  [[nodiscard]] bool too_long() const { return x_too_long; }
  // All that was written. No section is open, and it is not too long.
  [[nodiscard]] std::vector<uint8_t> take();

 private:
  [[nodiscard]] bool has_room(size_t count);
  uint64_t x_bytes_max;
  bool x_too_long = false;
  std::vector<uint8_t> x_bytes;
  std::vector<size_t> x_open;  // where the lengths of the open sections are
};

class StateReader {
 public:
  // `from` must outlive the reader.
  explicit StateReader(std::span<const uint8_t> from) : x_left(from) {}

  template <std::unsigned_integral T>
  [[nodiscard]] T number() {
    const std::span<const uint8_t> raw = take(sizeof(T));
    uint64_t value = 0;
    for (size_t i = 0; i < raw.size(); ++i) value |= static_cast<uint64_t>(raw[i]) << (8 * i);
    return static_cast<T>(value);
  }
  // 0 or 1; everything else is an error.
  [[nodiscard]] bool boolean();
  // At most `max` bytes; a longer string is an error. The span is of `from`.
  [[nodiscard]] std::span<const uint8_t> bytes(size_t max);
  [[nodiscard]] std::string text(size_t max);
  // Exactly to.size() bytes.
  void bytes_into(std::span<uint8_t> to);
  // Enters the next section, which must have this name and version.
  void begin_section(std::string_view name, uint32_t version);
  // Leaves it. Something left over in it is an error.
  void end_section();

  // What a part found wrong with what it read.
  void fail(std::string why);
  [[nodiscard]] bool ok() const { return x_error.empty(); }
  // kConfig: one line that names the section: "snapshot: in 'virtio-block': ...".
  [[nodiscard]] Result<> check() const;

 private:
  [[nodiscard]] std::span<const uint8_t> take(size_t count);
  struct Section {
    std::string name;
    std::span<const uint8_t> rest;  // of the section around it
  };
  std::span<const uint8_t> x_left;
  std::vector<Section> x_open;
  std::string x_error;
};

}  // namespace lethe
