// virtio-gpu's resources (virtio 1.2, 5.7.6.8): 2D images and blobs, the host's buffers behind
// them, and the window in which the guest maps blobs.
//
//   2D                 a shared buffer from the start; the guest's transfers fill it
//   HOST3D blob        a shared buffer that the guest maps: no copy
//   GUEST blob         guest memory; a shared buffer once it is shown, filled by damage
//
// Functions that the guest can call return a VIRTIO_GPU_RESP_*; what is refused changes nothing.
//
// Threading: the gui thread.
#pragma once

#include <linux/virtio_gpu.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/state.h"
#include "devices/gui/gui.h"
#include "devices/virtio/gpu/backing.h"
#include "devices/virtio/gpu/host_window.h"
#include "devices/virtio/gpu/quiet_listener.h"

namespace lethe {

struct Resource {
  enum class Kind : uint8_t { k2d, kHostBlob, kGuestBlob };
  Kind kind = Kind::k2d;
  bool mappable = false;
  uint32_t id = 0;
  uint32_t format = 0;  // 2D only, as are:
  uint32_t width = 0;
  uint32_t height = 0;
  uint64_t bytes = 0;  // that the guest may name
  BufferId buffer;
  const SharedBuffer* memory = nullptr;  // the buffer's
  Backing backing;
  std::optional<uint64_t> mapped_at;  // offset in the window
  uint32_t shown = 0;                 // screens, cursors and windows that show it
  bool event_ring = false;            // of a context
  uint64_t home = 0;                  // serial of the context that is told of its release
  std::vector<uint64_t> attached;     // serials of contexts that may use it

  [[nodiscard]] bool blob() const { return kind != Kind::k2d; }
  [[nodiscard]] uint32_t stride() const { return width * 4; }  // 2D only
};

class Resources final : private QuietListener {
 public:
  static constexpr uint32_t kResourcesMax = 16384;
  static constexpr size_t kAttachmentsMax = 65536;  // of resources to contexts: 8 MiB of them
  static constexpr uint64_t kBackingPiecesMax = 4u << 20;  // of all resources: 64 MiB of lists

  Resources(Gui& gui, HostWindow& window) : x_gui(gui), x_window(window) {}
  ~Resources() override;

  [[nodiscard]] Resource* find(uint32_t id);
  [[nodiscard]] size_t count() const { return x_resources.size(); }
  [[nodiscard]] const HostWindow& window() const { return x_window; }

  uint32_t create_2d(const virtio_gpu_resource_create_2d& request);
  // `backing`: of GUEST blobs. `home`: see Resource.
  uint32_t create_blob(const virtio_gpu_resource_create_blob& request, Backing backing,
                       uint64_t home);
  uint32_t attach(Resource& resource, Backing backing);
  uint32_t detach(Resource& resource);
  uint32_t transfer(const virtio_gpu_transfer_to_host_2d& request);
  uint32_t map(Resource& resource, uint64_t offset);
  uint32_t unmap(Resource& resource);
  // Nobody may show it any more. Out of the guest's reach when this returns; on_released follows
  // when it is out of the frontends'.
  uint32_t unref(Resource& resource);
  // All of them.
  void clear();

  // Snapshots. Without the buffers' content, which comes last: showing a GUEST blob fills it.
  // restore(): `contexts` are the serials there are. Content: only what is not zero.
  void save(const GuestMemory& memory, StateWriter& to) const;
  void restore(const GuestMemory& memory, const std::set<uint64_t>& contexts, StateReader& from);
  void save_content(StateWriter& to) const;
  void restore_content(StateReader& from);

  // Contexts, by their serials, may use what was attached to them (5.7.6.9).
  uint32_t attach_to(uint64_t context, Resource& resource);
  uint32_t detach_from(uint64_t context, Resource& resource);
  [[nodiscard]] bool attached(uint64_t context, const Resource& resource) const {
    return x_attachments.contains({context, resource.id});
  }
  void context_gone(uint64_t context);

  // The memory to be shown; null if the host has none left for a GUEST blob's copy.
  [[nodiscard]] const SharedBuffer* show(Resource& resource);
  // Copies a GUEST blob's lines for those who see it; other kinds have nothing to copy. The lines
  // lie within it.
  void refresh(const Resource& resource, uint64_t offset, uint32_t stride, uint32_t width,
               uint32_t height);
  // Bytes of pixels copied out of guest memory so far, by transfers and refreshes.
  [[nodiscard]] uint64_t copied() const { return x_copied; }

  // A resource with a home was given up, and no frontend maps its memory now.
  std::function<void(uint64_t home, uint32_t id)> on_released;

 private:
  struct Leaving {
    uint64_t home;
    uint32_t id;
  };
  void released(BufferId buffer) override;
  [[nodiscard]] Resource* add(uint32_t id);
  [[nodiscard]] bool take_pieces(const Backing& backing);
  void drop_backing(Resource& resource);
  [[nodiscard]] bool make_buffer(Resource& resource);
  void restore_one(const GuestMemory& memory, const std::set<uint64_t>& contexts,
                   StateReader& from);

  Gui& x_gui;
  HostWindow& x_window;
  std::unordered_map<uint32_t, Resource> x_resources;
  std::set<std::pair<uint64_t, uint32_t>> x_attachments;  // context, resource
  uint64_t x_pieces = 0;
  uint64_t x_copied = 0;
  std::unordered_map<uint64_t, Leaving> x_leaving;  // by the buffer's generation
  std::vector<Leaving> x_released_before;           // told of when all is restored
};

}  // namespace lethe
