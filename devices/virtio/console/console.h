// virtio-console with one port (virtio 1.2, 5.3), the terminal's size included.
#pragma once

#include <linux/virtio_console.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>

#include "base/event_loop.h"
#include "base/mutex.h"
#include "devices/byte_ring.h"
#include "devices/byte_stream.h"
#include "devices/virtio/device.h"
#include "devices/virtio/kick_watch.h"

namespace lethe {

struct ConsoleCounters {  // any thread
  std::atomic<uint64_t> bytes_out{0};
  std::atomic<uint64_t> bytes_in{0};
  std::atomic<uint64_t> refused{0};  // receive buffers that can't be written
};

// Back pressure: a transmit buffer is completed once the sink has taken all of it; input that the
// guest gives no buffers for waits here (kInputMax bytes), then with whoever calls receive(). No
// byte is lost either way, short of a reset, which drops the transmit buffer it interrupts.
//
// Threading: queues are served on `loop` (the main loop); transport calls on vCPU threads take the
// device's lock and wait for nothing else; receive() and resize() on the loop's thread. Destroyed
// on the loop's thread or when it does not run; must outlive the sink's last call of its listener.
class ConsoleDevice : public VirtioDevice, public ByteReceiver {
 public:
  static constexpr size_t kInputMax = 4096;
  static constexpr size_t kWakeBytesMax = 64 * 1024;  // then the loop's other work has its turn
  static constexpr uint16_t kReceiveQueue = 0;        // 5.3.2
  static constexpr uint16_t kTransmitQueue = 1;

  ConsoleDevice(EventLoop& loop, ByteSink& output);
  ~ConsoleDevice() override;

  size_t receive(std::span<const uint8_t> bytes) override;
  void set_room_listener(std::function<void()> listener) override;
  // The terminal's size, in characters; 0x0 until told. Interrupts the guest if it is another one.
  void resize(uint16_t columns, uint16_t rows);

  [[nodiscard]] uint16_t virtio_id() const override { return VIRTIO_ID_CONSOLE; }
  [[nodiscard]] const char* name() const override { return "console"; }
  [[nodiscard]] uint64_t device_features() const override;
  [[nodiscard]] std::span<const uint16_t> queue_sizes_max() const override;
  [[nodiscard]] uint32_t config_size() const override { return sizeof(virtio_console_config); }
  void read_config(uint32_t offset, std::span<uint8_t> to) override;
  void write_config(uint32_t offset, std::span<const uint8_t> from) override;
  void start(uint64_t features, VirtioHost& host) override;
  void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) override;
  void stop_queue(uint16_t index) override;
  void reset() override;
  void freeze() override;
  void save(StateWriter& to) override;
  [[nodiscard]] Result<> restore(StateReader& from) override;

  [[nodiscard]] const ConsoleCounters& counters() const { return x_counters; }

 private:
  struct Port {  // one direction
    std::unique_ptr<Queue> queue;
    const EventFd* kick = nullptr;  // valid while there is a queue
    std::unique_ptr<KickWatch> kick_watch;
  };
  void serve_receive() LETHE_REQUIRES(x_mutex);
  void serve_transmit() LETHE_REQUIRES(x_mutex);
  bool send(size_t& budget) LETHE_REQUIRES(x_mutex);
  void ask_for_input() LETHE_REQUIRES(x_mutex);
  void stop(uint16_t index) LETHE_REQUIRES(x_mutex);
  void finish_batch(uint16_t index, bool again) LETHE_REQUIRES(x_mutex);

  EventLoop& x_loop;
  ByteSink& x_output;
  std::shared_ptr<std::function<void()>> x_room_listener;
  ConsoleCounters x_counters;
  Mutex x_mutex;
  VirtioHost* x_host LETHE_GUARDED_BY(x_mutex) = nullptr;
  virtio_console_config x_config LETHE_GUARDED_BY(x_mutex){};
  std::array<Port, 2> x_ports LETHE_GUARDED_BY(x_mutex);
  std::optional<Chain> x_sending LETHE_GUARDED_BY(x_mutex);  // what the sink has not taken whole
  uint64_t x_sent LETHE_GUARDED_BY(x_mutex) = 0;             // bytes of it that it has taken
  bool x_frozen LETHE_GUARDED_BY(x_mutex) = false;
  // Frozen: what had been sent of the chain that comes first when the queue goes on.
  uint64_t x_sent_before LETHE_GUARDED_BY(x_mutex) = 0;
  ByteRing<kInputMax> x_input LETHE_GUARDED_BY(x_mutex);
  bool x_input_refused LETHE_GUARDED_BY(x_mutex) = false;
};

}  // namespace lethe
