#include "vmm/gui_host.h"

#include <sys/socket.h>

#include "base/descriptor_limit.h"
#include "base/unix_socket.h"

namespace lethe {
namespace {

GuiOptions options_of(const VmConfig& config) {
  const GuiConfig& gui = config.gui;
  return {.vm_name = config.name,
          .bytes_max = gui.memory_max,
          .frontends_max = gui.frontends_max,
          .ledger = {.orphan_bytes_max = gui.orphan_bytes_max,
                     .orphans_max = gui.orphans_max,
                     .orphan_age_max = std::chrono::milliseconds(gui.orphan_ms_max)}};
}

}  // namespace

Result<std::unique_ptr<Gui>> make_gui(const VmConfig& config, const RunDir& run_dir,
                                      Events& events) {
  if (!config.gui.enabled) return nullptr;
  raise_descriptor_limit();
  LETHE_TRY_ASSIGN(auto socket, listen_unix(run_dir.path() + "/" + kGuiSocketName, SOCK_SEQPACKET));
  auto gui = std::make_unique<Gui>(options_of(config));
  gui->ledger().set_free_per_iteration(config.gui.free_per_iteration);
  gui->set_frontend_listener([&events](bool came, uint64_t frontends) {
    events.publish(came ? "frontend-connected" : "frontend-gone", {{"frontends", frontends}});
  });
  LETHE_TRY(gui->listen(std::move(socket)));
  return gui;
}

}  // namespace lethe
