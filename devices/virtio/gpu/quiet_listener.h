// A SurfaceListener that does nothing; what derives from it hears what it wants to.
#pragma once

#include "devices/gui/gui.h"

namespace lethe {

class QuietListener : public SurfaceListener {
 public:
  void key(SurfaceId, uint32_t, bool) override {}
  void motion(SurfaceId, uint32_t, uint32_t) override {}
  void button(SurfaceId, uint32_t, bool) override {}
  void wheel(SurfaceId, int32_t, int32_t) override {}
  void focus(SurfaceId, bool) override {}
  void configure(SurfaceId, int32_t, int32_t, uint32_t, uint32_t) override {}
  void close(SurfaceId) override {}
  void done_reading(SurfaceId, uint64_t) override {}
  void released(BufferId) override {}
};

}  // namespace lethe
