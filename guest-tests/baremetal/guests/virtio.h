// The cases of virtio.elf, by theme.
#pragma once

namespace virtio {

// virtio_blk.cc
void blk_config();
void blk_read();
void blk_write();
void blk_flush();
void blk_discard();
void blk_write_zeroes();
void blk_get_id();
void blk_past_end();
void blk_unsupported();
void blk_read_only();
void reboot_once();

// virtio_transport.cc, on a block device
void negotiation();
void interrupts();
void interrupt_mask();
void interrupt_cpu();
void multi_queue();
void indirect();
void indirect_tail();
void event_idx();
void queue_reset();
void device_reset();
void config_access();

// virtio_busy.cc: for ../control_vm_test.cc, which drives it from outside.
void busy();

// virtio_other.cc
void rng();
void console();
void idle();

// virtio_vsock.cc
void vsock_echo();
// virtio_net.cc
void net_echo();
void net_dhcp();
void net_link();

}  // namespace virtio
