// Steps of many rows (prefill, large batches): threads take blocks of rows through whole layers.
// Everything that a block needs but keys and values is its own, so it stays in the cache of one
// processor, and a layer costs one barrier: where the keys and values of all rows must stand before
// any row attends. The arithmetic on a row is that of stages.cc.

#include <algorithm>

#include "exec/step.h"

namespace octavo {
namespace {

constexpr int kActPanels = kActColumns / kLanes;
static_assert(kActColumns % 64 == 0, "activations are quantized in groups of up to 64");

}  // namespace

// Rows of a block: a thread's share at once, or, where that is more than a block holds, so few that
// threads end a layer together.
int Step::block_rows() const {
  const int share = (rows_ + pool_.threads() - 1) / pool_.threads();
  return share <= kBlockRows ? share
                             : std::clamp(share / kBlocksPerThread, kBlockRows / 2, kBlockRows);
}

// Whole tiles of attention, about block_rows() rows of them.
void Step::plan_blocks() {
  blocks_.clear();
  const int target = block_rows();
  int first = 0;
  for (int i = 0; i < static_cast<int>(tiles_.size()); ++i) {
    const Tile& from = tiles_[static_cast<size_t>(first)];
    const Tile& tile = tiles_[static_cast<size_t>(i)];
    const int rows = tile.row0 + tile.rows - from.row0;
    const bool last = i + 1 == static_cast<int>(tiles_.size());
    const int next = last ? 0 : tiles_[static_cast<size_t>(i) + 1].rows;
    if (!last && rows < target && rows + next <= kBlockRows) continue;
    blocks_.push_back({from.row0, rows, first, i + 1});
    first = i + 1;
  }
  for (std::atomic<int>& taken : taken_) taken.store(0, std::memory_order_relaxed);
}

// Blocks of a phase: a thread's own from phase to phase, then what others have left. Late rows
// first, since they attend to most.
bool Step::take_block(int t, int phase, int* block) {
  const int n = static_cast<int>(blocks_.size()), threads = pool_.threads();
  for (int round = 0; round < 2; ++round) {
    for (int b = n - 1; b >= 0; --b) {
      if ((b % threads == t) != (round == 0)) continue;
      std::atomic<int>& taken = taken_[static_cast<size_t>(b)];
      int expected = phase;
      if (taken.load(std::memory_order_relaxed) != phase) continue;
      if (taken.compare_exchange_strong(expected, phase + 1, std::memory_order_relaxed)) {
        *block = b;
        return true;
      }
    }
  }
  return false;
}

// The tiles of a block from the first to the last whose rows are wanted behind the last layer,
// which has written all keys and values by then: of a prompt, only the last row's.
RowBlock Step::wanted_part(const RowBlock& block) const {
  const auto wanted = [&](int i) {
    const Tile& tile = tiles_[static_cast<size_t>(i)];
    const uint8_t* want = a_.want + tile.row0;
    return std::any_of(want, want + tile.rows, [](uint8_t w) { return w != 0; });
  };
  int first = block.tile0, end = block.tile1;
  while (first < end && !wanted(first)) ++first;
  while (first < end && !wanted(end - 1)) --end;
  if (first == end) return {block.row0, 0, first, first};
  const Tile& from = tiles_[static_cast<size_t>(first)];
  const Tile& last = tiles_[static_cast<size_t>(end) - 1];
  return {from.row0, last.row0 + last.rows - from.row0, first, end};
}

bool Step::layers_by_rows(int t) {
  const int n = static_cast<int>(plan_.layers.size());
  for (int phase = 0; phase <= n; ++phase) {
    for (int b; take_block(t, phase, &b);) {
      const RowBlock whole = blocks_[static_cast<size_t>(b)];
      const RowBlock block = phase < n ? whole : wanted_part(whole);
      if (phase > 0 && block.rows > 0)
        finish_layer(t, plan_.layers[static_cast<size_t>(phase) - 1], block);
      if (phase < n) begin_layer(t, plan_.layers[static_cast<size_t>(phase)], block, phase > 0);
    }
    if (!barrier(t, Stage::kPrepare)) return false;
    if (phase < n && !encode_keys(t, plan_.layers[static_cast<size_t>(phase)])) return false;
  }
  pending_[static_cast<size_t>(t)] = {true, plan_.layers.back().mlp_post_norm};
  return true;
}

// Residual, norm and activations of the block's rows.
void Step::prepare_block(int t, const RowBlock& block, const float* norm, const Input& in) {
  Worker& w = workers_[static_cast<size_t>(t)];
  for (int r = 0; r < block.rows; ++r) {
    float* x = x_ + (block.row0 + r) * ld_x_;
    residual(x, block.row0 + r, w);
    k_.rms_norm(x, norm, plan_.norm_eps, plan_.hidden, w.row);
    prepare_row(w.row, in, w.act, r);
  }
  pending_[static_cast<size_t>(t)] = {};
  charge(t, Stage::kPrepare);
}

void Step::begin_layer(int t, const Layer& layer, const RowBlock& block, bool any_before) {
  if (!any_before) pending_[static_cast<size_t>(t)] = {};
  prepare_block(t, block, layer.attn_norm, layer.attn_in);
  const ActRows& act = workers_[static_cast<size_t>(t)].act;
  for (const Linear* l : {&layer.q, &layer.k, &layer.v})
    run_linear(*l, layer.attn_in, act, block.rows, qkv_ + block.row0 * ld_qkv_ + l->column, ld_qkv_,
               0, l->w.panels);
  const HeadRange all{0, layer.kv_heads, 0, layer.heads};
  finish_heads(layer, all, block.row0, block.row0 + block.rows);
  charge(t, Stage::kQkv);
}

void Step::finish_layer(int t, const Layer& layer, const RowBlock& block) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int tiles = block.tile1 - block.tile0, items = layer.kv_heads * tiles;
  const auto item = [&](int i) {
    return Item{tiles_[static_cast<size_t>(block.tile0 + i % tiles)], i / tiles, 0};
  };
  for (int i = 0; i < items; ++i)
    attend_tile(t, layer, item(i), i + 1 < items ? first_keys(layer, item(i + 1)) : KeysAhead{});
  charge(t, Stage::kAttention);
  for (int r = 0; r < block.rows; ++r)
    prepare_row(attn_ + (block.row0 + r) * ld_attn_, layer.o_in, w.act, r);
  charge(t, Stage::kPrepare);
  project_block(layer.o, layer.o_in, w.act, block);
  pending_[static_cast<size_t>(t)] = {true, layer.attn_post_norm};
  charge(t, Stage::kO);
  prepare_block(t, block, layer.mlp_norm, layer.mlp_in);
  gate_up_block(t, layer, block);
  charge(t, Stage::kGateUp);
  project_block(layer.down, layer.down_in, w.act_down, block);
  pending_[static_cast<size_t>(t)] = {true, layer.mlp_post_norm};
  charge(t, Stage::kDown);
}

