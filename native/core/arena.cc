#include "core/arena.h"

#include <algorithm>
#include <new>

namespace octavo {
namespace {
constexpr size_t kAlign = 64;
constexpr size_t kPage = 4096;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }
}  // namespace

Arena::~Arena() {
  for (const Chunk& chunk : chunks_) platform::release(chunk.base, chunk.size);
}

uint8_t* Arena::allocate(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bytes = round_up(std::max<size_t>(bytes, 1), kAlign);
  if (chunks_.empty() || used_ + bytes > chunks_.back().size) {
    const size_t size = round_up(std::max(bytes, chunk_), kPage);
    auto* base = static_cast<uint8_t*>(platform::reserve(size, huge_));
    if (base == nullptr) throw std::bad_alloc();
    chunks_.push_back({base, size, 0});
    used_ = 0;
  }
  commit(chunks_.back(), used_ + bytes);
  uint8_t* memory = chunks_.back().base + used_;
  used_ += bytes;
  allocated_ += bytes;
  return memory;
}

// Whole huge pages at a time: what is touched before its neighbours are usable gets small pages.
void Arena::commit(Chunk& chunk, size_t end) const {
  if (end <= chunk.committed) return;
  const size_t step = huge_ ? platform::kHugePage : kPage;
  const uintptr_t base = reinterpret_cast<uintptr_t>(chunk.base);
  const size_t to = std::min(round_up(base + end, step) - base, chunk.size);
  if (!platform::commit(chunk.base + chunk.committed, to - chunk.committed)) throw std::bad_alloc();
  chunk.committed = to;
}

}  // namespace octavo
