#include "exec/plan.h"

#include <algorithm>
#include <stdexcept>

namespace octavo {
namespace {

[[noreturn]] void fail(int layer, const std::string& part, const std::string& what) {
  const std::string where = layer < 0 ? "" : "layer " + std::to_string(layer) + " ";
  throw std::invalid_argument(where + part + ": " + what);
}

std::string shape(int n, int k) { return "[" + std::to_string(n) + ", " + std::to_string(k) + "]"; }

Form form_of(Act act, ActScale scale, int a8_group) {
  if (scale != ActScale::kGroup) return a8_group == 64 ? kFormInt8g64 : kFormInt8g32;
  if (act == Act::kBf16) return kFormBf16;
  if (act == Act::kF32) return kFormF32;
  const bool wide = a8_group == 64;
  if (act == Act::kA16) return wide ? kFormA16g64 : kFormA16g32;
  if (act == Act::kA8A16) return wide ? kFormMixedG64 : kFormMixedG32;
  return wide ? kFormA8g64 : kFormA8g32;
}

// Resolves the parts of a model, one layer at a time, into `plan`.
class Planner {
 public:
  Planner(const ModelDesc& model, const RuntimeDesc& runtime, const KvCache& cache, Plan& plan)
      : model_(model), runtime_(runtime), cache_(cache), plan_(plan) {}

  void run() {
    globals();
    for (size_t i = 0; i < model_.layers.size(); ++i) layer(static_cast<int>(i));
    head();
  }

 private:
  void globals() {
    const char* error = nullptr;
    plan_.table = kernels_for(runtime_.isa.c_str(), &error);
    if (plan_.table == nullptr) throw std::invalid_argument(error);
    plan_.hidden = model_.hidden;
    plan_.vocab = model_.vocab;
    plan_.max_tokens = runtime_.max_tokens;
    plan_.max_seqs = runtime_.max_seqs;
    plan_.context = runtime_.context;
    plan_.block_size = runtime_.block_size;
    plan_.norm_eps = model_.norm_eps;
    plan_.embed_scale = model_.embed_scale;
    plan_.softcap = model_.softcap;
    plan_.wide_ratio = runtime_.wide_ratio;
  }

  Linear resolve(int layer, const std::string& part, const NamedWeight& named, int n, int k) {
    if (named.weight == nullptr) fail(layer, part, "the weight is missing");
    Linear linear;
    linear.w = named.weight->view();
    if (linear.w.n != n || linear.w.k != k)
      fail(layer, part,
           "the weight is " + shape(linear.w.n, linear.w.k) + ", the model needs " + shape(n, k));
    const bool mixed = named.act == Act::kA8A16;
    const LinearKernel* kernel =
        select_linear(*plan_.table, linear.w, mixed ? Act::kA8 : named.act);
    const LinearKernel* wide = mixed ? select_linear(*plan_.table, linear.w, Act::kA16) : nullptr;
    if (kernel == nullptr || (mixed && wide == nullptr))
      fail(layer, part, "no kernel serves this weight and activation format");
    linear.run = kernel->run;
    if (mixed) linear.run_wide = wide->run;
    if (named.scale == ActScale::kOutliers) {
      wide = select_linear(*plan_.table, linear.w, Act::kF32);
      if (wide == nullptr) fail(layer, part, "no kernel multiplies this weight in fp32");
      linear.run_outliers = wide->run;
    }
    linear.scale = named.scale;
    linear.peak = named.peak;
    plan_.whole_rows |= mixed || named.act == Act::kA16 || named.scale != ActScale::kGroup;
    linear.a8_group = a8_group_for(linear.w.group, linear.w.k_pad);
    linear.form = form_of(named.act, named.scale, linear.a8_group);
    const bool fast = kernel->fast && (wide == nullptr || wide->fast);
    const std::string name = std::string(kernel->name) + (wide == nullptr ? "" : " + ");
    plan_.lines.push_back(
        {layer, part, wide == nullptr ? name : name + wide->name, fast, named.weight->bytes(), 0});
    plan_.max_k_pad = std::max(plan_.max_k_pad, linear.w.k_pad);
    return linear;
  }

  Linear linear(int index, const std::string& part, int n, int k) {
    const LayerDesc& desc = model_.layers[static_cast<size_t>(index)];
    const auto found = desc.weights.find(part);
    if (found == desc.weights.end()) fail(index, part, "the weight is missing");
    Linear result = resolve(index, part, found->second, n, k);
    result.bias = vector(index, part + "_bias", n, false);
    return result;
  }

