// Where the time of steps goes, stage by stage and thread by thread. Always on: a stage costs one
// read of the processor's own counter (some 10 ns against tens of microseconds).
#pragma once

#include <array>
#include <cstdint>

#include "core/platform.h"

namespace octavo {

// kPrepare: residual, norm and what turns a row into activations. kWait: barriers.
enum class Stage : uint8_t { kEmbed, kPrepare, kQkv, kAttention, kO, kGateUp, kDown, kHead, kWait };
constexpr int kStages = 9;
constexpr std::array<const char*, kStages> kStageNames = {
    "embed", "prepare", "qkv", "attention", "o", "gate_up", "down", "head", "wait"};

static inline uint64_t ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return static_cast<uint64_t>(platform::now_ns());
#endif
}

// Of one thread, on cache lines of its own. What passed since the last call goes to one stage.
class alignas(128) StageClock {
 public:
  void start() { last_ = ticks(); }
  void charge(Stage stage) {
    const uint64_t now = ticks();
    total_[static_cast<size_t>(stage)] += now - last_;
    last_ = now;
  }
  uint64_t total(int stage) const { return total_[static_cast<size_t>(stage)]; }

 private:
  uint64_t last_ = 0;
  std::array<uint64_t, kStages> total_{};
};

// Seconds of a tick, from the two clocks since this object was made.
class TickLength {
 public:
  double seconds() const {
    const uint64_t passed = ticks() - ticks_;
    return passed == 0
               ? 0.0
               : 1e-9 * static_cast<double>(platform::now_ns() - ns_) / static_cast<double>(passed);
  }

 private:
  uint64_t ticks_ = ticks();
  int64_t ns_ = platform::now_ns();
};

}  // namespace octavo