// A projection back to the residual stream, which adds it later.
void Step::project_block(const Linear& l, const Input& in, const ActRows& act,
                         const RowBlock& block) {
  float* y = y_ + block.row0 * ld_y_;
  run_linear(l, in, act, block.rows, y, ld_y_, 0, l.w.panels);
  if (l.bias != nullptr)
    for (int r = 0; r < block.rows; ++r) k_.add(y + r * ld_y_, l.bias, l.w.n);
}

// Some columns of gate and up at a time, up to the activations of down.
void Step::gate_up_block(int t, const Layer& layer, const RowBlock& block) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int panels = layer.gate.w.panels, inter = layer.gate.w.n;
  constexpr int64_t kChunk = kActColumns;
  for (int c0 = 0; c0 < panels; c0 += kActPanels) {
    const int c1 = std::min(panels, c0 + kActPanels), at = c0 * kLanes;
    const int n = std::min(c1 * kLanes, inter) - at;
    const int padded = (c1 == panels ? layer.down_in.k_pad : c1 * kLanes) - at;
    run_linear(layer.gate, layer.mlp_in, w.act, block.rows, w.gate - at, kChunk, c0, c1);
    run_linear(layer.up, layer.mlp_in, w.act, block.rows, w.up - at, kChunk, c0, c1);
    for (int r = 0; r < block.rows; ++r) {
      float *gate = w.gate + r * kChunk, *up = w.up + r * kChunk;
      if (layer.gate.bias != nullptr) k_.add(gate, layer.gate.bias + at, n);
      if (layer.up.bias != nullptr) k_.add(up, layer.up.bias + at, n);
      k_.act_mul(layer.activation, gate, up, n, gate);
      prepare_columns(gate, layer.down_in, w.act_down, r, at, n, padded);
    }
  }
}

}  // namespace octavo
