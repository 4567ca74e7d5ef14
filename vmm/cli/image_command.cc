#include <fmt/format.h>
#include <unistd.h>

#include <fstream>

#include "vmm/cli/cli.h"
#include "vmm/cli/command.h"
#include "vmm/config_schema.h"
#include "vmm/image/image_builder.h"
#include "vmm/run.h"

namespace lethe {
namespace {

struct ImageWords {
  std::string what;
  std::string size = "4G";
  std::string password;
  std::string password_file;
};

void add_options(CLI::App& app, ImageOptions& options, ImageWords& words) {
  app.add_option("KIND", words.what, "What to make: debian")->required();
  app.add_option("OUT", options.out,
                 "The disk image; OUT.vmlinuz, OUT.initrd and OUT.toml go beside it")
      ->required();
  app.add_option("--suite", options.suite, "Debian's release (default: bookworm)");
  app.add_option("-p,--package", options.packages, "Install this package too; may be repeated")
      ->expected(1)
      ->take_all();
  app.add_flag("--desktop", options.desktop,
               "Install an X session that starts by itself: openbox, xterm");
  app.add_option("--size", words.size,
                 "Of the disk: digits and a suffix, K, M, G or T (default: 4G); the file takes "
                 "only what is used");
  app.add_option("--mirror", options.mirror,
                 "The archive's URL (default: mmdebstrap's own choice)");
  app.add_option("--hostname", options.hostname, "Default: the VM's name, which is OUT's");
  app.add_option("--kernel", options.kernel,
                 "The kernel's package (default: linux-image-amd64; linux-image-cloud-amd64 is "
                 "smaller, and has no screen)");
  auto* word = app.add_option("--password", words.password,
                              "root's password; others may see it in the list of processes");
  app.add_option("--password-file", words.password_file,
                 "root's password is the first line of this file; - is standard input")
      ->excludes(word);
  app.add_option("--ssh-key", options.ssh_key_file,
                 "Install an ssh server, and let the public keys in this file log in as root");
  app.add_flag("--force", options.force, "Replace OUT, and the files beside it");
  app.add_flag("-v,--verbose", options.verbose, "Show what mmdebstrap, tar and mke2fs say");
  // For our own tests: stand-ins.
  app.add_option("--agent-program", options.agent_program)->group("");
  app.add_option("--exec-program", options.exec_program)->group("");
}

Result<std::string> first_line(const std::string& file) {
  std::string line;
  std::ifstream stream(file == "-" ? "/dev/stdin" : file);
  if (!std::getline(stream, line))
    return config_error("--password-file '{}' can't be read, or is empty", printable(file));
  if (line.ends_with('\r')) line.pop_back();
  return line;
}

Result<> take_words(const CLI::App& app, const ImageWords& words, ImageOptions& options) {
  if (words.what != "debian")
    return config_error("'{}' can't be made: only 'debian' can", printable(words.what));
  const auto size = parse_size(words.size);
  if (!size)
    return config_error("--size '{}' is no size: write digits and K, M, G or T, such as 4G",
                        printable(words.size));
  options.size_bytes = *size;
  if (app.count("--password") > 0) options.password = words.password;
  if (!words.password_file.empty()) {
    LETHE_TRY_ASSIGN(options.password, first_line(words.password_file));
  }
  return check_image_options(options);
}

}  // namespace

int command_image(int argc, char** argv) {
  CommandLine line(
      "image",
      "Makes a disk image with a Debian that boots as a guest: its packages come from Debian's "
      "archive by mmdebstrap, lethe-agent is installed, and root is logged in on the console "
      "unless --password or --ssh-key says otherwise. Needs no root rights where user namespaces "
      "(uidmap) or fakechroot are there.",
      "  lethe image debian disk.img && lethe run disk.img.toml\n"
      "  lethe image debian --package nginx --size 8G --ssh-key ~/.ssh/id_ed25519.pub web.img\n"
      "  lethe image debian --desktop desktop.img\n",
      "0 made; 1 failed; 2 bad usage, or OUT exists; 130 interrupted.");
  ImageOptions options;
  ImageWords words;
  add_options(line.app(), options, words);
  if (const auto code = line.parse(argc, argv)) return *code;
  if (const auto taken = take_words(line.app(), words, options); !taken) {
    print_error(fmt::format("image: {} (lethe image --help tells more)", taken.error().text));
    return exit_code_of(taken.error().kind);
  }
  return build_image(options);
}

}  // namespace lethe
