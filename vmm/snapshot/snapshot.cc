#include "vmm/snapshot/snapshot.h"

#include <sys/stat.h>

#include <chrono>

#include "base/log.h"
#include "vmm/config_schema.h"
#include "vmm/machine.h"

namespace lethe {
namespace {

constexpr size_t kPathMax = 4096;
constexpr size_t kOverridesMax = 1024;
constexpr size_t kOverrideMax = 65536;

// What tells that a disk is not as it was. Of a block device only the size: nobody notes when one
// was written.
struct DiskStamp {
  uint64_t bytes = 0;
  uint64_t changed_ns = 0;  // since 1970
  bool operator==(const DiskStamp&) const = default;
};

DiskStamp stamp_of(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return {};
  return {.bytes = static_cast<uint64_t>(status.st_size),
          .changed_ns = static_cast<uint64_t>(status.st_mtim.tv_sec) * 1'000'000'000 +
                        static_cast<uint64_t>(status.st_mtim.tv_nsec)};
}

void save_disks(const VmConfig& config, StateWriter& to) {
  to.begin_section("disks", 1);
  to.number(static_cast<uint32_t>(config.disks.size()));
  for (const DiskConfig& disk : config.disks) {
    const DiskStamp stamp = stamp_of(disk.path);
    to.number(stamp.bytes);
    to.number(stamp.changed_ns);
  }
  to.end_section();
}

Result<> restore_disks(const VmConfig& config, bool changed_disks, StateReader& from) {
  from.begin_section("disks", 1);
  if (from.number<uint32_t>() != config.disks.size()) from.fail("another number of disks");
  for (size_t i = 0; i < config.disks.size() && from.ok(); ++i) {
    DiskStamp saved;
    saved.bytes = from.number<uint64_t>();
    saved.changed_ns = from.number<uint64_t>();
    if (!from.ok() || saved == stamp_of(config.disks[i].path) || changed_disks) continue;
    return config_error(
        "snapshot: the disk '{}' is not as it was: put back the copy that belongs to the snapshot, "
        "or go on with --changed-disks",
        printable(config.disks[i].path));
  }
  from.end_section();
  return from.check();
}

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// Of a machine that stands still.
Result<SnapshotReport> write_snapshot(Machine& machine, const VmConfig& config,
                                      SnapshotWriter& writer) {
  LETHE_TRY(machine.freeze());
  StateWriter state(kSectionsBytesMax);
  save_config(config, state);
  save_disks(config, state);
  const auto table = write_memory(machine.memory(), writer.memory_fd());
  if (!table) return host_error("snapshot '{}': {}", printable(writer.dir()), table.error().text);
  save_table(*table, state);
  LETHE_TRY(machine.save(state));
  LETHE_TRY(writer.write_state(std::move(state)));
  return SnapshotReport{.memory_bytes = table->bytes_used()};
}

}  // namespace

Result<SavedMachine> save_machine(Machine& machine, const VmConfig& config, const std::string& dir,
                                  bool stay_paused) {
  LETHE_TRY_ASSIGN(SnapshotWriter writer, SnapshotWriter::create(dir));
  const bool was_paused = machine.paused();
  const auto start = std::chrono::steady_clock::now();
  machine.pause();
  auto report = write_snapshot(machine, config, writer);
  // Devices go on only when the guest does: what waits in them, for a rate limit say, would change
  // the disks that belong to the snapshot.
  if (!was_paused && (!stay_paused || !report)) machine.resume();
  if (!report) return Unexpected(report.error());
  report->paused_ms = ms_since(start);
  return SavedMachine(std::move(writer), *report);
}

Result<SnapshotReport> SavedMachine::commit() {
  LETHE_TRY(x_writer.commit());
  x_report.disk_bytes = x_writer.disk_bytes();
  return x_report;
}

void save_config(const VmConfig& config, StateWriter& to) {
  const ConfigSource& source = config.source;
  to.begin_section("config", 1);
  to.text(source.file);
  to.text(source.text);
  to.number(static_cast<uint32_t>(source.overrides.size()));
  for (const std::string& item : source.overrides) to.text(item);
  to.end_section();
}

Result<VmConfig> restore_config(const RestoreOptions& options, StateReader& from) {
  from.begin_section("config", 1);
  const std::string file = from.text(kPathMax);
  const std::string text = from.text(kConfigFileBytesMax);
  const auto count = from.number<uint32_t>();
  if (count > kOverridesMax) from.fail("too many --set");
  std::vector<std::string> overrides;
  for (uint32_t i = 0; i < count && from.ok(); ++i) overrides.push_back(from.text(kOverrideMax));
  from.end_section();
  LETHE_TRY(from.check());
  if (!options.name.empty()) overrides.push_back("name=" + options.name);
  std::vector<std::string> errors;
  VmConfig config = parse_config(text, file, overrides, errors);
  if (errors.empty()) return config;
  return config_error("snapshot: its config: {}", errors[0]);
}

Result<std::unique_ptr<Snapshot>> Snapshot::open(const std::string& dir,
                                                 const RestoreOptions& options) {
  LETHE_TRY_ASSIGN(SnapshotFiles files, open_snapshot(dir));
  std::unique_ptr<Snapshot> snapshot(new Snapshot(dir, std::move(files), options.verify));
  LETHE_TRY(snapshot->read(options));
  return snapshot;
}

Result<> Snapshot::read(const RestoreOptions& options) {
  x_reader.emplace(x_files.sections());
  LETHE_TRY_ASSIGN(x_config, restore_config(options, *x_reader));
  LETHE_TRY(restore_disks(x_config, options.changed_disks, *x_reader));
  LETHE_TRY_ASSIGN(x_table, restore_table(x_config.memory.size_bytes, *x_reader));
  if (x_files.memory_bytes != x_table.bytes)
    return config_error(
        "snapshot '{}': its file 'memory' was truncated or altered: {} bytes, {} "
        "are due",
        printable(x_dir), x_files.memory_bytes, x_table.bytes);
  return {};
}

}  // namespace lethe
