// `lethe image`, the built program, with stand-ins for mmdebstrap, what its hooks call, and mke2fs
// (the host's own where its work is looked at); tar is the host's unless a test has it fail.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/test_util.h"

namespace lethe {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;
using testing::UnorderedElementsAre;

// Keeps its words, makes a system, runs the hooks on it, and a tar of it where it is told to.
constexpr const char* kMmdebstrap = R"(#!/bin/sh
set -eu
here=$(dirname "$0")/..
printf '%s\n' "$@" >"$here/words"
echo "I: running apt-get update..." >&2
tree=$TMPDIR/mmdebstrap.test
mkdir -p "$tree/boot" "$tree/etc/ssh" "$tree/dev" "$tree/root"
printf "\177ELF" >"$tree/boot/vmlinuz-6.1"
echo initrd >"$tree/boot/initrd.img-6.1"
echo node >"$tree/dev/null"
echo key >"$tree/etc/ssh/ssh_host_rsa_key"
[ ! -e "$here/during" ] || . "$here/during"
for word; do
  case $word in
    --essential-hook=* | --customize-hook=*) sh -c "${word#*=}" exec "$tree" ;;
    */root.tar) target=$word ;;
  esac
done
tar -C "$tree" -cf "$target" .
rm -r "$tree"
echo "I: success" >&2
)";
constexpr const char* kChroot = R"(#!/bin/sh
here=$(dirname "$0")/..
shift
echo "$*" >>"$here/in_image"
[ "$1" != chpasswd ] || cat >>"$here/in_image"
)";
// Ownership does not matter here; what it is told does.
constexpr const char* kFakeroot = R"(#!/bin/sh
here=$(dirname "$0")/..
echo "$1 $4" >>"$here/fakeroot"
shift 3
exec "$@"
)";

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

