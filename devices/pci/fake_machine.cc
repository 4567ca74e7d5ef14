#include "devices/pci/fake_machine.h"

#include <array>
#include <cstring>

#include "base/assert.h"

namespace lethe {

struct FakeMsiController::Route final : MsiRoute {
  explicit Route(FakeMsiController& owner) : controller(owner) {}
  void set_message(const MsiMessage& next) override {
    controller.x_messages_set.fetch_add(1);
    MutexLock lock(controller.x_mutex);
    message = {next.address, next.data};
    set = true;
  }
  void signal() override {
    MutexLock lock(controller.x_mutex);
    if (set) ++controller.x_delivered[message];
  }
  FakeMsiController& controller;
  std::pair<uint64_t, uint32_t> message;  // controller's lock, as is `set`
  bool set = false;
};

Result<std::unique_ptr<MsiRoute>> FakeMsiController::make_route() {
  if (x_routes_left-- <= 0) return host_error("no interrupt route is left");
  return std::make_unique<Route>(*this);
}

uint64_t FakeMsiController::delivered(const MsiMessage& message) const {
  MutexLock lock(x_mutex);
  const auto found = x_delivered.find({message.address, message.data});
  return found == x_delivered.end() ? 0 : found->second;
}

uint64_t FakeMsiController::delivered() const {
  MutexLock lock(x_mutex);
  uint64_t sum = 0;
  for (const auto& [message, count] : x_delivered) sum += count;
  return sum;
}

Result<> FakeDoorbells::bind_doorbell(uint64_t address, const EventFd& event) {
  MutexLock lock(x_mutex);
  if (x_failures > 0) {
    --x_failures;
    return host_error("no ioeventfd is left");
  }
  LETHE_ASSERT(x_bound.emplace(address, &event).second);
  return {};
}

void FakeDoorbells::unbind_doorbell(uint64_t address, const EventFd& event) {
  MutexLock lock(x_mutex);
  const auto found = x_bound.find(address);
  LETHE_ASSERT(found != x_bound.end() && found->second == &event);
  x_bound.erase(found);
}

bool FakeDoorbells::ring(uint64_t address) {
  MutexLock lock(x_mutex);
  const auto found = x_bound.find(address);
  if (found == x_bound.end()) return false;
  found->second->signal();
  return true;
}

std::vector<uint64_t> FakeDoorbells::bound() const {
  MutexLock lock(x_mutex);
  std::vector<uint64_t> addresses;
  for (const auto& [address, event] : x_bound) addresses.push_back(address);
  return addresses;
}

Result<> FakeDeviceMemory::bind_memory(uint64_t address, uint64_t size, uint8_t* host) {
  MutexLock lock(x_mutex);
  if (x_failures > 0) {
    --x_failures;
    return host_error("no memory slot is left");
  }
  for (const auto& [start, slot] : x_bound)
    LETHE_ASSERT(address + size <= start || start + slot.size <= address);
  x_bound[address] = {size, host};
  return {};
}

void FakeDeviceMemory::unbind_memory(uint64_t address) {
  MutexLock lock(x_mutex);
  LETHE_ASSERT(x_bound.erase(address) == 1);
}

std::map<uint64_t, FakeDeviceMemory::Slot> FakeDeviceMemory::bound() const {
  MutexLock lock(x_mutex);
  return x_bound;
}

uint8_t* FakeDeviceMemory::find(uint64_t address, size_t size) const {
  MutexLock lock(x_mutex);
  for (const auto& [start, slot] : x_bound)
    if (address >= start && address - start <= slot.size - size)
      return slot.host + (address - start);
  return nullptr;
}

FakeMachine::FakeMachine() {
  const GuestMemory::Range ram{GuestAddr{0}, kMemory};
  auto made = GuestMemory::create({&ram, 1}, {.thp = false});
  LETHE_ASSERT(made);
  memory = std::move(*made);
  pci = std::make_unique<PciBus>(ports, PciEnvironment{.mmio = mmio,
                                                       .msi = msi,
                                                       .doorbells = doorbells,
                                                       .device_memory = device_memory,
                                                       .memory = *memory,
                                                       .windows = {.high = kHighWindow}});
  LETHE_ASSERT(pci->attach());
}

void FakeMachine::write(uint64_t address, uint64_t value, size_t size) {
  if (doorbells.ring(address)) return;
  if (uint8_t* const at = device_memory.find(address, size)) {
    std::memcpy(at, &value, size);
    return;
  }
  std::array<uint8_t, 8> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  mmio.write(address, std::span(bytes).first(size));
}

uint64_t FakeMachine::read(uint64_t address, size_t size) const {
  std::array<uint8_t, 8> bytes{};
  if (const uint8_t* const at = device_memory.find(address, size))
    std::memcpy(bytes.data(), at, size);
  else
    mmio.read(address, std::span(bytes).first(size));
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

void FakeMachine::out(uint16_t port, uint32_t value, size_t size) {
  std::array<uint8_t, 4> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  ports.write(port, std::span(bytes).first(size));
}

uint32_t FakeMachine::in(uint16_t port, size_t size) const {
  std::array<uint8_t, 4> bytes{};
  ports.read(port, std::span(bytes).first(size));
  uint32_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

uint8_t FakeMachine::find_capability(uint8_t slot, uint8_t id, uint8_t after) const {
  uint64_t at = config_read(slot, after == 0 ? PCI_CAPABILITY_LIST : after + 1, 1);
  // A list of 256 bytes has 48 capabilities at most: more is a loop.
  for (int i = 0; at != 0 && i < 48; ++i) {
    if (config_read(slot, at, 1) == id) return static_cast<uint8_t>(at);
    at = config_read(slot, at + 1, 1);
  }
  return 0;
}

}  // namespace lethe
