#include "devices/virtio/net/net_io.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/log.h"

namespace lethe {
namespace {

constexpr uint64_t kGuestOffloads =
    net_bit(VIRTIO_NET_F_GUEST_CSUM) | net_bit(VIRTIO_NET_F_GUEST_TSO4) |
    net_bit(VIRTIO_NET_F_GUEST_TSO6) | net_bit(VIRTIO_NET_F_GUEST_ECN);
constexpr unsigned kCommandsTurn = 16;
constexpr unsigned kRoundsMax = 16;  // of a pair before other work has its turn
constexpr uint32_t kStateVersion = 2;

}  // namespace

NetConfigSpace::NetConfigSpace(const MacAddress& mac, uint16_t pairs, uint16_t mtu) {
  MutexLock lock(x_mutex);
  std::copy(mac.begin(), mac.end(), x_config.mac);
  x_config.max_virtqueue_pairs = pairs;
  x_config.mtu = mtu;
}

void NetConfigSpace::read(uint32_t offset, std::span<uint8_t> to) const {
  MutexLock lock(x_mutex);
  // SAFETY: the transport has clipped the range to kBytes.
  std::memcpy(to.data(), reinterpret_cast<const uint8_t*>(&x_config) + offset, to.size());
}

MacAddress NetConfigSpace::mac() const {
  MutexLock lock(x_mutex);
  MacAddress mac;
  std::copy_n(x_config.mac, mac.size(), mac.begin());
  return mac;
}

void NetConfigSpace::set_mac(const MacAddress& mac) {
  MutexLock lock(x_mutex);
  std::copy(mac.begin(), mac.end(), x_config.mac);
}

bool NetConfigSpace::set_status(uint16_t bits, bool on) {
  MutexLock lock(x_mutex);
  const auto status = static_cast<uint16_t>(on ? x_config.status | bits : x_config.status & ~bits);
  const bool changed = status != x_config.status;
  x_config.status = status;
  return changed;
}

bool NetConfigSpace::link_up() const {
  MutexLock lock(x_mutex);
  return (x_config.status & VIRTIO_NET_S_LINK_UP) != 0;
}

NetIo::NetIo(EventLoop& loop, Options options, NetConfigSpace& config, NetCounters& counters)
    : x_loop(loop),
      x_options(std::move(options)),
      x_config(config),
      x_counters(counters),
      x_shared{.counters = counters, .mtu = x_options.mtu},
      x_link_wanted(x_options.link),
      x_kicks(2 * size_t{x_options.pairs} + 1) {
  for (uint16_t i = 0; i < x_options.pairs; ++i)
    x_slots.push_back(std::make_unique<Slot>(x_shared));
  set_limits(x_options.limits);
}

NetIo::~NetIo() { stop_all(); }

Result<> NetIo::open() {
  x_timer = x_loop.make_timer([this] {
    x_timer_runs = false;
    run_all();
  });
  x_epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!x_epoll.valid()) return host_error("epoll_create1: {}", errno_text(errno));
  LETHE_TRY_ASSIGN(x_epoll_watch,
                   x_loop.watch_readable(x_epoll.get(), [this] { on_ports_ready(); }));
  LETHE_TRY_ASSIGN(EventFd again, EventFd::create());
  x_again = std::make_unique<EventFd>(std::move(again));
  LETHE_TRY_ASSIGN(x_again_watch, x_loop.watch_readable(x_again->fd(), [this] {
    x_again->take();
    run_all();
  }));
  return {};
}

void NetIo::set_ports(NetPorts ports) {
  for (size_t i = 0; i < x_slots.size(); ++i) {
    x_slots[i]->pair.set_port(i < ports.size() ? ports[i].get() : nullptr);
    x_slots[i]->watched = false;
  }
  x_ports = std::move(ports);  // closing the old ones takes them out of the epoll
  tell_ports();
  update_link();
  run_all();
}

void NetIo::set_link(bool up) {
  x_link_wanted = up;
  update_link();
  run_all();
}

void NetIo::update_link() {
  x_shared.link_up = x_link_wanted && !x_ports.empty();
  if (!x_config.set_status(VIRTIO_NET_S_LINK_UP, x_shared.link_up)) return;
  // 5.1.4.2: with STATUS, a change is told; without it, the link is always up for the driver.
  if (x_shared.host != nullptr && (x_shared.features & net_bit(VIRTIO_NET_F_STATUS)) != 0)
    x_shared.host->config_changed();
}

void NetIo::lose_ports() {
  ++x_counters.lost;
  set_ports({});
  if (x_options.on_lost) x_options.on_lost();
}

void NetIo::set_limits(const NetLimits& limits) {
  x_limits = limits;
  x_shared.limited = limits != NetLimits{};
  for (NetRate* rate : {&x_shared.tx, &x_shared.rx})
    *rate = {.bytes = TokenBucket(limits.bandwidth_max),
             .packets = TokenBucket(limits.packets_max)};
  if (x_again) x_again->signal();  // what the old ones held back
}

