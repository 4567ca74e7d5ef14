// For tests and fuzzers: a guest that touches the registers of a virtio PCI function as it likes,
// and what must hold after each of its steps, whatever they were.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "devices/virtio/fake_pci_driver.h"
#include "devices/virtio/pci_transport.h"

namespace lethe {

class HostileGuest {
 public:
  // Bytes of input that make one step.
  static constexpr size_t kStepBytes = 8;

  HostileGuest();

  // As a machine just built: reset, BAR and MSI-X as at first. For fuzzers, which reuse one.
  void restore();
  // Does one step. Input shorter than kStepBytes counts as if zeros followed.
  void step(std::span<const uint8_t> input);
  // What broke, if something did: nothing, or a line of text.
  [[nodiscard]] std::optional<std::string> check();
  // Checks that found a live queue: that the steps get anywhere.
  [[nodiscard]] uint64_t live_steps() const { return x_live_steps; }

 private:
  struct Step;
  void access_bar(const Step& step);
  void write_register(const Step& step);
  void access_config(const Step& step);
  void access_pci_cfg(const Step& step);
  void move_bar(const Step& step);
  void say(const Step& step);
  void advance(const Step& step);
  [[nodiscard]] std::optional<std::string> check_queues();
  [[nodiscard]] std::optional<std::string> check_registers();

  FakeMachine x_machine;
  FakeVirtioDevice* x_device = nullptr;
  VirtioPciTransport* x_transport = nullptr;
  std::optional<FakePciDriver> x_driver;
  uint64_t x_live_steps = 0;
  uint8_t x_status = 0;  // at the check before
};

}  // namespace lethe
