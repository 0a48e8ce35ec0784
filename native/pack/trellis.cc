// The search for codes on the 2-bit trellis (trellis.h), with GPTQ's feedback: what a weight loses
// is taken off the weights behind it before they are encoded. Every survivor of the search carries
// the rest of the run as its own path has left it (per-survivor processing), so the loss that is
// least is that of the layer's output, not that of the weights.
//
// Loops are plain C over 64 states or 32 weights, which the compiler turns into the vectors of each
// target; there is no fma, so all of them choose the same codes.
#include "pack/trellis.h"

namespace octavo {
namespace {

// One text for several targets, where the dynamic linker can choose (sanitizers come too late for
// that).
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define OCTAVO_TARGETS [[gnu::target_clones("default", "avx2", "avx512f")]]
#else
#define OCTAVO_TARGETS
#endif
#define OCTAVO_INTO_TARGET [[gnu::always_inline]] inline

constexpr int kRun = 32, kStates = 64, kWindows = 256;

// A window is 64 b + 4 h + a: `a` the code that leaves, b the one that comes. It leads from state
// 4 h + a to state 16 b + h.
OCTAVO_INTO_TARGET int window_of(int to, int a) { return 4 * to + a; }

struct TrellisRun {
  const float* u;                     // [32][32], upper triangle
  float over[kRun];                   // 1 / u[i][i]
  alignas(64) float level[4][4][16];  // [b][a][h]
  alignas(64) float back[4][64];      // [a][state that a window leads to]
};

OCTAVO_INTO_TARGET void open_run(const float* u, const float* levels, TrellisRun* t) {
  t->u = u;
  for (int i = 0; i < kRun; ++i) t->over[i] = 1.0f / u[i * kRun + i];
  for (int to = 0; to < kStates; ++to) {
    for (int a = 0; a < 4; ++a) {
      t->back[a][to] = levels[window_of(to, a)];
      t->level[to / 16][a][to % 16] = levels[window_of(to, a)];
    }
  }
}

// cost[to] = the least over its four ways in of from[state] + ((x - level) * over)^2; `came` says
// which. from is [a][h], as level is.
OCTAVO_INTO_TARGET void enter_states(const TrellisRun& t, const float (*__restrict x)[16],
                                     const float (*__restrict from)[16], float over,
                                     float* __restrict cost, int32_t* __restrict came) {
  for (int b = 0; b < 4; ++b) {
    float* best = cost + 16 * b;
    int32_t* way = came + 16 * b;
    for (int h = 0; h < 16; ++h) {
      const float e = (x[0][h] - t.level[b][0][h]) * over;
      best[h] = from[0][h] + e * e;
      way[h] = 0;
    }
    for (int a = 1; a < 4; ++a) {
      for (int h = 0; h < 16; ++h) {
        const float e = (x[a][h] - t.level[b][a][h]) * over;
        const float c = from[a][h] + e * e;
        way[h] = c < best[h] ? a : way[h];
        best[h] = c < best[h] ? c : best[h];
      }
    }
  }
}

OCTAVO_INTO_TARGET void by_way_out(const float* of_state, float (*out)[16]) {
  for (int s = 0; s < kStates; ++s) out[s % 4][s / 4] = of_state[s];
}

// likely[s]: the cost of the cheapest path that is in state s between the run's end and its
// beginning, errors staying where they are.
OCTAVO_INTO_TARGET void closing_costs(const TrellisRun& t, const float* x, float* likely) {
  float ahead[kStates] = {}, behind[kStates] = {};
  for (int i = 0; i < kRun; ++i) {
    alignas(64) float from[4][16], at[4][16];
    alignas(64) int32_t came[kStates];
    by_way_out(ahead, from);
    for (int s = 0; s < kStates; ++s) at[s / 16][s % 16] = x[i];
    enter_states(t, at, from, t.over[i], ahead, came);
  }
  for (int i = kRun - 1; i >= 0; --i) {
    alignas(64) float before[4][16];
    for (int a = 0; a < 4; ++a) {
      for (int h = 0; h < 16; ++h) before[a][h] = 1e30f;  // more than any path costs
      for (int b = 0; b < 4; ++b) {
        for (int h = 0; h < 16; ++h) {
          const float e = (x[i] - t.level[b][a][h]) * t.over[i];
          const float c = behind[16 * b + h] + e * e;
          before[a][h] = c < before[a][h] ? c : before[a][h];
        }
      }
    }
    for (int s = 0; s < kStates; ++s) behind[s] = before[s % 4][s / 4];
  }
  for (int s = 0; s < kStates; ++s) likely[s] = ahead[s] + behind[s];
}

struct Survivors {
  alignas(64) float rest[kStates][kRun];  // what is left of the run to encode
  alignas(64) float cost[kStates];
};

// One weight on: survivors of `from` enter the states of `to`. What lies before kFirst isn't read
// again.
template <int kFirst>
OCTAVO_INTO_TARGET void advance(const TrellisRun& t, int i, const Survivors& from,
                                Survivors* __restrict to, int32_t* __restrict came) {
  alignas(64) float at[4][16], cost[4][16];
  for (int s = 0; s < kStates; ++s) at[s % 4][s / 4] = from.rest[s][i];
  by_way_out(from.cost, cost);
  enter_states(t, at, cost, t.over[i], to->cost, came);
  const float* u = t.u + i * kRun;
  for (int s = 0; s < kStates; ++s) {
    const int a = came[s], h = s % 16;
    const float e = (at[a][h] - t.back[a][s]) * t.over[i];
    const float* rest = from.rest[4 * h + a];
    float* __restrict out = to->rest[s];
    for (int j = kFirst; j < kRun; ++j) out[j] = rest[j] - e * u[j];
  }
}

// The least loss of a ring that closes in `state`, and its codes, as a word of 64 bits.
OCTAVO_INTO_TARGET float closed_run(const TrellisRun& t, const float* x, int state,
                                    uint64_t* word) {
  Survivors now, next;
  alignas(64) int32_t came[kRun][kStates];
  for (int s = 0; s < kStates; ++s) {
    now.cost[s] = s == state ? 0.0f : 1e30f;
    for (int j = 0; j < kRun; ++j) now.rest[s][j] = x[j];
  }
  for (int i = 0; i < 16; i += 2) {
    advance<0>(t, i, now, &next, came[i]);
    advance<0>(t, i + 1, next, &now, came[i + 1]);
  }
  for (int i = 16; i < kRun; i += 2) {
    advance<16>(t, i, now, &next, came[i]);
    advance<16>(t, i + 1, next, &now, came[i + 1]);
  }
  *word = 0;
  int at = state;
  for (int i = kRun - 1; i >= 0; --i) {
    const int window = window_of(at, came[i][at]);
    *word |= static_cast<uint64_t>(window & 3) << (2 * i);
    at = window & (kStates - 1);
  }
  return now.cost[state];
}

OCTAVO_TARGETS void encode_runs(const float* x, int n, const float* u, const float* levels,
                                int tries, uint64_t* words) {
  TrellisRun t;
  open_run(u, levels, &t);
  for (int r = 0; r < n; ++r) {
    float likely[kStates], least = 0;
    closing_costs(t, x + static_cast<int64_t>(r) * kRun, likely);
    for (int k = 0; k < tries; ++k) {
      int state = 0;
      for (int s = 1; s < kStates; ++s) state = likely[s] < likely[state] ? s : state;
      likely[state] = __builtin_inff();
      uint64_t word;
      const float loss = closed_run(t, x + static_cast<int64_t>(r) * kRun, state, &word);
      if (k > 0 && !(loss < least)) continue;
      least = loss;
      words[r] = word;
    }
  }
}

}  // namespace

void trellis_encode(const float* x, int n, const float* u, const float* levels, int tries,
                    uint64_t* words) {
  encode_runs(x, n, u, levels, tries, words);
}

}  // namespace octavo