  const float* vector(int index, const std::string& part, int n, bool required) {
    const LayerDesc& desc = model_.layers[static_cast<size_t>(index)];
    const auto found = desc.vectors.find(part);
    if (found == desc.vectors.end()) {
      if (required) fail(index, part, "the vector is missing");
      return nullptr;
    }
    if (static_cast<int>(found->second.size()) != n)
      fail(index, part,
           "has " + std::to_string(found->second.size()) + " values, the model needs " +
               std::to_string(n));
    return found->second.data();
  }

  Input input(int index, const std::string& stage, std::initializer_list<const Linear*> linears) {
    Input in;
    for (const Linear* linear : linears) {
      in.forms |= linear->form;
      if (in.k_pad != 0 && linear->w.k_pad != in.k_pad)
        fail(index, stage, "weights that share an input are padded differently");
      in.k = linear->w.k;
      in.k_pad = linear->w.k_pad;
      scale_input(index, stage, *linear, in);
    }
    if ((in.forms & kFormSplit) != 0 && (in.forms & kFormF32) != 0)
      fail(index, stage, "a32 beside scales of a step or outliers: use one of them for all");
    in.index = plan_.n_inputs++;
    for (size_t i = 1; i <= linears.size(); ++i)
      plan_.lines[plan_.lines.size() - i].input = in.index;
    return in;
  }

  static void scale_input(int index, const std::string& stage, const Linear& linear, Input& in) {
    if (linear.scale == ActScale::kGroup) return;
    if (in.scale != ActScale::kGroup && (in.scale != linear.scale || in.peak != linear.peak))
      fail(index, stage, "weights that share an input take different scales of it");
    in.scale = linear.scale;
    in.peak = linear.peak;
    if (in.scale == ActScale::kTensor || in.scale == ActScale::kOutliers) in.forms |= kFormSplit;
  }

  void layer(int index) {
    const LayerDesc& desc = model_.layers[static_cast<size_t>(index)];
    if (desc.head_dim % kLanes != 0 || desc.heads % desc.kv_heads != 0)
      fail(index, "q", "head_dim must be a multiple of 16 and heads a multiple of kv_heads");
    if (desc.heads / desc.kv_heads > kMaxGroupHeads)
      fail(index, "q", "more than " + std::to_string(kMaxGroupHeads) + " heads share a kv head");
    Layer out{};
    attention(index, desc, out);
    mlp(index, desc, out);
    out.kv = cache_.layer(index);
    out.recent = cache_.recent(index);
    plan_.max_heads = std::max(plan_.max_heads, desc.heads);
    plan_.max_head_dim = std::max(plan_.max_head_dim, desc.head_dim);
    plan_.max_group_heads = std::max(plan_.max_group_heads, desc.heads / desc.kv_heads);
    plan_.max_qkv = std::max(plan_.max_qkv, (desc.heads + 2 * desc.kv_heads) * desc.head_dim);
    plan_.max_inter = std::max(plan_.max_inter, out.gate.w.panels * kLanes);
    plan_.max_out = std::max(plan_.max_out, out.o.w.panels * kLanes);
    plan_.layers.push_back(std::move(out));
  }

  void attention(int index, const LayerDesc& desc, Layer& out) {
    const int q = desc.heads * desc.head_dim, kv = desc.kv_heads * desc.head_dim;
    out.heads = desc.heads;
    out.kv_heads = desc.kv_heads;
    out.head_dim = desc.head_dim;
    out.window = desc.window;
    out.kv_group = desc.kv_group;
    out.recent_group = desc.recent_group;
    out.scale = desc.scale;
    out.softcap = desc.softcap;
    out.q = linear(index, "q", q, plan_.hidden);
    out.k = linear(index, "k", kv, plan_.hidden);
    out.v = linear(index, "v", kv, plan_.hidden);
    out.o = linear(index, "o", plan_.hidden, q);
    out.k.column = q;
    out.v.column = q + kv;
    out.attn_in = input(index, "q, k, v", {&out.q, &out.k, &out.v});
    out.o_in = input(index, "o", {&out.o});
    out.attn_norm = vector(index, "attn_norm", plan_.hidden, true);
    out.attn_post_norm = vector(index, "attn_post_norm", plan_.hidden, false);
    out.q_norm = vector(index, "q_norm", desc.head_dim, false);
    out.k_norm = vector(index, "k_norm", desc.head_dim, false);
    rope(index, desc, out);
    out.head_ranges = split_heads(desc.kv_heads, desc.heads, runtime_.threads);
  }

