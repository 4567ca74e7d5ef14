#include "frontend/client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace lethe::gui {
namespace {

constexpr size_t kDescriptorsSeen = 4;  // more are closed by the kernel (MSG_CTRUNC)
// Each answer is to a buffer or a frame, which a VM sends again only once it is answered.
constexpr size_t kWaitingMax = Client::kInputsMax + 2 * kBuffersMax + kSurfacesMax;

Unexpected violation(Type type, const std::string& why) {
  return host_error("the VM sent a bad message ({}): {}", type_name(static_cast<uint32_t>(type)),
                    why);
}

SurfaceState state_of(const Surface& surface) {
  return {.id = surface.surface,
          .parent = surface.parent,
          .kind = static_cast<SurfaceKind>(surface.kind),
          .flags = surface.flags,
          .x = surface.x,
          .y = surface.y,
          .width = surface.width,
          .height = surface.height,
          .output = surface.output,
          .title = shown_text(surface.title, sizeof surface.title)};
}

}  // namespace

Result<Client> Client::connect(UniqueFd socket, const ClientOptions& options) {
  Client client(std::move(socket));
  Hello hello{};
  hello.magic = kMagic;
  hello.version = kVersion;
  hello.flags = options.view_only ? kHelloViewOnly : 0;
  options.name.copy(hello.name, sizeof hello.name - 1);
  client.send(hello, Type::kHello, false);
  LETHE_TRY(client.flush());
  return client;
}

short Client::events() const {
  return static_cast<short>(x_waiting.empty() ? POLLIN : POLLIN | POLLOUT);
}

Result<> Client::process(Listener& listener) {
  LETHE_TRY(flush());
  for (int i = 0; i < kPacketsPerProcess; ++i) {
    std::byte bytes[kMessageBytesMax];
    LETHE_TRY_ASSIGN(std::optional<Received> received, receive(bytes));
    if (!received) break;
    LETHE_TRY_ASSIGN(const FromVm message,
                     check_packet({bytes, received->size}, received->descriptors.size()));
    LETHE_TRY(handle(message, *received, listener));
    if (x_waiting.size() > kWaitingMax)
      return host_error("the VM sends, but does not read what we answer");
  }
  return flush();
}