void NetIo::start(uint64_t features, VirtioHost& host) {
  x_shared.host = &host;
  x_shared.features = features;
  // 5.1.2: it comes behind the pairs, of which a driver without MQ knows one.
  const bool several = (features & net_bit(VIRTIO_NET_F_MQ)) != 0;
  x_control_index = static_cast<uint16_t>(several ? 2 * x_options.pairs : 2);
  x_active_pairs = 1;  // 5.1.6.5.5: until the driver asks for more
  x_guest_offloads = features & kGuestOffloads;
  tell_ports();
}

void NetIo::tell_ports() {
  for (size_t i = 0; i < x_ports.size(); ++i) {
    x_ports[i]->set_active(i < x_active_pairs);
    if (i == 0) x_ports[i]->set_guest_offloads(x_guest_offloads);  // the whole device's
    update_interest(i);
  }
}

void NetIo::start_queue(uint16_t index, std::unique_ptr<Queue> queue, const EventFd& kick) {
  const bool control =
      index == x_control_index && (x_shared.features & net_bit(VIRTIO_NET_F_CTRL_VQ)) != 0;
  if (!control && index >= 2 * x_options.pairs) return;  // not a queue of these features
  Kick& entry = x_kicks[index];
  entry.event = &kick;
  auto watch = x_loop.watch_readable(kick.fd(), [this, index] {
    x_kicks[index].event->take();
    on_kick(index);
  });
  if (!watch) {
    LETHE_LOG_LIMITED(LogModule::kNet, "a queue is not served: {}", watch.error().text);
    x_shared.host->needs_reset("the host is out of descriptors");
    return;
  }
  entry.watch = std::move(*watch);
  if (control)
    x_control = std::move(queue);
  else if (index % 2 == 0)
    x_slots[index / 2]->pair.start_receive(std::move(queue));
  else
    x_slots[index / 2]->pair.start_send(std::move(queue));
  on_kick(index);  // once without a kick
}

void NetIo::stop_queue(uint16_t index) {
  x_kicks[index] = {};
  if (index == x_control_index && x_control) {
    x_control.reset();
    return;
  }
  const size_t slot = index / 2;
  if (slot >= x_slots.size()) return;
  if (index % 2 == 0)
    x_slots[slot]->pair.stop_receive();
  else
    x_slots[slot]->pair.stop_send();
  update_interest(slot);
}

// 2.4: as after construction; the link and the limits are the host's.
void NetIo::stop_all() {
  for (size_t i = 0; i < x_kicks.size(); ++i) stop_queue(static_cast<uint16_t>(i));
  x_shared.host = nullptr;
  x_shared.features = 0;
  x_active_pairs = 1;
  x_guest_offloads = 0;
  tell_ports();
  x_config.set_mac(x_options.mac);
  (void)x_config.set_status(VIRTIO_NET_S_ANNOUNCE, false);
}

void NetIo::on_kick(uint16_t index) {
  if (index == x_control_index && x_control) return serve_control();
  const size_t slot = index / 2;
  if (slot >= x_slots.size()) return;
  const bool receive = index % 2 == 0;
  run(slot, !receive, receive);
}

