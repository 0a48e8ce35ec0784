// Our own threads: one parallel region per step, barriers inside, no work outside.
//
// Waiting spins briefly (the next stage is tens of microseconds away), then parks on a futex. With
// more threads than usable CPUs it parks at once: spinning would steal the CPU from the thread that
// is waited for.
//
// Each thread has a CPU of its own. Woken threads are put where their waker runs; two that share a
// CPU and take turns at it never both want to run for long, so the kernel leaves them there, at a
// quarter of the speed. Whoever finds itself with a thread of a lower number goes elsewhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace octavo {

enum class RunStatus : int { kDone = 0, kCancelled = 1, kForked = 2 };

class ThreadPool {
 public:
  using Region = void (*)(int thread, void* context);

  // `usable_cpus`: how many threads the machine lets this process run at once.
  ThreadPool(int threads, int usable_cpus);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Runs region(t, context) on every thread t, the caller being thread 0, and waits for all.
  // Threads start at the first call. kForked: this process is not the one that started them;
  // nothing ran.
  RunStatus run(Region region, void* context);

  // For use inside a region: waits for every thread. False, for all threads alike, when the run is
  // cancelled: return from the region at once.
  bool barrier(int thread);

  void cancel() { cancel_.store(true, std::memory_order_relaxed); }
  void clear_cancel() { cancel_.store(false, std::memory_order_relaxed); }

 private:
  // A counter that others wait on, alone on its cache lines.
  struct alignas(128) Signal {
    std::atomic<uint32_t> value{0};
    std::atomic<uint32_t> waiters{0};
    uint32_t seen = 0;  // of the thread that owns this signal: barriers it has passed
  };

  void start();
  void stop();
  void work(int thread);
  void post(Signal& signal, uint32_t value);
  void await(int thread, Signal& signal, uint32_t value);
  void spread(int thread);  // see above

  const int threads_;
  const bool crowded_;
  int process_ = 0;
  std::unique_ptr<Signal[]> arrived_;         // one per thread
  std::unique_ptr<std::atomic<int>[]> cpus_;  // one per thread: where it was last seen
  Signal released_, begun_;
  uint32_t regions_ = 0;
  bool stopping_ = false;
  std::atomic<bool> cancelled_{
      false};  // written by thread 0 while all others wait, read by all after
  std::atomic<bool> cancel_{false};
  Region region_ = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread>* workers_ = nullptr;  // on the heap: a forked child must not join them
};

}  // namespace octavo
