// The part of Linux's DRM interface that lethe-agent uses. Debian 12 has no header with all of it
// (libdrm's virtgpu_drm.h is older than contexts and blobs). Names and layouts are those of
// include/uapi/drm/{drm,virtgpu_drm}.h of Linux 6.1, an interface that does not change.
#pragma once

#include <linux/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace lethe::agent::drm {

struct drm_version {
  int32_t version_major;
  int32_t version_minor;
  int32_t version_patchlevel;
  size_t name_len;
  char* name;
  size_t date_len;
  char* date;
  size_t desc_len;
  char* desc;
};
struct drm_gem_close {
  uint32_t handle;
  uint32_t pad;
};
struct drm_prime_handle {
  uint32_t handle;
  uint32_t flags;  // O_CLOEXEC, O_RDWR
  int32_t fd;
};

struct drm_virtgpu_map {
  uint64_t offset;  // for mmap(2)
  uint32_t handle;
  uint32_t pad;
};
inline constexpr uint32_t VIRTGPU_EXECBUF_RING_IDX = 0x04;
struct drm_virtgpu_execbuffer {
  uint32_t flags;
  uint32_t size;
  uint64_t command;
  uint64_t bo_handles;
  uint32_t num_bo_handles;
  int32_t fence_fd;
  uint32_t ring_idx;
  uint32_t pad;
};
struct drm_virtgpu_get_caps {
  uint32_t cap_set_id;
  uint32_t cap_set_ver;
  uint64_t addr;
  uint32_t size;
  uint32_t pad;
};
inline constexpr uint32_t VIRTGPU_BLOB_MEM_HOST3D = 2;
inline constexpr uint32_t VIRTGPU_BLOB_FLAG_USE_MAPPABLE = 1;
inline constexpr uint32_t VIRTGPU_BLOB_FLAG_USE_SHAREABLE = 2;
struct drm_virtgpu_resource_create_blob {
  uint32_t blob_mem;
  uint32_t blob_flags;
  uint32_t bo_handle;   // out
  uint32_t res_handle;  // out
  uint64_t size;
  uint32_t pad;
  uint32_t cmd_size;
  uint64_t cmd;
  uint64_t blob_id;
};
inline constexpr uint64_t VIRTGPU_CONTEXT_PARAM_CAPSET_ID = 1;
inline constexpr uint64_t VIRTGPU_CONTEXT_PARAM_NUM_RINGS = 2;
inline constexpr uint64_t VIRTGPU_CONTEXT_PARAM_POLL_RINGS_MASK = 3;
struct drm_virtgpu_context_set_param {
  uint64_t param;
  uint64_t value;
};
struct drm_virtgpu_context_init {
  uint32_t num_params;
  uint32_t pad;
  uint64_t ctx_set_params;
};

inline constexpr unsigned long kVersion = _IOWR('d', 0x00, drm_version);
inline constexpr unsigned long kGemClose = _IOW('d', 0x09, drm_gem_close);
inline constexpr unsigned long kPrimeHandleToFd = _IOWR('d', 0x2d, drm_prime_handle);
// The driver's own ones begin at 0x40 (DRM_COMMAND_BASE).
inline constexpr unsigned long kVirtgpuMap = _IOWR('d', 0x41, drm_virtgpu_map);
inline constexpr unsigned long kVirtgpuExecbuffer = _IOWR('d', 0x42, drm_virtgpu_execbuffer);
inline constexpr unsigned long kVirtgpuGetCaps = _IOWR('d', 0x49, drm_virtgpu_get_caps);
inline constexpr unsigned long kVirtgpuCreateBlob =
    _IOWR('d', 0x4a, drm_virtgpu_resource_create_blob);
inline constexpr unsigned long kVirtgpuContextInit = _IOWR('d', 0x4b, drm_virtgpu_context_init);

static_assert(sizeof(drm_version) == 64 && sizeof(drm_virtgpu_execbuffer) == 40);
static_assert(sizeof(drm_virtgpu_resource_create_blob) == 48 && sizeof(drm_prime_handle) == 12);

}  // namespace lethe::agent::drm
