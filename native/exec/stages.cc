#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "exec/step.h"

namespace octavo {

void Step::work(int t) {
  workers_[static_cast<size_t>(t)].clock.start();
  embed(t);
  charge(t, Stage::kEmbed);
  if (layers(t)) head(t);
  charge(t, Stage::kHead);
}

bool Step::layers(int t) {
  if (by_rows()) return barrier(t, Stage::kEmbed) && layers_by_rows(t);
  for (size_t i = 0; i < plan_.layers.size(); ++i)
    if (!layer(t, plan_.layers[i], static_cast<int>(i))) return false;
  return true;
}

void Step::embed(int t) {
  pending_[static_cast<size_t>(t)] = {};
  Worker& w = workers_[static_cast<size_t>(t)];
  const int r0 = few() ? 0 : part(rows_, t), r1 = few() ? rows_ : part(rows_, t + 1);
  for (int r = r0; r < r1; ++r) {
    float* x = (few() ? w.x : x_) + r * ld_x_;
    const bool factored = plan_.embed_up.linear.run != nullptr;
    k_.unpack_row(plan_.embed, a_.token[r], factored ? w.thin : x);
    if (factored) thin(t, plan_.embed_up, w.thin, x);
    if (plan_.embed_scale != 1) k_.scale(x, plan_.embed_scale, plan_.hidden);
  }
}

// y = factor * x, for one row; y has room for whole panels.
void Step::thin(int t, const Thin& thin, const float* x, float* y) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int panels = static_cast<int>(thin.linear.w.panels);
  prepare_row(x, thin.in, w.act_thin, 0);
  if (thin.in.scale == ActScale::kTensor)
    quantize_scaled(x, thin.in, w.act_thin, 0, k_.peak(x, thin.in.k));
  if (thin.linear.run_outliers != nullptr)
    return outlier_linear(thin.linear, thin.in, w.act_thin, w, 1, y, 0, 0, panels);
  if (thin.linear.run_wide == nullptr)
    return run_linear(thin.linear, thin.in, w.act_thin, 1, y, 0, 0, panels);
  w.n_wide = w.act_thin.wide[0];
  w.n_narrow = 1 - w.n_wide;
  w.narrow_rows[0] = w.wide_rows[0] = 0;
  mixed_linear(thin.linear, thin.in, w.act_thin, w, y, 0, 0, panels);
  if (few() && t != 0) return;
  Seen& seen = seen_[static_cast<size_t>(thin.in.index)];
  seen.rows.fetch_add(1, std::memory_order_relaxed);
  seen.wide.fetch_add(w.n_wide, std::memory_order_relaxed);
}

// Adds what the last projection left in y_ to the residual stream of a row.
void Step::residual(float* x, int row, Worker& w) {
  const Pending& pending = pending_[static_cast<size_t>(&w - workers_.data())];
  if (!pending.any) return;
  const float* y = y_ + row * ld_y_;
  if (pending.post_norm != nullptr) {
    k_.rms_norm(y, pending.post_norm, plan_.norm_eps, plan_.hidden, w.row);
    y = w.row;
  }
  k_.add(x, y, plan_.hidden);
}

void Step::prepare_row(const float* x, const Input& in, const ActRows& act, int index) const {
  prepare_columns(x, in, act, index, 0, in.k, in.k_pad);
  if (plan_.whole_rows) prepare_whole(x, in, act, index);
  if (in.scale != ActScale::kGroup) prepare_scaled(x, in, act, index);
}

// What a row needs to be seen whole for: its kind, where linears take either, and 16 bits.
void Step::prepare_whole(const float* x, const Input& in, const ActRows& act, int index) const {
  const int64_t at = int64_t{index} * in.k_pad;
  const bool mixed = (in.forms & (kFormMixedG32 | kFormMixedG64)) != 0;
  const bool wide = mixed && k_.peaked(x, in.k, plan_.wide_ratio);
  act.wide[index] = wide ? 1 : 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t own = i < 2 ? 0 : 1u << i, either = i % 2 == 0 ? kFormMixedG32 : kFormMixedG64;
    if ((in.forms & own) == 0 && ((in.forms & either) == 0 || wide != (i >= 2))) continue;
    const int group = i % 2 == 0 ? 32 : 64;
    const int64_t bytes = i < 2 ? at : 2 * at;
    (i < 2 ? k_.quantize_a8 : k_.quantize_a16)(x, in.k, in.k_pad, group, act.q[i] + bytes,
                                               act.scale[i] + at / group, act.sum[i] + bytes / 32);
  }
}

