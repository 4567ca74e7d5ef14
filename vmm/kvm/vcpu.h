// One virtual processor: its KVM state, and the loop that runs it on a thread of its own.
#pragma once

#include "vmm/kvm/kvm_api.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "devices/bus.h"
#include "vmm/kvm/kvm.h"

namespace lethe {

class CoalescedWrites;

// How the boot processor starts (the others wait for INIT and SIPI, as real ones do).
struct BootState {
  enum class Mode : uint8_t {
    kProtected32,  // PVH: flat 32-bit segments, paging off
    kLong64,       // Linux 64-bit boot protocol: `cr3` holds an identity map
  };
  Mode mode = Mode::kProtected32;
  uint64_t entry = 0;  // rip
  uint64_t rbx = 0;    // PVH: address of hvm_start_info
  uint64_t rsi = 0;    // Linux: address of boot_params
  uint64_t cr3 = 0;    // long mode only
  uint64_t gdt = 0;    // address of the GDT that kBootGdt was written to
};

// Selectors 0x8 (32-bit code), 0x10 (data), 0x18 (64-bit code): what BootState loads.
inline constexpr uint64_t kBootGdt[4] = {0, 0x00CF'9B00'0000'FFFF, 0x00CF'9300'0000'FFFF,
                                         0x00AF'9B00'0000'FFFF};

// Why a vCPU's loop ended.
enum class VcpuExit : uint8_t {
  kStopped,      // request_stop()
  kTripleFault,  // KVM_EXIT_SHUTDOWN
  kFailed,       // KVM refused to go on: the reason was logged
};

class Vcpu {
 public:
  // `cpuid` as KVM_GET_SUPPORTED_CPUID gave it; what depends on `index` and `count` is set here.
  [[nodiscard]] static Result<std::unique_ptr<Vcpu>> create(const Kvm& kvm, const KvmVm& vm,
                                                            std::vector<kvm_cpuid_entry2> cpuid,
                                                            uint32_t index, uint32_t count);
  ~Vcpu();

  // Segments, control registers and entry of the boot processor. Before run().
  [[nodiscard]] Result<> set_boot_state(const BootState& state);

  // Runs until stopped or the guest is gone. Called by the vCPU's thread only; port and memory
  // accesses are dispatched on it, after what `coalesced` holds (null: nothing is coalesced).
  [[nodiscard]] VcpuExit run(const Bus& port_io, const Bus& mmio,
                             CoalescedWrites* coalesced = nullptr);

  // Finishes what the last exit left half done, so that the registers are those between two
  // instructions: before a snapshot reads them. While no thread is inside run(); allow_run() before
  // the next one.
  [[nodiscard]] VcpuExit settle(const Bus& port_io, const Bus& mmio, CoalescedWrites* coalesced);

  [[nodiscard]] int fd() const { return x_fd.get(); }
  [[nodiscard]] uint32_t index() const { return x_index; }
  // How often the guest was left for this process. Any thread.
  [[nodiscard]] uint64_t exits() const { return x_exits.load(std::memory_order_relaxed); }

  // Makes run() return soon. Any thread, and the vCPU's own thread from within a device.
  void request_stop();
  // Lets run() be called again after a request_stop(). While no thread is inside run(). The guest
  // is told that it was stopped, so that its watchdogs do not take the time for a hang
  // (KVM_KVMCLOCK_CTRL).
  void allow_run();

 private:
  Vcpu(UniqueFd fd, kvm_run* run, size_t run_size, uint32_t index);
  // Nothing: the guest goes on.
  [[nodiscard]] std::optional<VcpuExit> take_exit(const Bus& port_io, const Bus& mmio);
  void handle_port_io(const Bus& port_io);
  void handle_mmio(const Bus& mmio);
  void report_failure(const char* what) const;

  UniqueFd x_fd;
  kvm_run* x_run;  // shared with the kernel
  size_t x_run_size;
  uint32_t x_index;
  std::atomic<bool> x_stop{false};
  std::atomic<uint64_t> x_exits{0};  // written by the vCPU's thread
  std::atomic<int> x_thread_id{0};   // of the thread inside run(), 0 outside
};

// What KVM can offer to guests here.
[[nodiscard]] Result<std::vector<kvm_cpuid_entry2>> supported_cpuid(const Kvm& kvm);

}  // namespace lethe
