// Long-lived memory: allocations are 64-byte aligned, zeroed, and freed together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "core/platform.h"

namespace octavo {

class Arena {
 public:
  // `chunk`: addresses taken at a time. Of them, what is allocated counts against limits on data
  // (RLIMIT_DATA), and what is touched costs memory.
  explicit Arena(size_t chunk = size_t{64} << 20, bool huge = true) : chunk_(chunk), huge_(huge) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Throws std::bad_alloc when the address space is exhausted or a limit is reached.
  uint8_t* allocate(size_t bytes);
  template <class T>
  T* array(size_t count) {
    return reinterpret_cast<T*>(allocate(count * sizeof(T)));
  }
  size_t allocated() const { return allocated_; }

 private:
  struct Chunk {
    uint8_t* base;
    size_t size, committed;
  };

  void commit(Chunk& chunk, size_t end) const;

  std::mutex mutex_;
  std::vector<Chunk> chunks_;
  size_t chunk_, used_ = 0, allocated_ = 0;
  bool huge_;
};

}  // namespace octavo
