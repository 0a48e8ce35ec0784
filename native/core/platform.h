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
// Moves into huge pages what of [memory, memory + bytes) is at least half in use, 2 MB at a time.
// False where the kernel doesn't (Linux before 6.1); then nothing has changed.
bool condense(void* memory, size_t bytes);

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
