// Keeps the calling thread on the processor of a thread that it serves again and again.
//
// Who serves another thread's page faults from a second processor makes the first one flush its
// TLB, twice a huge page, and wake up: three interrupts, which take most of the answer's time,
// above all where processors are virtual. On the same processor there is none of that: the faulting
// thread sleeps anyway, and gives its place.
//
// The scheduler would not do it: it wakes threads on processors that are idle. So the affinity is
// set, for as long as one processor is all that needs this thread, and put back by leave(). A
// processor is joined only after kStreak answers to it in a row: several threads that fault at the
// same time are served from wherever the scheduler likes. Joining is not waited for by anybody: it
// is done behind an answer.
//
// Threading: one thread, the one that follows.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <optional>

namespace lethe {

class CpuFollower {
 public:
  static constexpr int kStreak = 3;
  // Tells of an answer to that thread of this process (0: to several, or nobody knows). True: the
  // caller now runs where it runs. False: it runs anywhere; also where its affinity at the time
  // does not allow that processor, or /proc is missing.
  bool answered(pid_t thread);
  // Goes back to the affinity there was before.
  void leave();
  [[nodiscard]] bool following() const { return x_following; }

 private:
  [[nodiscard]] bool join(int cpu);
  bool x_following = false;
  int x_streak = 0;
  std::optional<int> x_cpu;  // where the last answers went
  cpu_set_t x_before{};      // while following: the affinity to put back
};

// The processor that a thread of this process runs on, or did last: proc_pid_stat(5). Nothing if
// there is no such thread. Some 3 us.
[[nodiscard]] std::optional<int> cpu_of_thread(pid_t thread);

}  // namespace lethe
