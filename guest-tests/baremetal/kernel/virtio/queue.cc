#include "kernel/virtio/queue.h"

#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/memory.h"

namespace kernel {
namespace {

constexpr size_t kIndirectMax = 16;

}  // namespace

void Virtqueue::open(VirtioDevice& device, uint16_t index, uint16_t size, uint16_t vector,
                     bool event_idx) {
  device_ = &device;
  index_ = index;
  vector_ = vector;
  event_idx_ = event_idx;
  device.select_queue(index);
  const uint16_t largest = device.common16(VIRTIO_PCI_COMMON_Q_SIZE);
  CHECK(largest > 0);
  size_ = size != 0 ? size : (largest < kQueueSizeMax ? largest : kQueueSizeMax);
  CHECK(size_ <= largest && size_ <= kQueueSizeMax);
  // A page or two for each ring, so that a guest can overrun one without hitting another.
  desc_ = static_cast<vring_desc*>(alloc_pages(1));
  avail_ = static_cast<vring_avail*>(alloc_pages(1));
  used_ = static_cast<vring_used*>(alloc_pages(1));
  indirect_ = static_cast<vring_desc*>(alloc_pages((size_ * kIndirectMax * 16) / kPageSize + 1));
  reopen();
}

void Virtqueue::reopen() {
  memset(desc_, 0, size_ * sizeof(vring_desc));
  memset(avail_, 0, 6 + 2u * size_);
  memset(used_, 0, 6 + 8u * size_);
  for (uint16_t i = 0; i < size_; ++i) desc_[i].next = static_cast<uint16_t>(i + 1);
  free_head_ = 0;
  free_count_ = size_;
  last_used_ = 0;
  kicked_at_ = 0;
  device_->select_queue(index_);
  device_->set_common16(VIRTIO_PCI_COMMON_Q_SIZE, size_);
  device_->set_common64(VIRTIO_PCI_COMMON_Q_DESCLO, physical(desc_));
  device_->set_common64(VIRTIO_PCI_COMMON_Q_AVAILLO, physical(avail_));
  device_->set_common64(VIRTIO_PCI_COMMON_Q_USEDLO, physical(used_));
  device_->set_common16(VIRTIO_PCI_COMMON_Q_MSIX, vector_);
  CHECK_EQ(device_->common16(VIRTIO_PCI_COMMON_Q_MSIX), vector_);
  device_->set_common16(VIRTIO_PCI_COMMON_Q_ENABLE, 1);
  CHECK_EQ(device_->common16(VIRTIO_PCI_COMMON_Q_ENABLE), 1);
}

uint16_t Virtqueue::add(const Buffer* buffers, size_t count) {
  CHECK(count > 0 && count <= free_count_);
  const uint16_t head = free_head_;
  uint16_t at = head;
  for (size_t i = 0; i < count; ++i) {
    vring_desc& d = desc_[at];
    const bool last = i + 1 == count;
    d.addr = physical(buffers[i].data);
    d.len = buffers[i].length;
    d.flags = static_cast<uint16_t>((buffers[i].device_writes ? VRING_DESC_F_WRITE : 0) |
                                    (last ? 0 : VRING_DESC_F_NEXT));
    at = d.next;
  }
  free_head_ = at;
  free_count_ = static_cast<uint16_t>(free_count_ - count);
  return head;
}

uint16_t Virtqueue::add_indirect(const Buffer* buffers, size_t count) {
  CHECK(count > 0 && count <= kIndirectMax && free_count_ > 0);
  const uint16_t head = free_head_;
  vring_desc* table = indirect_ + size_t{head} * kIndirectMax;
  for (size_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    table[i].addr = physical(buffers[i].data);
    table[i].len = buffers[i].length;
    table[i].flags = static_cast<uint16_t>((buffers[i].device_writes ? VRING_DESC_F_WRITE : 0) |
                                           (last ? 0 : VRING_DESC_F_NEXT));
    table[i].next = static_cast<uint16_t>(last ? 0 : i + 1);
  }
  const Buffer whole = readable(table, count * sizeof(vring_desc));
  add(&whole, 1);
  desc_[head].flags = VRING_DESC_F_INDIRECT;
  return head;
}

void Virtqueue::publish(uint16_t head) {
  const uint16_t index = avail_->idx;
  avail_->ring[index % size_] = head;
  __atomic_store_n(&avail_->idx, static_cast<uint16_t>(index + 1), __ATOMIC_RELEASE);
}

bool Virtqueue::kick() {
  full_fence();  // the index must be visible before the device's wish is read (section 2.7.13.4.1)
  const uint16_t now = avail_->idx;
  const uint16_t before = kicked_at_;
  bool wanted = (__atomic_load_n(&used_->flags, __ATOMIC_ACQUIRE) & VRING_USED_F_NO_NOTIFY) == 0;
  if (event_idx_) {
    const auto event = reinterpret_cast<__virtio16*>(&used_->ring[size_]);  // avail_event
    wanted = vring_need_event(__atomic_load_n(event, __ATOMIC_ACQUIRE), now, before) != 0;
  }
  kicked_at_ = now;
  if (wanted) device_->notify(index_);
  return wanted;
}

bool Virtqueue::has_used() const {
  return __atomic_load_n(&used_->idx, __ATOMIC_ACQUIRE) != last_used_;
}

bool Virtqueue::pop(Used& used) {
  if (!has_used()) return false;
  const vring_used_elem& e = used_->ring[last_used_ % size_];
  CHECK(e.id < size_);
  used = {static_cast<uint16_t>(e.id), e.len};
  ++last_used_;
  free_chain(used.head);
  return true;
}

void Virtqueue::free_chain(uint16_t head) {
  uint16_t last = head;
  uint16_t count = 1;
  while ((desc_[last].flags & VRING_DESC_F_NEXT) != 0) {
    last = desc_[last].next;
    CHECK(last < size_ && count < size_);
    ++count;
  }
  desc_[last].next = free_head_;
  free_head_ = head;
  free_count_ = static_cast<uint16_t>(free_count_ + count);
}

uint32_t Virtqueue::submit_and_wait(const Buffer* buffers, size_t count) {
  const uint16_t head = add(buffers, count);
  publish(head);
  kick();
  CHECK_SOON(has_used());
  Used used = {};
  CHECK(pop(used));
  CHECK_EQ(used.head, head);
  return used.length;
}

void Virtqueue::set_no_interrupt(bool on) {
  __atomic_store_n(&avail_->flags, static_cast<uint16_t>(on ? VRING_AVAIL_F_NO_INTERRUPT : 0),
                   __ATOMIC_RELEASE);
}

void Virtqueue::set_used_event(uint16_t value) {
  __atomic_store_n(&avail_->ring[size_], value, __ATOMIC_RELEASE);
  full_fence();
}

}  // namespace kernel
