#include "exec/probe.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "core/platform.h"

namespace octavo {
namespace {

constexpr size_t kLine = 1024;              // PeakLoops::read takes whole ones
constexpr size_t kSlice = size_t{1} << 18;  // bytes between two looks at the clock
constexpr int64_t kRounds = 256;            // of an arithmetic loop between two looks

const KernelTable& table_for(const std::string& isa) {
  const char* error = nullptr;
  const KernelTable* table = kernels_for(isa.c_str(), &error);
  if (table == nullptr) throw std::invalid_argument(error);
  return *table;
}

int64_t nanoseconds(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

// Runs `body(thread)` on every thread of the pool.
template <class Body>
void on_all(ThreadPool& pool, Body& body) {
  const auto region = [](int thread, void* context) { (*static_cast<Body*>(context))(thread); };
  if (pool.run(region, &body) == RunStatus::kForked)
    throw std::invalid_argument("a forked child has none of its parent's threads");
}

// Sum over threads of what each did per second. `work(thread)` does a little and says how much.
template <class Work>
double rate(ThreadPool& pool, double seconds, const Work& work) {
  std::vector<double> rates(static_cast<size_t>(pool.threads()));
  auto body = [&](int t) {
    if (!pool.barrier(t)) return;
    const int64_t start = platform::now_ns(), end = start + nanoseconds(seconds);
    double done = 0;
    int64_t now = start;
    do {
      done += work(t);
      now = platform::now_ns();
    } while (now < end);
    rates[static_cast<size_t>(t)] =
        done * 1e9 / static_cast<double>(std::max<int64_t>(now - start, 1));
  };
  on_all(pool, body);
  double sum = 0;
  for (const double one : rates) sum += one;
  return sum;
}

// Nanoseconds of the shortest of many runs: an interrupt or a neighbour only ever makes one longer.
template <class Work>
int64_t best_stretch(double seconds, const Work& work) {
  const int64_t end = platform::now_ns() + nanoseconds(seconds);
  int64_t best = INT64_MAX, now = platform::now_ns();
  do {
    work();
    const int64_t then = platform::now_ns();
    best = std::min(best, then - now);
    now = then;
  } while (now < end);
  return std::max<int64_t>(best, 1);
}

// `cycles` additions, each waiting for the last: register to register, which no core elides.
bool chain(int64_t cycles) {
#if defined(__x86_64__)
  uint64_t x = 1;
  for (int64_t i = 0; i < cycles; i += 64)
    asm volatile(".rept 64\n\tadd %0, %0\n\t.endr" : "+r"(x));
  return true;
#elif defined(__aarch64__)
  uint64_t x = 1;
  for (int64_t i = 0; i < cycles; i += 64)
    asm volatile(".rept 64\n\tadd %0, %0, %0\n\t.endr" : "+r"(x));
  return true;
#else
  (void)cycles;
  return false;
#endif
}

}  // namespace

MachineProbe::MachineProbe(int threads, int usable_cpus, const std::string& isa)
    : table_(table_for(isa)), pool_(threads, usable_cpus) {}

MachineProbe::~MachineProbe() { platform::release(buffer_, held_); }

void MachineProbe::hold(size_t bytes) {
  if (bytes <= held_) return;
  platform::release(buffer_, held_);
  held_ = 0;
  buffer_ = static_cast<uint8_t*>(platform::reserve(bytes, true));
  if (buffer_ == nullptr) throw std::bad_alloc();
  held_ = bytes;
  if (!platform::commit(buffer_, bytes)) throw std::bad_alloc();
  std::memset(buffer_, 1, bytes);
}

double MachineProbe::read(size_t bytes, double seconds) {
  const size_t n = static_cast<size_t>(pool_.threads());
  const size_t part = std::max(bytes / n / kLine * kLine, kLine);
  hold(part * n);
  std::vector<size_t> at(n, 0);
  std::atomic<uint64_t> sink{0};
  return rate(pool_, seconds, [&](int t) {
    size_t& from = at[static_cast<size_t>(t)];
    const size_t count = std::min(kSlice, part - from);
    const uint8_t* data = buffer_ + static_cast<size_t>(t) * part + from;
    sink.store(table_.peaks.read(data, count), std::memory_order_relaxed);
    from = from + count == part ? 0 : from + count;
    return static_cast<double>(count);
  });
}

const Peak& MachineProbe::loop(const std::string& kind) const {
  if (kind == "int8") return table_.peaks.int8;
  if (kind == "bf16") return table_.peaks.bf16;
  if (kind == "f32") return table_.peaks.f32;
  throw std::invalid_argument(kind + " is none of int8, bf16, f32");
}

double MachineProbe::peak(const std::string& kind, double seconds) {
  const Peak& peak = loop(kind);
  std::vector<int64_t> best(static_cast<size_t>(pool_.threads()));
  auto body = [&](int t) {
    if (!pool_.barrier(t)) return;
    best[static_cast<size_t>(t)] = best_stretch(seconds, [&] { peak.run(kRounds); });
  };
  on_all(pool_, body);
  double sum = 0;
  for (const int64_t one : best) sum += peak.ops * kRounds * 1e9 / static_cast<double>(one);
  return sum;
}

double MachineProbe::barrier(double seconds) {
  constexpr int kBarriers = 16;  // of a stretch: the shortest one counts
  const int64_t end = platform::now_ns() + nanoseconds(seconds);
  int64_t best = INT64_MAX;
  bool more = true;  // written before a stretch's first barrier, read behind it
  auto body = [&](int t) {
    for (int64_t now = platform::now_ns();;) {
      if (t == 0) more = best == INT64_MAX || now < end;
      if (!pool_.barrier(t) || !more) return;
      for (int i = 1; i < kBarriers; ++i) pool_.barrier(t);
      if (t != 0) continue;
      const int64_t then = platform::now_ns();
      best = std::min(best, then - now);
      now = then;
    }
  };
  on_all(pool_, body);
  return static_cast<double>(best) * 1e-9 / kBarriers;
}

double MachineProbe::clock(double seconds) {
  constexpr int64_t kCycles = 1 << 16;
  if (!chain(64)) return 0;
  const int64_t best = best_stretch(seconds, [] { chain(kCycles); });
  return static_cast<double>(kCycles) * 1e9 / static_cast<double>(best);
}

double read_weights(const Plan& plan, ThreadPool& pool, int passes) {
  const auto read = plan.table->peaks.read;
  std::atomic<uint64_t> sink{0};
  const auto share = [&](const PackedWeight& w, int t) {
    const int64_t total = weight_bytes(w), n = pool.threads();
    const int64_t from = total * t / n / 64 * 64, to = total * (t + 1) / n / 64 * 64;
    const uint8_t* data = w.data + w.scale_offset + from;
    sink.store(read(data, static_cast<size_t>(to - from)), std::memory_order_relaxed);
  };
  auto body = [&](int t) {
    for (int i = 0; i < passes; ++i) {
      for (const Layer& l : plan.layers)
        for (const Linear* one : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down})
          share(one->w, t);
      for (const Linear* one : {&plan.embed_up.linear, &plan.head_down.linear})
        if (one->run != nullptr) share(one->w, t);
      share(plan.head.w, t);
    }
  };
  const int64_t start = platform::now_ns();
  on_all(pool, body);
  return static_cast<double>(platform::now_ns() - start) * 1e-9;
}

}  // namespace octavo
