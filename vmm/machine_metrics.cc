// What a machine tells of itself: its parts' counters, and how much host memory it holds.
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <string>

#include "base/metrics.h"
#include "devices/gui/gui.h"
#include "devices/legacy/serial/serial.h"
#include "devices/virtio/block/block.h"
#include "devices/virtio/console/console.h"
#include "devices/virtio/gpu/gpu.h"
#include "devices/virtio/input/input.h"
#include "devices/virtio/net/net.h"
#include "devices/virtio/pci_transport.h"
#include "devices/virtio/rng/rng.h"
#include "devices/virtio/vsock/vsock.h"
#include "vmm/machine.h"
#include "vmm/machine_memory.h"
#include "vmm/memory_return.h"

namespace lethe {
namespace {

uint64_t load(const std::atomic<uint64_t>& counter) {
  return counter.load(std::memory_order_relaxed);
}

double process_cpu_seconds() {
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void report_queues(const VirtioPciTransport& transport, const char* device, MetricSink& sink) {
  for (uint16_t i = 0; i < transport.queues(); ++i) {
    const QueueCounters& queue = transport.queue_counters(i);
    const std::string index = std::to_string(i);
    sink.counter("lethe_queue_chains_total", "Descriptor chains taken from the guest.",
                 load(queue.chains), {{"device", device}, {"queue", index}});
    sink.counter("lethe_queue_interrupts_total", "Interrupts sent for the queue.",
                 load(queue.interrupts), {{"device", device}, {"queue", index}});
    sink.counter("lethe_queue_rejected_total", "Rules of the ring that the guest broke.",
                 load(queue.rejected), {{"device", device}, {"queue", index}});
  }
}

void report_transport(const VirtioPciTransport& transport, MetricSink& sink) {
  const char* const device = transport.device().name();
  const VirtioPciCounters& counters = transport.counters();
  sink.gauge("lethe_virtio_driver_ok", "1 while a driver of the guest runs the device.",
             (transport.status() & VIRTIO_CONFIG_S_DRIVER_OK) != 0 ? 1 : 0, {{"device", device}});
  sink.counter("lethe_virtio_needs_reset_total", "Times the device gave up on its driver.",
               load(counters.needs_resets), {{"device", device}});
  sink.counter("lethe_virtio_registers_refused_total", "Writes to registers that were refused.",
               load(counters.registers_refused), {{"device", device}});
  sink.counter("lethe_virtio_kicks_by_exit_total", "Notifications that had to leave KVM.",
               load(counters.kicks_by_exit), {{"device", device}});
  sink.counter("lethe_virtio_config_interrupts_total", "Configuration changes told to the guest.",
               load(counters.config_interrupts), {{"device", device}});
  report_queues(transport, device, sink);
}

void report_block(const BlockDevice& disk, MetricSink& sink) {
  const BlockCounters& counters = disk.counters();
  const struct {
    const char* kind;
    const std::atomic<uint64_t>& count;
  } kRequests[] = {{"read", counters.reads},
                   {"write", counters.writes},
                   {"flush", counters.flushes},
                   {"discard", counters.discards},
                   {"write_zeroes", counters.write_zeroes}};
  for (const auto& [kind, count] : kRequests)
    sink.counter("lethe_block_requests_total", "Requests by kind.", load(count),
                 {{"device", disk.name()}, {"kind", kind}});
  sink.counter("lethe_block_read_bytes_total", "Bytes read.", load(counters.bytes_read),
               {{"device", disk.name()}});
  sink.counter("lethe_block_written_bytes_total", "Bytes written.", load(counters.bytes_written),
               {{"device", disk.name()}});
  const struct {
    const char* why;
    const std::atomic<uint64_t>& count;
  } kFailures[] = {{"host", counters.io_errors},
                   {"refused", counters.refused},
                   {"malformed", counters.malformed}};
  for (const auto& [why, count] : kFailures)
    sink.counter("lethe_block_failures_total", "Requests that failed, by reason.", load(count),
                 {{"device", disk.name()}, {"why", why}});
  sink.counter("lethe_block_throttled_total", "Times the rate limit held requests back.",
               load(counters.throttled), {{"device", disk.name()}});
}

void report_net(const NetDevice& net, MetricSink& sink) {
  const NetCounters& counters = net.counters();
  const char* const device = net.name();
  sink.gauge("lethe_net_link_up", "1 while the link is up.", net.link_up() ? 1 : 0,
             {{"device", device}});
  const struct {
    const char* direction;
    const std::atomic<uint64_t>& frames;
    const std::atomic<uint64_t>& bytes;
  } kDirections[] = {{"tx", counters.tx_frames, counters.tx_bytes},
                     {"rx", counters.rx_frames, counters.rx_bytes}};
  for (const auto& [direction, frames, bytes] : kDirections) {
    sink.counter("lethe_net_frames_total", "Frames from (tx) and to (rx) the guest.", load(frames),
                 {{"device", device}, {"direction", direction}});
    sink.counter("lethe_net_bytes_total", "Bytes of these frames.", load(bytes),
                 {{"device", device}, {"direction", direction}});
  }
  const struct {
    const char* why;
    const std::atomic<uint64_t>& count;
  } kDrops[] = {{"tx_refused", counters.tx_refused},     {"tx_failed", counters.tx_failed},
                {"tx_link_down", counters.tx_dropped},   {"rx_link_down", counters.rx_dropped},
                {"rx_too_large", counters.rx_too_large}, {"rx_buffer", counters.rx_refused}};
  for (const auto& [why, count] : kDrops)
    sink.counter("lethe_net_dropped_total", "Frames and receive buffers of no use, by reason.",
                 load(count), {{"device", device}, {"why", why}});
  sink.counter("lethe_net_throttled_total", "Times the rate limit held frames back.",
               load(counters.throttled), {{"device", device}});
  sink.counter("lethe_net_commands_total", "Commands on the control queue.",
               load(counters.commands), {{"device", device}});
  sink.counter("lethe_net_commands_refused_total", "Of these, the refused ones.",
               load(counters.commands_refused), {{"device", device}});
  sink.counter("lethe_net_lost_total", "Times the host's end of the link went away.",
               load(counters.lost), {{"device", device}});
}

void report_input(const InputDevice& input, MetricSink& sink) {
  const InputCounters& counters = input.counters();
  const char* const device = input.name();
  const struct {
    const char* what;
    const std::atomic<uint64_t>& count;
  } kEvents[] = {{"given", counters.frames},
                 {"merged", counters.merged},
                 {"no_driver", counters.ignored},
                 {"lost", counters.lost},
                 {"unknown", counters.unknown}};
  for (const auto& [what, count] : kEvents)
    sink.counter("lethe_input_events_total", "Keys, buttons, motions, and what became of them.",
                 load(count), {{"device", device}, {"what", what}});
  sink.gauge("lethe_input_waiting", "Events that the guest has not read yet.",
             static_cast<double>(load(counters.waiting)), {{"device", device}});
  sink.counter("lethe_input_status_total", "Events from the guest, such as LEDs.",
               load(counters.status), {{"device", device}});
  sink.counter("lethe_input_refused_total", "Buffers of the guest that are too small.",
               load(counters.refused), {{"device", device}});
}

void report_vsock(const VsockCounters& counters, MetricSink& sink) {
  sink.gauge("lethe_vsock_streams", "Streams between guest and host now.",
             static_cast<double>(load(counters.streams)));
  const struct {
    const char* by;
    const std::atomic<uint64_t>& count;
  } kOpened[] = {{"host", counters.from_host}, {"guest", counters.from_guest}};
  for (const auto& [by, count] : kOpened)
    sink.counter("lethe_vsock_opened_total", "Streams opened, by side.", load(count), {{"by", by}});
  const struct {
    const char* why;
    const std::atomic<uint64_t>& count;
  } kFailures[] = {{"refused", counters.refused},
                   {"bad_hello", counters.bad_hellos},
                   {"timeout", counters.timeouts},
                   {"malformed", counters.malformed},
                   {"stray", counters.stray},
                   {"credit", counters.credit_broken},
                   {"small_buffer", counters.small_buffers},
                   {"reset_lost", counters.resets_lost}};
  for (const auto& [why, count] : kFailures)
    sink.counter("lethe_vsock_failures_total", "Connections and packets that failed, by reason.",
                 load(count), {{"why", why}});
  sink.counter("lethe_vsock_resets_total", "Resets sent to the guest.", load(counters.resets_sent));
  sink.counter("lethe_vsock_to_host_bytes_total", "Payload that the guest sent.",
               load(counters.bytes_to_host));
  sink.counter("lethe_vsock_to_guest_bytes_total", "Payload that the guest was sent.",
               load(counters.bytes_to_guest));
}

}  // namespace

void Machine::report_metrics(MetricSink& sink) const {
  sink.gauge("lethe_memory_size_bytes", "The guest's memory.",
             static_cast<double>(x_memory->total_bytes()));
  sink.gauge("lethe_memory_resident_bytes", "What of the guest's memory the host holds now.",
             static_cast<double>(x_memory->resident_bytes()));
  if (x_return) x_return->report_metrics(sink);
  if (x_policy) x_policy->policy().report_metrics(sink);
  sink.gauge("lethe_process_resident_bytes", "All memory of the process that the host holds now.",
             static_cast<double>(process_resident_bytes()));
  sink.gauge("lethe_process_cpu_seconds", "Processor time of the process, guest included.",
             process_cpu_seconds());
  sink.gauge("lethe_vcpu_count", "Virtual CPUs.", static_cast<double>(x_vcpus.size()));
  for (size_t i = 0; i < x_vcpus.size(); ++i)
    sink.counter("lethe_vcpu_exits_total", "Exits from the guest to this process.",
                 x_vcpus[i]->exits(), {{"vcpu", std::to_string(i)}});
  report_legacy(sink);
  for (const VirtioPciTransport* transport : x_transports) report_transport(*transport, sink);
  for (const BlockDevice* disk : x_disks) report_block(*disk, sink);
  for (const NetDevice* net : x_nets) report_net(*net, sink);
  if (x_vsock != nullptr) report_vsock(x_vsock->counters(), sink);
  if (x_gui != nullptr) x_gui->report_metrics(sink);
  if (x_gpu != nullptr) x_gpu->report_metrics(sink);
  for (const InputDevice* input : x_input_devices) report_input(*input, sink);
  const ConsoleCounters& console = x_virtio_console->counters();
  sink.counter("lethe_console_out_bytes_total", "Bytes the guest wrote.", load(console.bytes_out),
               {{"console", "virtio"}});
  sink.counter("lethe_console_in_bytes_total", "Bytes the guest was given.", load(console.bytes_in),
               {{"console", "virtio"}});
}

}  // namespace lethe
