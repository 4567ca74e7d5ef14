#include "vmm/image/image_builder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>

#include "base/event_loop.h"
#include "vmm/check/attempt.h"
#include "vmm/check/check.h"
#include "vmm/cli/cli.h"
#include "vmm/config_schema.h"
#include "vmm/find_program.h"
#include "vmm/frontend_program.h"
#include "vmm/image/image_failure.h"
#include "vmm/image/image_files.h"
#include "vmm/image/image_progress.h"
#include "vmm/image/image_recipe.h"
#include "vmm/image/scratch.h"
#include "vmm/run.h"

namespace lethe {
namespace {

namespace fs = std::filesystem;

constexpr int kStages = 4;
// A mirror that sends nothing is apt's to give up; this is for what never ends by itself.
constexpr std::chrono::hours kToolDeadline{2};
constexpr std::chrono::seconds kToolGrace{30};  // mmdebstrap removes its files after a SIGTERM
constexpr size_t kMessagesKept = 256 << 10;

// A tool that this needs, and the Debian package it is in.
struct Tool {
  const char* name;
  const char* package;
};
constexpr Tool kTools[] = {{"mmdebstrap", "mmdebstrap"}, {"tar", "tar"}, {"mke2fs", "e2fsprogs"}};
constexpr Tool kFakeroot = {"fakeroot", "fakeroot"};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("killed by signal {}", WTERMSIG(status));
  return fmt::format("exit code {}", WEXITSTATUS(status));
}

std::string mib(uint64_t bytes) { return fmt::format("{} MiB", bytes >> 20); }

uint64_t bytes_on_disk(const fs::path& file) {
  struct stat status{};
  return ::stat(file.c_str(), &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
}

class ImageBuilder {
 public:
  explicit ImageBuilder(const ImageOptions& options)
      : x_options(options), x_progress(stderr, kStages, options.verbose) {}

  [[nodiscard]] Result<> build();
  void clean_up();
  [[nodiscard]] bool interrupted() const { return x_interrupted; }

 private:
  [[nodiscard]] Result<> find_tools();
  [[nodiscard]] Result<> find_agent(const std::string& name, std::string path);
  [[nodiscard]] Result<> prepare();
  [[nodiscard]] Result<> install_packages();
  [[nodiscard]] Result<> unpack();
  [[nodiscard]] Result<> make_file_system();
  [[nodiscard]] Result<> finish();
  [[nodiscard]] std::vector<std::string> as_owner(const char* state_option,
                                                  std::vector<std::string> command) const;
  [[nodiscard]] Result<> run_tool(const char* name, std::vector<std::string> command,
                                  std::vector<std::string> environment = {});
  [[nodiscard]] AttemptRecord run_child(AttemptSpec spec);
  void take_messages(std::string_view chunk);
  void interrupt();
  [[nodiscard]] fs::path work(const char* name) const { return fs::path(x_work->path()) / name; }
  [[nodiscard]] fs::path beside(const char* name) const {
    return fs::path(x_beside->path()) / name;
  }

  const ImageOptions& x_options;
  std::map<std::string, std::string> x_tools;   // name to path
  std::map<std::string, std::string> x_agents;  // for the guest, likewise
  std::string x_public_keys;
  EventLoop x_loop;
  std::unique_ptr<EventLoop::Watch> x_signals;
  std::unique_ptr<Attempt> x_attempt;  // while a tool runs
  bool x_interrupted = false;
  ImageProgress x_progress;
  std::string x_line;                        // the last one of the tool's, so far
  std::string x_messages;                    // the last ones
  std::optional<ScratchDirectory> x_work;    // in $TMPDIR
  std::optional<ScratchDirectory> x_beside;  // beside OUT
};

Result<> ImageBuilder::find_tools() {
  std::string missing;
  std::string packages;
  std::vector<Tool> tools(std::begin(kTools), std::end(kTools));
  if (::geteuid() != 0) tools.push_back(kFakeroot);
  for (const Tool& tool : tools) {
    x_tools[tool.name] = find_program(tool.name, program_path());
    if (!x_tools[tool.name].empty()) continue;
    missing += fmt::format("{}'{}'", missing.empty() ? "" : ", ", tool.name);
    packages += fmt::format(" {}", tool.package);
  }
  if (!missing.empty())
    return host_error("{} {} not there: apt-get install{}", missing,
                      missing.find(',') != std::string::npos ? "are" : "is", packages);
  LETHE_TRY(find_agent("lethe-agent", x_options.agent_program));
  // An image without it is a good one that `lethe exec` can't reach.
  if (auto found = find_agent("lethe-exec", x_options.exec_program); !found)
    x_progress.say(fmt::format("without lethe-exec: {}", found.error().text));
  if (!x_options.ssh_key_file.empty()) {
    LETHE_TRY_ASSIGN(x_public_keys, read_public_keys(x_options.ssh_key_file));
  }
  return {};
}

Result<> ImageBuilder::find_agent(const std::string& name, std::string path) {
  if (path.empty()) {
    LETHE_TRY_ASSIGN(path, find_frontend(name));
  }
  x_agents[name] = std::move(path);
  return {};
}

// In a user namespace mmdebstrap and its hooks are nobody that may read this user's files: what
// they need is readable for all, and what they make is in a directory that is not.
Result<> ImageBuilder::prepare() {
  ::umask(022);
  const char* const temporary = std::getenv("TMPDIR");
  const std::string base = temporary == nullptr || *temporary != '/' ? "/var/tmp" : temporary;
  LETHE_TRY_ASSIGN(auto made, ScratchDirectory::create(base + "/lethe-image-", 0755));
  x_work.emplace(std::move(made));
  const fs::path out(x_options.out);
  const fs::path directory = out.has_parent_path() ? out.parent_path() : fs::path(".");
  LETHE_TRY_ASSIGN(
      auto next,
      ScratchDirectory::create((directory / ("." + out.filename().string() + ".")).string(), 0700));
  x_beside.emplace(std::move(next));
  for (const char* name : {"tmp", "private"})
    if (::mkdir(work(name).c_str(), *name == 't' ? 0755 : 0700) != 0)
      return host_error("'{}': {}", work(name).string(), errno_text(errno));
  for (const RecipeFile& file : image_files(x_options))
    LETHE_TRY(write_file(work("files") / file.path, file.text, file.executable ? 0755 : 0644));
  for (const auto& [name, path] : x_agents) {
    const fs::path copy = work("files") / "usr/bin" / name;
    LETHE_TRY(copy_whole(path, copy));
    if (::chmod(copy.c_str(), 0755) != 0) return host_error("'{}': {}", name, errno_text(errno));
  }
  LETHE_TRY(write_file(work("essential"), essential_hook(), 0644));
  return write_file(work("customize"), customize_hook(), 0644);
}

Result<> ImageBuilder::install_packages() {
  x_progress.begin("Debian's packages");
  std::string include = "--include=";
  for (const std::string& package : image_packages(x_options))
    include += (include.ends_with('=') ? "" : ",") + package;
  std::vector<std::string> command = {x_tools["mmdebstrap"],
                                      "--variant=minbase",
                                      "--format=tar",
                                      include,
                                      "--essential-hook=sh \"$LETHE_IMAGE_ESSENTIAL\" \"$1\"",
                                      "--customize-hook=sh \"$LETHE_IMAGE_CUSTOMIZE\" \"$1\""};
  if (x_options.verbose) command.emplace_back("--verbose");
  command.insert(command.end(), {"--", x_options.suite, work("private/root.tar").string()});
  if (!x_options.mirror.empty()) command.push_back(x_options.mirror);
  std::vector<std::string> environment = hook_environment(x_options, x_public_keys);
  environment.push_back("LETHE_IMAGE_FILES=" + work("files").string());
  environment.push_back("LETHE_IMAGE_ESSENTIAL=" + work("essential").string());
  environment.push_back("LETHE_IMAGE_CUSTOMIZE=" + work("customize").string());
  environment.push_back("TMPDIR=" + work("tmp").string());
  LETHE_TRY(run_tool("mmdebstrap", std::move(command), std::move(environment)));
  x_progress.end(mib(bytes_on_disk(work("private/root.tar"))));
  return {};
}

// Who owns a file in the image is told by the tar. A user who is not root has fakeroot remember it,
// from tar to mke2fs.
std::vector<std::string> ImageBuilder::as_owner(const char* state_option,
                                                std::vector<std::string> command) const {
  const auto fakeroot = x_tools.find(kFakeroot.name);
  if (fakeroot == x_tools.end()) return command;
  std::vector<std::string> whole = {fakeroot->second, state_option, work("private/owners").string(),
                                    "--"};
  whole.insert(whole.end(), command.begin(), command.end());
  return whole;
}

Result<> ImageBuilder::unpack() {
  x_progress.begin("Unpacking");
  if (::mkdir(work("private/tree").c_str(), 0755) != 0)
    return host_error("'{}': {}", work("private/tree").string(), errno_text(errno));
  // The guest's /dev is the kernel's own; nodes would be real ones here, made as root.
  LETHE_TRY(run_tool(
      "tar", as_owner("-s", {x_tools["tar"], "--extract", "--file", work("private/root.tar"),
                             "--directory", work("private/tree"), "--numeric-owner",
                             "--preserve-permissions", "--same-owner", "--xattrs",
                             "--xattrs-include=security.capability", "--exclude=./dev/*"})));
  std::error_code ignored;
  fs::remove(work("private/root.tar"), ignored);
  x_progress.end();
  return {};
}

Result<> ImageBuilder::make_file_system() {
  x_progress.begin("The disk's file system");
  // Made here, for it holds the guest's secrets: readable for its owner only.
  const UniqueFd disk(
      ::open(beside("disk").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!disk.valid() || ::ftruncate(disk.get(), static_cast<off_t>(x_options.size_bytes)) != 0)
    return host_error("'{}': {}", printable(beside("disk").string()), errno_text(errno));
  // No work is left to the guest's first mount: in a sparse file inode tables cost nothing.
  LETHE_TRY(run_tool(
      "mke2fs",
      as_owner("-i", {x_tools["mke2fs"], "-q", "-F", "-t", "ext4", "-L", std::string(kRootLabel),
                      "-m", "1", "-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
                      "-d", work("private/tree"), beside("disk"),
                      fmt::format("{}k", x_options.size_bytes >> 10)})));
  x_progress.end(mib(bytes_on_disk(beside("disk"))));
  return {};
}

Result<> ImageBuilder::finish() {
  x_progress.begin("Kernel, initrd and config");
  LETHE_TRY_ASSIGN(const BootFiles boot, find_boot_files(work("private/tree")));
  LETHE_TRY(copy_whole(boot.kernel, beside("disk.vmlinuz")));
  LETHE_TRY(copy_whole(boot.initrd, beside("disk.initrd")));
  LETHE_TRY(write_file(beside("disk.toml"), image_config(x_options), 0644));
  LETHE_TRY(put_in_place(x_beside->path(), x_options.out, x_options.force));
  x_progress.end();
  return {};
}

Result<> ImageBuilder::run_tool(const char* name, std::vector<std::string> command,
                                std::vector<std::string> environment) {
  // Messages that we read must be in English, and a user's PATH may lack mke2fs.
  environment.emplace_back("LC_ALL=C.UTF-8");
  environment.push_back("PATH=" + program_path());
  x_messages.clear();
  x_line.clear();
  const AttemptRecord record =
      run_child({.command = std::move(command),
                 .deadline = kToolDeadline,
                 .grace = kToolGrace,
                 .log_file = {},
                 .environment = std::move(environment),
                 .on_messages = [this](std::string_view chunk) { take_messages(chunk); }});
  if (x_interrupted) return host_error("interrupted");
  if (!record.start_error.empty()) return host_error("{}: {}", name, record.start_error);
  if (record.timed_out) return host_error("{} did not end within 2 hours", name);
  if (WIFEXITED(record.wait_status) && WEXITSTATUS(record.wait_status) == 0) return {};
  return host_error("{}", explain_failure(name, how_it_ended(record.wait_status), x_messages));
}

AttemptRecord ImageBuilder::run_child(AttemptSpec spec) {
  AttemptRecord ended;
  std::unique_ptr<EventLoop::Timer> second;
  second = x_loop.make_timer([&] {
    x_progress.tick();
    second->start(std::chrono::seconds(1));
  });
  second->start(std::chrono::seconds(1));
  x_attempt = std::make_unique<Attempt>(x_loop, std::move(spec), [&](AttemptRecord record) {
    ended = std::move(record);
    x_loop.stop();
  });
  x_loop.run();
  x_attempt.reset();
  return ended;
}

// mmdebstrap tells its steps in lines that begin with "I: ".
void ImageBuilder::take_messages(std::string_view chunk) {
  if (x_options.verbose) std::fwrite(chunk.data(), 1, chunk.size(), stderr);
  x_messages += chunk;
  if (x_messages.size() > 2 * kMessagesKept) x_messages.erase(0, x_messages.size() - kMessagesKept);
  for (const char c : chunk) {
    if (c != '\n') {
      if (x_line.size() < kMessagesKept) x_line += c;
      continue;
    }
    if (x_line.starts_with("I: ") && !x_options.verbose &&
        x_line.find("-hook") == std::string::npos)
      x_progress.note(std::string_view(x_line).substr(3));
    x_line.clear();
  }
}

void ImageBuilder::interrupt() {
  if (!x_interrupted) x_progress.say("interrupted: ending, and removing what was made");
  x_interrupted = true;
  if (x_attempt) x_attempt->interrupt();
}

Result<> ImageBuilder::build() {
  LETHE_TRY(refuse_existing(x_options.out, x_options.force));
  LETHE_TRY(find_tools());
  LETHE_TRY_ASSIGN(x_signals,
                   x_loop.watch_signals({SIGINT, SIGTERM, SIGHUP}, [this](int) { interrupt(); }));
  LETHE_TRY(prepare());
  LETHE_TRY(install_packages());
  LETHE_TRY(unpack());
  LETHE_TRY(make_file_system());
  return finish();
}

void ImageBuilder::clean_up() {
  if (!x_work || x_work->remove()) return;
  // mmdebstrap was killed in its user namespace: its files belong to that one's users.
  AttemptRecord record = run_child({.command = {x_tools["mmdebstrap"], "--unshare-helper", "rm",
                                                "-rf", "--", work("tmp").string()},
                                    .deadline = std::chrono::minutes(5),
                                    .grace = kToolGrace,
                                    .log_file = {},
                                    .environment = {},
                                    .on_messages = {}});
  if (x_work->remove()) return;
  x_progress.say(fmt::format(
      "'{}' is left: not all in it is this user's ({})", x_work->path(),
      record.messages.empty() ? how_it_ended(record.wait_status) : printable(record.messages)));
}

void say_how_to_boot(const ImageOptions& options) {
  const std::string out = printable(options.out);
  std::string text = fmt::format("{0} is ready, with {0}.vmlinuz, {0}.initrd and a config:\n", out);
  if (options.desktop)
    text += fmt::format("  lethe run {}.toml        # then: lethe attach {}\n", out,
                        vm_name_of(options.out));
  else
    text += fmt::format("  lethe run {}.toml\n", out);
  if (!options.password && options.ssh_key_file.empty())
    text += "The console logs root in: give --password or --ssh-key for anything else.\n";
  std::fputs(text.c_str(), stdout);
}

}  // namespace

int build_image(const ImageOptions& options) {
  ImageBuilder builder(options);
  const Result<> built = builder.build();
  builder.clean_up();
  if (!built) {
    if (builder.interrupted()) return kExitInterrupted;
    print_error(fmt::format("image: {}", built.error().text));
    return exit_code_of(built.error().kind);
  }
  say_how_to_boot(options);
  return 0;
}

}  // namespace lethe
