// Inflate requests and free page reports on their way from their chains into the return pipeline,
// and back to the driver.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "devices/virtio/queue.h"
#include "memory/return_pipeline.h"

namespace lethe {

struct BalloonCounters;

// Chains are gathered, merged and forgotten together as far as the isolation bound allows, and
// completed only then. A chain is worked off in parts if it must be; meanwhile nothing else is
// popped.
//
// Threading: the balloon's thread.
class BalloonReturns {
 public:
  static constexpr size_t kHeldMax = 64;  // chains gathered at a time
  static constexpr uint64_t kStepRangesMax =
      4096;  // ranges looked at between two looks at the clock
  static constexpr std::chrono::milliseconds kWakeTime{10};

  BalloonReturns(ReturnPipeline& pipeline, BalloonCounters& counters);

  // Serves the queue until it is empty (true) or this wake-up's time is used up (false: come back).
  // Interrupts the driver as it wants.
  [[nodiscard]] bool serve(Queue& queue, ReturnSource source);
  // Forgets all that was taken so far and gives it back, however long it takes. A chain that is
  // still being fed stays.
  void settle();
  // The same, and completes every chain of the queue unserved: it is going away.
  void leave(const Queue& queue);

 private:
  // A chain popped and not completed.
  struct Held {
    Queue* queue;
    Chain chain;
    uint64_t taken = 0;  // bytes that the pipeline took of it
  };
  struct Feeding {
    Held held;
    ReturnSource source;
    uint64_t bytes = 0;   // what it is about, by its length alone
    size_t slice = 0;     // reports: next one
    uint64_t offset = 0;  // inflate: bytes of the array read
    bool begun = false;
  };
  enum class Fed : uint8_t { kAll, kFull, kPaused };

  bool take_chain(Queue& queue, ReturnSource source);
  Fed feed(Feeding& feeding);
  Fed feed_report(Feeding& feeding);
  Fed feed_inflate(Feeding& feeding);
  [[nodiscard]] bool room_for(const Feeding& feeding) const;
  void complete_held();

  ReturnPipeline& x_pipeline;
  BalloonCounters& x_counters;
  std::vector<Held> x_held;
  std::optional<Feeding> x_feeding;
};

}  // namespace lethe
