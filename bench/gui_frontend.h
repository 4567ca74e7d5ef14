// The least that a frontend can be: it maps the buffers it is sent, and answers each frame. A bench
// forks it, or plays it with a thread.
#pragma once

#include <sys/mman.h>
#include <sys/socket.h>

#include <cstring>
#include <string>
#include <unordered_map>

#include "bench/gui_bench.h"
#include "devices/gui/protocol.h"

namespace lethe {

class BareFrontend {
 public:
  explicit BareFrontend(const std::string& path) : x_socket(connect_to(path)) {
    gui::Hello hello{};
    hello.header = {static_cast<uint32_t>(gui::Type::kHello), sizeof hello};
    hello.magic = gui::kMagic;
    hello.version = gui::kVersion;
    std::strcpy(hello.name, "bench");
    send_message(hello);
  }

  template <typename Message>
  void send_message(const Message& message) const {
    if (send(x_socket.get(), &message, sizeof message, MSG_NOSIGNAL) != sizeof message)
      give_up("the frontend can't send");
  }

  // Reads messages until one of `wanted` has come; answers what has to be answered. False: the VM
  // is gone.
  bool read_until(gui::Type wanted) {
    for (;;) {
      const ssize_t size = receive();
      if (size < static_cast<ssize_t>(sizeof(gui::MessageHeader))) return false;
      const auto type = static_cast<gui::Type>(as<gui::MessageHeader>().type);
      if (type == gui::Type::kBye) return false;
      if (type == wanted) return true;
      answer(type);
    }
  }
  // Each frame is marked as soon as it is there, then acknowledged; until the VM ends.
  void serve(Stamps& stamps) {
    while (read_until(gui::Type::kFrame)) {
      stamps.mark();
      answer(gui::Type::kFrame);
    }
  }

  template <typename Message>
  [[nodiscard]] Message as() const {
    Message message;
    std::memcpy(&message, x_bytes, sizeof message);
    return message;
  }

 private:
  ssize_t receive() {
    iovec io{x_bytes, sizeof x_bytes};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    msghdr message{};
    message.msg_iov = &io;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t size = recvmsg(x_socket.get(), &message, MSG_CMSG_CLOEXEC);
    if (const cmsghdr* const c = CMSG_FIRSTHDR(&message); c != nullptr && size > 0) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
      x_fd = UniqueFd(fd);
    }
    return size;
  }

  void answer(gui::Type type) {
    if (type == gui::Type::kFrame) {
      const auto frame = as<gui::Frame>();
      gui::DoneReading done{};
      done.header = {static_cast<uint32_t>(gui::Type::kDoneReading), sizeof done};
      done.surface = frame.surface;
      done.frame = frame.frame;
      send_message(done);
    } else if (type == gui::Type::kBuffer) {
      const auto buffer = as<gui::Buffer>();
      void* const at = mmap(nullptr, buffer.bytes, PROT_READ, MAP_SHARED, x_fd.get(), 0);
      if (at == MAP_FAILED) give_up("a buffer can't be mapped");
      x_buffers[buffer.buffer] = {at, buffer.bytes};
      x_fd.reset();
    } else if (type == gui::Type::kBufferGone) {
      const auto gone = as<gui::BufferGone>();
      const auto found = x_buffers.find(gone.buffer);
      if (found == x_buffers.end()) return;
      munmap(found->second.first, found->second.second);
      x_buffers.erase(found);
      gui::Unmapped unmapped{};
      unmapped.header = {static_cast<uint32_t>(gui::Type::kUnmapped), sizeof unmapped};
      unmapped.buffer = gone.buffer;
      unmapped.generation = gone.generation;
      send_message(unmapped);
    }
  }

  UniqueFd x_socket;
  UniqueFd x_fd;
  std::unordered_map<uint32_t, std::pair<void*, size_t>> x_buffers;
  alignas(8) char x_bytes[gui::kMessageBytesMax];
};

}  // namespace lethe
