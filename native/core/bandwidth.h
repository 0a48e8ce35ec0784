// How fast this machine's memory can be read: the roof over decoding.
#pragma once

#include <cstddef>

namespace octavo {

// Reads `bytes` cyclically with `threads` threads, each its own part, for about `seconds`.
// Returns bytes per second. Throws std::bad_alloc when the buffer can't be had.
double read_bandwidth(size_t bytes, int threads, double seconds);

}  // namespace octavo
