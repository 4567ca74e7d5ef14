#include "devices/gui/fake_frontend.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/packet.h"
#include "base/test_util.h"

namespace lethe {
namespace {

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

UniqueFd make_socket() { return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)); }

}  // namespace

FakeGuiSocket::FakeGuiSocket() : x_fd(make_socket()) {
  char name[] = "/tmp/lethe-gui-XXXXXX";
  EXPECT_NE(::mkdtemp(name), nullptr);
  x_directory = name;
  x_path = x_directory + "/gui.sock";
  const sockaddr_un address = address_of(x_path);
  // SAFETY: a sockaddr_un is given as the sockaddr that bind() wants, with its size.
  EXPECT_EQ(::bind(x_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::listen(x_fd.get(), 64), 0);
  EXPECT_EQ(::fcntl(x_fd.get(), F_SETFL, O_NONBLOCK), 0);
}

FakeGuiSocket::~FakeGuiSocket() {
  ::unlink(x_path.c_str());
  ::rmdir(x_directory.c_str());
}

bool connect_to(int socket, const std::string& path) {
  const sockaddr_un address = address_of(path);
  // SAFETY: as in bind() above.
  return ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

FakeFrontend::FakeFrontend(const std::string& path) : x_fd(make_socket()) {
  // A socket's file is there a moment before somebody listens.
  bool connected = false;
  (void)eventually([&] {
    connected = connect_to(x_fd.get(), path);
    return connected || errno != ECONNREFUSED;
  });
  EXPECT_TRUE(connected) << std::strerror(errno);
}

FakeFrontend FakeFrontend::connect(const std::string& path, uint32_t flags) {
  FakeFrontend frontend(path);
  frontend.hello(gui::kVersion, flags);
  EXPECT_TRUE(frontend.receive_until(gui::Type::kWelcome));
  return frontend;
}

FakeFrontend::~FakeFrontend() {
  for (auto& [generation, mapping] : buffers)
    ::munmap(const_cast<uint8_t*>(mapping.data), mapping.bytes);
}

void FakeFrontend::hello(uint32_t version, uint32_t flags) {
  gui::Hello message{};
  message.magic = gui::kMagic;
  message.version = version;
  message.flags = flags;
  std::strcpy(message.name, "fake");
  send(gui::Type::kHello, message);
}

bool FakeFrontend::send_raw(std::span<const uint8_t> packet, int descriptor) {
  const std::span<const int> descriptors(&descriptor, descriptor >= 0 ? 1 : 0);
  return send_packet(x_fd.get(), packet, descriptors) >= 0;
}

std::optional<FakePacket> FakeFrontend::receive_raw(std::chrono::milliseconds patience) {
  pollfd ready{.fd = x_fd.get(), .events = POLLIN, .revents = 0};
  if (::poll(&ready, 1, static_cast<int>(patience.count())) != 1) return std::nullopt;
  FakePacket packet;
  iovec part{.iov_base = packet.bytes.data(), .iov_len = packet.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t size = ::recvmsg(x_fd.get(), &header, MSG_CMSG_CLOEXEC);
  if (size <= 0) return std::nullopt;
  packet.size = static_cast<size_t>(size);
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    EXPECT_EQ(c->cmsg_len, CMSG_LEN(sizeof(int))) << "one descriptor at most";
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(c), sizeof descriptor);
    packet.descriptor.reset(descriptor);
  }
  const auto type = packet.type();
  const bool refused = (header.msg_flags & MSG_CTRUNC) != 0;
  EXPECT_EQ(packet.descriptor.valid() || refused, type == gui::Type::kBuffer);
  return packet;
}

void FakeFrontend::take_buffer(FakePacket& packet) {
  const auto message = packet.as<gui::Buffer>();
  EXPECT_FALSE(buffers.contains(message.generation)) << "sent twice";
  if (!packet.descriptor.valid()) return;  // this process is out of descriptors
  void* const data =
      ::mmap(nullptr, message.bytes, PROT_READ, MAP_SHARED, packet.descriptor.get(), 0);
  EXPECT_NE(data, MAP_FAILED);
  buffers[message.generation] = {std::move(packet.descriptor), static_cast<uint8_t*>(data),
                                 message.bytes};
}

std::optional<gui::Type> FakeFrontend::receive(std::chrono::milliseconds patience) {
  auto packet = receive_raw(patience);
  if (!packet) return std::nullopt;
  ++packets_received;
  const gui::Type type = packet->type();
  if (type == gui::Type::kSurface) {
    const auto message = packet->as<gui::Surface>();
    surfaces[message.surface] = message;
  } else if (type == gui::Type::kSurfaceGone) {
    const auto message = packet->as<gui::SurfaceGone>();
    EXPECT_EQ(surfaces.erase(message.surface), 1U) << "gone, but never there";
    surfaces_gone.push_back(message.surface);
  } else if (type == gui::Type::kBuffer) {
    take_buffer(*packet);
  } else if (type == gui::Type::kBufferGone) {
    const auto message = packet->as<gui::BufferGone>();
    gone.push_back(message);
    if (answers_gone) unmap({message.buffer, message.generation});
  } else if (type == gui::Type::kFrame) {
    const auto message = packet->as<gui::Frame>();
    EXPECT_TRUE(surfaces.contains(message.surface));
    frames[message.surface] = message;
    ++frames_received;
    if (answers_frames) done_reading(message.surface, message.frame);
  } else if (type == gui::Type::kCursor) {
    const auto message = packet->as<gui::Cursor>();
    cursors[message.surface] = message;
  } else if (type == gui::Type::kBye) {
    bye = static_cast<gui::ByeReason>(packet->as<gui::Bye>().reason);
  }
  return type;
}

bool FakeFrontend::receive_until(gui::Type type, std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    const auto got = receive(std::max(left, std::chrono::milliseconds(0)));
    if (!got) return false;
    if (*got == type) return true;
  }
}

void FakeFrontend::drain() {
  while (receive(std::chrono::milliseconds(0))) continue;
}

void FakeFrontend::unmap(BufferId id) {
  const auto found = buffers.find(id.generation);
  if (found != buffers.end()) {
    ::munmap(const_cast<uint8_t*>(found->second.data), found->second.bytes);
    buffers.erase(found);
  }
  say_unmapped(id);
}

size_t open_descriptors() {
  DIR* const directory = ::opendir("/proc/self/fd");
  size_t count = 0;
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count - 3;  // ".", "..", and the directory's own
}

void IdleGui::expect_idle() const {
  x_gui.set_limits({.orphans_max = 0});
  const LedgerCounters& ledger = x_gui.ledger().counters();
  for (const auto& [name, of] : {std::pair("live", &ledger.live),
                                 {"orphan", &ledger.orphan},
                                 {"freeing", &ledger.freeing},
                                 {"leaked", &ledger.leaked}}) {
    EXPECT_TRUE(eventually([&] { return of->buffers == 0; })) << of->buffers << name;
    EXPECT_EQ(of->bytes, 0U) << name;
  }
  MetricSum frontends("lethe_gui_frontends_total");
  x_gui.report_metrics(frontends);
  const auto watched = std::min(static_cast<unsigned>(frontends.sum), ShareLedger::kHoldersMax);
  EXPECT_TRUE(eventually([&] { return open_descriptors() <= x_descriptors + 2 * watched; }))
      << open_descriptors() << " descriptors, at first " << x_descriptors << ", " << watched
      << " processes watched";
}

}  // namespace lethe