// What a scale for the whole row makes of it. kTensor waits for the other rows.
void Step::prepare_scaled(const float* x, const Input& in, const ActRows& act, int index) const {
  if (in.scale == ActScale::kOutliers) return split_outliers(x, in, act, index);
  if (in.scale == ActScale::kTensor) {
    std::copy_n(x, in.k, act.f32 + int64_t{index} * in.k_pad);
    return;
  }
  quantize_scaled(x, in, act, index, in.scale == ActScale::kStatic ? in.peak : k_.peak(x, in.k));
}

void Step::quantize_scaled(const float* x, const Input& in, const ActRows& act, int index,
                           float amax) const {
  const int64_t at = int64_t{index} * in.k_pad;
  for (int i = 4; i < 6; ++i) {
    if ((in.forms & (i == 4 ? kFormInt8g32 : kFormInt8g64)) == 0) continue;
    const int group = i == 4 ? 32 : 64;
    k_.quantize_int8(x, in.k, in.k_pad, group, amax, act.q[i] + at, act.scale[i] + at / group,
                     act.sum[i] + at / 32);
  }
}

// The row without outliers in 8 bits; then its fp32 holds the outliers alone.
void Step::split_outliers(const float* x, const Input& in, const ActRows& act, int index) const {
  float* row = act.f32 + int64_t{index} * in.k_pad;
  int found = 0;
  for (int i = 0; i < in.k; ++i) {
    const bool out = std::abs(x[i]) > kOutlier;
    row[i] = out ? 0.0F : x[i];
    found += out ? 1 : 0;
  }
  quantize_scaled(row, in, act, index, k_.peak(row, in.k));
  for (int i = 0; i < in.k; ++i) row[i] = std::abs(x[i]) > kOutlier ? x[i] : 0.0F;
  std::fill(row + in.k, row + in.k_pad, 0.0F);
  act.outliers[index] = found;
}

// kTensor: rows [r0, r1), which are the thread's, by the largest input of all rows.
bool Step::finish_tensor(int t, const Input& in, const ActRows& act, int r0, int r1) {
  if (in.scale != ActScale::kTensor) return true;
  float amax = 0;
  for (int r = r0; r < r1; ++r)
    amax = std::max(amax, k_.peak(act.f32 + int64_t{r} * in.k_pad, in.k));
  if (!few()) {
    workers_[static_cast<size_t>(t)].peak = amax;
    if (!barrier(t, Stage::kPrepare)) return false;
    for (const Worker& w : workers_) amax = std::max(amax, w.peak);
  }
  for (int r = r0; r < r1; ++r) quantize_scaled(act.f32 + int64_t{r} * in.k_pad, in, act, r, amax);
  return true;
}

// Columns [column, column + n) of a row, and padding up to column + padded. Whole groups.
void Step::prepare_columns(const float* x, const Input& in, const ActRows& act, int index,
                           int column, int n, int padded) const {
  const int64_t at = int64_t{index} * in.k_pad + column;
  for (int form = 0; form < 2; ++form) {
    if ((in.forms & (form == 0 ? kFormA8g32 : kFormA8g64)) == 0) continue;
    const int group = form == 0 ? 32 : 64;
    k_.quantize_a8(x, n, padded, group, act.q[form] + at, act.scale[form] + at / group,
                   act.sum[form] + at / 32);
  }
  if ((in.forms & kFormBf16) != 0) k_.round_bf16(x, n, padded, act.bf16 + at);
  if ((in.forms & kFormF32) != 0) {
    std::memcpy(act.f32 + at, x, sizeof(float) * static_cast<size_t>(n));
    std::fill(act.f32 + at + n, act.f32 + at + padded, 0.0F);
  }
}

// Prepares the input of a stage's linears: norm(residual stream), or plain rows when norm is null.
bool Step::begin_linear(int t, const float* norm, const Input& in, const float* source,
                        int64_t ld) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const int r0 = few() ? 0 : part(rows_, t), r1 = few() ? rows_ : part(rows_, t + 1);
  for (int r = r0; r < r1; ++r) {
    const float* row = source + r * ld;
    if (norm != nullptr) {
      float* x = (few() ? w.x : x_) + r * ld_x_;
      residual(x, r, w);
      k_.rms_norm(x, norm, plan_.norm_eps, plan_.hidden, w.row);
      row = w.row;
    }
    prepare_row(row, in, few() ? w.act : act_, r);
  }
  if (norm != nullptr) pending_[static_cast<size_t>(t)] = {};
  if (!finish_tensor(t, in, few() ? w.act : act_, r0, r1)) return false;
  if (!few() && !barrier(t, Stage::kPrepare)) return false;
  if (few()) charge(t, Stage::kPrepare);
  sort_rows(t, in, rows_);
  return true;
}

