// Files that come out of a guest as a tar archive (POSIX.1-1988 ustar, and GNU's long names), on
// their way into a directory of the host.
//
// The guest is hostile. Written are regular files (hard links as copies) and directories only,
// below the directory, under the path that was asked for; no link is made or followed, no mode bit
// but "executable" taken over; there is a limit for bytes, for entries, for the depth and the
// length of names. A name that is not safe ends it; what is neither file nor directory is passed
// over.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace lethe {

inline constexpr size_t kArtifactEntriesMax = 10'000;
inline constexpr size_t kArtifactDepthMax = 32;
inline constexpr size_t kArtifactPathMax = 4095;

// The path as it lies below the directory ("var/log/x"); empty if it must not be written: it is
// empty, has a ".." or a control character, or is too long or too deep.
[[nodiscard]] std::string safe_artifact_path(std::string_view path);

// Threading: one thread.
class ArtifactWriter {
 public:
  // `directory` exists. `path` is what was asked for, as safe_artifact_path() gives it; `bytes_max`
  // for all its files.
  [[nodiscard]] static Result<std::unique_ptr<ArtifactWriter>> create(const std::string& directory,
                                                                      std::string path,
                                                                      uint64_t bytes_max);

  // The next bytes of the archive. False: it is over, by an error.
  bool feed(std::string_view bytes);
  // The archive's end has come. What was wrong, one line; empty: all is written.
  [[nodiscard]] std::string finish();
  [[nodiscard]] uint64_t bytes() const { return x_written; }
  [[nodiscard]] size_t passed_over() const { return x_passed_over; }

 private:
  ArtifactWriter() = default;
  void take_header(std::string_view block);
  void take_entry(char type, std::string name, const std::string& link, uint64_t size,
                  bool executable);
  void begin_file(const std::string& path, bool executable);
  [[nodiscard]] UniqueFd open_parents(const std::string& path, bool whole);
  void copy_file(const std::string& from, const std::string& to);
  void write(std::string_view bytes);
  void fail(std::string what);

  enum class Part : uint8_t { kHeader, kContent, kLongName, kLongLink, kSkip, kPadding, kEnd };
  UniqueFd x_directory;
  std::string x_path;
  uint64_t x_bytes_max = 0;
  uint64_t x_written = 0;
  uint64_t x_trailing = 0;  // bytes behind the end
  size_t x_entries = 0;
  size_t x_passed_over = 0;
  Part x_part = Part::kHeader;
  std::string x_block;      // of a header, as far as it has come
  uint64_t x_left = 0;      // of the entry's content
  uint64_t x_padding = 0;   // after it
  std::string x_long_name;  // of the next entry
  std::string x_long_link;  // likewise
  UniqueFd x_file;
  std::string x_error;
};

}  // namespace lethe
