// What a good driver may expect of the virtio devices. hostile.cc is the other half.
#include "guests/virtio.h"

#include "kernel/cases.h"
#include "kernel/check.h"

using namespace kernel;

void guest_main() {
  static const Case cases[] = {
      {"blk-config", virtio::blk_config},
      {"blk-read", virtio::blk_read},
      {"blk-write", virtio::blk_write},
      {"blk-flush", virtio::blk_flush},
      {"blk-discard", virtio::blk_discard},
      {"blk-write-zeroes", virtio::blk_write_zeroes},
      {"blk-get-id", virtio::blk_get_id},
      {"blk-past-end", virtio::blk_past_end},
      {"blk-unsupported", virtio::blk_unsupported},
      {"blk-read-only", virtio::blk_read_only, true},
      {"reboot-once", virtio::reboot_once, true},
      {"negotiation", virtio::negotiation},
      {"interrupts", virtio::interrupts},
      {"interrupt-mask", virtio::interrupt_mask},
      {"interrupt-cpu", virtio::interrupt_cpu, true},
      {"multi-queue", virtio::multi_queue},
      {"indirect", virtio::indirect},
      {"indirect-tail", virtio::indirect_tail},
      {"event-idx", virtio::event_idx},
      {"queue-reset", virtio::queue_reset},
      {"device-reset", virtio::device_reset},
      {"config-access", virtio::config_access},
      {"rng", virtio::rng},
      {"console", virtio::console},
      {"idle", virtio::idle, true},
      {"vsock-echo", virtio::vsock_echo, true},
      {"busy", virtio::busy, true},
      {"net-echo", virtio::net_echo, true},
      {"net-dhcp", virtio::net_dhcp, true},
      {"net-link", virtio::net_link, true},
  };
  run_cases("virtio", cases);
}
