// The operating system, behind one file (platform_linux.cc). Nothing else calls it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace octavo::platform {

// Zeroed, page-aligned memory that costs nothing until touched. `huge`: ask for huge pages.
// Returns nullptr when the address space is exhausted.
void* reserve(size_t bytes, bool huge);
void release(void* memory, size_t bytes);

void futex_wait(std::atomic<uint32_t>& word,
                uint32_t expected);  // returns on a wake, or spuriously
void futex_wake_all(std::atomic<uint32_t>& word);
void yield();
int64_t now_ns();  // monotonic
int process_id();

}  // namespace octavo::platform