  void rope(int index, const LayerDesc& desc, Layer& out) {
    if (desc.rope < 0 || desc.rope >= static_cast<int>(model_.ropes.size()))
      fail(index, "q", "names a rope table that does not exist");
    const RopeTable& table = model_.ropes[static_cast<size_t>(desc.rope)];
    const size_t needed = static_cast<size_t>(plan_.context) * table.half;
    if (table.cos.size() < needed || table.sin.size() < needed || 2 * table.half > desc.head_dim)
      fail(index, "q", "the rope table is too short for the context");
    out.cos = table.cos.data();
    out.sin = table.sin.data();
    out.rope_half = table.half;
  }

  void mlp(int index, const LayerDesc& desc, Layer& out) {
    out.activation = desc.activation;
    out.gate = linear(index, "gate", desc.intermediate, plan_.hidden);
    out.up = linear(index, "up", desc.intermediate, plan_.hidden);
    out.down = linear(index, "down", plan_.hidden, desc.intermediate);
    out.mlp_in = input(index, "gate, up", {&out.gate, &out.up});
    out.down_in = input(index, "down", {&out.down});
    out.mlp_norm = vector(index, "mlp_norm", plan_.hidden, true);
    out.mlp_post_norm = vector(index, "mlp_post_norm", plan_.hidden, false);
  }

  void head() {
    if (model_.embed == nullptr) fail(-1, "embed", "the weight is missing");
    plan_.embed = model_.embed->view();
    const bool up = model_.embed_up.weight != nullptr, down = model_.head_down.weight != nullptr;
    if (plan_.embed.n < plan_.vocab || (!up && plan_.embed.k != plan_.hidden))
      fail(-1, "embed",
           "the weight is " + shape(plan_.embed.n, plan_.embed.k) + ", the model needs " +
               shape(plan_.vocab, plan_.hidden));
    if (up) plan_.embed_up = thin("embed_up", model_.embed_up, plan_.hidden, plan_.embed.k);
    const int k = down ? model_.head_down.weight->view().n : plan_.hidden;
    if (down) plan_.head_down = thin("head_down", model_.head_down, k, plan_.hidden);
    plan_.head = resolve(-1, "head", model_.head, plan_.vocab, k);
    plan_.head_in = input(-1, "head", {&plan_.head});
    plan_.max_k_pad = std::max(plan_.max_k_pad, plan_.embed.k_pad);
    if (static_cast<int>(model_.final_norm.size()) != plan_.hidden)
      fail(-1, "final_norm", "has the wrong length");
    plan_.final_norm = model_.final_norm.data();
  }

  Thin thin(const std::string& part, const NamedWeight& named, int n, int k) {
    Thin found;
    found.linear = resolve(-1, part, named, n, k);
    found.in = input(-1, part, {&found.linear});
    return found;
  }

  // Thread boundaries in the sequence [kv heads, weight 2 each][q heads, weight 1 each].
  static std::vector<HeadRange> split_heads(int kv_heads, int heads, int threads) {
    const int total = 2 * kv_heads + heads;
    auto cut = [&](int thread) {  // -> (kv heads, q heads) that lie before this thread
      const int cost = (total * thread + threads / 2) / threads;
      const int kv = std::min(kv_heads, (cost + 1) / 2);
      return std::pair<int, int>(kv, std::max(0, cost - 2 * kv_heads));
    };
    std::vector<HeadRange> ranges;
    for (int t = 0; t < threads; ++t) {
      const auto [kv0, q0] = cut(t);
      const auto [kv1, q1] = cut(t + 1);
      ranges.push_back({kv0, kv1, q0, q1});
    }
    return ranges;
  }

  const ModelDesc& model_;
  const RuntimeDesc& runtime_;
  const KvCache& cache_;
  Plan& plan_;
};

}  // namespace

Plan make_plan(const ModelDesc& model, const RuntimeDesc& runtime, const KvCache& cache) {
  Plan plan;
  Planner(model, runtime, cache, plan).run();
  return plan;
}

}  // namespace octavo
