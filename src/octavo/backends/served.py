"""Settles what "auto" means for a model: what its artifact was compressed for, if it is one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

from octavo.backends.base import ActivationFormat, KvFormat, RuntimeConfig
from octavo.core.errors import UnsupportedError
from octavo.formats.activations import OUTLIER
from octavo.formats.kivi import KIVI_BITS, KIVI_GROUP
from octavo.formats.kv import KV_GROUP
from octavo.io.served import Served, served_by
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role

VARIANT = "a8_tensor: not batch-invariant, one scale for all rows of a step"
_MANY_OUTLIERS = 0.01


def settled(config: RuntimeConfig, source: WeightSource) -> tuple[RuntimeConfig, tuple[str, ...]]:
    """The config with KV "auto" replaced and the artifact's activations taken, and what the receipt
    should say of it.

    Whoever asks for activations or another weight format overrides all of the artifact's
    activations. Raises UnsupportedError when the artifact asks for what this Octavo doesn't know.
    """
    served = served_by(source)
    _check(served)
    kept: list[str] = []
    overridden: list[str] = []
    if served.kv != "auto":
        same = config.kv_format in ("auto", served.kv)
        (kept if same else overridden).append(f"KV {served.kv}")
    asked = config.activations != "auto" or config.format != "source"
    if served.activations != "auto" or served.keep:
        same = not asked or config.activations == served.activations
        exceptions = "".join(f", {part} {name}" for part, name in served.keep)
        (kept if same else overridden).append(f"activations {served.activations}{exceptions}")
        if not asked:
            config = replace(
                config,
                activations=cast(ActivationFormat, served.activations),
                keep_activations=cast(tuple[tuple[str, ActivationFormat], ...], served.keep),
            )
    if config.kv_format == "auto":
        kv = "bf16" if served.kv == "auto" else served.kv
        config = replace(config, kv_format=cast(KvFormat, kv))
    return config, _notes(kept, overridden)


def activations_for(role: Role, config: RuntimeConfig) -> ActivationFormat:
    """Activations of one matrix: the last of `keep_activations` that names it, or its part."""
    names = {str(role.part)} if role.layer is None else {f"layers.{role.layer}.{role.part}"}
    names |= {str(role.part)} | ({"head"} if role.part == "embed" else set())
    found = [name for part, name in config.keep_activations if part in names]
    return found[-1] if found else config.activations


def _full_names(role: Role) -> tuple[str, ...]:
    """What a recipe calls one matrix; a tied head is called by either name."""
    if role.layer is None:
        return (str(role.part), "head") if role.part == "embed" else (str(role.part),)
    expert = "" if role.expert is None else f"experts.{role.expert}."
    return (f"layers.{role.layer}.{expert}{role.part}",)


def largest_input(role: Role, maxima: Mapping[str, float]) -> float:
    """What a8_static takes for a matrix's largest input. Raises UnsupportedError without one."""
    name = next((name for name in _full_names(role) if name in maxima), None)
    if name is None:
        raise UnsupportedError(
            f"a8_static needs the largest input of {role}, which an artifact compressed with "
            "--activations a8_static holds; use a8_token, or compress the model so"
        )
    return maxima[name]


def check_variant(config: RuntimeConfig) -> None:
    """Raises UnsupportedError where strict refuses what isn't batch-invariant."""
    if config.strict:
        raise UnsupportedError(
            "strict: activations a8_tensor take one scale for all rows of a step, so that a text's "
            "numbers depend on its neighbours; use a8_token or a8_static"
        )


def outlier_notes(seen: int, found: int) -> tuple[str, ...]:
    """What LLM.int8() kept out of its integers, of the inputs it has seen so far."""
    if not seen:
        return ()
    share = found / seen
    note = f"llm_int8: {share:.3%} of inputs exceeded {OUTLIER:g} and were not rounded"
    if share <= _MANY_OUTLIERS:
        return (note,)
    return (f"WARNING: {note}: more than {_MANY_OUTLIERS:.0%}, so integers save little here",)


def cache_tokens(config: RuntimeConfig, room: int) -> int:
    """Tokens of the cache, of a config whose context is settled: what was asked for, or one
    context; with `kv_share`, the contexts of all sequences, as far as that share of `room` (tokens
    that the memory left over takes) goes. What was granted (`memory`) may be used whole."""
    if config.kv_tokens or not config.kv_share:
        return config.kv_tokens or config.context
    within = int(room * (1.0 if config.memory else config.kv_share))
    return max(config.context, min(whole_cache(config), within))


def whole_cache(config: RuntimeConfig) -> int:
    """Tokens of a cache that no sequence ever waits for."""
    return config.context * config.max_seqs


def block_size_for(config: RuntimeConfig) -> int:
    """The config's, rounded up so that KIVI's groups of tokens don't cross blocks: texts can share
    a block, or drop it."""
    if config.kv_format not in KIVI_BITS:
        return config.block_size
    return -(-config.block_size // KIVI_GROUP) * KIVI_GROUP


def kv_reasons(spec: DecoderSpec, kv: str) -> tuple[str, ...]:
    """Why keys and values of this model can't be stored so; () when they can."""
    if kv in ("int4", *KIVI_BITS) and any(
        layer.attention.head_dim % KV_GROUP for layer in spec.layers
    ):
        return (f"kv_format {kv} needs a head_dim that {KV_GROUP} divides; use int8",)
    return ()


def _notes(kept: list[str], overridden: list[str]) -> tuple[str, ...]:
    notes = [f"{' and '.join(kept)}: as the artifact was compressed for"] if kept else []
    if overridden:
        notes.append(
            f"the artifact was compressed for {' and '.join(overridden)}, which an option overrides"
        )
    return tuple(notes)


def _check(served: Served) -> None:
    known: dict[str, tuple[str, ...]] = {
        "activations": get_args(ActivationFormat), "KV format": get_args(KvFormat),
    }  # fmt: skip
    asked = [("activations", served.activations), ("KV format", served.kv)]
    for what, name in (*asked, *(("activations", name) for _, name in served.keep)):
        if name not in known[what]:
            near = difflib.get_close_matches(name, known[what], 1, 0.0)[0]
            raise UnsupportedError(
                f"the artifact was compressed for {what} {name!r}, which this Octavo doesn't know "
                f"(nearest: {near}); use the Octavo that wrote it, or ask for others"
            )