// Lists the rows of a mixed input by kind, in order. Every thread makes its own lists.
void Step::sort_rows(int t, const Input& in, int m) {
  if (t == 0 && in.scale == ActScale::kOutliers) {
    Seen& seen = seen_[static_cast<size_t>(in.index)];
    const int32_t* found = (few() ? workers_[0].act : act_).outliers;
    seen.rows.fetch_add(int64_t{m} * in.k, std::memory_order_relaxed);
    seen.wide.fetch_add(std::accumulate(found, found + m, int64_t{0}), std::memory_order_relaxed);
  }
  if ((in.forms & (kFormMixedG32 | kFormMixedG64)) == 0) return;
  Worker& w = workers_[static_cast<size_t>(t)];
  const ActRows& act = few() ? w.act : act_;
  w.n_narrow = w.n_wide = 0;
  for (int r = 0; r < m; ++r) {
    if (act.wide[r] != 0) {
      w.wide_rows[w.n_wide++] = r;
    } else {
      w.narrow_rows[w.n_narrow++] = r;
    }
  }
  if (t != 0) return;
  Seen& seen = seen_[static_cast<size_t>(in.index)];
  seen.rows.fetch_add(m, std::memory_order_relaxed);
  seen.wide.fetch_add(w.n_wide, std::memory_order_relaxed);
}

namespace {
void integer_rows(ActView& view, const ActRows& act, const Linear& linear, bool wide) {
  const int kind = linear.scale != ActScale::kGroup ? 4 : wide ? 2 : 0;
  const int i = kind + (linear.a8_group == 64 ? 1 : 0);
  view.q = act.q[i];
  view.scale = act.scale[i];
  view.sum = act.sum[i];
}
}  // namespace

void Step::linear(const Linear& linear, const Input& in, int t, int m, float* y, int64_t ldy,
                  int p0, int p1) const {
  const Worker& w = workers_[static_cast<size_t>(t)];
  const ActRows& act = few() ? w.act : act_;
  if (linear.run_outliers != nullptr) return outlier_linear(linear, in, act, w, m, y, ldy, p0, p1);
  if (linear.run_wide == nullptr) return run_linear(linear, in, act, m, y, ldy, p0, p1);
  mixed_linear(linear, in, act, w, y, ldy, p0, p1);
}

void Step::run_linear(const Linear& linear, const Input& in, const ActRows& act, int m, float* y,
                      int64_t ldy, int p0, int p1) const {
  if (p0 >= p1) return;
  ActView view;
  view.k = in.k;
  view.k_pad = in.k_pad;
  view.a8_group = linear.a8_group;
  view.bf16 = act.bf16;
  view.f32 = act.f32;
  integer_rows(view, act, linear, (linear.form & (kFormA16g32 | kFormA16g64)) != 0);
  linear.run(linear.w, view, m, y, ldy, p0, p1);
}

// Rows of both kinds go through a few panels in turn, so that memory gives each panel once.
void Step::mixed_linear(const Linear& linear, const Input& in, const ActRows& act, const Worker& w,
                        float* y, int64_t ldy, int p0, int p1) const {
  ActView view;
  view.k = in.k;
  view.k_pad = in.k_pad;
  view.a8_group = linear.a8_group;
  ActView wide = view;
  integer_rows(view, act, linear, false);
  integer_rows(wide, act, linear, true);
  view.rows = w.narrow_rows;
  wide.rows = w.wide_rows;
  const bool both = w.n_narrow != 0 && w.n_wide != 0;
  const int some = static_cast<int>(std::max<int64_t>(2, kMixedBytes / mean_panel_bytes(linear.w)));
  const int chunk = both ? some : p1 - p0;
  for (int c0 = p0; c0 < p1; c0 += chunk) {
    const int c1 = std::min(p1, c0 + chunk);
    if (w.n_narrow != 0) linear.run(linear.w, view, w.n_narrow, y, ldy, c0, c1);
    if (w.n_wide != 0) linear.run_wide(linear.w, wide, w.n_wide, y, ldy, c0, c1);
  }
}

