#include "core/thread_pool.h"

#include "core/float_mode.h"
#include "core/platform.h"

namespace octavo {
namespace {
// Several times what parking and being woken cost where a hypervisor has to be asked (100 us): with
// less, one thread's waking takes the other beyond its patience, at every barrier.
constexpr int64_t kSpinNs = 500 * 1000;
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
      arrived_(new Signal[static_cast<size_t>(threads_)]),
      cpus_(new std::atomic<int>[static_cast<size_t>(threads_)]) {
  for (int t = 0; t < threads_; ++t) cpus_[t].store(-1, std::memory_order_relaxed);
}

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

void ThreadPool::await(int thread, Signal& signal, uint32_t value) {
  if (reached(signal.value, value)) return;
  if (!crowded_ && spin(signal.value, value)) return;
  signal.waiters.fetch_add(1, std::memory_order_seq_cst);
  for (uint32_t now; !reached(signal.value, value);) {
    now = signal.value.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(now - value) < 0) platform::futex_wait(signal.value, now);
  }
  signal.waiters.fetch_sub(1, std::memory_order_seq_cst);
  spread(thread);
}

void ThreadPool::spread(int thread) {
  if (crowded_) return;
  const int here = platform::current_cpu();
  // Written only when it changed: the others read this cache line in every step.
  if (cpus_[thread].load(std::memory_order_relaxed) != here)
    cpus_[thread].store(here, std::memory_order_relaxed);
  bool shared = false;
  for (int t = 0; t < thread; ++t) shared |= cpus_[t].load(std::memory_order_relaxed) == here;
  if (!shared || here < 0) return;
  std::vector<int> taken;
  for (int t = 0; t < threads_; ++t) taken.push_back(cpus_[t].load(std::memory_order_relaxed));
  if (platform::leave_cpus(taken.data(), threads_))
    cpus_[thread].store(platform::current_cpu(), std::memory_order_relaxed);
}

bool ThreadPool::barrier(int thread) {
  if (threads_ == 1) return !(cancelled_ = cancel_.load(std::memory_order_relaxed));
  Signal& mine = arrived_[thread];
  const uint32_t target = ++mine.seen;
  if (thread != 0) {
    post(mine, target);
    await(thread, released_, target);
    return !cancelled_;
  }
  for (int t = 1; t < threads_; ++t) await(0, arrived_[t], target);
  // All others wait, so this one look decides for everyone.
  const bool cancelled = cancelled_ = cancel_.load(std::memory_order_relaxed);
  post(released_, target);
  return !cancelled;
}

void ThreadPool::work(int thread) {
  const FloatMode mode;
  for (uint32_t region = 1;; ++region) {
    await(thread, begun_, region);
    if (stopping_) return;
    spread(thread);
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
  spread(0);
  post(begun_, ++regions_);
  region(0, context);
  const bool left_early = cancelled_;
  barrier(0);
  return left_early ? RunStatus::kCancelled : RunStatus::kDone;
}

}  // namespace octavo