void NetIo::on_ports_ready() {
  std::array<epoll_event, 2 * 8> events;
  const int count = ::epoll_wait(x_epoll.get(), events.data(), events.size(), 0);
  for (int i = 0; i < count; ++i) {
    const size_t slot = events[i].data.u64;
    const uint32_t what = events[i].events;
    run(slot, (what & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0,
        (what & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0);
    // Epoll tells of an end whether one asks or not, again and again. Who reads finds it behind the
    // last frame; nobody else can.
    const bool ended = (what & (EPOLLERR | EPOLLHUP)) != 0;
    if (ended && x_slots[slot]->watched && !x_slots[slot]->pair.wants_readable()) lose_ports();
  }
}

void NetIo::run_all() {
  for (size_t i = 0; i < x_slots.size(); ++i) run(i, true, true);
}

// 5.1.6.5.5: of the pairs that the driver does not use nothing is read, on either side.
void NetIo::run(size_t slot, bool send, bool receive) {
  if (slot < x_active_pairs) {
    Slot& entry = *x_slots[slot];
    entry.spinner.woke();
    Turns turns = take_turns(entry.pair, send, receive);
    const auto look = [&] {
      turns = take_turns(entry.pair, true, true);
      return !turns.rest || turns.worked;
    };
    unsigned rounds = 0;
    while (turns.rest && rounds++ < kRoundsMax) {
      // What a rate limit holds back comes with its timer.
      if (!turns.throttled && entry.spinner.finds(look)) continue;
      if (!entry.pair.want_kicks()) break;
      turns = take_turns(entry.pair, true, true);
    }
    if (rounds > kRoundsMax) x_again->signal();  // after the loop's other work
    entry.spinner.sleeps();
  }
  update_interest(slot);
}

NetIo::Turns NetIo::take_turns(NetPair& pair, bool send, bool receive) {
  Turns turns;
  if (send) note_turn(pair.send(), turns);
  if (receive) note_turn(pair.receive(), turns);
  turns.worked = pair.take_worked();
  return turns;
}

void NetIo::note_turn(NetPair::Turn turn, Turns& turns) {
  switch (turn) {
    case NetPair::Turn::kIdle:
      return;
    case NetPair::Turn::kMore:
      turns.rest = false;
      return x_again->signal();
    case NetPair::Turn::kThrottled:
      turns.throttled = true;
      if (!std::exchange(x_timer_runs, true)) ++x_counters.throttled;
      // Set anew each time: the other direction, or a limit that was lifted, may be due sooner.
      return x_timer->start(std::max<std::chrono::nanoseconds>(std::chrono::microseconds(1),
                                                               x_shared.next_allowed()));
    case NetPair::Turn::kLost:
      turns.rest = false;
      return lose_ports();
  }
}

void NetIo::update_interest(size_t slot) {
  Slot& entry = *x_slots[slot];
  if (entry.pair.port() == nullptr) return;
  // A tap's queue that is not active has an error for ever.
  const bool active = slot < x_active_pairs;
  const uint32_t wanted =
      (entry.pair.wants_readable() ? EPOLLIN : 0U) | (entry.pair.wants_writable() ? EPOLLOUT : 0U);
  if (active == entry.watched && (!active || wanted == entry.interest)) return;
  const int operation = !active ? EPOLL_CTL_DEL : entry.watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  epoll_event event{.events = wanted, .data = {.u64 = slot}};
  if (::epoll_ctl(x_epoll.get(), operation, entry.pair.port()->fd(), &event) != 0) {
    LETHE_LOG_LIMITED(LogModule::kNet, "a port is not watched: {}", errno_text(errno));
    return;
  }
  entry.watched = active;
  entry.interest = wanted;
}

void NetIo::serve_control() {
  unsigned commands = 0;
  do {
    for (; commands < kCommandsTurn; ++commands) {
      auto chain = x_control->pop();
      if (!chain) break;
      uint32_t written = 0;
      ++x_counters.commands;
      if (!run_command(*chain, x_shared.features, x_options.pairs, *this, written)) {
        ++x_counters.commands_refused;
        LETHE_LOG_LIMITED(LogModule::kNet, "a command on the control queue was refused");
      }
      chain->complete(written);
    }
  } while (commands < kCommandsTurn && !x_control->broken() && x_control->enable_kicks());
  x_control->interrupt_if_needed();
  if (x_control->broken()) {
    x_shared.host->needs_reset(x_control->broken_reason());
    x_control.reset();
  } else if (commands == kCommandsTurn) {
    x_kicks[x_control_index].event->signal();  // come back after the loop's other work
  }
}

void NetIo::set_mac(const MacAddress& mac) { x_config.set_mac(mac); }

void NetIo::set_pairs(uint16_t pairs) {
  x_active_pairs = pairs;
  tell_ports();
}

void NetIo::set_guest_offloads(uint64_t features) {
  x_guest_offloads = features;
  tell_ports();
}

void NetIo::announced() { (void)x_config.set_status(VIRTIO_NET_S_ANNOUNCE, false); }

void NetIo::save(StateWriter& to) const {
  to.begin_section("virtio-net", kStateVersion);
  to.bytes(x_config.mac());
  to.number(x_active_pairs);
  to.number(x_guest_offloads);
  to.boolean(x_link_wanted);
  to.number(x_limits.bandwidth_max);
  to.number(x_limits.packets_max);
  to.end_section();
}

Result<> NetIo::restore(StateReader& from) {
  from.begin_section("virtio-net", kStateVersion);
  MacAddress mac{};
  {
    const std::span<const uint8_t> bytes = from.bytes(mac.size());
    if (bytes.size() == mac.size()) std::copy(bytes.begin(), bytes.end(), mac.begin());
  }
  const auto pairs = from.number<uint16_t>();
  const auto offloads = from.number<uint64_t>();
  const bool link = from.boolean();
  NetLimits limits;
  limits.bandwidth_max = from.number<uint64_t>();
  limits.packets_max = from.number<uint64_t>();
  from.end_section();
  if (from.ok() && (mac[0] & 1) != 0) from.fail("the MAC address is a group's");
  if (from.ok() && (pairs < 1 || pairs > x_options.pairs)) from.fail("too many pairs of queues");
  if (from.ok() && (offloads & ~(x_shared.features & kGuestOffloads)) != 0)
    from.fail("offloads that were not negotiated");
  LETHE_TRY(from.check());
  x_config.set_mac(mac);
  x_active_pairs = pairs;
  x_guest_offloads = offloads;
  tell_ports();
  x_link_wanted = link;
  set_limits(limits);
  // The transport tells the driver of all this. 5.1.6.5.4: the network is to learn where the guest
  // is now.
  x_shared.link_up = link && !x_ports.empty();
  (void)x_config.set_status(VIRTIO_NET_S_LINK_UP, x_shared.link_up);
  if ((x_shared.features & net_bit(VIRTIO_NET_F_GUEST_ANNOUNCE)) != 0)
    (void)x_config.set_status(VIRTIO_NET_S_ANNOUNCE, true);
  return {};
}

}  // namespace lethe