// Integers of all rows and outliers of those that have some, a few panels in turn.
void Step::outlier_linear(const Linear& linear, const Input& in, const ActRows& act,
                          const Worker& w, int m, float* y, int64_t ldy, int p0, int p1) const {
  ActView view;
  view.k = in.k;
  view.k_pad = in.k_pad;
  view.a8_group = linear.a8_group;
  const int64_t some = std::max<int64_t>(2, kMixedBytes / mean_panel_bytes(linear.w));
  const int chunk = static_cast<int>(std::min<int64_t>(kOutlierPanels, some));
  for (int c0 = p0; c0 < p1; c0 += chunk) {
    const int c1 = std::min(p1, c0 + chunk), column = c0 * kLanes;
    run_linear(linear, in, act, m, y, ldy, c0, c1);
    for (int r = 0; r < m; ++r) {
      if (act.outliers[r] == 0) continue;
      view.f32 = act.f32 + int64_t{r} * in.k_pad;
      linear.run_outliers(linear.w, view, 1, w.extra - column, 0, c0, c1);
      k_.add(y + r * ldy + column, w.extra, (c1 - c0) * kLanes);
    }
  }
}

// Weights don't depend on what the other threads still compute: the start of this thread's share of
// the next matrix is fetched before it waits, so that memory isn't idle across the barrier.
void Step::warm(const Linear& next, int p) const {
  if (!few() || p >= next.w.panels) return;
  const uint8_t* panel = next.w.data + panel_start(next.w, p);
  for (int64_t at = next.w.scale_offset; at < kWarmBytes; at += 64) __builtin_prefetch(panel + at);
}

bool Step::layer(int t, const Layer& layer, int index) {
  if (!begin_linear(t, layer.attn_norm, layer.attn_in, nullptr, 0)) return false;
  project_heads(t, layer);
  warm(layer.o, part(layer.o.w.panels, t));
  if (!barrier(t, Stage::kQkv)) return false;
  if (!encode_keys(t, layer) || !attention(t, layer, index)) return false;
  if (!begin_linear(t, nullptr, layer.o_in, attn_, ld_attn_)) return false;
  project_out(t, layer);
  warm(layer.gate, part(layer.gate.w.panels, t));
  if (!barrier(t, Stage::kO)) return false;
  if (!begin_linear(t, layer.mlp_norm, layer.mlp_in, nullptr, 0)) return false;
  gate_up(t, layer);
  warm(layer.down, part(layer.down.w.panels, t));
  if (!barrier(t, Stage::kGateUp)) return false;
  if (!begin_linear(t, nullptr, layer.down_in, gate_, ld_gate_)) return false;
  down(t, layer);
  warm_after(t, index);
  return barrier(t, Stage::kDown);
}

void Step::warm_after(int t, int index) const {
  const size_t next = static_cast<size_t>(index) + 1;
  if (next == plan_.layers.size()) return warm(plan_.head, part(plan_.head.w.panels, t));
  const Layer& layer = plan_.layers[next];
  const HeadRange& mine = layer.head_ranges[static_cast<size_t>(t)];
  const int per_head = layer.head_dim / kLanes;
  if (mine.kv0 < mine.kv1) return warm(layer.k, mine.kv0 * per_head);
  warm(layer.q, mine.q0 * per_head);
}

void Step::project_heads(int t, const Layer& layer) {
  const HeadRange& mine = layer.head_ranges[static_cast<size_t>(t)];
  const int per_head = layer.head_dim / kLanes;
  auto project = [&](const Linear& l, int h0, int h1) {
    linear(l, layer.attn_in, t, rows_, qkv_ + l.column, ld_qkv_, h0 * per_head, h1 * per_head);
  };
  warm(layer.v, mine.kv0 * per_head);
  project(layer.k, mine.kv0, mine.kv1);
  warm(layer.q, mine.q0 * per_head);
  project(layer.v, mine.kv0, mine.kv1);
  project(layer.q, mine.q0, mine.q1);
  finish_heads(layer, mine, 0, rows_);
}

// Bias, norm and rotation of what was projected; K and V go to the cache.
void Step::finish_heads(const Layer& layer, const HeadRange& mine, int row0, int row1) {
  for (int r = row0; r < row1; ++r) {
    float* row = qkv_ + r * ld_qkv_;
    for (int h = mine.kv0; h < mine.kv1; ++h) {
      const int at = h * layer.head_dim;
      const float* bias = layer.k.bias == nullptr ? nullptr : layer.k.bias + at;
      rotate(layer, row + layer.k.column + at, bias, layer.k_norm, r);
      if (layer.v.bias != nullptr)
        k_.add(row + layer.v.column + at, layer.v.bias + at, layer.head_dim);
    }
    for (int h = mine.q0; h < mine.q1; ++h) {
      const int at = h * layer.head_dim;
      const float* bias = layer.q.bias == nullptr ? nullptr : layer.q.bias + at;
      rotate(layer, row + at, bias, layer.q_norm, r);
    }
    if (mine.kv0 < mine.kv1) write_kv(layer, r, mine.kv0, mine.kv1);
  }
}

