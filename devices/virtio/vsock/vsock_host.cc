// The host's sockets: clients that connect, listeners that the guest connects to, and their ends.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <string_view>

#include "base/assert.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "devices/virtio/vsock/vsock_io.h"

namespace lethe {
namespace {

constexpr uint64_t kListenerTag = ~uint64_t{0};
constexpr size_t kEventsMax = 64;
constexpr unsigned kAcceptMax = 16;  // clients, before other work has its turn
constexpr std::chrono::milliseconds kTick{20};

uint64_t tag(const VsockStream& stream) { return uint64_t{stream.generation} << 32 | stream.index; }

// The port of "CONNECT PORT", as Firecracker reads it: any case, blanks around the number.
std::optional<uint32_t> parse_hello(std::string_view line) {
  constexpr std::string_view kWord = "connect";
  if (line.size() <= kWord.size()) return std::nullopt;
  for (size_t i = 0; i < kWord.size(); ++i)
    if (std::tolower(static_cast<unsigned char>(line[i])) != kWord[i]) return std::nullopt;
  line.remove_prefix(kWord.size());
  if (line.front() != ' ' && line.front() != '\t') return std::nullopt;
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!line.empty() && blank(line.front())) line.remove_prefix(1);
  while (!line.empty() && blank(line.back())) line.remove_suffix(1);
  uint32_t port = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), port);
  if (error != std::errc{} || end != line.data() + line.size()) return std::nullopt;
  return port;
}

}  // namespace

void VsockIo::listen(bool wanted) {
  if (x_options.listener < 0 || wanted == x_listening) return;
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kListenerTag}};
  if (::epoll_ctl(x_epoll.get(), wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, x_options.listener,
                  &event) == 0)
    x_listening = wanted;
  else
    log_warn(LogModule::kVsock, "no clients are accepted: epoll_ctl: {}", errno_text(errno));
}

// Clients wait in the backlog while there is no room for them.
void VsockIo::listen_if_room() {
  if (x_out_of_descriptors) return;
  listen(!x_table.full() && x_hellos < x_options.limits.hellos_max);
}

// What happened on the host's sockets; whether anything did.
bool VsockIo::poll_sockets() {
  std::array<epoll_event, kEventsMax> events;
  const int count = ::epoll_wait(x_epoll.get(), events.data(), events.size(), 0);
  for (int i = 0; i < count; ++i) {
    const uint64_t which = events[static_cast<size_t>(i)].data.u64;
    if (which == kListenerTag) {
      accept_clients();
    } else if (VsockStream* const stream =
                   x_table.at(static_cast<uint32_t>(which), static_cast<uint32_t>(which >> 32))) {
      on_socket(*stream, events[static_cast<size_t>(i)].events);
    }
  }
  return count > 0;
}

void VsockIo::on_socket(VsockStream& stream, uint32_t events) {
  if ((events & EPOLLIN) != 0) stream.readable = true;
  if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) stream.ended = stream.readable = true;
  if ((events & EPOLLHUP) != 0) stream.hung_up = true;
  switch (stream.state) {
    case VsockStream::State::kHello:
      return on_hello(stream);
    case VsockStream::State::kRequested:
      if (stream.hung_up) reset(stream);
      return;
    case VsockStream::State::kOpen:
    case VsockStream::State::kDraining:
      if ((events & (EPOLLOUT | EPOLLHUP)) != 0 && stream.buffered()) flush(stream);
      break;
    default:
      return;
  }
  if (stream.state != VsockStream::State::kOpen) return;
  if (can_read(stream)) {
    x_schedule.add(stream);  // finds the end, if that is it, behind what is left
  } else if (stream.hung_up) {
    host_ended(stream);
  }
}

