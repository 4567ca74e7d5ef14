// What `lethe image` accepts, puts into an image, and says of failures: nothing here runs a tool.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <re2/re2.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "vmm/config.h"
#include "vmm/find_program.h"
#include "vmm/image/image_failure.h"
#include "vmm/image/image_files.h"
#include "vmm/image/image_options.h"
#include "vmm/image/image_progress.h"
#include "vmm/image/image_recipe.h"
#include "vmm/image/scratch.h"

namespace lethe {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string complaint(const ImageOptions& options) {
  const auto checked = check_image_options(options);
  if (checked) return "";
  EXPECT_EQ(checked.error().kind, ErrorClass::kConfig);
  return checked.error().text;
}

template <typename Member, typename Value>
std::string complaint_with(Member member, Value value) {
  ImageOptions options{.out = "disk.img"};
  options.*member = value;
  return complaint(options);
}

TEST(ImageOptionsTest, takes_what_debian_takes) {
  EXPECT_EQ(complaint({.out = "disk.img"}), "");
  EXPECT_EQ(complaint({.out = "/tmp/a b/My disk.img",
                       .suite = "trixie-backports",
                       .packages = {"g++", "nginx=1.22.1-9+deb12u1", "libc6:i386", "vim/bookworm"},
                       .kernel = "linux-image-cloud-amd64",
                       .size_bytes = kImageBytesMin,
                       .mirror = "file:///srv/debian",
                       .hostname = "web-1.example",
                       .password = "pa ss:w\"or'd$(x)"}),
            "");
}

TEST(ImageOptionsTest, refuses_words_that_a_tool_could_take_for_something_else) {
  for (const char* package : {"", "-o", "--force", "a,b", "a b", "A", "nginx;id", "../x", "?true"})
    EXPECT_THAT(complaint_with(&ImageOptions::packages, std::vector<std::string>{package}),
                HasSubstr("is no package's name"))
        << package;
  EXPECT_THAT(complaint_with(&ImageOptions::kernel, "-x"), HasSubstr("is no package's name"));
  for (const char* suite : {"", "-", "a b", "../x", "Book", "a/b", "sid\n"})
    EXPECT_THAT(complaint_with(&ImageOptions::suite, suite), HasSubstr("--suite")) << suite;
  for (const char* url : {"debian", "deb http://x y", "-x", "http://", "http://a b", "ssh://x"})
    EXPECT_THAT(complaint_with(&ImageOptions::mirror, url), HasSubstr("--mirror")) << url;
  for (const char* name : {"-a", "a_b", "a..b", "a.", "a b", "\xc3\xa4"})
    EXPECT_THAT(complaint_with(&ImageOptions::hostname, name), HasSubstr("--hostname")) << name;
  EXPECT_THAT(complaint_with(&ImageOptions::hostname, std::string(65, 'a')),
              HasSubstr("--hostname"));
}

TEST(ImageOptionsTest, refuses_names_of_out_that_name_no_file) {
  for (const char* out : {"", ".", "..", "a/", "a/..", "a\nb", "\x1b[2J", "\xff.img"})
    EXPECT_THAT(complaint({.out = out}), HasSubstr("OUT")) << out;
  EXPECT_THAT(complaint({.out = std::string(300, 'a')}), HasSubstr("OUT"));
}

TEST(ImageOptionsTest, refuses_sizes_and_passwords_out_of_range) {
  for (const uint64_t size : {uint64_t{0}, kImageBytesMin - 4096, kImageBytesMin + 1,
                              kImageBytesMax + 4096, ~uint64_t{0}})
    EXPECT_THAT(complaint_with(&ImageOptions::size_bytes, size), HasSubstr("--size")) << size;
  for (const std::string& password :
       {std::string(), std::string("a\nb"), std::string("a\0b", 3), std::string(513, 'a')})
    EXPECT_THAT(complaint_with(&ImageOptions::password, std::optional(password)),
                HasSubstr("password"));
}

TEST(ImageOptionsTest, takes_public_keys_only) {
  auto made = ScratchDirectory::create(testing::TempDir() + "image-keys-", 0700);
  ASSERT_TRUE(made);
  const std::string file = made->path() + "/key";
  const auto with = [&](const std::string& text) {
    std::ofstream(file) << text;
    return complaint_with(&ImageOptions::ssh_key_file, file);
  };
  EXPECT_EQ(with("# mine\nssh-ed25519 AAAAC3Nz me@host"), "");
  EXPECT_EQ(read_public_keys(file).value(), "# mine\nssh-ed25519 AAAAC3Nz me@host\n");
  EXPECT_EQ(with("sk-ssh-ed25519@openssh.com AAAA= x\n"), "");
  EXPECT_THAT(with("-----BEGIN OPENSSH PRIVATE KEY-----\n"), HasSubstr("is a private key"));
  EXPECT_THAT(with("hello\n"), HasSubstr("holds no public key"));
  EXPECT_THAT(with(std::string(70000, 'a')), HasSubstr("too large"));
  EXPECT_THAT(complaint_with(&ImageOptions::ssh_key_file, made->path()), HasSubstr("is no file"));
  EXPECT_THAT(complaint_with(&ImageOptions::ssh_key_file, "/none"), HasSubstr("is no file"));
}

TEST(ImageOptionsTest, names_the_vm_after_out) {
  EXPECT_EQ(vm_name_of("/x/disk.img"), "disk");
  EXPECT_EQ(vm_name_of("My Disk.v2.img"), "my-disk.v2");
  EXPECT_EQ(vm_name_of("..."), "debian");
  EXPECT_EQ(vm_name_of("\xc3\xa4.img"), "debian");
  EXPECT_TRUE(valid_vm_name(vm_name_of(std::string(200, 'a') + ".img")));
}

std::vector<std::string> paths(const ImageOptions& options) {
  std::vector<std::string> all;
  for (const RecipeFile& file : image_files(options)) all.push_back(file.path);
  return all;
}

TEST(ImageRecipeTest, its_config_is_a_good_one_whatever_out_is_called) {
  for (const char* out : {"disk.img", "/x/a \"quoted\\\" name.img", "\xc3\xa4.img", "#.img"})
    for (const bool desktop : {false, true}) {
      SCOPED_TRACE(out);
      const std::string base = std::filesystem::path(out).filename().string();
      std::vector<std::string> errors;
      const VmConfig config =
          parse_config(image_config({.out = out, .desktop = desktop}), "/d/x.toml", {}, errors);
      EXPECT_THAT(errors, IsEmpty());
      EXPECT_EQ(config.boot.kernel, "/d/" + base + ".vmlinuz");
      EXPECT_EQ(config.boot.initrd, "/d/" + base + ".initrd");
      ASSERT_EQ(config.disks.size(), 1U);
      EXPECT_EQ(config.disks[0].path, "/d/" + base);
      EXPECT_THAT(config.boot.cmdline, HasSubstr("console=ttyS0 root=LABEL=root "));
      EXPECT_EQ(config.gui.enabled, desktop);
    }
}

TEST(ImageRecipeTest, logs_root_in_on_the_console_only_where_nothing_else_was_asked_for) {
  const std::string autologin = "etc/systemd/system/serial-getty@ttyS0.service.d/lethe.conf";
  EXPECT_THAT(paths({.out = "a"}), Contains(autologin));
  EXPECT_THAT(paths({.out = "a", .password = "x"}), Not(Contains(autologin)));
  EXPECT_THAT(paths({.out = "a", .ssh_key_file = "x"}), Not(Contains(autologin)));
}

TEST(ImageRecipeTest, installs_what_the_options_need) {
  EXPECT_THAT(image_packages({.out = "a", .packages = {"nginx"}, .kernel = "linux-x"}),
              testing::AllOf(Contains("linux-x"), Contains("nginx"), Contains("systemd-sysv"),
                             Not(Contains("openssh-server")), Not(Contains("openbox"))));
  EXPECT_THAT(image_packages({.out = "a", .ssh_key_file = "x"}), Contains("openssh-server"));
  EXPECT_THAT(image_packages({.out = "a", .desktop = true}),
              testing::AllOf(Contains("openbox"), Contains("xserver-xorg-core")));
  EXPECT_THAT(paths({.out = "a"}), Contains("usr/lib/systemd/user/lethe-agent.service"));
  EXPECT_THAT(paths({.out = "a", .desktop = true}), Contains("usr/lib/lethe/session"));
}

TEST(ImageRecipeTest, hands_words_to_scripts_as_variables_never_as_text) {
  EXPECT_THAT(hook_environment({.out = "a", .hostname = "web", .password = "$(id)"}, "key\n"),
              testing::ElementsAre("LETHE_IMAGE_HOSTNAME=web", "LETHE_IMAGE_PASSWORD=$(id)",
                                   "LETHE_IMAGE_SSH_KEYS=key\n", "LETHE_IMAGE_DESKTOP="));
}

// The agent's own unit file is among them.
TEST(ImageRecipeTest, its_units_are_good_to_systemd) {
  if (find_program("systemd-analyze", program_path()).empty())
    GTEST_SKIP() << "SKIPPED: systemd-analyze is not here";
  auto made = ScratchDirectory::create(testing::TempDir() + "image-units-", 0700);
  ASSERT_TRUE(made);
  size_t units = 0;
  for (RecipeFile file : image_files({.out = "a", .desktop = true})) {
    const std::filesystem::path path(file.path);
    const bool user = file.path.find("systemd/user/") != std::string::npos;
    if (path.extension() != ".service" && path.extension() != ".target") continue;
    ++units;
    // What they start is in the image only.
    re2::RE2::Replace(&file.text, "ExecStart=\\S+", "ExecStart=/bin/true");
    const std::string unit = made->path() + "/" + path.filename().string();
    ASSERT_TRUE(write_file(unit, file.text, 0644));
    const std::string command = fmt::format(
        "XDG_RUNTIME_DIR={0} systemd-analyze verify --man=no --recursive-errors=no {1} {2} "
        ">{0}/said 2>&1",
        made->path(), user ? "--user" : "", unit);
    EXPECT_EQ(std::system(command.c_str()), 0) << file.path;
    std::ifstream said(made->path() + "/said");
    EXPECT_EQ((std::string{std::istreambuf_iterator<char>(said), {}}), "") << file.path;
  }
  EXPECT_EQ(units, 4U);
}

TEST(ImageFailureTest, names_the_way_out_of_what_is_known) {
  const auto explained = [](const char* messages) {
    return explain_failure("mmdebstrap", "exit code 25", messages);
  };
  EXPECT_THAT(explained("I: a\nErr:1 http://h x\n  Could not resolve 'h'\nE: Some failed\n"),
              testing::AllOf(HasSubstr("Could not resolve 'h'"), HasSubstr("--mirror")));
  EXPECT_THAT(explained("  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111)"),
              HasSubstr("the archive can't be reached"));
  EXPECT_THAT(explained("E: Unable to locate package nosuch\n"),
              HasSubstr("Unable to locate package nosuch: see --package"));
  EXPECT_THAT(explained("E: The repository 'http://h x Release' does not have a Release file."),
              HasSubstr("--suite"));
  EXPECT_THAT(explained("tar: x: Cannot write: No space left on device\n"), HasSubstr("TMPDIR"));
  EXPECT_THAT(explained("mke2fs: Could not allocate block in ext2 filesystem while populating"),
              HasSubstr("larger --size"));
  EXPECT_THAT(explained("E: newuidmap 12 0 100000 failed"), HasSubstr("uidmap"));
}

TEST(ImageFailureTest, shows_the_telling_line_of_what_is_not_known) {
  const auto explained = [](const std::string& messages) {
    return explain_failure("tar", "exit code 2", messages);
  };
  EXPECT_EQ(explained("I: x\nE: first\nE: second\n"), "tar failed (exit code 2): E: first");
  EXPECT_EQ(explained("one\ntwo\n\n"), "tar failed (exit code 2): two");
  EXPECT_EQ(explained(""), "tar failed: exit code 2, and said nothing");
  EXPECT_EQ(explained("\x1b[2Jx{}\n"), "tar failed (exit code 2): \\x1b[2Jx{}");
  EXPECT_THAT(explained("E: " + std::string(100000, 'a')), testing::SizeIs(testing::Lt(400U)));
}

class ImageFiles : public testing::Test {
 protected:
  void SetUp() override {
    auto made = ScratchDirectory::create(testing::TempDir() + "image-files-", 0700);
    ASSERT_TRUE(made);
    x_scratch.emplace(std::move(*made));
    x_dir = x_scratch->path();
  }
  void write(const std::string& name, const std::string& text) const {
    ASSERT_TRUE(write_file(x_dir / name, text, 0644));
  }
  [[nodiscard]] std::string read(const std::string& name) const {
    std::ifstream file(x_dir / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write_made() const {
    for (const char* name :
         {"from/disk", "from/disk.vmlinuz", "from/disk.initrd", "from/disk.toml"})
      write(name, name);
  }
  std::optional<ScratchDirectory> x_scratch;
  std::filesystem::path x_dir;
};

TEST_F(ImageFiles, puts_all_in_place_or_nothing) {
  write_made();
  write("to.toml", "someone's");
  const std::string out = x_dir / "to";
  const auto refused = put_in_place(x_dir / "from", out, false);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().text, HasSubstr("to.toml' in place: File exists"));
  EXPECT_EQ(read("to.toml"), "someone's");
  for (const char* name : {"to", "to.vmlinuz", "to.initrd"})
    EXPECT_FALSE(std::filesystem::exists(x_dir / name)) << name;
  write_made();
  ASSERT_TRUE(put_in_place(x_dir / "from", out, true));
  EXPECT_EQ(read("to.toml"), "from/disk.toml");
  EXPECT_EQ(read("to"), "from/disk");
}

TEST_F(ImageFiles, finds_the_kernel_that_the_system_names) {
  write("boot/vmlinuz-6.1", "1");
  write("boot/initrd.img-6.1", "1");
  write("boot/vmlinuz-6.2", "2");
  write("boot/initrd.img-6.2", "2");
  EXPECT_EQ(find_boot_files(x_dir)->kernel, x_dir / "boot/vmlinuz-6.2");
  std::filesystem::create_symlink("boot/vmlinuz-6.1", x_dir / "vmlinuz");
  EXPECT_EQ(find_boot_files(x_dir)->kernel, x_dir / "boot/vmlinuz-6.1");
  EXPECT_EQ(find_boot_files(x_dir)->initrd, x_dir / "boot/initrd.img-6.1");
}

TEST_F(ImageFiles, takes_no_file_of_the_host_for_one_of_the_image) {
  EXPECT_THAT(find_boot_files(x_dir).error().text, HasSubstr("brought no kernel"));
  std::filesystem::create_directory(x_dir / "boot");
  std::filesystem::create_symlink("/etc/hostname", x_dir / "boot/vmlinuz-6.1");
  EXPECT_THAT(find_boot_files(x_dir).error().text, HasSubstr("brought no kernel"));
  std::filesystem::remove(x_dir / "boot/vmlinuz-6.1");
  write("boot/vmlinuz-6.1", "1");
  EXPECT_THAT(find_boot_files(x_dir).error().text, HasSubstr("made no initrd"));
  std::filesystem::create_symlink("/etc/hostname", x_dir / "boot/initrd.img-6.1");
  EXPECT_THAT(find_boot_files(x_dir).error().text, HasSubstr("made no initrd"));
}

// A pseudo-terminal of 40 columns, and what was written to it.
class Terminal {
 public:
  Terminal() {
    const winsize size{.ws_row = 5, .ws_col = 40, .ws_xpixel = 0, .ws_ypixel = 0};
    int slave = -1;
    EXPECT_EQ(::openpty(&x_master, &slave, nullptr, nullptr, &size), 0);
    x_file = ::fdopen(slave, "w");
  }
  ~Terminal() {
    std::fclose(x_file);
    ::close(x_master);
  }
  [[nodiscard]] std::FILE* file() const { return x_file; }
  [[nodiscard]] std::string seen() const {
    char text[4096];
    const ssize_t got = ::read(x_master, text, sizeof text);
    return {text, got > 0 ? static_cast<size_t>(got) : 0};
  }

