#include "exec/kv.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/platform.h"

namespace octavo {
namespace {

constexpr int kTokensToCondense = 1024;  // from one look at all pages to the next

KvLayerView layout(const LayerDesc& layer, const RuntimeDesc& runtime, int blocks,
                   KvFormat format) {
  KvLayerView kv;
  kv.block_size = runtime.block_size;
  kv.kv_heads = layer.kv_heads;
  kv.head_dim = layer.head_dim;
  kv.format = format;
  kv_lay_out(&kv, blocks);
  return kv;
}

int64_t bytes_of_block(const KvLayerView& kv) { return 2 * kv.kv_heads * kv.block_stride; }

// Of all layers; those that name no group are refused later.
size_t addresses(const ModelDesc& model, const RuntimeDesc& runtime) {
  size_t sum = 0;
  const auto count = [&](const LayerDesc& layer, int group, KvFormat format) {
    if (group < 0 || group >= static_cast<int>(runtime.kv_blocks.size())) return;
    const int blocks = runtime.kv_blocks[static_cast<size_t>(group)];
    const KvLayerView kv = layout(layer, runtime, blocks, format);
    sum += (static_cast<size_t>(bytes_of_block(kv) * blocks) + 63) / 64 * 64;
  };
  for (const LayerDesc& layer : model.layers) {
    count(layer, layer.kv_group, runtime.kv_format);
    count(layer, layer.recent_group, KvFormat::kBf16);
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
      recent_from_(model.layers.size()),
      blocks_(runtime.kv_blocks),
      condensable_(!for_several(runtime)) {
  for (const LayerDesc& layer : model.layers)
    add(layer, runtime, layer.kv_group, runtime.kv_format);
  if (is_kivi(runtime.kv_format)) {
    if (runtime.block_size % kKiviGroup != 0)
      throw std::invalid_argument("KIVI's groups of tokens must not cross blocks: block_size % 32");
    for (const LayerDesc& layer : model.layers)
      add(layer, runtime, layer.recent_group, KvFormat::kBf16);
  }
  looked_at_ = arena_.allocated();
}

void KvCache::add(const LayerDesc& layer, const RuntimeDesc& runtime, int group, KvFormat format) {
  if (group < 0 || group >= groups())
    throw std::invalid_argument("a layer names a KV group that has no block count");
  KvLayerView kv = layout(layer, runtime, blocks(group), format);
  kv.base = arena_.allocate(static_cast<size_t>(bytes_of_block(kv) * blocks(group)));
  views_.push_back({kv, group});
}

void KvCache::wrote(int tokens) {
  if (!condensable_) return;
  const uintptr_t base = reinterpret_cast<uintptr_t>(views_.front().kv.base);
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
  for (const View& view : views_) {
    if (view.group != group) continue;
    const int64_t apart = (destination - source) * view.kv.block_stride;
    each_run(view.kv, source, [&](uint8_t* run) {
      std::memcpy(run + apart, run, static_cast<size_t>(view.kv.block_stride));
    });
  }
}

int64_t KvCache::block_bytes(int group) const {
  int64_t bytes = 0;
  for (const View& view : views_)
    if (view.group == group) bytes += bytes_of_block(view.kv);
  return bytes;
}

void KvCache::read(int group, const std::vector<int32_t>& blocks, uint8_t* out) const {
  for (const View& view : views_) {
    if (view.group != group) continue;
    const size_t bytes = static_cast<size_t>(view.kv.block_stride);
    for (const int32_t block : blocks)
      each_run(view.kv, block, [&](const uint8_t* run) {
        std::memcpy(out, run, bytes);
        out += bytes;
      });
  }
}

void KvCache::write(int group, const std::vector<int32_t>& blocks, const uint8_t* in) {
  for (const View& view : views_) {
    if (view.group != group) continue;
    const size_t bytes = static_cast<size_t>(view.kv.block_stride);
    for (const int32_t block : blocks)
      each_run(view.kv, block, [&](uint8_t* run) {
        std::memcpy(run, in, bytes);
        in += bytes;
      });
  }
}

}  // namespace octavo
