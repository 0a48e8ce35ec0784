#include "core/thread_pool.h"

#include "core/float_mode.h"
#include "core/platform.h"

namespace octavo {
namespace {
constexpr int64_t kSpinNs = 50 * 1000;  // about what parking and being woken cost
constexpr int kPausesPerLook = 32;

bool reached(const std::atomic<uint32_t>& value, uint32_t target) {
  return static_cast<int32_t>(value.load(std::memory_order_acquire) - target) >= 0;
}

// True when the target came while spinning. After that a waiter must leave its core: whoever is
// late was most likely descheduled, and the kernel moves it only to a core that is idle.
bool spin(const std::atomic<uint32_t>& value, uint32_t target) {
  const int64_t start = platform::now_ns();
  for (;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (reached(value, target)) return true;
      cpu_pause();
    }
    if (platform::now_ns() - start > kSpinNs) return false;
  }
}
}  // namespace

ThreadPool::ThreadPool(int threads, int usable_cpus)
    : threads_(threads < 1 ? 1 : threads),
      crowded_(threads_ > usable_cpus),
      arrived_(new Signal[static_cast<size_t>(threads_)]) {}

ThreadPool::~ThreadPool() {
  if (workers_ == nullptr || platform::process_id() != process_)
    return;  // a child's copy: leave it
  stop();
}

void ThreadPool::start() {
  process_ = platform::process_id();
  workers_ = new std::vector<std::thread>();
  for (int t = 1; t < threads_; ++t) workers_->emplace_back(&ThreadPool::work, this, t);
}

void ThreadPool::stop() {
  stopping_ = true;
  post(begun_, ++regions_);
  for (std::thread& worker : *workers_) worker.join();
  delete workers_;
}

void ThreadPool::post(Signal& signal, uint32_t value) {
  signal.value.store(value, std::memory_order_seq_cst);
  if (signal.waiters.load(std::memory_order_seq_cst) != 0) platform::futex_wake_all(signal.value);
}

void ThreadPool::await(Signal& signal, uint32_t value) {
  if (reached(signal.value, value)) return;
  if (!crowded_ && spin(signal.value, value)) return;
  signal.waiters.fetch_add(1, std::memory_order_seq_cst);
  for (uint32_t now; !reached(signal.value, value);) {
    now = signal.value.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(now - value) < 0) platform::futex_wait(signal.value, now);
  }
  signal.waiters.fetch_sub(1, std::memory_order_seq_cst);
}

bool ThreadPool::barrier(int thread) {
  if (threads_ == 1) return !(cancelled_ = cancel_.load(std::memory_order_relaxed));
  Signal& mine = arrived_[thread];
  const uint32_t target = ++mine.seen;
  if (thread != 0) {
    post(mine, target);
    await(released_, target);
    return !cancelled_;
  }
  for (int t = 1; t < threads_; ++t) await(arrived_[t], target);
  // All others wait, so this one look decides for everyone.
  const bool cancelled = cancelled_ = cancel_.load(std::memory_order_relaxed);
  post(released_, target);
  return !cancelled;
}

void ThreadPool::work(int thread) {
  const FloatMode mode;
  for (uint32_t region = 1;; ++region) {
    await(begun_, region);
    if (stopping_) return;
    region_(thread, context_);
    barrier(thread);
  }
}

RunStatus ThreadPool::run(Region region, void* context) {
  if (workers_ == nullptr) start();
  if (platform::process_id() != process_) return RunStatus::kForked;
  const FloatMode mode;
  region_ = region;
  context_ = context;
  cancelled_ = false;
  post(begun_, ++regions_);
  region(0, context);
  const bool left_early = cancelled_;
  barrier(0);
  return left_early ? RunStatus::kCancelled : RunStatus::kDone;
}

}  // namespace octavo
