#include "core/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "core/platform.h"

namespace octavo {
namespace {

constexpr size_t kLine = 64;

// Eight independent sums, so that the loop waits for memory and for nothing else.
uint64_t read(const uint64_t* words, size_t count) {
  uint64_t sum[8] = {};
  for (size_t i = 0; i + 8 <= count; i += 8)
    for (size_t j = 0; j < 8; ++j) sum[j] ^= words[i + j];
  uint64_t all = 0;
  for (const uint64_t one : sum) all ^= one;
  return all;
}

}  // namespace

double read_bandwidth(size_t bytes, int threads, double seconds) {
  const size_t n = static_cast<size_t>(std::max(1, threads));
  const size_t part = std::max(bytes / n / kLine * kLine, kLine), total = part * n;
  auto* buffer = static_cast<uint8_t*>(platform::reserve(total, true));
  if (buffer == nullptr) throw std::bad_alloc();
  std::memset(buffer, 1, total);
  std::atomic<uint64_t> passes{0}, sink{0};
  const int64_t start = platform::now_ns();
  const int64_t end = start + static_cast<int64_t>(seconds * 1e9);
  auto work = [&](size_t t) {
    const auto* words = reinterpret_cast<const uint64_t*>(buffer + t * part);
    do {
      sink.fetch_xor(read(words, part / sizeof(uint64_t)), std::memory_order_relaxed);
      passes.fetch_add(1, std::memory_order_relaxed);
    } while (platform::now_ns() < end);
  };
  std::vector<std::thread> others;
  for (size_t t = 1; t < n; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  const double elapsed = static_cast<double>(platform::now_ns() - start) * 1e-9;
  platform::release(buffer, total);
  return static_cast<double>(passes.load()) * static_cast<double>(part) / elapsed;
}

}  // namespace octavo
