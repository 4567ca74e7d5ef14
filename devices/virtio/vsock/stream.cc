#include "devices/virtio/vsock/stream.h"

#include "base/assert.h"

namespace lethe {

VsockStream* VsockTable::add(VsockStream::State state) {
  if (full()) return nullptr;
  if (x_free.empty()) {
    x_free.push_back(static_cast<uint32_t>(x_slots.size()));
    x_slots.push_back(std::make_unique<VsockStream>());
    x_slots.back()->index = x_free.back();
    x_free.reserve(x_slots.size());
  }
  VsockStream& stream = *x_slots[x_free.back()];
  x_free.pop_back();
  ++x_used;
  stream.state = state;
  return &stream;
}

// Ports come from the guest, too: one that makes them collide slows its own streams down, by at
// most streams_max steps.
VsockStream*& VsockTable::bucket(VsockPorts ports) {
  const uint64_t key = uint64_t{ports.host} << 32 | ports.guest;
  return x_buckets[(key * 0x9e37'79b9'7f4a'7c15) >> 54];
}

void VsockTable::bind(VsockStream& stream, VsockPorts ports) {
  LETHE_ASSERT(find(ports) == nullptr);
  stream.ports = ports;
  VsockStream*& first = bucket(ports);
  stream.next_in_bucket = first;
  first = &stream;
}

void VsockTable::unbind(VsockStream& stream) {
  for (VsockStream** at = &bucket(stream.ports); *at != nullptr; at = &(*at)->next_in_bucket) {
    if (*at != &stream) continue;
    *at = stream.next_in_bucket;
    break;
  }
  stream.next_in_bucket = nullptr;
}

VsockStream* VsockTable::find(VsockPorts ports) {
  VsockStream* stream = bucket(ports);
  while (stream != nullptr && stream->ports != ports) stream = stream->next_in_bucket;
  return stream;
}

void VsockTable::remove(VsockStream& stream) {
  LETHE_ASSERT(!stream.scheduled && stream.state != VsockStream::State::kFree);
  unbind(stream);
  const uint32_t index = stream.index;
  const uint32_t generation = stream.generation + 1;
  stream = VsockStream{};
  stream.index = index;
  stream.generation = generation;
  x_free.push_back(index);
  --x_used;
}

VsockStream* VsockTable::at(uint32_t index, uint32_t generation) {
  if (index >= x_slots.size()) return nullptr;
  VsockStream& stream = *x_slots[index];
  const bool same = stream.generation == generation && stream.state != VsockStream::State::kFree;
  return same ? &stream : nullptr;
}

void VsockTable::for_each(const std::function<void(VsockStream&)>& visit) {
  for (size_t i = 0; i < x_slots.size(); ++i)
    if (x_slots[i]->state != VsockStream::State::kFree) visit(*x_slots[i]);
}

void VsockSchedule::add(VsockStream& stream) {
  if (stream.scheduled) return;
  stream.scheduled = true;
  stream.next_scheduled = nullptr;
  (x_last != nullptr ? x_last->next_scheduled : x_first) = &stream;
  x_last = &stream;
}

void VsockSchedule::pop_front() {
  VsockStream& stream = *x_first;
  x_first = stream.next_scheduled;
  if (x_first == nullptr) x_last = nullptr;
  stream.next_scheduled = nullptr;
  stream.scheduled = false;
}

void VsockSchedule::remove(VsockStream& stream) {
  if (!stream.scheduled) return;
  VsockStream* before = nullptr;
  for (VsockStream* at = x_first; at != &stream; at = at->next_scheduled) before = at;
  (before != nullptr ? before->next_scheduled : x_first) = stream.next_scheduled;
  if (x_last == &stream) x_last = before;
  stream.next_scheduled = nullptr;
  stream.scheduled = false;
}

}  // namespace lethe
