// Bytes that a kernel image is read from: a file, or a buffer it was unpacked into.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills `to` from `offset`. An error of class kConfig names the source if it is shorter.
  [[nodiscard]] virtual Result<> read(uint64_t offset, std::span<uint8_t> to) const = 0;
  [[nodiscard]] virtual uint64_t size() const = 0;
  [[nodiscard]] virtual const std::string& name() const = 0;
};

// A regular file. `what` names its role in errors: "boot.kernel".
class FileSource final : public ByteSource {
 public:
  [[nodiscard]] static Result<FileSource> open(const std::string& path, const char* what);
  [[nodiscard]] Result<> read(uint64_t offset, std::span<uint8_t> to) const override;
  [[nodiscard]] uint64_t size() const override { return x_size; }
  [[nodiscard]] const std::string& name() const override { return x_name; }

 private:
  FileSource(UniqueFd fd, uint64_t size, std::string name)
      : x_fd(std::move(fd)), x_size(size), x_name(std::move(name)) {}
  UniqueFd x_fd;
  uint64_t x_size;
  std::string x_name;  // "boot.kernel 'path'"
};

class BufferSource final : public ByteSource {
 public:
  // `bytes` must outlive the source.
  BufferSource(std::span<const uint8_t> bytes, std::string name)
      : x_bytes(bytes), x_name(std::move(name)) {}
  [[nodiscard]] Result<> read(uint64_t offset, std::span<uint8_t> to) const override;
  [[nodiscard]] uint64_t size() const override { return x_bytes.size(); }
  [[nodiscard]] const std::string& name() const override { return x_name; }

 private:
  std::span<const uint8_t> x_bytes;
  std::string x_name;
};

}  // namespace lethe
