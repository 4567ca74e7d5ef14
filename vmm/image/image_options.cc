#include "vmm/image/image_options.h"

#include <re2/re2.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "vmm/config.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

constexpr size_t kKeyFileBytesMax = 64 << 10;

// RFC 1123: labels of letters, digits and hyphens; 64 is Linux's limit for the whole.
constexpr const char* kHostname =
    "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*";
// Debian policy 5.6.1, and what apt takes behind a name: an architecture, a version, a suite.
constexpr const char* kPackage = "[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?";
constexpr const char* kSuite = "[a-z][a-z0-9-]*(\\.[a-z0-9-]+)*";
// apt's methods that need no more than a URL.
constexpr const char* kMirror = "(https?|ftp)://[A-Za-z0-9\\[][!-~]*|(file|copy):///[!-~]+";

bool matches(const std::string& text, const char* pattern) {
  return re2::RE2::FullMatch(text, pattern);
}

Result<> check_password(const std::string& password) {
  const bool control = std::any_of(password.begin(), password.end(),
                                   [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (password.empty() || password.size() > kPasswordBytesMax || control)
    return config_error("the password must have 1 to {} bytes and no control characters",
                        kPasswordBytesMax);
  return {};
}

Result<> check_packages(const ImageOptions& options) {
  std::vector<std::string> names = options.packages;
  names.push_back(options.kernel);
  for (const std::string& name : names)
    if (!matches(name, kPackage))
      return config_error("'{}' is no package's name: such as 'nginx', or 'nginx=1.22.1-9'",
                          printable(name));
  return {};
}

}  // namespace

std::string vm_name_of(const std::string& out) {
  std::string name = std::filesystem::path(out).stem().string();
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '.') c = '-';
  }
  const size_t begin = name.find_first_not_of(".-");
  name = begin == std::string::npos ? "" : name.substr(begin, 63);
  while (name.ends_with('.') || name.ends_with('-')) name.pop_back();
  return valid_vm_name(name) ? name : "debian";
}

Result<> check_image_options(const ImageOptions& options) {
  // The name goes into a config: no control characters, UTF-8; and it gets suffixes.
  const std::string name = std::filesystem::path(options.out).filename().string();
  if (name.empty() || name == "." || name == ".." || printable(name) != name)
    return config_error("OUT '{}' is no name for a file to be made", printable(options.out));
  if (!matches(options.suite, kSuite))
    return config_error("--suite '{}' is no suite's name: such as 'bookworm'",
                        printable(options.suite));
  LETHE_TRY(check_packages(options));
  if (options.size_bytes < kImageBytesMin || options.size_bytes > kImageBytesMax ||
      options.size_bytes % 4096 != 0)
    return config_error("--size must be 256M to 16T, a multiple of 4K");
  if (!options.mirror.empty() && !matches(options.mirror, kMirror))
    return config_error("--mirror '{}' is no URL of an archive: such as 'http://HOST/debian'",
                        printable(options.mirror));
  if (!options.hostname.empty() &&
      (options.hostname.size() > 64 || !matches(options.hostname, kHostname)))
    return config_error("--hostname '{}' is no host's name: letters, digits, '-' and '.'",
                        printable(options.hostname));
  if (options.password) LETHE_TRY(check_password(*options.password));
  if (!options.ssh_key_file.empty())
    if (const auto keys = read_public_keys(options.ssh_key_file); !keys)
      return Unexpected(keys.error());
  return {};
}

Result<std::string> read_public_keys(const std::string& file) {
  std::error_code error;
  const std::string name = printable(file);
  if (!std::filesystem::is_regular_file(file, error))
    return config_error("--ssh-key '{}' is no file: such as ~/.ssh/id_ed25519.pub", name);
  if (std::filesystem::file_size(file, error) > kKeyFileBytesMax)
    return config_error("--ssh-key '{}' is too large to be public keys", name);
  std::ifstream stream(file);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) return config_error("--ssh-key '{}' can't be read", name);
  if (text.find("PRIVATE KEY") != std::string::npos)
    return config_error("--ssh-key '{}' is a private key; the public one ends in .pub", name);
  static const re2::RE2 kKey("(?m)^(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+");
  if (!re2::RE2::PartialMatch(text, kKey))
    return config_error("--ssh-key '{}' holds no public key", name);
  return text.ends_with('\n') ? text : text + "\n";
}

}  // namespace lethe
