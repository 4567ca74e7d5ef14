#include "vmm/check/artifacts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <optional>
#include <utility>

#include "base/file_bytes.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr size_t kBlock = 512;
constexpr uint64_t kSkippedBytesMax = 1 << 20;  // of an entry that is no file; after the end

// ustar's header, by offset and size: POSIX.1-2017, pax, "ustar Interchange Format".
struct Field {
  size_t at;
  size_t size;
};
constexpr Field kName{0, 100}, kMode{100, 8}, kSize{124, 12}, kChecksum{148, 8}, kMagic{257, 5},
    kPrefix{345, 155}, kLink{157, 100};
constexpr size_t kTypeAt = 156;

std::string_view text_at(std::string_view block, Field field) {
  const std::string_view whole = block.substr(field.at, field.size);
  return whole.substr(0, whole.find('\0'));
}

// Octal digits between spaces; larger numbers, which GNU's tar has in binary, are above any limit
// here.
std::optional<uint64_t> octal_at(std::string_view block, Field field) {
  std::string_view text = text_at(block, field);
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  if (text.empty()) return std::nullopt;
  uint64_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '7') return std::nullopt;
    number = number * 8 + static_cast<uint64_t>(c - '0');
  }
  return number;
}

bool checksum_ok(std::string_view block) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    const bool own = i >= kChecksum.at && i < kChecksum.at + kChecksum.size;
    sum += own ? ' ' : static_cast<unsigned char>(block[i]);
  }
  return octal_at(block, kChecksum) == sum;
}

}  // namespace

std::string safe_artifact_path(std::string_view path) {
  if (path.size() > kArtifactPathMax) return {};
  std::string safe;
  size_t depth = 0;
  while (!path.empty()) {
    const std::string_view part = path.substr(0, path.find('/'));
    path.remove_prefix(std::min(path.size(), part.size() + 1));
    if (part.empty() || part == ".") continue;
    if (part == ".." || part.size() > NAME_MAX || ++depth > kArtifactDepthMax) return {};
    for (const char c : part)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return {};
    safe += safe.empty() ? "" : "/";
    safe += part;
  }
  return safe;
}

Result<std::unique_ptr<ArtifactWriter>> ArtifactWriter::create(const std::string& directory,
                                                               std::string path,
                                                               uint64_t bytes_max) {
  std::unique_ptr<ArtifactWriter> writer(new ArtifactWriter);
  writer->x_directory.reset(
      ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!writer->x_directory.valid())
    return host_error("'{}': {}", printable(directory), errno_text(errno));
  writer->x_path = std::move(path);
  writer->x_bytes_max = bytes_max;
  return writer;
}

void ArtifactWriter::fail(std::string what) {
  if (x_error.empty()) x_error = std::move(what);
  x_part = Part::kEnd;
  x_file.reset();
}

bool ArtifactWriter::feed(std::string_view bytes) {
  while (!bytes.empty() && x_part != Part::kEnd) {
    if (x_part == Part::kHeader) {
      const size_t taken = std::min(bytes.size(), kBlock - x_block.size());
      x_block.append(bytes.substr(0, taken));
      bytes.remove_prefix(taken);
      if (x_block.size() == kBlock) take_header(std::exchange(x_block, {}));
      continue;
    }
    uint64_t& left = x_part == Part::kPadding ? x_padding : x_left;
    const std::string_view piece = bytes.substr(0, std::min<uint64_t>(bytes.size(), left));
    bytes.remove_prefix(piece.size());
    left -= piece.size();
    if (x_part == Part::kContent) write(piece);
    if (x_part == Part::kLongName) x_long_name.append(piece);
    if (x_part == Part::kLongLink) x_long_link.append(piece);
    if (left > 0 || x_part == Part::kEnd) continue;
    x_file.reset();
    if (x_part != Part::kPadding && x_padding > 0)
      x_part = Part::kPadding;
    else
      x_part = Part::kHeader;
  }
  x_trailing += bytes.size();
  if (x_trailing > kSkippedBytesMax) fail("the archive does not end at its end");
  return x_error.empty();
}

void ArtifactWriter::take_header(std::string_view block) {
  if (block.find_first_not_of('\0') == std::string_view::npos) {
    x_part = Part::kEnd;  // an empty block ends the archive
    return;
  }
  const auto size = octal_at(block, kSize);
  if (!checksum_ok(block) || !size) return fail("what the guest sent is no tar archive");
  if (++x_entries > kArtifactEntriesMax)
    return fail(fmt::format("more than {} files", kArtifactEntriesMax));
  // What GNU's long name and long link say is for the entry behind both.
  const char type = block[kTypeAt];
  const bool is_long = type == 'L' || type == 'K';
  std::string name = is_long ? std::string() : std::exchange(x_long_name, {});
  name = name.substr(0, name.find('\0'));
  if (name.empty()) {
    const std::string_view prefix = text_at(block, kPrefix);
    // GNU's own format has other things there, and another magic's end.
    const bool posix = block.substr(kMagic.at, 6) == std::string_view("ustar\0", 6);
    if (posix && !prefix.empty()) name = std::string(prefix) + "/";
    name += text_at(block, kName);
  }
  std::string link = is_long ? std::string() : std::exchange(x_long_link, {});
  link = link.substr(0, link.find('\0'));
  if (link.empty()) link = text_at(block, kLink);
  x_left = *size;
  x_padding = (kBlock - *size % kBlock) % kBlock;
  const auto mode = octal_at(block, kMode).value_or(0);
  take_entry(type, std::move(name), link, *size, (mode & 0100) != 0);
  // An entry without content has nothing that would end it.
  if (x_part != Part::kEnd && x_left == 0) {
    x_file.reset();
    x_part = Part::kHeader;
  }
}