void VsockIo::accept_clients() {
  for (unsigned i = 0; i < kAcceptMax; ++i) {
    if (x_table.full() || x_hellos >= x_options.limits.hellos_max) return listen(false);
    UniqueFd client(::accept4(x_options.listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!client.valid()) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
      LETHE_LOG_LIMITED(LogModule::kVsock, "cannot accept a client: {}", errno_text(errno));
      x_out_of_descriptors = true;
      arm_tick();
      return listen(false);
    }
    if (x_host == nullptr) {  // no driver runs: refused
      ++x_counters.refused;
      continue;
    }
    VsockStream& stream = *x_table.add(VsockStream::State::kHello);
    ++x_counters.streams;
    ++x_hellos;
    stream.socket = std::move(client);
    set_deadline(stream, x_options.limits.hello_max);
    if (!watch_socket(stream)) drop(stream);
  }
}

bool VsockIo::watch_socket(VsockStream& stream) {
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data = {.u64 = tag(stream)}};
  if (::epoll_ctl(x_epoll.get(), EPOLL_CTL_ADD, stream.socket.get(), &event) == 0) return true;
  LETHE_LOG_LIMITED(LogModule::kVsock, "epoll_ctl: {}", errno_text(errno));
  return false;
}

void VsockIo::want_writable(VsockStream& stream, bool wanted) {
  if (stream.wants_writable == wanted) return;
  stream.wants_writable = wanted;
  const uint32_t writable = wanted ? uint32_t{EPOLLOUT} : 0;
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP | EPOLLET | writable,
                    .data = {.u64 = tag(stream)}};
  // Memory for it was taken by the addition: it does not fail.
  LETHE_ASSERT(::epoll_ctl(x_epoll.get(), EPOLL_CTL_MOD, stream.socket.get(), &event) == 0);
}

// Reads the client's line, and nothing behind it: that is the guest's.
void VsockIo::on_hello(VsockStream& stream) {
  char* const at = stream.hello.data() + stream.hello_size;
  const size_t room = stream.hello.size() - stream.hello_size;
  const ssize_t got = ::recv(stream.socket.get(), at, room, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    ++x_counters.bad_hellos;
    return drop(stream);
  }
  const std::string_view fresh(at, static_cast<size_t>(got));
  const size_t end = fresh.find('\n');
  const size_t consumed = end == std::string_view::npos ? fresh.size() : end + 1;
  // It was there a moment ago, and nobody else reads.
  LETHE_ASSERT(::recv(stream.socket.get(), at, consumed, MSG_DONTWAIT) ==
               static_cast<ssize_t>(consumed));
  stream.hello_size += consumed;
  std::optional<uint32_t> port;
  if (end != std::string_view::npos)
    port = parse_hello({stream.hello.data(), stream.hello_size - 1});
  if (port) return connect_guest(stream, *port);
  if (end != std::string_view::npos || stream.hello_size == stream.hello.size() || stream.ended) {
    ++x_counters.bad_hellos;
    drop(stream);
  }
}

void VsockIo::connect_guest(VsockStream& stream, uint32_t port) {
  --x_hellos;
  // At most streams_max of them are taken.
  while (x_table.find({.host = x_next_port, .guest = port}) != nullptr)
    x_next_port = kVsockFirstHostPort | ((x_next_port + 1) & (kVsockFirstHostPort - 1));
  x_table.bind(stream, {.host = x_next_port, .guest = port});
  x_next_port = kVsockFirstHostPort | ((x_next_port + 1) & (kVsockFirstHostPort - 1));
  forget_resets(stream.ports);
  stream.state = VsockStream::State::kRequested;
  set_deadline(stream, x_options.limits.connect_max);
  listen_if_room();
  if (stream.hung_up) return drop(stream);
  tell(stream, VsockStream::kRequest);
}

// Connects to the listener that the guest asked for. Never blocks: a full backlog is EAGAIN
// (unix(7)), and tried again until the deadline.
void VsockIo::connect_host(VsockStream& stream) {
  const std::string path = fmt::format("{}_{}", x_options.path, stream.ports.host);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  // It fits: make_vsock_socket() saw to it.
  const int connected = socket.valid() ? connect_unix(socket.get(), path) : -1;
  if (connected != 0 && errno == EAGAIN) return;
  if (connected == 0) {
    stream.socket = std::move(socket);
    if (watch_socket(stream)) {
      stream.state = VsockStream::State::kOpen;
      stream.deadline.reset();
      ++x_counters.from_guest;
      return tell(stream, VsockStream::kResponse);
    }
  }
  log_debug(LogModule::kVsock, "the guest's connection to '{}': {}", path, errno_text(errno));
  ++x_counters.refused;
  reset(stream);
}

