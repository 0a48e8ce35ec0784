"""The sizes that every config states, read and checked once for all families."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.spec.config_reader import MAX_LAYERS, MAX_SIZE, ConfigReader
from octavo.spec.decoder import Activation, AttentionSpec, DecoderSpec, LayerSpec, RopeSpec

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
_GGUF_FACTS = ("qkv_bias", "out_bias", "mlp_bias", "qk_norm", "tied_head", "vocab_size")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Plain numbers of a decoder, in the spec's own terms."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    max_positions: int
    tied_head: bool
    embed_rank: int = 0
    head_rank: int = 0

    def attention(self, rope: RopeSpec) -> AttentionSpec:
        """Attention of the usual scale, without biases, window or softcap."""
        scale = self.head_dim**-0.5
        return AttentionSpec(self.heads, self.kv_heads, self.head_dim, scale, rope)

    def decoder(self, family: str, layers: tuple[LayerSpec, ...]) -> DecoderSpec:
        return DecoderSpec(
            family=family,
            vocab=self.vocab,
            hidden=self.hidden,
            layers=layers,
            norm_eps=self.norm_eps,
            max_positions=max(self.max_positions, *(_yarn_reach(layer) for layer in layers)),
            tied_head=self.tied_head,
            embed_rank=self.embed_rank,
            head_rank=self.head_rank,
        )


def _yarn_reach(layer: LayerSpec) -> int:
    """Positions that yarn stretches the model to; configs keep stating those of before."""
    scaling = layer.attention.rope.scaling
    if scaling is None or scaling.kind != "yarn":
        return 0
    return min(round(scaling.factor * scaling.original_max_positions), MAX_SIZE)


def hf_sizes(config: ConfigReader, tied: bool = False, head_dim: int | None = None) -> Sizes:
    """Sizes of a config.json. `tied` and `head_dim` are the family's defaults."""
    hidden = config.int_("hidden_size", high=2**20)
    heads = config.int_("num_attention_heads", high=2**14)
    tied_head = config.bool_("tie_word_embeddings", tied)
    embed_rank, head_rank = _ranks(config, hidden, tied_head)
    return Sizes(
        vocab=config.int_("vocab_size", high=2**26),
        hidden=hidden,
        layers=config.int_("num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        kv_heads=_kv_heads(config, "num_key_value_heads", heads),
        head_dim=_head_dim(config, "head_dim", hidden, heads, head_dim),
        intermediate=config.int_("intermediate_size", high=2**24),
        norm_eps=config.float_("rms_norm_eps", 1e-6),
        max_positions=config.int_("max_position_embeddings"),
        tied_head=tied_head,
        embed_rank=embed_rank,
        head_rank=head_rank,
    )


def gguf_sizes(config: ConfigReader) -> Sizes:
    """Sizes of a GGUF header whose architecture prefix has been removed."""
    config.ignore(*_GGUF_FACTS)
    hidden = config.int_("embedding_length", high=2**20)
    heads = config.int_("attention.head_count", high=2**14)
    head_dim = _head_dim(config, "attention.key_length", hidden, heads, None)
    config.expect("attention.value_length", head_dim)
    return Sizes(
        vocab=config.int_("vocab_size", high=2**26),
        hidden=hidden,
        layers=config.int_("block_count", high=MAX_LAYERS),
        heads=heads,
        kv_heads=_kv_heads(config, "attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate=config.int_("feed_forward_length", high=2**24),
        norm_eps=config.float_("attention.layer_norm_rms_epsilon"),
        max_positions=config.int_("context_length"),
        tied_head=config.bool_("tied_head"),
    )


def hf_activation(
    config: ConfigReader, key: str = "hidden_act", default: str = "silu"
) -> Activation:
    return _ACTIVATIONS[config.choice(key, _ACTIVATIONS, default)]


def hf_windows(
    config: ConfigReader, layers: int, window: int | None, default: tuple[bool, ...]
) -> tuple[int | None, ...]:
    """Window of each layer: `layer_types` says which slide; absent, `default` does."""
    slides = default
    if config.given("layer_types"):
        types = config.strs("layer_types")
        if len(types) != layers or not set(types) <= {"sliding_attention", "full_attention"}:
            raise config.error(
                "layer_types", f"{layers} entries of 'sliding_attention' or 'full_attention'"
            )
        slides = tuple(kind == "sliding_attention" for kind in types)
    config.ignore("layer_types")
    return tuple(window if slide else None for slide in slides)


def _ranks(config: ConfigReader, hidden: int, tied: bool) -> tuple[int, int]:
    """Ranks of a factored vocabulary, keys of our own; a table that is the head too has one."""
    embed = config.int_("octavo_embed_rank", 0, low=0, high=hidden)
    head = config.int_("octavo_head_rank", 0, low=0, high=2 * hidden)
    if tied and embed != head:
        raise config.error("octavo_head_rank", f"octavo_embed_rank, {embed}: the head is tied")
    return embed, head


def _kv_heads(config: ConfigReader, key: str, heads: int) -> int:
    kv_heads = config.int_(key, heads)
    if heads % kv_heads:
        raise config.error(key, f"a divisor of the {heads} attention heads")
    return kv_heads


def _head_dim(config: ConfigReader, key: str, hidden: int, heads: int, default: int | None) -> int:
    if default is None and hidden % heads == 0:
        default = hidden // heads
    head_dim = config.int_(key, default, high=2**12)
    if head_dim % 2:
        raise config.error(key, "an even head size, since rope rotates halves")
    return head_dim
