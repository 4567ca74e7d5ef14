// What `lethe exec`, `lethe check` and the agent in the guest (guest-tests/linux/exec) say to each
// other over a vsock stream. docs/ci.md, "The agent", explains it.
//
// Transport: a stream, one command each. The client speaks first: one line of JSON (RFC 8259), at
// most kRequestBytesMax long with its newline:
//
//   {"version": 1, "run": ["cmd", "arg"], "env": {"NAME": "value"}, "cwd": "/tmp",
//    "stdin": true, "timeout_ms": 60000}
//
// `version` and `run` must be there. `env` is added to the agent's own environment. Without `stdin`
// the command reads /dev/null. `timeout_ms` 0, or none: there is none. Unknown keys are refused.
//
// From then on both sides send frames: a FrameHeader and `length` bytes, at most kFrameBytesMax.
// The agent sends Started, then Stdout and Stderr, and last Exit; or, instead of all these,
// Refused. Then it closes. The client sends Stdin; an empty one is its end. A client that closes,
// or shuts down its sending side, ends the command: SIGKILL to its process group, as a timeout
// does.
//
// A frame that is longer, of an unknown type, or of the other side's, ends the connection.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lethe::exec {

inline constexpr uint32_t kVersion = 1;
inline constexpr uint32_t kAgentPort = 1024;  // vsock; the first that needs no rights in the guest
inline constexpr size_t kRequestBytesMax = 256 << 10;
inline constexpr size_t kFrameBytesMax = 64 << 10;
inline constexpr size_t kRefusalBytesMax = 1024;

enum class FrameType : uint32_t {
  kStarted = 1,  // Started
  kStdout = 2,   // bytes
  kStderr = 3,   // bytes
  kExit = 4,     // Exit
  kRefused = 5,  // text, one line, at most kRefusalBytesMax: the command does not run
  kStdin = 6,    // bytes; none: the end
};

// All little endian, as the machine is (x86-64 only).
struct FrameHeader {
  uint32_t type;
  uint32_t length;
};
static_assert(sizeof(FrameHeader) == 8);

struct Started {
  uint32_t version;  // of the agent's protocol
  uint32_t pid;      // in the guest
};

enum class ExitHow : uint32_t {
  kExited = 0,     // value: the exit code, 0 to 255
  kSignalled = 1,  // value: the signal, 1 to 64
  kTimedOut = 2,   // value: 0
};
struct Exit {
  uint32_t how;
  uint32_t value;
};

[[nodiscard]] inline std::string frame(FrameType type, std::string_view payload) {
  const FrameHeader header{static_cast<uint32_t>(type), static_cast<uint32_t>(payload.size())};
  std::string bytes(sizeof header, '\0');
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes.append(payload);
}

template <typename T>
[[nodiscard]] std::string frame_of(FrameType type, const T& fields) {
  std::string payload(sizeof fields, '\0');
  std::memcpy(payload.data(), &fields, sizeof fields);
  return frame(type, payload);
}

// The fields of a frame; nothing if it has not their size.
template <typename T>
[[nodiscard]] std::optional<T> fields_of(std::string_view payload) {
  T fields;
  if (payload.size() != sizeof fields) return std::nullopt;
  std::memcpy(&fields, payload.data(), sizeof fields);
  return fields;
}

// Bytes in, whole frames out. Holds at most one frame and what was fed at once.
class FrameReader {
 public:
  struct Frame {
    FrameType type;
    std::string payload;
  };

  void feed(std::string_view bytes) { x_bytes.append(bytes); }
  // The next frame, or nothing: more bytes are needed, or broken().
  [[nodiscard]] std::optional<Frame> next() {
    FrameHeader header;
    if (x_broken || x_bytes.size() < sizeof header) return std::nullopt;
    std::memcpy(&header, x_bytes.data(), sizeof header);
    if (header.length > kFrameBytesMax ||
        header.type < static_cast<uint32_t>(FrameType::kStarted) ||
        header.type > static_cast<uint32_t>(FrameType::kStdin)) {
      x_broken = true;
      x_bytes.clear();
      return std::nullopt;
    }
    if (x_bytes.size() - sizeof header < header.length) return std::nullopt;
    Frame whole{static_cast<FrameType>(header.type), x_bytes.substr(sizeof header, header.length)};
    x_bytes.erase(0, sizeof header + header.length);
    return whole;
  }
  // A header was wrong: there is no way to find the next one.
  [[nodiscard]] bool broken() const { return x_broken; }

 private:
  std::string x_bytes;
  bool x_broken = false;
};

}  // namespace lethe::exec