// Writes what is buffered, as far as the socket takes it.
void VsockIo::flush(VsockStream& stream) {
  while (stream.buffered()) {
    const std::span<const uint8_t> piece = stream.buffer->front();
    const ssize_t sent =
        ::send(stream.socket.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) break;
    if (sent < 0) return host_gone(stream);
    stream.buffer->pop(static_cast<size_t>(sent));
    stream.credit.forward(static_cast<uint32_t>(sent));
    x_counters.bytes_to_host += static_cast<uint64_t>(sent);
  }
  if (!stream.buffered()) {
    if (stream.state == VsockStream::State::kDraining) return drop(stream);
    want_writable(stream, false);
    if ((stream.shut_by_guest & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0)
      (void)::shutdown(stream.socket.get(), SHUT_WR);
  }
  if (stream.state == VsockStream::State::kOpen && stream.credit.update_due())
    tell(stream, VsockStream::kCreditUpdate);
}

// The host sends no more: a read has found the end. If it has closed, which the guest is told with
// the same packet, the event that says so may still be on its way.
void VsockIo::host_ended(VsockStream& stream) {
  stream.readable = false;
  pollfd socket{stream.socket.get(), 0, 0};
  if (::poll(&socket, 1, 0) == 1 && (socket.revents & POLLHUP) != 0) stream.hung_up = true;
  if (stream.hung_up) host_gone(stream);
  if ((stream.shut_by_host & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0) return;
  stream.shut_by_host |= VIRTIO_VSOCK_SHUTDOWN_SEND;
  tell(stream, VsockStream::kShutdown);
}

// The host takes no more. It may have left data for the guest, which goes on until its end.
void VsockIo::host_gone(VsockStream& stream) {
  if (stream.state == VsockStream::State::kDraining) return drop(stream);
  if (stream.buffered()) {
    stream.credit.forward(static_cast<uint32_t>(stream.buffer->size()));
    stream.buffer->clear();
    want_writable(stream, false);
  }
  if ((stream.shut_by_host & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) return;
  stream.shut_by_host |= VIRTIO_VSOCK_SHUTDOWN_RCV;
  tell(stream, VsockStream::kShutdown);
}

// The guest has closed: it is told that all is well (5.10.6.5), and its last bytes go to the host.
void VsockIo::finish(VsockStream& stream) {
  if (!stream.buffered()) return reset(stream);
  answer_reset(stream.ports);
  x_schedule.remove(stream);
  x_table.unbind(stream);
  stream.ports = {};
  stream.state = VsockStream::State::kDraining;
  stream.due = 0;
  stream.deadline.reset();
}

// Ends a stream on both sides.
void VsockIo::reset(VsockStream& stream) {
  if (stream.known_to_guest) answer_reset(stream.ports);
  drop(stream);
}

void VsockIo::drop(VsockStream& stream) {
  if (stream.state == VsockStream::State::kHello) --x_hellos;
  x_schedule.remove(stream);
  x_table.remove(stream);
  --x_counters.streams;
  listen_if_room();
}

void VsockIo::set_deadline(VsockStream& stream, std::chrono::milliseconds time) {
  stream.deadline = VsockStream::Clock::now() + time;
  arm_tick();
}

void VsockIo::arm_tick() {
  if (x_ticking) return;
  x_ticking = true;
  x_timer->start(kTick);
}

void VsockIo::tick() {
  x_ticking = false;
  x_out_of_descriptors = false;
  listen_if_room();
  const auto now = VsockStream::Clock::now();
  bool more = false;
  x_table.for_each([&](VsockStream& stream) {
    if (!stream.deadline) return;
    if (*stream.deadline <= now) {
      ++x_counters.timeouts;
      return reset(stream);
    }
    more = true;
    if (stream.state == VsockStream::State::kConnecting) connect_host(stream);
  });
  if (more) arm_tick();
  pump();
}

}  // namespace lethe