class ImageCommand : public testing::Test {
 protected:
  void SetUp() override {
    std::string made = testing::TempDir() + "lethe-image-test-XXXXXX";
    ASSERT_NE(::mkdtemp(made.data()), nullptr);
    x_dir = made;
    fs::create_directory(x_dir / "tmp");
    fs::create_directory(x_dir / "to");
    tool("mmdebstrap", kMmdebstrap);
    tool("chroot", kChroot);
    tool("fakeroot", kFakeroot);
    tool("mke2fs", "#!/bin/sh\n");  // it would wait for the host's disk
    write("agent", "the agent");
    write("exec", "the other one");
  }
  void TearDown() override { fs::remove_all(x_dir); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(x_dir / name) << text;
  }
  void tool(const std::string& name, const std::string& script) const {
    fs::create_directories(x_dir / "bin");
    write("bin/" + name, script);
    fs::permissions(x_dir / "bin" / name, fs::perms::owner_all);
  }
  [[nodiscard]] std::string read(const std::string& name) const {
    std::ifstream file(x_dir / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  [[nodiscard]] std::vector<std::string> names(const std::string& directory) const {
    std::vector<std::string> all;
    for (const auto& entry : fs::directory_iterator(x_dir / directory))
      all.push_back(entry.path().filename());
    return all;
  }
  [[nodiscard]] std::string command(const std::string& words) const {
    return fmt::format(
        "cd {0} && export PATH={0}/bin:$PATH TMPDIR={0}/tmp && exec {1} image {2} --agent-program "
        "{0}/agent --exec-program {0}/exec >{0}/out 2>{0}/err </dev/null",
        x_dir.string(), LETHE_PROGRAM, words);
  }
  [[nodiscard]] Ran ended(int status) const {
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
  }
  [[nodiscard]] Ran image(const std::string& words) const {
    const std::string whole = "timeout 60 sh -c '" + command(words) + "'";
    return ended(std::system(whole.c_str()));
  }
  // One that goes on, in the background.
  void start(const std::string& words) {
    const std::string whole = command(words);
    x_pid = ::fork();
    if (x_pid != 0) return;
    ::execl("/bin/sh", "sh", "-c", whole.c_str(), nullptr);
    ::_exit(125);
  }
  Ran wait_for_end() const {
    int status = -1;
    EXPECT_TRUE(eventually([&] { return ::waitpid(x_pid, &status, WNOHANG) == x_pid; },
                           std::chrono::seconds(30)))
        << read("err");
    return ended(status);
  }
  // Failed, with one line that says so, and left nothing.
  void refused(const Ran& ran, int code, const std::string& part) const {
    EXPECT_EQ(ran.code, code) << ran.err;
    EXPECT_EQ(ran.out, "");
    const size_t line = ran.err.find("lethe: image: ");
    ASSERT_NE(line, std::string::npos) << ran.err;
    EXPECT_THAT(ran.err.substr(line), HasSubstr(part));
    EXPECT_EQ(ran.err.find('\n', line), ran.err.size() - 1) << ran.err;
    EXPECT_THAT(names("tmp"), IsEmpty());
  }

  fs::path x_dir;
  pid_t x_pid = -1;
};

TEST_F(ImageCommand, makes_a_disk_its_kernel_its_initrd_and_a_config_that_is_good) {
  fs::remove(x_dir / "bin/mke2fs");  // the host's own
  const Ran ran = image("debian --size 512M to/disk.img --package nginx --suite trixie");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(names("tmp"), IsEmpty());
  EXPECT_THAT(names("to"), UnorderedElementsAre("disk.img", "disk.img.vmlinuz", "disk.img.initrd",
                                                "disk.img.toml"));
  EXPECT_EQ(read("to/disk.img.vmlinuz"),
            "\x7f"
            "ELF");
  EXPECT_EQ(read("to/disk.img.initrd"), "initrd\n");
  EXPECT_THAT(read("words"), testing::AllOf(HasSubstr(",nginx\n"), HasSubstr("\n--\ntrixie\n/")));
  EXPECT_THAT(ran.out, HasSubstr("lethe run to/disk.img.toml"));
  EXPECT_THAT(ran.err, HasSubstr("[1/4]   0 s  running apt-get update..."));
  EXPECT_THAT(ran.err, HasSubstr("[4/4] Kernel, initrd and config: "));
  // ext4's superblock (at 1024): its magic number at 0x38, the label at 0x78.
  std::string disk(4096, '\0');
  std::ifstream(x_dir / "to/disk.img").read(disk.data(), 4096);
  EXPECT_EQ(disk.substr(1024 + 0x38, 2), "\x53\xef");
  EXPECT_STREQ(disk.substr(1024 + 0x78, 16).c_str(), "root");
  struct stat status{};
  ASSERT_EQ(::stat((x_dir / "to/disk.img").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, 512 << 20);
  EXPECT_LT(status.st_blocks * 512, 20 << 20);  // the rest is holes
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  const std::string validate =
      fmt::format("{} validate {}/to/disk.img.toml >/dev/null 2>&1", LETHE_PROGRAM, x_dir.string());
  EXPECT_EQ(std::system(validate.c_str()), 0);
}

TEST_F(ImageCommand, puts_agent_names_and_secrets_where_they_belong) {
  write("key.pub", "ssh-ed25519 AAAA me\n");
  write("secret", "pa ss$(id)\nmore\n");
  // What the image is made of is looked at before it is packed.
  tool("tar", R"(#!/bin/sh
case $* in *-cf*) rm -rf "$(dirname "$0")/../tree"; cp -R "$2" "$(dirname "$0")/../tree" ;; esac
exec /usr/bin/env -i PATH=/usr/bin:/bin tar "$@"
)");
  const Ran ran = image(
      "debian to/a.img --size 512M --hostname web.example --password-file secret --ssh-key key.pub "
      "--desktop");
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(read("tree/usr/bin/lethe-agent"), "the agent");
  EXPECT_EQ(read("tree/usr/bin/lethe-exec"), "the other one");
  EXPECT_EQ(read("tree/etc/hostname"), "web.example\n");
  EXPECT_THAT(read("tree/etc/fstab"), HasSubstr("LABEL=root  /  ext4"));
  EXPECT_EQ(read("tree/root/.ssh/authorized_keys"), "ssh-ed25519 AAAA me\n");
  EXPECT_FALSE(fs::exists(x_dir / "tree/etc/ssh/ssh_host_rsa_key"));
  EXPECT_NE(fs::status(x_dir / "tree/etc/initramfs-tools/hooks/lethe").permissions() &
                fs::perms::others_exec,
            fs::perms::none);
  const std::string calls = read("in_image");
  EXPECT_THAT(calls, HasSubstr("chpasswd\nroot:pa ss$(id)\n"));
  EXPECT_THAT(calls, HasSubstr("chpasswd\nuser:pa ss$(id)\n"));
  EXPECT_THAT(calls, HasSubstr("systemctl --quiet enable systemd-networkd"));
  EXPECT_THAT(calls, HasSubstr("--global enable lethe-agent"));
  EXPECT_THAT(calls, HasSubstr("systemctl --quiet enable lethe-exec"));
  EXPECT_THAT(calls, HasSubstr("systemctl --quiet enable lethe-session"));
  EXPECT_THAT(read("words"), Not(HasSubstr("pa ss")));
}

TEST_F(ImageCommand, keeps_owners_by_fakeroot_for_users_who_are_not_root) {
  std::string before;
  if (::geteuid() == 0) {
    ASSERT_EQ(image("debian to/root.img --size 512M").code, 0);
    EXPECT_EQ(read("fakeroot"), "") << "root is who owns the files";
    for (const auto& entry : fs::recursive_directory_iterator(x_dir))
      fs::permissions(entry.path(), fs::perms::all);
    fs::permissions(x_dir, fs::perms::all);
    before = "setpriv --reuid=65534 --regid=65534 --clear-groups ";
  }
  // A copy, since the program's own place may not be for everyone.
  fs::copy_file(LETHE_PROGRAM, x_dir / "lethe");
  const std::string whole = fmt::format(
      "cd {0} && PATH={0}/bin:$PATH TMPDIR={0}/tmp timeout 60 {1}{0}/lethe image debian to/a.img "
      "--size 512M --agent-program agent --exec-program exec >out 2>err",
      x_dir.string(), before);
  const Ran ran = ended(std::system(whole.c_str()));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_THAT(read("fakeroot"), testing::MatchesRegex("-s [^\n]*/tar\n-i [^\n]*/mke2fs\n"));
  EXPECT_THAT(names("tmp"), IsEmpty());
}

TEST_F(ImageCommand, refuses_what_exists_unless_it_may_replace_it) {
  for (const char* name : {"disk.img", "disk.img.vmlinuz", "disk.img.initrd", "disk.img.toml"}) {
    write(std::string("to/") + name, "mine");
    refused(image("debian to/disk.img"), 2, fmt::format("to/{}' exists: --force", name));
    EXPECT_EQ(read(std::string("to/") + name), "mine");
    EXPECT_THAT(names("to"), UnorderedElementsAre(name));
    fs::remove(x_dir / "to" / name);
  }
  write("to/disk.img", "mine");
  EXPECT_EQ(image("debian to/disk.img --size 512M --force").code, 0);
  EXPECT_EQ(fs::file_size(x_dir / "to/disk.img"), 512U << 20);
  fs::remove(x_dir / "to/disk.img");
  fs::create_directory(x_dir / "to/disk.img");
  refused(image("debian to/disk.img --force"), 2, "is no regular file");
}

TEST_F(ImageCommand, does_not_replace_what_appears_while_it_works) {
  write("during", "echo mine >\"$here/to/disk.img\"\n");
  refused(image("debian to/disk.img --size 512M"), 1, "File exists");
  EXPECT_EQ(read("to/disk.img"), "mine\n");
  EXPECT_THAT(names("to"), UnorderedElementsAre("disk.img"));
}

TEST_F(ImageCommand, a_tool_that_fails_leaves_nothing_and_is_named) {
  write("during", "echo 'E: Unable to locate package nosuch' >&2; exit 25\n");
  refused(image("debian to/a.img"), 1, "Unable to locate package nosuch: see --package");
  write("during", "rm \"$tree\"/boot/vmlinuz-*\n");
  refused(image("debian to/a.img --size 512M"), 1, "brought no kernel");
  write("during", "");
  tool("mke2fs",
       "#!/bin/sh\necho 'mke2fs: Could not allocate block in ext2 filesystem' >&2\nexit 1");
  refused(image("debian to/a.img --size 512M"), 1, "larger --size");
  tool("mke2fs", "#!/bin/sh\nkill -SEGV $$");
  refused(image("debian to/a.img --size 512M"), 1, "mke2fs failed: killed by signal 11");
  tool("tar",
       "#!/bin/sh\ncase $* in *-cf*) exec /usr/bin/env -i PATH=/usr/bin:/bin tar \"$@\";; "
       "esac\necho 'tar: x: Cannot write: No space left on device' >&2\nexit 2");
  refused(image("debian to/a.img --size 512M"), 1, "tar failed: No space left on device");
  EXPECT_THAT(names("to"), IsEmpty());
}

TEST_F(ImageCommand, names_the_tools_that_are_missing_and_their_packages) {
  fs::remove(x_dir / "bin/mmdebstrap");
  const std::string whole = fmt::format(
      "cd {0} && PATH={0}/bin {1} image debian to/a.img --agent-program agent --exec-program exec "
      ">out 2>err",
      x_dir.string(), LETHE_PROGRAM);
  const Ran ran = ended(std::system(whole.c_str()));
  refused(ran, 1, "'mmdebstrap', 'tar' are not there: apt-get install mmdebstrap tar");
}

TEST_F(ImageCommand, refuses_places_that_are_not_there) {
  refused(image("debian nowhere/a.img"), 1, "cannot make a directory 'nowhere/.a.img.");
  const std::string whole = fmt::format(
      "cd {0} && TMPDIR={0}/nowhere PATH={0}/bin:$PATH {1} image debian to/a.img --agent-program "
      "agent --exec-program exec >out 2>err",
      x_dir.string(), LETHE_PROGRAM);
  refused(ended(std::system(whole.c_str())), 1, "/nowhere/lethe-image-");
}

TEST_F(ImageCommand, refuses_bad_words_in_one_line) {
  refused(image("fedora to/a.img"), 2, "'fedora' can't be made: only 'debian' can");
  refused(image("debian to/a.img --size big"), 2, "--size 'big' is no size");
  refused(image("debian to/a.img --size 1M"), 2, "--size must be 256M to 16T");
  refused(image("debian to/a.img --package -x"), 2, "'-x' is no package's name");
  refused(image("debian to/a.img --password-file none"), 2, "can't be read");
  refused(image("debian to/a.img --ssh-key none"), 2, "is no file");
  EXPECT_THAT(image("debian").err, StartsWith("lethe: image: OUT is required"));
  EXPECT_THAT(image("debian a.img --sise 1G").err, HasSubstr("did you mean '--size'?"));
  EXPECT_THAT(image("--help").out, HasSubstr("lethe image debian disk.img && lethe run"));
}

TEST_F(ImageCommand, an_interruption_ends_the_tool_and_leaves_nothing) {
  write("during", "echo $$ >\"$here/pid.new\"; mv \"$here/pid.new\" \"$here/pid\"; sleep 60\n");
  start("debian to/a.img");
  ASSERT_TRUE(eventually([&] { return fs::exists(x_dir / "pid"); }));
  ASSERT_EQ(::kill(x_pid, SIGINT), 0);
  const Ran ran = wait_for_end();
  EXPECT_EQ(ran.code, 130);
  EXPECT_THAT(ran.err, HasSubstr("interrupted: ending, and removing what was made\n"));
  EXPECT_EQ(::kill(std::stoi(read("pid")), 0), -1);
  EXPECT_THAT(names("tmp"), IsEmpty());
  EXPECT_THAT(names("to"), IsEmpty());
}

TEST_F(ImageCommand, a_second_interruption_ends_a_tool_that_does_not_listen) {
  write("during",
        "trap '' TERM INT; echo $$ >\"$here/pid.new\"; mv \"$here/pid.new\" \"$here/pid\"\n"
        "while :; do sleep 1; done\n");
  start("debian to/a.img");
  ASSERT_TRUE(eventually([&] { return fs::exists(x_dir / "pid"); }));
  ASSERT_EQ(::kill(x_pid, SIGINT), 0);
  ASSERT_TRUE(eventually([&] { return read("err").find("interrupted") != std::string::npos; }));
  ASSERT_EQ(::kill(x_pid, SIGTERM), 0);
  EXPECT_EQ(wait_for_end().code, 130);
  EXPECT_EQ(::kill(std::stoi(read("pid")), 0), -1);
  EXPECT_THAT(names("tmp"), IsEmpty());
  EXPECT_THAT(names("to"), IsEmpty());
}

}  // namespace
}  // namespace lethe