Result<std::optional<Client::Received>> Client::receive(std::span<std::byte> into) {
  iovec part{into.data(), into.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsSeen * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = -1;
  do {
    got = ::recvmsg(x_socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return std::nullopt;
  if (got < 0 && errno != ECONNRESET)
    return host_error("cannot read from the VM: {}", errno_text(errno));
  Received received;
  for (cmsghdr* part_of = got < 0 ? nullptr : CMSG_FIRSTHDR(&message); part_of != nullptr;
       part_of = CMSG_NXTHDR(&message, part_of)) {
    if (part_of->cmsg_level != SOL_SOCKET || part_of->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part_of->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part_of) + i * sizeof fd, sizeof fd);
      received.descriptors.emplace_back(fd);
    }
  }
  // A message of no bytes is the end, too: a VM sends none.
  if (got <= 0) return host_error("the VM has ended, without a goodbye");
  if ((message.msg_flags & MSG_TRUNC) != 0)
    return host_error("the VM sent a message of more than {} bytes", into.size());
  // recvmsg(2): also when this process has no room for another descriptor.
  received.descriptors_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  received.size = static_cast<size_t>(got);
  return received;
}

Result<> Client::handle(const FromVm& message, Received& received, Listener& listener) {
  if (!x_welcomed && !std::holds_alternative<Welcome>(message) &&
      !std::holds_alternative<Bye>(message))
    return host_error("the VM did not say Welcome first");
  return std::visit([&](const auto& exact) { return take(exact, received, listener); }, message);
}

Result<> Client::take(const Welcome& welcome, Received&, Listener&) {
  if (x_welcomed) return violation(Type::kWelcome, "it came twice");
  x_welcomed = true;
  x_vm_name = shown_text(welcome.vm_name, sizeof welcome.vm_name);
  return {};
}

Result<> Client::take(const Surface& surface, Received&, Listener& listener) {
  const auto known = x_surfaces.find(surface.surface);
  if (known == x_surfaces.end() && x_surfaces.size() >= kSurfacesMax)
    return violation(Type::kSurface, "too many surfaces");
  if (known != x_surfaces.end() && known->second.kind != static_cast<SurfaceKind>(surface.kind))
    return violation(Type::kSurface, "it changes its kind");
  SurfaceState& state = x_surfaces[surface.surface];
  state = state_of(surface);
  listener.on_surface(state);
  return {};
}

Result<> Client::take(const SurfaceGone& gone, Received&, Listener& listener) {
  if (x_surfaces.erase(gone.surface) == 0)
    return violation(Type::kSurfaceGone, fmt::format("no surface {}", gone.surface));
  x_shown.erase(gone.surface);
  listener.on_surface_gone(gone.surface);
  return {};
}

Result<> Client::take(const Buffer& buffer, Received& received, Listener&) {
  const auto known = x_buffers.find(buffer.buffer);
  if (known != x_buffers.end() && known->second.mapping.valid())
    return violation(Type::kBuffer, fmt::format("slot {} is in use", buffer.buffer));
  HeldBuffer held{.generation = buffer.generation, .bytes = buffer.bytes, .mapping = {}};
  if (received.descriptors.empty() && !received.descriptors_lost)
    return violation(Type::kBuffer, "it has no descriptor");
  if (!received.descriptors.empty()) {
    auto mapping = SharedMapping::map(std::move(received.descriptors.front()), buffer.bytes);
    if (!mapping) return violation(Type::kBuffer, mapping.error().text);
    held.mapping = std::move(*mapping);
  }
  // This process is out of descriptors or mappings. The VM sends the buffer again with its next
  // frame, so that pictures come back when there is room.
  if (!held.mapping.valid()) {
    ++x_counters.lost;
    Unmapped answer{};
    answer.buffer = buffer.buffer;
    answer.generation = buffer.generation;
    send(answer, Type::kUnmapped, false);
  }
  x_buffers.insert_or_assign(buffer.buffer, std::move(held));
  return {};
}

Result<> Client::take(const BufferGone& gone, Received&, Listener&) {
  const auto known = x_buffers.find(gone.buffer);
  if (known == x_buffers.end() || known->second.generation != gone.generation)
    return violation(Type::kBufferGone,
                     fmt::format("no buffer {} of generation {}", gone.buffer, gone.generation));
  const bool held = known->second.mapping.valid();
  x_buffers.erase(known);
  if (!held) return {};  // it was told already
  ++x_counters.unmapped;
  Unmapped answer{};
  answer.buffer = gone.buffer;
  answer.generation = gone.generation;
  send(answer, Type::kUnmapped, false);
  return {};
}

// The buffer that a message names, if it has the `bytes` at `offset`.
Result<const Client::HeldBuffer*> Client::buffer_of(uint32_t index, uint64_t generation,
                                                    uint64_t offset, uint64_t bytes,
                                                    Type type) const {
  const auto known = x_buffers.find(index);
  if (known == x_buffers.end() || known->second.generation != generation)
    return violation(type, fmt::format("no buffer {} of generation {}", index, generation));
  const HeldBuffer& buffer = known->second;
  if (offset > buffer.bytes || bytes > buffer.bytes - offset)
    return violation(type,
                     fmt::format("{} bytes at {} of a buffer of {}", bytes, offset, buffer.bytes));
  return &buffer;
}

Result<> Client::take(const Frame& frame, Received&, Listener& listener) {
  if (!x_surfaces.contains(frame.surface))
    return violation(Type::kFrame, fmt::format("no surface {}", frame.surface));
  Shown& shown = x_shown[frame.surface];
  if (shown.frame && frame.frame <= *shown.frame)
    return violation(Type::kFrame, fmt::format("frame {} after {}", frame.frame, *shown.frame));
  shown.frame = frame.frame;
  ++x_counters.frames;
  if (frame.buffer == kNoBuffer) {
    listener.on_frame(frame.surface, {});
    shown.stale = true;
  } else {
    // All below 2^31: check.cc.
    const uint64_t bytes =
        uint64_t{frame.stride} * (frame.height - 1) + uint64_t{frame.width} * kPixelBytes;
    LETHE_TRY_ASSIGN(const HeldBuffer* buffer,
                     buffer_of(frame.buffer, frame.generation, frame.offset, bytes, Type::kFrame));
    LETHE_TRY(show(frame, *buffer, listener));
  }
  DoneReading answer{};
  answer.surface = frame.surface;
  answer.frame = frame.frame;
  send(answer, Type::kDoneReading, false);
  return {};
}

Result<> Client::show(const Frame& frame, const HeldBuffer& buffer, Listener& listener) {
  Shown& shown = x_shown[frame.surface];
  if (!buffer.mapping.valid()) {
    shown.stale = true;
    return {};
  }
  FrameView view{
      .pixels = buffer.mapping.data() + frame.offset,
      .format = frame.format,
      .stride = frame.stride,
      .width = frame.width,
      .height = frame.height,
      .damage = {frame.damage_x, frame.damage_y, frame.damage_width, frame.damage_height}};
  if (std::exchange(shown.stale, false)) view.damage = {0, 0, frame.width, frame.height};
  listener.on_frame(frame.surface, view);
  return {};
}

Result<> Client::take(const Cursor& cursor, Received&, Listener& listener) {
  if (!x_surfaces.contains(cursor.surface))
    return violation(Type::kCursor, fmt::format("no surface {}", cursor.surface));
  if (cursor.buffer == kNoBuffer) {
    listener.on_cursor(cursor.surface, {});
    return {};
  }
  const uint64_t bytes = uint64_t{cursor.width} * cursor.height * kPixelBytes;
  LETHE_TRY_ASSIGN(const HeldBuffer* buffer, buffer_of(cursor.buffer, cursor.generation,
                                                       cursor.offset, bytes, Type::kCursor));
  if (buffer->mapping.valid())
    listener.on_cursor(cursor.surface, {.pixels = buffer->mapping.data() + cursor.offset,
                                        .width = cursor.width,
                                        .height = cursor.height,
                                        .hot_x = std::min(cursor.hot_x, cursor.width - 1),

                                        .hot_y = std::min(cursor.hot_y, cursor.height - 1)});
  return {};
}

Result<> Client::take(const Bye& bye, Received&, Listener&) {
  return host_error("{}", bye_text(static_cast<ByeReason>(bye.reason)));
}

// --- Sending ---

template <typename T>
void Client::send(T message, Type type, bool input) {
  message.header = {static_cast<uint32_t>(type), sizeof message};
  if (input && x_inputs_waiting >= kInputsMax) {
    ++x_counters.inputs_dropped;
    return;
  }
  Packet packet{.bytes = std::vector<std::byte>(sizeof message), .input = input};
  std::memcpy(packet.bytes.data(), &message, sizeof message);
  if (type == Type::kMotion && !x_waiting.empty() &&
      x_waiting.back().bytes.size() == sizeof(Motion)) {
    Motion last;
    std::memcpy(&last, x_waiting.back().bytes.data(), sizeof last);
    Motion now;
    std::memcpy(&now, &message, sizeof now);
    if (last.header.type == message.header.type && last.surface == now.surface) {
      x_waiting.back() = std::move(packet);
      ++x_counters.inputs_replaced;
      return;
    }
  }
  x_inputs_waiting += input ? 1 : 0;
  x_waiting.push_back(std::move(packet));
}

Result<> Client::flush() {
  while (!x_waiting.empty()) {
    const Packet& packet = x_waiting.front();
    const ssize_t sent = ::send(x_socket.get(), packet.bytes.data(), packet.bytes.size(),
                                MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) return {};
    // What the VM said before it closed is still to be read, and says why: receive() ends this.
    if (sent < 0 && errno != EPIPE && errno != ECONNRESET)
      return host_error("cannot write to the VM: {}", errno_text(errno));
    x_inputs_waiting -= packet.input ? 1 : 0;
    x_waiting.pop_front();
  }
  return {};
}

void Client::send_key(uint64_t surface, uint32_t code, bool down) {
  send(Key{.header = {}, .surface = surface, .code = code, .down = down ? 1U : 0U}, Type::kKey,
       true);
}
void Client::send_motion(uint64_t surface, int32_t x, int32_t y) {
  send(Motion{.header = {}, .surface = surface, .x = x, .y = y}, Type::kMotion, true);
}
void Client::send_button(uint64_t surface, uint32_t code, bool down) {
  send(Button{.header = {}, .surface = surface, .code = code, .down = down ? 1U : 0U},
       Type::kButton, true);
}
void Client::send_wheel(uint64_t surface, int32_t vertical, int32_t horizontal) {
  send(Wheel{.header = {},
             .surface = surface,
             .vertical = std::clamp(vertical, -100, 100),
             .horizontal = std::clamp(horizontal, -100, 100)},
       Type::kWheel, true);
}
void Client::send_focus(uint64_t surface, bool focused) {
  send(Focus{.header = {}, .surface = surface, .focused = focused ? 1U : 0U, .reserved = 0},
       Type::kFocus, true);
}
void Client::send_configure(uint64_t surface, int32_t x, int32_t y, uint32_t width,
                            uint32_t height) {
  send(Configure{.header = {},
                 .surface = surface,
                 .x = x,
                 .y = y,
                 .width = std::clamp(width, 1U, kSidePixelsMax),
                 .height = std::clamp(height, 1U, kSidePixelsMax)},
       Type::kConfigure, true);
}
void Client::send_close(uint64_t surface) {
  send(Close{.header = {}, .surface = surface}, Type::kClose, true);
}

}  // namespace lethe::gui
