#include "vmm/image/image_failure.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include "vmm/config_schema.h"

namespace lethe {
namespace {

struct Known {
  const char* pattern;  // its first group goes into `text`
  const char* text;
};

// The first that matches counts: a full disk also makes fetching fail.
constexpr Known kKnown[] = {
    {"(?i)(No space left on device|disk quota exceeded)",
     "{}: the image's directory and $TMPDIR (or /var/tmp) need room for the system three times"},
    {"(Could not allocate (?:block|inode)) in ext2 filesystem|"
     "(?:while populating file system).*",
     "{}: the system is larger than the image; take a larger --size"},
    {"(Unable to locate package \\S+)", "{}: see --package and --suite"},
    {"(Package '?[^' ]+'? has no installation candidate)", "{}: see --package and --suite"},
    {"(Version '[^']*' for '[^']*' was not found)", "{}: see --package"},
    {"(does not have a Release file)", "the archive {}: see --suite and --mirror"},
    {"((?:Could not (?:resolve|connect to)|Temporary failure resolving|Connection failed|"
     "Unable to connect|Cannot initiate the connection|Connection timed out)[^\\n]*)",
     "{}: the archive can't be reached; is the network up? --mirror takes another one"},
    {"((?:Failed to fetch|404  Not Found)[^\\n]*)",
     "{}: the archive does not have it; see --suite and --mirror"},
    {"((?:NO_PUBKEY|The following signatures)[^\\n]*)",
     "{}: install the archive's keys (debian-archive-keyring)"},
    {"([^\\n]*(?:newuidmap|/etc/subuid|Operation not permitted.*unshare|unshare\\()[^\\n]*)",
     "{}: this user may not make user namespaces; install uidmap, or fakechroot and fakeroot"},
};

// mmdebstrap's and apt's errors begin with "E: ", and the first one tells most.
std::string_view telling_line(std::string_view messages) {
  static const re2::RE2 kError("(?m)^((?:E:|mke2fs:|tar:|fakeroot:|mmdebstrap:) [^\\n]*)$");
  re2::StringPiece line;
  if (re2::RE2::PartialMatch(re2::StringPiece(messages.data(), messages.size()), kError, &line))
    return {line.data(), line.size()};
  while (messages.ends_with('\n')) messages.remove_suffix(1);
  const size_t newline = messages.rfind('\n');
  return newline == std::string_view::npos ? messages : messages.substr(newline + 1);
}

}  // namespace

std::string explain_failure(std::string_view tool, std::string_view how,
                            std::string_view messages) {
  for (const Known& known : kKnown) {
    re2::StringPiece group;
    if (!re2::RE2::PartialMatch(re2::StringPiece(messages.data(), messages.size()), known.pattern,
                                &group))
      continue;
    const std::string said = printable({group.data(), group.size()});
    return fmt::format("{} failed: {}", tool, fmt::format(fmt::runtime(known.text), said));
  }
  const std::string_view line = telling_line(messages);
  if (line.empty()) return fmt::format("{} failed: {}, and said nothing", tool, how);
  return fmt::format("{} failed ({}): {}", tool, how, printable(line));
}

}  // namespace lethe
