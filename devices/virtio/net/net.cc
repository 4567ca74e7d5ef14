#include "devices/virtio/net/net.h"

#include <bit>

#include "base/assert.h"

namespace lethe {
namespace {

constexpr uint16_t kControlQueueSize = 64;
constexpr uint64_t kFeatures = net_bit(VIRTIO_NET_F_MAC) | net_bit(VIRTIO_NET_F_STATUS) |
                               net_bit(VIRTIO_NET_F_MTU) | net_bit(VIRTIO_NET_F_MRG_RXBUF) |
                               net_bit(VIRTIO_NET_F_CTRL_VQ) | net_bit(VIRTIO_NET_F_CTRL_RX) |
                               net_bit(VIRTIO_NET_F_CTRL_MAC_ADDR) |
                               net_bit(VIRTIO_NET_F_GUEST_ANNOUNCE);

uint64_t features_of(const NetOptions& options, uint64_t offloads) {
  uint64_t features = kFeatures | offloads;
  if (options.pairs > 1) features |= net_bit(VIRTIO_NET_F_MQ);
  if ((offloads & net_bit(VIRTIO_NET_F_GUEST_TSO4)) != 0)
    features |= net_bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
  return features;
}

std::vector<uint16_t> queue_sizes(const NetOptions& options) {
  std::vector<uint16_t> sizes(2 * size_t{options.pairs}, options.queue_size);
  sizes.push_back(kControlQueueSize);
  return sizes;
}

}  // namespace

Result<std::unique_ptr<NetDevice>> NetDevice::create(const NetOptions& options, NetPorts ports) {
  LETHE_ASSERT(options.pairs >= 1 && options.pairs <= kNetPairsMax);
  LETHE_ASSERT(std::has_single_bit(options.queue_size) && options.queue_size >= 4 &&
               options.queue_size <= kQueueSizeMax);
  LETHE_ASSERT(options.mtu >= kNetMtuMin && options.mtu <= kNetMtuMax);
  LETHE_ASSERT(ports.empty() || ports.size() == options.pairs);
  const uint64_t offloads = ports.empty() ? options.offloads : ports.front()->offloads();
  std::unique_ptr<NetDevice> device(new NetDevice(options, offloads));
  Result<> opened;
  device->x_thread.run_and_wait([&] {
    device->x_io = std::make_unique<NetIo>(device->x_thread.loop(),
                                           NetIo::Options{.mac = options.mac,
                                                          .pairs = options.pairs,
                                                          .mtu = options.mtu,
                                                          .limits = options.limits,
                                                          .link = options.link,
                                                          .on_lost = options.on_lost},
                                           device->x_config, device->x_counters);
    opened = device->x_io->open();
    if (opened) device->x_io->set_ports(std::move(ports));
  });
  LETHE_TRY(std::move(opened));
  return Result<std::unique_ptr<NetDevice>>(std::move(device));
}

NetDevice::NetDevice(const NetOptions& options, uint64_t offloads)
    : x_name(options.name),
      x_features(features_of(options, offloads)),
      x_queue_sizes(queue_sizes(options)),
      x_config(options.mac, options.pairs, static_cast<uint16_t>(options.mtu)),
      x_thread(x_name.c_str()) {}

NetDevice::~NetDevice() {
  x_thread.run_and_wait([this] { x_io.reset(); });
}

void NetDevice::start(uint64_t features, VirtioHost& host) {
  x_thread.run_and_wait([&] { x_io->start(features, host); });
}

void NetDevice::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  x_thread.run_and_wait([&] { x_io->start_queue(index, std::move(queue), kick); });
}

void NetDevice::stop_queue(uint16_t index) {
  x_thread.run_and_wait([&] { x_io->stop_queue(index); });
}

void NetDevice::reset() {
  x_thread.run_and_wait([this] { x_io->stop_all(); });
}

void NetDevice::save(StateWriter& to) {
  x_thread.run_and_wait([&] { x_io->save(to); });
}

Result<> NetDevice::restore(StateReader& from) {
  Result<> result;
  x_thread.run_and_wait([&] { result = x_io->restore(from); });
  return result;
}

void NetDevice::connect(NetPorts ports) {
  LETHE_ASSERT(ports.size() * 2 + 1 == x_queue_sizes.size());
  x_thread.run_and_wait([&] { x_io->set_ports(std::move(ports)); });
}

void NetDevice::set_link(bool up) {
  x_thread.run_and_wait([&] { x_io->set_link(up); });
}

void NetDevice::set_limits(const NetLimits& limits) {
  x_thread.run_and_wait([&] { x_io->set_limits(limits); });
}

NetLimits NetDevice::limits() {
  NetLimits limits;
  x_thread.run_and_wait([&] { limits = x_io->limits(); });
  return limits;
}

}  // namespace lethe
