// A network card (virtio 1.2, section 5.1), with a test program or passt at the other end.
#include "guests/virtio.h"
#include "kernel/check.h"
#include "kernel/clock.h"
#include "kernel/cpu.h"
#include "kernel/memory.h"
#include "kernel/print.h"
#include "kernel/virtio/net.h"

using namespace kernel;

namespace virtio {
namespace {

constexpr uint32_t kEthernet = 14;
constexpr uint32_t kIp = 20;
constexpr uint32_t kUdp = 8;
constexpr uint32_t kBootp = 300;  // RFC 1542: the least
constexpr uint64_t kAskEveryMs = 500;
constexpr unsigned kAsksMax = 40;

void put16(uint8_t* at, uint32_t value) {
  at[0] = static_cast<uint8_t>(value >> 8);
  at[1] = static_cast<uint8_t>(value);
}

uint32_t ip_checksum(const uint8_t* header) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < kIp; i += 2)
    sum += static_cast<uint32_t>(header[i] << 8 | header[i + 1]);
  while ((sum >> 16) != 0) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

// DHCPDISCOVER (RFC 2131), from nobody to all.
uint32_t make_discover(NetCard& card, uint8_t* frame) {
  memset(frame, 0, kEthernet + kIp + kUdp + kBootp);
  memset(frame, 0xff, 6);
  card.mac(frame + 6);
  put16(frame + 12, 0x0800);
  uint8_t* const ip = frame + kEthernet;
  ip[0] = 0x45;
  put16(ip + 2, kIp + kUdp + kBootp);
  ip[8] = 64;
  ip[9] = 17;
  memset(ip + 16, 0xff, 4);
  put16(ip + 10, ip_checksum(ip));
  uint8_t* const udp = ip + kIp;
  put16(udp, 68);
  put16(udp + 2, 67);
  put16(udp + 4, kUdp + kBootp);
  uint8_t* const bootp = udp + kUdp;
  bootp[0] = 1;
  bootp[1] = 1;
  bootp[2] = 6;
  put16(bootp + 4, 0x1e7e);
  card.mac(bootp + 28);
  static const uint8_t options[] = {0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255};
  memcpy(bootp + 236, options, sizeof(options));
  return kEthernet + kIp + kUdp + kBootp;
}

// Whether the frame is the answer to our question; prints what it offers.
bool is_offer(const uint8_t* frame, uint32_t length) {
  const uint8_t* const ip = frame + kEthernet;
  if (length < kEthernet + kIp + kUdp + 240 || frame[12] != 8 || frame[13] != 0) return false;
  if (ip[0] != 0x45 || ip[9] != 17 || ip[kIp + 3] != 68) return false;
  const uint8_t* const bootp = ip + kIp + kUdp;
  if (bootp[0] != 2 || bootp[4] != 0x1e || bootp[5] != 0x7e) return false;
  print("net: offered %u.%u.%u.%u\n", bootp[16], bootp[17], bootp[18], bootp[19]);
  return true;
}

void ask_for_an_address(NetCard& card) {
  static uint8_t question[kEthernet + kIp + kUdp + kBootp];
  const uint32_t length = make_discover(card, question);
  for (unsigned asks = 0;; ++asks) {
    CHECK(asks < kAsksMax);
    card.send(question, length);
    uint32_t got = 0;
    const bool offered = wait_until(
        [&] { return (got = card.poll()) != 0 && is_offer(card.frame(), got); }, kAskEveryMs);
    if (offered) return;
  }
}

}  // namespace

// Says hello, then gives back what it gets, until that is "bye"; and tells of its link.
void net_echo() {
  static NetCard card;
  card.open();
  CHECK(card.link_up());
  static const char hello[] = "hello from the guest";
  card.send(hello, sizeof(hello) - 1);
  for (bool up = true;;) {
    uint32_t length = 0;
    CHECK_SOON((length = card.poll()) != 0 || card.link_up() != up);
    if (length == 0) {
      up = !up;
      print("net: link %s\n", up ? "up" : "down");
      continue;
    }
    if (length == 3 + kEthernet && memcmp(card.frame() + kEthernet, "bye", 3) == 0) return;
    card.send(card.frame(), length);
  }
}

void net_dhcp() {
  static NetCard card;
  card.open();
  ask_for_an_address(card);
}

// The same again after the link was down for a while.
void net_link() {
  static NetCard card;
  card.open();
  ask_for_an_address(card);
  print("net: link up\n");
  CHECK_SOON(!card.link_up());
  print("net: link down\n");
  CHECK_SOON(card.link_up());
  print("net: link up again\n");
  ask_for_an_address(card);
}

}  // namespace virtio
