// The paged cache: per group and layer one pool of blocks, touched (and so paid for) only in use.
#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "exec/model.h"

namespace octavo {

class KvCache {
 public:
  // Throws std::bad_alloc when the address space is exhausted.
  KvCache(const ModelDesc& model, const RuntimeDesc& runtime);

  const KvLayerView& layer(int index) const { return views_[static_cast<size_t>(index)].kv; }
  // KIVI: what a layer holds in bf16; else nothing.
  KvLayerView recent(int index) const {
    const size_t at = recent_from_ + static_cast<size_t>(index);
    return at < views_.size() ? views_[at].kv : KvLayerView{};
  }
  int groups() const { return static_cast<int>(blocks_.size()); }
  int blocks(int group) const { return blocks_[static_cast<size_t>(group)]; }

  // So many tokens more were written, in one step. A cache for one context begins with small pages,
  // or a short answer would pay for 2 MB per head and layer; what is well used by then moves into
  // huge ones, one a step, since a move may take 4 ms. (A cache for several contexts begins with
  // huge pages. Small ones cost attention a fifth of its speed.)
  void wrote(int tokens);

  // Copies one block in all layers of a group.
  void copy(int group, int source, int destination);

  // Blocks of a group to and from bytes outside: layer after layer, in each the blocks in order,
  // in a block the K and V of each head.
  int64_t block_bytes(int group) const;  // over all layers
  void read(int group, const std::vector<int32_t>& blocks, uint8_t* out) const;
  void write(int group, const std::vector<int32_t>& blocks, const uint8_t* in);

 private:
  struct View {
    KvLayerView kv;
    int group;
  };
  void add(const LayerDesc& layer, const RuntimeDesc& runtime, int group, KvFormat format);

  Arena arena_;
  std::vector<View> views_;  // of all layers, then KIVI's of bf16
  size_t recent_from_;
  std::vector<int> blocks_;
  int not_condensed_ = 0;  // tokens
  size_t looked_at_ = 0;   // bytes of the arena, in the look that goes on
  bool condensable_ = true;
};

}  // namespace octavo
