// What a virtio device is to its transport, and the transport to its device.
//
// Threading: the transport calls a device from vCPU threads, one call at a time (it holds its
// lock). A device with an I/O thread hands the work over to it; stop_queue() and reset() return
// only once that thread no longer touches the queue.
#pragma once

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/event_fd.h"
#include "base/result.h"
#include "base/state.h"
#include "devices/virtio/queue.h"

namespace lethe {

// The transport's side, for the device to call from any thread.
class VirtioHost {
 public:
  virtual ~VirtioHost() = default;
  // The device met something it can't go on from: sets DEVICE_NEEDS_RESET and, if the driver is
  // live, interrupts with a configuration change (virtio 1.2, 2.1.2). `reason` goes to the log,
  // rate limited.
  virtual void needs_reset(const char* reason) = 0;
  // The device's configuration changed: new generation, configuration interrupt (2.5.1).
  virtual void config_changed() = 0;
};

// A shared memory region (virtio 1.2, 2.10): memory of the device's that the guest maps. The whole
// range of host memory stays mapped and writable while the device exists; what is mapped there may
// change at any time.
struct VirtioSharedMemory {
  uint8_t id = 0;           // device specific: VIRTIO_GPU_SHM_ID_HOST_VISIBLE
  uint64_t bytes = 0;       // a power of two, at least a page
  uint8_t* host = nullptr;  // page aligned
};

class VirtioDevice {
 public:
  virtual ~VirtioDevice() = default;

  [[nodiscard]] virtual uint16_t virtio_id() const = 0;  // VIRTIO_ID_*
  [[nodiscard]] virtual const char* name() const = 0;    // for logs and metrics: "block0"
  // Device-specific feature bits on offer (0-23 and 50 up). The transport adds VIRTIO_F_VERSION_1,
  // VIRTIO_F_RING_RESET and the ring's own.
  [[nodiscard]] virtual uint64_t device_features() const = 0;
  // The largest size of each queue, powers of two up to kQueueSizeMax; as many as there are queues.
  [[nodiscard]] virtual std::span<const uint16_t> queue_sizes_max() const = 0;

  // The region, if it has one: fixed from construction on.
  [[nodiscard]] virtual std::optional<VirtioSharedMemory> shared_memory() const {
    return std::nullopt;
  }

  // Configuration space. The transport has clipped the range to config_size() bytes.
  [[nodiscard]] virtual uint32_t config_size() const = 0;  // bytes
  virtual void read_config(uint32_t offset, std::span<uint8_t> to) = 0;
  virtual void write_config(uint32_t offset, std::span<const uint8_t> from) = 0;

  // The driver is about to go live with these features (DRIVER_OK); `host` stays valid until
  // reset(). start_queue() follows for each enabled queue.
  virtual void start(uint64_t features, VirtioHost& host) = 0;
  // `queue` is live: the device owns it until stop_queue() or reset(). `kick` is signalled by the
  // driver's notifications and stays valid as long; the device looks once without a kick too.
  virtual void start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) = 0;
  // A queue whose notifications are served while the driver waits: its doorbell is bound to no
  // eventfd; instead the transport calls kicked(), and the vCPU that notified goes on only when
  // that has returned. Asked after start(), when a queue goes live. For what the driver may take
  // back once its notification is out (balloon hints); everything else is quicker with an eventfd.
  [[nodiscard]] virtual bool serves_kicks(uint16_t /*index*/) const { return false; }
  virtual void kicked(uint16_t /*index*/) {}
  // One queue's reset (2.6.1): completes or drops what is in flight, then destroys the queue.
  virtual void stop_queue(uint16_t index) = 0;
  // The device's reset (2.4): every queue stopped, state as after construction. Also called before
  // destruction if the device was started. Harmless if it was not.
  virtual void reset() = 0;

  // Snapshots (docs/snapshot.md). A machine whose vCPUs stand still is frozen: freeze(), then
  // stop_queue() for each live queue, save(), and later start_queue() for the same ones, at the
  // positions where they stopped. In another process: start() (if it was), restore(),
  // start_queue(). Nothing may be lost or answered twice by that:
  // - What is in flight ends first, or its chain is dropped: then it is not completed, but the next
  //   queue's pop() gives it again. So a device answers nothing only because it stops.
  // - What waits for the driver stays. freeze() is for devices that would forget it in
  //   stop_queue(); start_queue() and reset() end its effect. It may come again before that, if the
  //   machine is saved once more: then there are no queues.
  virtual void freeze() {}
  // Why this device's state can't be saved now, if that is so: one line for the user. Frozen.
  [[nodiscard]] virtual Result<> can_save() const { return {}; }
  // The state that the driver could tell from a fresh device's, and that neither the transport nor
  // the rings hold. Called for every frozen device, started or not.
  virtual void save(StateWriter& /*to*/) {}
  // Gets what save() wrote, in a device made from the same config. The file may be anybody's: check
  // it like a guest's request. Errors: from.check(), or the host's. What it has for the driver it
  // may say when the queues start; a configuration interrupt follows in any case.
  [[nodiscard]] virtual Result<> restore(StateReader& from) { return from.check(); }
};

}  // namespace lethe
