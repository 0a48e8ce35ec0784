"""What a load will take, checked before it begins, and the context that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.backends.base import KvFormat, KvGroup, KvLayout, RuntimeConfig
from octavo.backends.served import cache_tokens, whole_cache
from octavo.core.errors import ResourceError, UnsupportedError
from octavo.formats.kivi import KIVI_BITS, RECENT
from octavo.formats.kv import kv_head_bytes
from octavo.spec.decoder import DecoderSpec
from octavo.spec.graph import kv_groups

DEFAULT_CONTEXT = 8192  # of a model that could take more, when none is asked for: rope tables cost
LAYOUT_ID = "octavo.kv.2"
_SPARE = 64 << 20  # code, buffers of a step, Python
_MIN_CONTEXT = 256
_RECENT_SHARE = 16  # of the tokens of a KIVI cache, how many stay in bf16 for prefixes found again


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes: `packed` of all weights, `available` on the machine now, or what was granted;
    `smaller`: what the weights would take in other formats, the largest first; `fixed`: what the
    cache takes however few tokens it holds."""

    packed: int
    available: int
    smaller: tuple[tuple[str, int], ...] = ()
    fixed: int = 0

    @property
    def room(self) -> int:
        """What is left for the cache's tokens."""
        return self.available - self.packed - self.fixed - _SPARE


def kv_layout(spec: DecoderSpec, config: RuntimeConfig) -> KvLayout:
    """Groups of the spec in native's block order (native/core/types.h); of KIVI, then those of the
    recent tokens, which slide out of bf16 as out of a window."""
    kv: KvFormat = "bf16" if config.kv_format == "auto" else config.kv_format
    groups = tuple(KvGroup(g.layers, g.kv_heads, g.head_dim, g.window) for g in kv_groups(spec))
    if kv in KIVI_BITS:
        groups += tuple(
            replace(g, window=min(RECENT, g.window or RECENT), format="bf16") for g in groups
        )
    block_bytes = tuple(
        2 * len(g.layers) * g.kv_heads * config.block_size
        * kv_head_bytes(kv if g.format == "auto" else g.format, g.head_dim)
        for g in groups
    )  # fmt: skip
    layout_id = f"{LAYOUT_ID}.{kv}"
    return KvLayout(groups, config.block_size, kv, layout_id, block_bytes)


def kv_bytes_per_token(layout: KvLayout) -> int:
    """What a token adds to the cache; in KIVI's, what stays of it."""
    return _block_bytes(layout, recent=False) // layout.block_size


def recent_bytes(layout: KvLayout, config: RuntimeConfig) -> int:
    """What the recent tokens of max_seqs sequences take in bf16 beside a KIVI cache."""
    return _block_bytes(layout, recent=True) * _recent_blocks(layout, config)


def cost_per_token(layout: KvLayout) -> int:
    """`kv_bytes_per_token`, and the token's part of the bf16 kept for prefixes."""
    kept = _block_bytes(layout, recent=True) // (layout.block_size * _RECENT_SHARE)
    return kv_bytes_per_token(layout) + kept


def _block_bytes(layout: KvLayout, recent: bool) -> int:
    pairs = zip(layout.groups, layout.block_bytes, strict=True)
    return sum(size for group, size in pairs if (group.format != "auto") == recent)


def _recent_blocks(layout: KvLayout, config: RuntimeConfig) -> int:
    """Blocks that max_seqs sequences hold within RECENT tokens, and one step's rows."""
    each = -(-RECENT // layout.block_size) + 2
    return config.max_seqs * each + -(-config.max_tokens // layout.block_size)


def kv_blocks(layout: KvLayout, config: RuntimeConfig) -> tuple[int, ...]:
    """Blocks of each group: kv_tokens, however they fall on max_seqs sequences; of recent tokens
    those in use, and a share of all, so that texts that begin alike find their beginning."""
    count = -(-config.kv_tokens // layout.block_size) + config.max_seqs - 1
    recent = min(count, _recent_blocks(layout, config) + count // _RECENT_SHARE)
    return tuple(count if group.format == "auto" else recent for group in layout.groups)


def choose_cache(
    config: RuntimeConfig, per_token: int, budget: Budget
) -> tuple[RuntimeConfig, str]:
    """The config, whose context is settled, with the cache's tokens, and a note when memory allows
    less than `kv_share` is meant for."""
    room = max(0, budget.room) // per_token
    tokens, whole = cache_tokens(config, room), whole_cache(config)
    found = replace(config, kv_tokens=tokens)
    if config.kv_tokens or not config.kv_share or tokens == whole:
        return found, ""
    share = "the memory granted" if config.memory else f"{config.kv_share:.0%} of the free memory"
    return found, (
        f"cache of {tokens} tokens ({_size(tokens * per_token)}) where {config.max_seqs} sequences"
        f" of {config.context} take up to {whole}: within {share}; long ones may wait for others"
    )


def choose_context(
    spec: DecoderSpec, config: RuntimeConfig, per_token: int, budget: Budget
) -> tuple[int, str]:
    """The longest sequence to serve, and a note when it is less than the model's own maximum.

    Raises UnsupportedError when more is asked for than the model has positions, ResourceError
    when weights and cache can't fit.
    """
    if config.context > spec.max_positions:
        raise UnsupportedError(
            f"context {config.context} exceeds the model's {spec.max_positions} positions; "
            "ask for less"
        )
    if config.context == 1:
        raise UnsupportedError("context 1 holds no prompt with an answer; ask for at least 2")
    room = budget.room // per_token
    if config.context:
        _check(budget, max(config.context, config.kv_tokens) * per_token, config)
        return config.context, ""
    if config.kv_tokens:
        _check(budget, config.kv_tokens * per_token, config)
    most = min(spec.max_positions, DEFAULT_CONTEXT)
    context = min(most, room if config.kv_tokens == 0 else most)
    if context < min(most, _MIN_CONTEXT):
        _check(budget, min(most, _MIN_CONTEXT) * per_token, config)
    if context == spec.max_positions:
        return context, ""
    why = "what memory allows" if context < most else "the default"
    return context, f"context {context} of the model's {spec.max_positions}: {why}"


def _check(budget: Budget, kv: int, config: RuntimeConfig) -> None:
    kv += budget.fixed
    need = budget.packed + kv + _SPARE
    if need <= budget.available:
        return
    raise ResourceError(
        f"this model needs {_size(need)} (weights {_size(budget.packed)}, cache {_size(kv)}), and "
        f"{_size(budget.available)} are available; {_advice(budget, kv)}"
    )


def _advice(budget: Budget, kv: int) -> str:
    room = budget.available - kv - _SPARE
    fitting = [(name, size) for name, size in budget.smaller if size <= room]
    if not fitting:
        return "use a shorter context, or a smaller model: no format is small enough"
    name, size = fitting[0]
    return f"use --format {name} (weights {_size(size)}) or fewer bits, or a shorter context"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
