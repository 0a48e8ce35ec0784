#include "exec/kv.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/platform.h"

namespace octavo {
namespace {

constexpr int kTokensToCondense = 1024;  // from one look at all pages to the next

KvLayerView layout(const LayerDesc& layer, const RuntimeDesc& runtime, int blocks) {
  KvLayerView kv;
  kv.block_size = runtime.block_size;
  kv.kv_heads = layer.kv_heads;
  kv.head_dim = layer.head_dim;
  kv.format = runtime.kv_format;
  kv_lay_out(&kv, blocks);
  return kv;
}

int64_t bytes_of_block(const KvLayerView& kv) { return 2 * kv.kv_heads * kv.block_stride; }

// Of all layers; those that name no group are refused later.
size_t addresses(const ModelDesc& model, const RuntimeDesc& runtime) {
  size_t sum = 0;
  for (const LayerDesc& layer : model.layers) {
    if (layer.kv_group < 0 || layer.kv_group >= static_cast<int>(runtime.kv_blocks.size()))
      continue;
    const int blocks = runtime.kv_blocks[static_cast<size_t>(layer.kv_group)];
    const KvLayerView kv = layout(layer, runtime, blocks);
    sum += (static_cast<size_t>(bytes_of_block(kv) * blocks) + 63) / 64 * 64;
  }
  return sum;
}

bool for_several(const RuntimeDesc& runtime) {
  return std::any_of(runtime.kv_blocks.begin(), runtime.kv_blocks.end(),
                     [&](int n) { return n * runtime.block_size >= 2 * runtime.context; });
}

// Calls `visit` with the runs of a block: of each head its K, then its V.
template <class Visit>
void each_run(const KvLayerView& kv, int block, const Visit& visit) {
  for (int head = 0; head < kv.kv_heads; ++head) {
    uint8_t* k = kv.base + block * kv.block_stride + head * kv.head_stride_k;
    visit(k);
    visit(k + kv.v_offset);
  }
}

}  // namespace

// One run of addresses for all layers, so that huge pages may span them.
KvCache::KvCache(const ModelDesc& model, const RuntimeDesc& runtime)
    : arena_(addresses(model, runtime), for_several(runtime)),
      blocks_(runtime.kv_blocks),
      condensable_(!for_several(runtime)) {
  for (const LayerDesc& layer : model.layers) {
    if (layer.kv_group < 0 || layer.kv_group >= groups())
      throw std::invalid_argument("a layer names a KV group that has no block count");
    KvLayerView kv = layout(layer, runtime, blocks(layer.kv_group));
    kv.base = arena_.allocate(static_cast<size_t>(bytes_of_block(kv) * blocks(layer.kv_group)));
    layers_.push_back(kv);
    group_of_layer_.push_back(layer.kv_group);
  }
  looked_at_ = arena_.allocated();
}

void KvCache::wrote(int tokens) {
  if (!condensable_) return;
  const uintptr_t base = reinterpret_cast<uintptr_t>(layers_.front().base);
  const uintptr_t end = base + arena_.allocated();
  not_condensed_ += tokens;
  if (base + looked_at_ >= end && not_condensed_ >= kTokensToCondense) {
    not_condensed_ = 0;
    looked_at_ = 0;
  }
  for (bool moved = false; !moved && base + looked_at_ < end; looked_at_ += platform::kHugePage) {
    constexpr uintptr_t kWithin = platform::kHugePage - 1;
    const uintptr_t page = (base + looked_at_ + kWithin) & ~kWithin;
    if (page + platform::kHugePage > end) continue;
    const platform::Condensed found = platform::condense(reinterpret_cast<void*>(page));
    condensable_ = found != platform::Condensed::kUnsupported;
    if (!condensable_) return;
    moved = found == platform::Condensed::kMoved;
  }
}

void KvCache::copy(int group, int source, int destination) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (group_of_layer_[i] != group) continue;
    const KvLayerView& kv = layers_[i];
    const int64_t apart = (destination - source) * kv.block_stride;
    each_run(kv, source, [&](uint8_t* run) {
      std::memcpy(run + apart, run, static_cast<size_t>(kv.block_stride));
    });
  }
}

int64_t KvCache::block_bytes(int group) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < layers_.size(); ++i)
    if (group_of_layer_[i] == group) bytes += bytes_of_block(layers_[i]);
  return bytes;
}

void KvCache::read(int group, const std::vector<int32_t>& blocks, uint8_t* out) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (group_of_layer_[i] != group) continue;
    const KvLayerView& kv = layers_[i];
    for (const int32_t block : blocks)
      each_run(kv, block, [&](const uint8_t* run) {
        std::memcpy(out, run, static_cast<size_t>(kv.block_stride));
        out += kv.block_stride;
      });
  }
}

void KvCache::write(int group, const std::vector<int32_t>& blocks, const uint8_t* in) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (group_of_layer_[i] != group) continue;
    const KvLayerView& kv = layers_[i];
    for (const int32_t block : blocks)
      each_run(kv, block, [&](uint8_t* run) {
        std::memcpy(run, in, static_cast<size_t>(kv.block_stride));
        in += kv.block_stride;
      });
  }
}

}  // namespace octavo
