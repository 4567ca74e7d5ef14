// The keys of [vsock].
#include "devices/virtio/vsock/vsock.h"
#include "vmm/config_schema.h"

namespace lethe {
namespace {

using Value = ConfigValue;

// What a socket's address holds (unix(7)), less a port's number. The path may become longer when
// the config file's directory is put before it: make_vsock_socket() has the last word.
constexpr uint64_t kPathMax = 107 - kVsockPortDigits;

constexpr ConfigKey kVsockKeys[] = {
    {.section = "vsock",
     .name = "enabled",
     .type = KeyType::kBool,
     .fallback = "false",
     .help = "Give the guest a virtio socket device.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.vsock.enabled = v.flag; }},
    {.section = "vsock",
     .name = "cid",
     .type = KeyType::kInteger,
     .fallback = "3",
     .min = kVsockCidMin,
     .max = kVsockCidMax,
     .help = "The guest's address. VMs may have the same one: each has a host of its own, with "
             "CID 2.",
     .store = [](VmConfig& c, size_t,
                 Value&& v) { c.vsock.cid = static_cast<uint32_t>(v.number); }},
    {.section = "vsock",
     .name = "path",
     .type = KeyType::kPath,
     .min = 1,
     .max = kPathMax,
     .help = "The Unix socket that host programs connect to; what the guest connects to goes to "
             "this path with `_PORT` behind it. By default `vsock.sock` in the VM's run-time "
             "directory.",
     .store = [](VmConfig& c, size_t, Value&& v) { c.vsock.path = std::move(v.text); }},
};

}  // namespace

std::span<const ConfigKey> vsock_config_keys() { return kVsockKeys; }

}  // namespace lethe
