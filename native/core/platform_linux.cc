#include "core/platform.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace octavo::platform {
namespace {

constexpr size_t kPage = 4096;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

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

Condensed condense(void* memory) {
  unsigned char in_use[kHugePage / kPage];
  if (mincore(memory, kHugePage, in_use) != 0) return Condensed::kUnsupported;
  const auto used = std::count_if(std::begin(in_use), std::end(in_use),
                                  [](unsigned char one) { return (one & 1) != 0; });
  if (2 * static_cast<size_t>(used) < std::size(in_use)) return Condensed::kLeft;
  if (madvise(memory, kHugePage, MADV_COLLAPSE) == 0) return Condensed::kMoved;
  // Memory may be too short or too scattered for this one: others still gain.
  return errno == EINVAL ? Condensed::kUnsupported : Condensed::kLeft;
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected) {
  futex(word, FUTEX_WAIT_PRIVATE, expected);
}

void futex_wake_all(std::atomic<uint32_t>& word) { futex(word, FUTEX_WAKE_PRIVATE, 1 << 30); }

void yield() { sched_yield(); }

int current_cpu() { return sched_getcpu(); }

bool leave_cpus(const int* taken, int count) {
  cpu_set_t allowed;  // of 1,024 CPUs: with more the call fails, and the kernel's choice stands
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return false;
  cpu_set_t free = allowed;
  for (int i = 0; i < count; ++i) {
    if (taken[i] >= 0 && taken[i] < CPU_SETSIZE) CPU_CLR(taken[i], &free);
  }
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof(free), &free) != 0) return false;
  return sched_setaffinity(0, sizeof(allowed), &allowed) == 0;
}

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
}

int process_id() { return getpid(); }

}  // namespace octavo::platform
