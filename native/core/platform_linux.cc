#include "core/platform.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace octavo::platform {
namespace {

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, nullptr, nullptr,
                 0);
}

}  // namespace

void* reserve(size_t bytes, bool huge) {
  void* memory =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: kernels without it refuse, harmlessly
  return memory;
}

bool commit(void* memory, size_t bytes) {
  return mprotect(memory, bytes, PROT_READ | PROT_WRITE) == 0;
}

void release(void* memory, size_t bytes) {
  if (memory != nullptr) munmap(memory, bytes);
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  futex(word, FUTEX_WAIT_PRIVATE, expected);
}

void futex_wake_all(std::atomic<uint32_t>& word) { futex(word, FUTEX_WAKE_PRIVATE, 1 << 30); }

void yield() { sched_yield(); }

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

int process_id() { return getpid(); }

}  // namespace octavo::platform
