// What this machine can do at most, measured on our own threads with the loops of a kernel table:
// reading, arithmetic, barriers, the clock. Every call is one short probe; the caller repeats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/thread_pool.h"
#include "exec/plan.h"
#include "kernels/table.h"

namespace octavo {

class MachineProbe {
 public:
  // Throws std::invalid_argument when `isa` is none that runs here ("": the best).
  MachineProbe(int threads, int usable_cpus, const std::string& isa);
  ~MachineProbe();
  MachineProbe(const MachineProbe&) = delete;
  MachineProbe& operator=(const MachineProbe&) = delete;

  // Bytes per second of reading `bytes` cyclically, each thread its own part, for about `seconds`.
  // Throws std::bad_alloc when the buffer can't be had. The buffer is kept for the next call.
  double read(size_t bytes, double seconds);
  // Operations per second of "int8", "bf16" or "f32": each thread's best stretch of some
  // microseconds, summed. Throws std::invalid_argument for any other word.
  double peak(const std::string& kind, double seconds);
  const char* instruction(const std::string& kind) const { return loop(kind).instruction; }
  // Seconds that one barrier takes when nobody is late.
  double barrier(double seconds);
  // Cycles per second of one core: a chain of additions, one cycle each. 0 where unknown.
  double clock(double seconds);

 private:
  const Peak& loop(const std::string& kind) const;
  void hold(size_t bytes);

  const KernelTable& table_;
  ThreadPool pool_;
  uint8_t* buffer_ = nullptr;
  size_t held_ = 0;
};

// Seconds that `pool` takes to read what a token reads of the plan's weights, `passes` times over:
// the model's own bytes, in the order of a step, each thread its share, no barrier between.
double read_weights(const Plan& plan, ThreadPool& pool, int passes);

}  // namespace octavo