 private:
  int x_master = -1;
  std::FILE* x_file = nullptr;
};

TEST(ImageProgressTest, rewrites_one_line_of_a_terminal_and_fits_it) {
  const Terminal terminal;
  ImageProgress progress(terminal.file(), 2, false);
  progress.begin("Packages");
  EXPECT_EQ(terminal.seen(), "\r[1/2] Packages 0 s\x1b[K");
  progress.note("installing \x1b[31m" + std::string(100, 'x'));
  EXPECT_EQ(terminal.seen(), "\r[1/2] Packages 0 s  installing \\x1b[31m\x1b[K");
  progress.end("3 MiB");
  EXPECT_EQ(terminal.seen(), "\r\x1b[K[1/2] Packages: 0 s, 3 MiB\r\n");
}

TEST(ImageProgressTest, writes_plain_lines_where_no_terminal_is) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::FILE* const file = ::fdopen(ends[1], "w");
  {
    ImageProgress progress(file, 2, false);
    progress.begin("Packages");
    progress.note("installing");
    progress.tick();
    progress.end();
  }
  std::fclose(file);
  char text[4096];
  const ssize_t got = ::read(ends[0], text, sizeof text);
  ::close(ends[0]);
  EXPECT_EQ(std::string(text, static_cast<size_t>(got)),
            "[1/2] Packages\n[1/2]   0 s  installing\n[1/2] Packages: 0 s\n");
}

}  // namespace
}  // namespace lethe
