#include "frontend/fake_vm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/virtio_gpu.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdio>

#include "base/assert.h"
#include "base/packet.h"

namespace lethe::gui {

FakeBuffer::FakeBuffer(uint64_t bytes)
    : x_fd(::memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING)), x_bytes(bytes) {
  LETHE_ASSERT(x_fd.valid() && ::ftruncate(x_fd.get(), static_cast<off_t>(bytes)) == 0);
  x_start = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, x_fd.get(), 0);
  LETHE_ASSERT(x_start != MAP_FAILED);
  LETHE_ASSERT(::fcntl(x_fd.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SEAL) ==
               0);
}
FakeBuffer::FakeBuffer(FakeBuffer&& other) noexcept
    : x_fd(std::move(other.x_fd)),
      x_bytes(other.x_bytes),
      x_start(std::exchange(other.x_start, nullptr)) {}
FakeBuffer::~FakeBuffer() {
  if (x_start != nullptr) ::munmap(x_start, x_bytes);
}
void FakeBuffer::revoke() const { LETHE_ASSERT(::ftruncate(x_fd.get(), 0) == 0); }

FakeVm::FakeVm() {
  int ends[2];
  LETHE_ASSERT(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
  x_socket.reset(ends[0]);
  x_frontend.reset(ends[1]);
}

FakeVm::FakeVm(const std::string& path)
    : x_listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  LETHE_ASSERT(path.size() < sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  ::unlink(path.c_str());
  LETHE_ASSERT(
      ::bind(x_listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  LETHE_ASSERT(::listen(x_listener.get(), 8) == 0);
}

bool FakeVm::accept(std::chrono::milliseconds patience) {
  pollfd waiting{.fd = x_listener.get(), .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, static_cast<int>(patience.count())) != 1) return false;
  x_socket.reset(::accept4(x_listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return x_socket.valid();
}

bool FakeVm::send_raw(const void* bytes, size_t size, std::span<const int> fds) {
  // SAFETY: the bytes of what the caller has.
  const std::span packet(static_cast<const uint8_t*>(bytes), size);
  return send_packet(x_socket.get(), packet, fds) == static_cast<ssize_t>(size);
}

std::vector<std::byte> FakeVm::receive_raw(std::chrono::milliseconds patience) {
  pollfd waiting{.fd = x_socket.get(), .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, static_cast<int>(patience.count())) != 1) return {};
  std::vector<std::byte> packet(kMessageBytesMax);
  const ssize_t got = ::recv(x_socket.get(), packet.data(), packet.size(), 0);
  packet.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return packet;
}

bool FakeVm::is(const std::vector<std::byte>& packet, Type type, size_t size) {
  MessageHeader header{};
  if (packet.size() < sizeof header) {
    x_complaint = "no message came";
    return false;
  }
  std::memcpy(&header, packet.data(), sizeof header);
  x_complaint = fmt::format("type {} of {} bytes came, not {} of {}", header.type, packet.size(),
                            static_cast<uint32_t>(type), size);
  return header.type == static_cast<uint32_t>(type) && packet.size() == size && header.size == size;
}

bool FakeVm::welcome(const char* name) {
  Welcome welcome{};
  welcome.magic = kMagic;
  welcome.version = kVersion;
  std::snprintf(welcome.vm_name, sizeof welcome.vm_name, "%s", name);
  return send(welcome, Type::kWelcome);
}

bool FakeVm::surface(uint64_t id, SurfaceKind kind, uint32_t width, uint32_t height,
                     const char* title, int32_t x, int32_t y, uint32_t flags, uint64_t parent) {
  Surface surface{};
  surface.surface = id;
  surface.parent = parent;
  surface.kind = static_cast<uint32_t>(kind);
  surface.flags = flags;
  surface.x = x;
  surface.y = y;
  surface.width = width;
  surface.height = height;
  std::snprintf(surface.title, sizeof surface.title, "%s", title);
  return send(surface, Type::kSurface);
}

bool FakeVm::buffer(uint32_t slot, uint64_t generation, const FakeBuffer& memory) {
  const int fd = memory.fd();
  return send(Buffer{.header = {},
                     .buffer = slot,
                     .reserved = 0,
                     .generation = generation,
                     .bytes = memory.bytes()},
              Type::kBuffer, {&fd, 1});
}

bool FakeVm::bye(ByeReason reason) {
  return send(Bye{.header = {}, .reason = static_cast<uint32_t>(reason), .reserved = 0},
              Type::kBye);
}

Frame FakeVm::frame(uint64_t surface, uint64_t number, uint32_t slot, uint64_t generation,
                    uint32_t width, uint32_t height) {
  Frame frame{};
  frame.surface = surface;
  frame.frame = number;
  frame.buffer = slot;
  frame.format = VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM;
  frame.generation = generation;
  frame.stride = width * 4;
  frame.width = width;
  frame.height = height;
  frame.damage_width = width;
  frame.damage_height = height;
  return frame;
}

}  // namespace lethe::gui
