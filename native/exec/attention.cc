#include <algorithm>

#include "exec/step.h"

namespace octavo {
namespace {

int first_key(const Layer& layer, int position) {
  return layer.window > 0 ? std::max(0, position - layer.window + 1) : 0;
}

}  // namespace

// Rows of one sequence, in blocks that one item of attention handles.
void Step::plan_tiles() {
  tiles_.clear();
  int rows = std::max(1, std::min(kTileRows, kTileQueries / plan_.max_group_heads));
  if (by_rows()) {  // tiles of equal height make blocks of equal height
    const int block = block_rows(), tiles = (block + rows - 1) / rows;
    rows = (block + tiles - 1) / tiles;
  }
  for (int s = 0; s < n_seqs_; ++s)
    for (int r = a_.row_start[s]; r < a_.row_start[s + 1]; r += rows)
      tiles_.push_back({s, r, std::min(rows, a_.row_start[s + 1] - r)});
  int last = 0;
  for (int r = 0; r < rows_; ++r) last = std::max(last, a_.position[r]);
  max_splits_ = last / kSplitKeys + 1;
  const int items = static_cast<int>(tiles_.size()) * plan_.layers[0].kv_heads;
  share_splits_ = max_splits_ > 1 && rows_ <= kSharedSplitRows && items < 2 * pool_.threads();
  for (std::atomic<int>& next : next_item_) next.store(0, std::memory_order_relaxed);
}

// KIVI: codes of the keys of every group that this step has filled, once all of them stand.
bool Step::encode_keys(int t, const Layer& layer) {
  if (full_groups_.empty()) return true;
  const int heads = layer.kv_heads, size = layer.kv.block_size;
  const int items = static_cast<int>(full_groups_.size()) * heads;
  for (int i = part(items, t); i < part(items, t + 1); ++i) {
    const int row = full_groups_[static_cast<size_t>(i / heads)];
    const int seq = seq_of_row_[static_cast<size_t>(row)], position = a_.position[row];
    k_.kivi_keys(layer.kv, table(seq, layer.kv_group)[position / size], layer.recent,
                 table(seq, layer.recent_group)[position / size],
                 position % size - (kKiviGroup - 1), i % heads);
  }
  return barrier(t, Stage::kQkv);
}

bool Step::attention(int t, const Layer& layer, int index) {
  std::atomic<int>& next = next_item_[static_cast<size_t>(index)];
  const int heads = layer.kv_heads, splits = share_splits_ ? max_splits_ : 1;
  const int items = static_cast<int>(tiles_.size()) * heads * splits;
  const int64_t group = layer.heads / layer.kv_heads;
  Partials shared = shared_;
  shared.queries = int64_t{rows_} * layer.heads;
  shared.kv_stride = rows_ * group;
  shared.splits = max_splits_;
  const auto item = [&](int i) {
    return Item{tiles_[static_cast<size_t>(i / (heads * splits))], i / splits % heads, i % splits};
  };
  const int share = items / (kSharesPerThread * pool_.threads());
  const bool alike = share_splits_ || rows_ == n_seqs_;
  const int run = alike ? std::max(1, share) : 1;  // so that one item fetches the next one's keys
  for (int i0; (i0 = next.fetch_add(run, std::memory_order_relaxed)) < items;) {
    const int i1 = std::min(i0 + run, items);
    for (int i = i0; i < i1; ++i) {
      const Item it = item(i);
      const KeysAhead ahead = i + 1 < i1 ? first_keys(layer, item(i + 1)) : KeysAhead{};
      if (share_splits_) {
        const int64_t query0 = it.kv_head * shared.kv_stride + it.tile.row0 * group;
        attend_split(t, layer, it, ahead, shared, query0);
      } else {
        attend_tile(t, layer, it, ahead);
      }
    }
  }
  if (!barrier(t, Stage::kAttention)) return false;
  if (!share_splits_) return true;
  for (int i = part(rows_ * heads, t); i < part(rows_ * heads, t + 1); ++i)
    merge_row(t, layer, i / heads, i % heads, shared,
              i % heads * shared.kv_stride + i / heads * group);
  return barrier(t, Stage::kAttention);
}

// The least and the largest position of a tile's rows.
std::pair<int, int> Step::positions(const Tile& tile) const {
  const auto [low, high] =
      std::minmax_element(a_.position + tile.row0, a_.position + tile.row0 + tile.rows);
  return {*low, *high};
}

// Those of an item's split; without splits of its own, of the first that its rows see.
KeysAhead Step::first_keys(const Layer& layer, const Item& item) const {
  const auto [low, high] = positions(item.tile);
  const int split = share_splits_ ? item.split : first_key(layer, low) / kSplitKeys;
  const int key0 = split * kSplitKeys;
  return {table(item.tile.seq, layer.kv_group), item.kv_head, key0,
          std::min(key0 + kSplitKeys, high + 1)};
}

// All splits of a tile, one after the other, and their merge. `ahead`: wanted behind the last.
void Step::attend_tile(int t, const Layer& layer, Item item, const KeysAhead& ahead) {
  const Tile& tile = item.tile;
  const auto [low, high] = positions(tile);
  const int group = layer.heads / layer.kv_heads, last = high / kSplitKeys;
  Partials mine = workers_[static_cast<size_t>(t)].partials;
  mine.queries = int64_t{tile.rows} * group;
  mine.split0 = first_key(layer, low) / kSplitKeys;
  mine.splits = last + 1 - mine.split0;
  const int32_t* blocks = table(tile.seq, layer.kv_group);
  for (item.split = mine.split0; item.split <= last; ++item.split) {
    const int key1 = (item.split + 1) * kSplitKeys;
    const KeysAhead mores{blocks, item.kv_head, key1, std::min(key1 + kSplitKeys, high + 1)};
    attend_split(t, layer, item, item.split < last ? mores : ahead, mine, 0);
  }
  for (int r = 0; r < tile.rows; ++r)
    merge_row(t, layer, tile.row0 + r, item.kv_head, mine, int64_t{r} * group);
}

void Step::attend_split(int t, const Layer& layer, const Item& item, const KeysAhead& ahead,
                        const Partials& to, int64_t query0) {
  Worker& w = workers_[static_cast<size_t>(t)];
  const Tile& tile = item.tile;
  const int group = layer.heads / layer.kv_heads, dim = layer.head_dim;
  const auto [low, high] = positions(tile);
  const int key0 = item.split * kSplitKeys, key1 = std::min(key0 + kSplitKeys, high + 1);
  if (key0 >= key1 || key1 <= first_key(layer, low)) return;  // no query sees it, no merge reads it
  int32_t position[kTileQueries];
  for (int i = 0; i < tile.rows; ++i) {
    std::fill_n(position + i * group, group, a_.position[tile.row0 + i]);
    std::copy_n(qkv_ + (tile.row0 + i) * ld_qkv_ + item.kv_head * group * dim, group * dim,
                w.query + i * group * dim);
  }
  const int64_t part = item.split - to.split0;
  AttentionArgs args;
  args.kv = layer.kv;
  args.block_table = table(tile.seq, layer.kv_group);
  args.recent = layer.recent;
  args.recent_table = layer.recent_group < 0 ? nullptr : table(tile.seq, layer.recent_group);
  args.kv_head = item.kv_head;
  args.n_q = tile.rows * group;
  args.key0 = key0;
  args.key1 = key1;
  args.ahead = ahead;
  args.window = layer.window;
  args.q = w.query;
  args.q_stride = dim;
  args.pos = position;
  args.scale = layer.scale;
  args.softcap = layer.softcap;
  args.o = to.o + (query0 * to.splits + part) * dim;
  args.o_stride = int64_t{to.splits} * dim;
  args.m = to.m + part * to.queries + query0;
  args.l = to.l + part * to.queries + query0;
  args.scratch = w.scores;
  k_.attention(args);
}

// Merges the splits that the row sees, and no others: what a tile holds beside it leaves no trace.
void Step::merge_row(int t, const Layer& layer, int row, int kv_head, const Partials& from,
                     int64_t query0) {
  const int group = layer.heads / layer.kv_heads, dim = layer.head_dim;
  const int position = a_.position[row];
  const int first = first_key(layer, position) / kSplitKeys - from.split0;
  const int parts = position / kSplitKeys - from.split0 + 1 - first;
  float* m = workers_[static_cast<size_t>(t)].merged;
  float* l = m + parts;
  for (int h = 0; h < group; ++h) {
    for (int i = 0; i < parts; ++i) {
      m[i] = from.m[(first + i) * from.queries + query0 + h];
      l[i] = from.l[(first + i) * from.queries + query0 + h];
    }
    k_.attention_merge(from.o + ((query0 + h) * from.splits + first) * dim, dim, m, l, parts, dim,
                       attn_ + row * ld_attn_ + (kv_head * group + h) * dim);
  }
}

}  // namespace octavo
