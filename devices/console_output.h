// The host's end of the guest's consoles: a bounded buffer that drains into a descriptor (terminal,
// pipe, socket, file) and, optionally, a log file.
//
// What happens when the descriptor takes nothing, say a terminal paused by Ctrl-S: the buffer
// fills, write() comes short, and each console holds its guest up by its own means: the serial
// port's transmitter stays full, virtio-console does not complete the buffer. Nothing is dropped
// here as long as the descriptor works. Once it fails for good (EPIPE, EIO), output to it is
// discarded and counted, and the guest runs on.
//
// The first byte after a pause goes out at once; what follows is gathered for kFlushPeriod. A
// serial console brings single bytes, and a wake-up and a write(2) for each would cost the guest
// more than its exits do.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/byte_ring.h"
#include "devices/byte_stream.h"

namespace lethe {

// What happens to a log that exists: a VM's first boot empties it, later ones go on at its end.
enum class ConsoleLog : uint8_t { kTruncate, kAppend };

struct ConsoleOutputCounters {  // bytes; any thread
  std::atomic<uint64_t> written{0};
  std::atomic<uint64_t> logged{0};
  std::atomic<uint64_t> dropped{0};      // the descriptor failed, or finish() ran out of time
  std::atomic<uint64_t> log_dropped{0};  // the log file failed
};

// Threading: write() on any thread; all else on `loop`'s thread or while the loop does not run.
// Must outlive the loop's last run. The process ignores SIGPIPE.
class ConsoleOutput : public ByteSink {
 public:
  static constexpr size_t kBufferMax = 64 * 1024;
  static constexpr size_t kLogBytesMax = 16 << 20;
  static constexpr std::chrono::milliseconds kFlushPeriod{4};

  // `fd` stays the caller's; -1 discards. A terminal or pipe is opened once more where that works,
  // so that it can be written without blocking while its other holders (the user's shell) keep
  // theirs as it is. `log_path`: created, mode 0600, or treated as `mode` says; empty for no log.
  // Of a log with more than `log_bytes_max` the older half goes (base/file_bytes.h). Fails when the
  // log can't be opened; the error names it.
  [[nodiscard]] static Result<std::unique_ptr<ConsoleOutput>> create(
      EventLoop& loop, int fd, const std::string& log_path, ConsoleLog mode = ConsoleLog::kTruncate,
      size_t log_bytes_max = kLogBytesMax);

  size_t write(std::span<const uint8_t> bytes) override;
  void add_room_listener(std::function<void()> listener) override;
  // `tap` is called with every byte once, in order, on the loop's thread (or finish()'s), before
  // the descriptor gets it.
  void set_tap(std::function<void(std::span<const uint8_t>)> tap) { x_tap = std::move(tap); }

  // Writes out what is left, when the loop does not run any more; gives up after `patience`.
  void finish(std::chrono::milliseconds patience);
  [[nodiscard]] const ConsoleOutputCounters& counters() const { return x_counters; }

 private:
  enum class Kind : uint8_t { kNone, kNonBlocking, kSocket, kBlocking };
  ConsoleOutput(EventLoop& loop, UniqueFd fd, Kind kind, UniqueFd log, std::string log_path,
                size_t log_bytes_max);

  void flush();
  void flush_again();
  bool flush_once(size_t& budget);
  void log(std::span<const uint8_t> bytes);
  size_t write_some(std::span<const uint8_t> bytes);
  void wait_until_writable();
  void consumed(size_t count);

  EventLoop& x_loop;
  UniqueFd x_fd;
  Kind x_kind;
  UniqueFd x_log;
  std::string x_log_path;
  const size_t x_log_bytes_max;
  size_t x_log_bytes;  // in the log at most: it is looked at when that is too much
  std::unique_ptr<EventLoop::Watch> x_writable;
  std::unique_ptr<EventLoop::Timer> x_period;
  std::vector<std::function<void()>> x_listeners;
  std::function<void(std::span<const uint8_t>)> x_tap;
  size_t x_logged = 0;  // bytes at the buffer's front that log and tap have already
  ConsoleOutputCounters x_counters;

  Mutex x_mutex;
  // Only the loop's thread takes bytes out, so what front() gave it stays put without the lock.
  ByteRing<kBufferMax> x_buffer LETHE_GUARDED_BY(x_mutex);
  bool x_flushing LETHE_GUARDED_BY(x_mutex) = false;  // one is posted, or the period runs
  bool x_refused LETHE_GUARDED_BY(x_mutex) = false;   // a write came short since listeners ran
};

}  // namespace lethe