void ArtifactWriter::take_entry(char type, std::string name, const std::string& link, uint64_t size,
                                bool executable) {
  x_part = Part::kSkip;
  if (type == 'L' || type == 'K') {  // GNU: the content is the next entry's name, or link
    if (size > kArtifactPathMax + 1) return fail("a name is too long");
    x_part = type == 'L' ? Part::kLongName : Part::kLongLink;
    (type == 'L' ? x_long_name : x_long_link).clear();
    return;
  }
  const bool file = type == '0' || type == '\0' || type == '7';
  if (!file && size > kSkippedBytesMax) return fail("an entry that is no file has content");
  if (type == 'x' || type == 'g') return;  // POSIX: more about the next one
  const std::string path = safe_artifact_path(name);
  if (path.empty() || (path != x_path && !path.starts_with(x_path + "/")))
    return fail(fmt::format("the guest sent '{}', which is not safe, or was not asked for",
                            printable(name)));
  if (type == '5') {
    if (!open_parents(path, true).valid())
      fail(fmt::format("'{}': {}", printable(path), errno_text(errno)));
    return;
  }
  if (type == '1') return copy_file(safe_artifact_path(link), path);
  if (!file) {
    ++x_passed_over;
    return;
  }
  if (size > x_bytes_max - x_written)
    return fail(fmt::format("more than {} (check.artifacts_max)", format_size(x_bytes_max)));
  begin_file(path, executable);
}

// The directory that `path` is in (or that it is: `whole`), made if need be. Invalid: errno says.
UniqueFd ArtifactWriter::open_parents(const std::string& path, bool whole) {
  UniqueFd directory(::fcntl(x_directory.get(), F_DUPFD_CLOEXEC, 0));
  std::string_view rest = path;
  while (directory.valid()) {
    const size_t slash = rest.find('/');
    if (rest.empty() || (slash == std::string_view::npos && !whole)) return directory;
    const std::string part(rest.substr(0, slash));
    rest.remove_prefix(std::min(rest.size(), part.size() + 1));
    if (::mkdirat(directory.get(), part.c_str(), 0777) != 0 && errno != EEXIST) return UniqueFd();
    directory.reset(
        ::openat(directory.get(), part.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  }
  return directory;
}

void ArtifactWriter::begin_file(const std::string& path, bool executable) {
  const UniqueFd parent = open_parents(path, false);
  const std::string name = path.substr(path.rfind('/') + 1);  // npos + 1 is 0
  if (parent.valid())
    x_file.reset(::openat(parent.get(), name.c_str(),
                          O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                          executable ? 0777 : 0666));
  if (!x_file.valid()) return fail(fmt::format("'{}': {}", printable(path), errno_text(errno)));
  x_part = Part::kContent;
}

// tar writes a file that it meets again as a link to what it wrote before. Here it is a copy, since
// the host makes no links.
void ArtifactWriter::copy_file(const std::string& from, const std::string& to) {
  if (from.empty() || from == to || (from != x_path && !from.starts_with(x_path + "/")))
    return fail(fmt::format("'{}' is linked to what was not asked for", printable(to)));
  const UniqueFd parent = open_parents(from, false);
  const std::string name = from.substr(from.rfind('/') + 1);
  const UniqueFd source(
      parent.valid() ? ::openat(parent.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
                     : -1);
  struct stat status{};
  if (!source.valid() || ::fstat(source.get(), &status) != 0 || !S_ISREG(status.st_mode))
    return fail(fmt::format("'{}' is linked to what is no file", printable(to)));
  if (static_cast<uint64_t>(status.st_size) > x_bytes_max - x_written)
    return fail(fmt::format("more than {} (check.artifacts_max)", format_size(x_bytes_max)));
  begin_file(to, (status.st_mode & 0100) != 0);
  std::array<char, 65536> chunk;
  while (x_file.valid()) {
    const ssize_t got = ::read(source.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    write({chunk.data(), static_cast<size_t>(got)});
  }
  if (x_part != Part::kEnd) x_part = Part::kSkip;  // the entry's own content: there is none
}

void ArtifactWriter::write(std::string_view bytes) {
  x_written += bytes.size();
  if (const auto wrote = write_all(x_file.get(), bytes); !wrote)
    fail(fmt::format("cannot write it: {}", wrote.error().text));
}

std::string ArtifactWriter::finish() {
  x_file.reset();
  if (!x_error.empty()) return x_error;
  if (x_part != Part::kEnd && (x_part != Part::kHeader || !x_block.empty()))
    return "the archive ends in the middle of a file";
  return {};
}

}  // namespace lethe
