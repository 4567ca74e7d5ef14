// The traces of the governor's simulation. Load comes in whole changes, some of them ramps; between
// two of them there is time to settle.
#include "memory/fake_host.h"

namespace lethe {
namespace {

class Dice {
 public:
  explicit Dice(uint32_t seed) : x_random(seed) {}
  uint64_t bytes(uint64_t from, uint64_t to) {
    return std::uniform_int_distribution<uint64_t>(from / kMiB, to / kMiB)(x_random) * kMiB;
  }
  int number(int from, int to) { return std::uniform_int_distribution<int>(from, to)(x_random); }

 private:
  std::mt19937 x_random;
};

std::function<void(double)> ramp(uint64_t& value, uint64_t from, uint64_t to) {
  return [&value, from, to](double part) {
    value = static_cast<uint64_t>(static_cast<double>(from) +
                                  part * (static_cast<double>(to) - static_cast<double>(from)));
  };
}

// Three VMs that go about their business, on a host with much, little or hardly any room.
SimulationResult steady(uint32_t seed) {
  Dice dice(seed);
  FakeHost host(16 * kGiB, seed);
  host.other = dice.bytes(2 * kGiB, 6 * kGiB);
  for (int i = 0; i < 3; ++i)
    host.add({.size = dice.bytes(2 * kGiB, 5 * kGiB),
              .floor = 512 * kMiB,
              .weight = static_cast<uint32_t>(dice.number(50, 200)),
              .anonymous = dice.bytes(300 * kMiB, 1200 * kMiB),
              .cache = dice.bytes(200 * kMiB, 800 * kMiB)});
  host.run(1800);
  return host.result();
}

// Another program takes memory, and gives it back.
SimulationResult spike(uint32_t seed) {
  Dice dice(seed);
  FakeHost host(16 * kGiB, seed);
  host.other = 3 * kGiB;
  for (int i = 0; i < 3; ++i)
    host.add({.size = 4 * kGiB,
              .floor = 512 * kMiB,
              .anonymous = dice.bytes(300 * kMiB, 900 * kMiB),
              .cache = dice.bytes(1200 * kMiB, 2400 * kMiB)});
  const uint64_t most = dice.bytes(7 * kGiB, 9 * kGiB);
  const int seconds = dice.number(30, 60);
  host.at(300, seconds, ramp(host.other, 3 * kGiB, most));
  host.at(900, seconds, ramp(host.other, most, 3 * kGiB));
  host.run(1800);
  return host.result();
}

// A VM grows without end, a few MiB a second.
SimulationResult leak(uint32_t seed) {
  Dice dice(seed);
  FakeHost host(16 * kGiB, seed);
  host.other = 3 * kGiB;
  for (int i = 0; i < 2; ++i)
    host.add({.size = 4 * kGiB,
              .floor = 512 * kMiB,
              .anonymous = dice.bytes(300 * kMiB, 900 * kMiB),
              .cache = dice.bytes(1200 * kMiB, 2400 * kMiB)});
  FakeGuest& leaking = host.add(
      {.size = 6 * kGiB, .floor = 512 * kMiB, .anonymous = 500 * kMiB, .cache = 300 * kMiB});
  host.at(200, dice.number(600, 1200), ramp(leaking.anonymous_wanted, 500 * kMiB, 20 * kGiB));
  host.run(2400);
  return host.result();
}

// Four VMs whose caches would like more than there is, one after the other; then one ends its work.
SimulationResult compete(uint32_t seed) {
  Dice dice(seed);
  FakeHost host(16 * kGiB, seed);
  host.other = 2 * kGiB;
  std::vector<FakeGuest*> guests;
  for (int i = 0; i < 4; ++i)
    guests.push_back(&host.add({.size = 6 * kGiB,
                                .floor = 512 * kMiB,
                                .weight = static_cast<uint32_t>(dice.number(50, 400)),
                                .anonymous = dice.bytes(300 * kMiB, 700 * kMiB),
                                .cache = 300 * kMiB}));
  int second = 200;
  for (FakeGuest* guest : guests) {
    host.at(second, dice.number(30, 60),
            ramp(guest->cache_wanted, 300 * kMiB, dice.bytes(3 * kGiB, 5 * kGiB)));
    second += 500;
  }
  FakeGuest& ends = *guests[dice.number(0, 3)];
  host.at(second, 1, [&ends](double) { ends.cache_wanted = 300 * kMiB; });
  host.run(second + 600);
  return host.result();
}

// The user goes from window to window on a host that is short of memory.
SimulationResult focus(uint32_t seed) {
  Dice dice(seed);
  FakeHost host(16 * kGiB, seed);
  host.other = 3 * kGiB;
  std::vector<FakeGuest*> guests;
  for (int i = 0; i < 4; ++i)
    guests.push_back(&host.add({.size = 5 * kGiB,
                                .floor = 512 * kMiB,
                                .anonymous = dice.bytes(500 * kMiB, 900 * kMiB),
                                .cache = dice.bytes(1400 * kMiB, 1900 * kMiB)}));
  for (int i = 0; i < 8; ++i) {
    FakeGuest* const looked_at = guests[dice.number(0, 3)];
    host.at(300 + i * 400, 1, [guests, looked_at](double) {
      for (FakeGuest* guest : guests) guest->focus = guest == looked_at;
    });
  }
  host.run(300 + 8 * 400);
  return host.result();
}

}  // namespace

const std::vector<NamedTrace>& governor_traces() {
  static const std::vector<NamedTrace> traces = {
      {"steady", steady}, {"spike", spike}, {"leak", leak}, {"compete", compete}, {"focus", focus}};
  return traces;
}

}  // namespace lethe
