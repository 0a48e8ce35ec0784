// The operating system, behind one file (platform_linux.cc). Nothing else calls it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace octavo::platform {

// Page-aligned addresses that nothing may touch yet, and that no limit on data counts. `huge`: ask
// for huge pages. Returns nullptr when the address space is exhausted.
void* reserve(size_t bytes, bool huge);
// Makes reserved pages zeroed memory, which costs nothing until touched but counts against limits
// on data. False when such a limit is reached.
bool commit(void* memory, size_t bytes);
void release(void* memory, size_t bytes);
constexpr size_t kHugePage = size_t{2} << 20;
enum class Condensed { kUnsupported, kLeft, kMoved };
// Moves the kHugePage bytes at an address that is a multiple of it into one huge page, if at least
// half of them are in use. Unsupported before Linux 6.1.
Condensed condense(void* memory);

void futex_wait(std::atomic<uint32_t>& word,
                uint32_t expected);  // returns on a wake, or spuriously
void futex_wake_all(std::atomic<uint32_t>& word);
void yield();
int current_cpu();  // that the calling thread runs on; -1: not known
// Moves the calling thread to a CPU that it may use and that isn't in `taken`; what it may use
// stays as it was. False when there is none.
bool leave_cpus(const int* taken, int count);
int64_t now_ns();  // monotonic
int process_id();

}  // namespace octavo::platform