// Bias, norm and rotation of one head of q or k.
void Step::rotate(const Layer& layer, float* head, const float* bias, const float* norm,
                  int row) const {
  if (bias != nullptr) k_.add(head, bias, layer.head_dim);
  if (norm != nullptr) k_.rms_norm(head, norm, plan_.norm_eps, layer.head_dim, head);
  const int64_t at = int64_t{a_.position[row]} * layer.rope_half;
  k_.rope(head, layer.cos + at, layer.sin + at, layer.rope_half);
}

namespace {
// The heads [kv0, kv1) of a layer.
KvLayerView of_heads(KvLayerView kv, int kv0, int kv1) {
  kv.base += kv0 * kv.head_stride_k;
  kv.v_offset += kv0 * (kv.head_stride_v - kv.head_stride_k);
  kv.kv_heads = kv1 - kv0;
  return kv;
}
}  // namespace

void Step::write_kv(const Layer& layer, int row, int kv0, int kv1) {
  const int position = a_.position[row], size = layer.kv.block_size;
  const int seq = seq_of_row_[static_cast<size_t>(row)];
  const float* from = qkv_ + row * ld_qkv_ + kv0 * layer.head_dim;
  const float *k = from + layer.k.column, *v = from + layer.v.column;
  const auto write = [&](const KvLayerView& kv, int group) {
    return k_.kv_write(of_heads(kv, kv0, kv1), table(seq, group)[position / size], position % size,
                       k, v);
  };
  if (layer.recent_group >= 0) write(layer.recent, layer.recent_group);
  const int lost = write(layer.kv, layer.kv_group);
  if (lost != 0) kv_lost_.fetch_add(lost, std::memory_order_relaxed);
}

namespace {
// Columns of panels [p0, p1) that hold outputs, not padding.
int columns(const Linear& linear, int p0, int p1) {
  return std::max(0, std::min(p1 * kLanes, linear.w.n) - p0 * kLanes);
}
}  // namespace

void Step::project_out(int t, const Layer& layer) {
  const int p0 = part(layer.o.w.panels, t), p1 = part(layer.o.w.panels, t + 1);
  linear(layer.o, layer.o_in, t, rows_, y_, ld_y_, p0, p1);
  if (layer.o.bias != nullptr)
    for (int r = 0; r < rows_; ++r)
      k_.add(y_ + r * ld_y_ + p0 * kLanes, layer.o.bias + p0 * kLanes, columns(layer.o, p0, p1));
  pending_[static_cast<size_t>(t)] = {true, layer.attn_post_norm};
}

void Step::gate_up(int t, const Layer& layer) {
  const int p0 = part(layer.gate.w.panels, t), p1 = part(layer.gate.w.panels, t + 1);
  const int chunk = few() ? std::max(1, p1 - p0) : 16;  // so that both are still in cache for act
  for (int c0 = p0; c0 < p1; c0 += chunk) {
    const int c1 = std::min(p1, c0 + chunk), at = c0 * kLanes, n = columns(layer.gate, c0, c1);
    warm(layer.up, c0);
    linear(layer.gate, layer.mlp_in, t, rows_, gate_, ld_gate_, c0, c1);
    linear(layer.up, layer.mlp_in, t, rows_, up_, ld_gate_, c0, c1);
    for (int r = 0; r < rows_; ++r) {
      float *gate = gate_ + r * ld_gate_ + at, *up = up_ + r * ld_gate_ + at;
      if (layer.gate.bias != nullptr) k_.add(gate, layer.gate.bias + at, n);
      if (layer.up.bias != nullptr) k_.add(up, layer.up.bias + at, n);
      k_.act_mul(layer.activation, gate, up, n, gate);
    }
  }
}

void Step::down(int t, const Layer& layer) {
  const int p0 = part(layer.down.w.panels, t), p1 = part(layer.down.w.panels, t + 1);
  linear(layer.down, layer.down_in, t, rows_, y_, ld_y_, p0, p1);
  if (layer.down.bias != nullptr)
    for (int r = 0; r < rows_; ++r)
      k_.add(y_ + r * ld_y_ + p0 * kLanes, layer.down.bias + p0 * kLanes,
             columns(layer.down, p0, p1));
  pending_[static_cast<size_t>(t)] = {true, layer.mlp_post_norm};
}

}  // namespace octavo
