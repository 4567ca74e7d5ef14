#include "vmm/net_host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/unix_socket.h"
#include "devices/virtio/net/stream_port.h"
#include "devices/virtio/net/tap_port.h"
#include "vmm/config_schema.h"
#include "vmm/net_config.h"

namespace lethe {
namespace {

constexpr std::chrono::milliseconds kFirstPatience{50};
constexpr std::chrono::milliseconds kLastPatience{10'000};
// An end that lasted so long was a good one: the next loss starts from the first patience again.
constexpr std::chrono::seconds kGoodFor{10};

Result<NetPorts> one_port(std::unique_ptr<NetPort> port) {
  NetPorts ports;
  ports.push_back(std::move(port));
  return Result<NetPorts>(std::move(ports));
}

Result<UniqueFd> connect_to(const std::string& path) {
  if (path.size() > kUnixPathMax)
    return host_error("socket '{}': the path is longer than {} bytes", printable(path),
                      kUnixPathMax);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return host_error("socket: {}", errno_text(errno));
  if (connect_unix(fd.get(), path) != 0)
    return host_error("socket '{}': {}: who listens there must run first", printable(path),
                      errno_text(errno));
  return Result<UniqueFd>(std::move(fd));
}

}  // namespace

Result<std::unique_ptr<NetHost>> NetHost::create(const VmConfig& config, EventLoop& loop) {
  std::unique_ptr<NetHost> host(new NetHost(config, loop));
  for (size_t i = 0; i < config.nets.size(); ++i) {
    auto card = std::make_unique<Card>();
    card->index = i;
    card->config = &config.nets[i];
    card->patience = kFirstPatience;
    LETHE_TRY_ASSIGN(card->ports, host->open(*card));
    host->x_cards.push_back(std::move(card));
  }
  return Result<std::unique_ptr<NetHost>>(std::move(host));
}

NetHost::~NetHost() = default;

Result<NetPorts> NetHost::open(Card& card) {
  // Before any passt is started: it is none of its business.
  for (const auto& other : x_cards)
    if (other->config->tap_fd)
      (void)::fcntl(static_cast<int>(*other->config->tap_fd), F_SETFD, FD_CLOEXEC);
  card.opened = std::chrono::steady_clock::now();
  const NetConfig& net = *card.config;
  if (net.user) {
    LETHE_TRY_ASSIGN(card.passt, Passt::start(x_loop, net));
    return one_port(std::make_unique<StreamPort>(card.passt->take_socket()));
  }
  if (!net.socket.empty()) {
    LETHE_TRY_ASSIGN(UniqueFd socket, connect_to(net.socket));
    return one_port(std::make_unique<StreamPort>(std::move(socket)));
  }
  if (!net.tap.empty()) return TapPort::open(net.tap, static_cast<uint16_t>(net.queues));
  // A copy: a guest's restart opens it again.
  UniqueFd tap(::fcntl(static_cast<int>(*net.tap_fd), F_DUPFD_CLOEXEC, 0));
  if (!tap.valid())
    return host_error("net.{}.tap_fd = {}: {}", card.index, *net.tap_fd, errno_text(errno));
  LETHE_TRY_ASSIGN(auto port, TapPort::adopt(std::move(tap)));
  return one_port(std::move(port));
}

Result<std::unique_ptr<NetDevice>> NetHost::make_device(size_t index) {
  Card& card = *x_cards[index];
  const NetConfig& net = *card.config;
  const NetOptions options{
      .name = fmt::format("net{}", index),
      .mac = parse_mac(net.mac).value_or(default_mac(x_config.name, index)),
      .mtu = mtu_of(net),
      .pairs = static_cast<uint16_t>(net.queues),
      .queue_size = static_cast<uint16_t>(net.queue_size),
      .link = net.link,
      .limits = {.bandwidth_max = net.bandwidth_bytes_max, .packets_max = net.packets_max},
      .on_lost = [this, &card, &loop = x_loop, alive = std::weak_ptr(x_alive)] {
        loop.post([this, &card, alive] {
          if (!alive.expired()) lost(card);
        });
      }};
  LETHE_TRY_ASSIGN(auto device, NetDevice::create(options, std::exchange(card.ports, {})));
  card.device = device.get();
  return Result<std::unique_ptr<NetDevice>>(std::move(device));
}

void NetHost::lost(Card& card) {
  const std::string why = card.passt                     ? "passt: " + card.passt->end(true)
                          : !card.config->socket.empty() ? "the other end closed the socket"
                                                         : "the tap is gone";
  card.passt.reset();
  if (std::chrono::steady_clock::now() - card.opened >= kGoodFor) card.patience = kFirstPatience;
  card.attempts = 0;
  LETHE_LOG_LIMITED(LogModule::kNet, "net{}: the link is down: {}", card.index, why);
  if (x_listener) x_listener(card.index, false, why);
  if (card.config->tap_fd) return;  // nobody can give it again
  if (!card.timer) card.timer = x_loop.make_timer([this, &card] { try_again(card); });
  card.timer->start(card.patience);
}

void NetHost::try_again(Card& card) {
  card.patience = std::min(2 * card.patience, kLastPatience);
  ++card.attempts;
  auto ports = open(card);
  if (!ports) {
    LETHE_LOG_LIMITED(LogModule::kNet, "net{}: {}", card.index, ports.error().text);
    card.timer->start(card.patience);
    return;
  }
  card.device->connect(std::move(*ports));
  const std::string how = fmt::format("connected again after {} attempt{}", card.attempts,
                                      card.attempts == 1 ? "" : "s");
  LETHE_LOG_LIMITED(LogModule::kNet, "net{}: the link is up: {}", card.index, how);
  if (x_listener) x_listener(card.index, true, how);
}

pid_t NetHost::passt_pid(size_t index) const {
  return x_cards[index]->passt ? x_cards[index]->passt->pid() : -1;
}

}  // namespace lethe
