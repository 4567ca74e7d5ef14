// virtio-vsock through a real VM (label kvm): a bare-metal guest echoes what this host sends it,
// and then connects to this host. baremetal/guests/virtio_vsock.cc is the guest's side.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/test_util.h"

namespace {

constexpr int kDeadlineMs = 60'000;
constexpr size_t kEchoed = 48 * 1024;

std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  EXPECT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

class Vsock : public testing::Test {
 protected:
  void SetUp() override {
    char made[] = "/tmp/lethe-vsock-XXXXXX";
    ASSERT_NE(mkdtemp(made), nullptr);
    x_dir = made;
    setenv("XDG_RUNTIME_DIR", x_dir.c_str(), 1);
    x_socket = x_dir + "/lethe/vm/vsock.sock";
    const std::string kernel = program_folder().parent_path() / "guest-tests/baremetal/virtio.elf";
    std::ofstream(x_dir + "/vm.toml") << "name = \"vm\"\n[memory]\nsize = \"32M\"\n"
                                      << "[vsock]\nenabled = true\n[boot]\nkernel = \"" << kernel
                                      << "\"\ncmdline = \"test=vsock-echo\"\n";
    const std::string lethe = program_folder() / "lethe";
    x_pid = fork();
    if (x_pid == 0) {
      const int log = open((x_dir + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
      dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
      dup2(log, STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
      execl(lethe.c_str(), "lethe", "run", (x_dir + "/vm.toml").c_str(), nullptr);
      _exit(125);
    }
  }
  void TearDown() override {
    if (x_pid > 0) {
      kill(x_pid, SIGKILL);
      waitpid(x_pid, nullptr, 0);
    }
    std::filesystem::remove_all(x_dir);
  }

  std::string log() const {
    std::ifstream file(x_dir + "/log");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  bool wait_for(const std::string& text) const {
    return lethe::eventually([&] { return log().find(text) != std::string::npos; },
                             std::chrono::milliseconds(kDeadlineMs));
  }
  int connect_to_vm() const {
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_un address = address_of(x_socket);
    // SAFETY: a sockaddr_un is given as the sockaddr that connect() wants, with its size.
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  // Up to `bytes`, the end, or the deadline; with a line, up to its end.
  static std::string read_from(int fd, size_t bytes, bool line = false) {
    std::string got;
    pollfd waiting{fd, POLLIN, 0};
    while (got.size() < bytes && (!line || got.empty() || got.back() != '\n') &&
           poll(&waiting, 1, kDeadlineMs) == 1) {
      char chunk[4096];
      const ssize_t count = read(fd, chunk, line ? 1 : std::min(sizeof chunk, bytes - got.size()));
      if (count <= 0) break;
      got.append(chunk, static_cast<size_t>(count));
    }
    return got;
  }
  int exit_code() {
    int status = 0;
    const bool ended = lethe::eventually([&] { return waitpid(x_pid, &status, WNOHANG) == x_pid; },
                                         std::chrono::milliseconds(kDeadlineMs));
    if (!ended) return -1;
    x_pid = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string x_dir;
  std::string x_socket;
  pid_t x_pid = -1;
};

TEST_F(Vsock, guest_echoes_every_byte_and_connects_to_the_host) {
  ASSERT_TRUE(wait_for("vsock: ready")) << log();
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_un address = address_of(x_socket + "_6000");
  // SAFETY: as above.
  ASSERT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener, 1), 0);

  const int host = connect_to_vm();
  ASSERT_EQ(write(host, "CONNECT 5000\n", 13), 13);
  EXPECT_EQ(read_from(host, 64, true), "OK 1073741824\n");
  std::string all(kEchoed, '\0');
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<char>(i * 7 + (i >> 8));
  ASSERT_EQ(write(host, all.data(), all.size()), static_cast<ssize_t>(all.size()));
  EXPECT_TRUE(read_from(host, all.size()) == all) << log();
  close(host);
  ASSERT_TRUE(wait_for("vsock: echoed")) << log();

  pollfd waiting{listener, POLLIN, 0};
  ASSERT_EQ(poll(&waiting, 1, kDeadlineMs), 1) << log();
  const int guest = accept(listener, nullptr, nullptr);
  EXPECT_EQ(read_from(guest, 64, true), "hello from the guest\n");
  ASSERT_EQ(write(guest, "bye\n", 4), 4);
  EXPECT_EQ(read_from(guest, 1), "");  // the end
  close(guest);
  close(listener);
  EXPECT_EQ(exit_code(), 64) << log();  // debug-exit 0
}

}  // namespace
