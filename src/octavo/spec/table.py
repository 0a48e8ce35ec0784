"""Which family serves an architecture. Strings only: a family's module is imported when asked."""

from __future__ import annotations

import difflib
import importlib
from typing import NamedTuple, cast

from octavo.core.errors import UnsupportedError
from octavo.spec.family import Family


class Entry(NamedTuple):
    """Where a family lives, and the architectures it answers for."""

    module: str
    type: str
    hf: tuple[str, ...]
    gguf: tuple[str, ...]


FAMILIES: tuple[Entry, ...] = (
    Entry("llama", "Llama", ("LlamaForCausalLM",), ("llama",)),
    Entry("mistral", "Mistral", ("MistralForCausalLM",), ()),
    Entry("qwen2", "Qwen2", ("Qwen2ForCausalLM",), ("qwen2",)),
    Entry("qwen3", "Qwen3", ("Qwen3ForCausalLM",), ("qwen3",)),
    Entry("gemma2", "Gemma2", ("Gemma2ForCausalLM",), ("gemma2",)),
    Entry("gemma3", "Gemma3", ("Gemma3ForCausalLM", "Gemma3TextForCausalLM"), ("gemma3",)),
    Entry("phi3", "Phi3", ("Phi3ForCausalLM",), ("phi3",)),
    Entry("mixtral", "Mixtral", ("MixtralForCausalLM",), ()),
    Entry("qwen3_moe", "Qwen3Moe", ("Qwen3MoeForCausalLM",), ("qwen3moe",)),
)


def family_for_hf(architecture: str) -> Family:
    """The family of a config.json's architecture; UnsupportedError naming the nearest known one."""
    return _resolve(architecture, {name: entry for entry in FAMILIES for name in entry.hf})


def family_for_gguf(architecture: str) -> Family:
    """The family of a GGUF's general.architecture; UnsupportedError naming the nearest one."""
    return _resolve(architecture, {name: entry for entry in FAMILIES for name in entry.gguf})


def family_named(name: str) -> Family:
    """The family that a spec names (`DecoderSpec.family`)."""
    return _resolve(name, {entry.module: entry for entry in FAMILIES})


def _resolve(architecture: str, known: dict[str, Entry]) -> Family:
    entry = known.get(architecture)
    if entry is None:
        raise UnsupportedError(_unknown(architecture, tuple(known)))
    module = importlib.import_module(f"octavo.spec.families.{entry.module}")
    return cast(Family, getattr(module, entry.type)())


def _unknown(architecture: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(architecture, known, n=1, cutoff=0.4)
    hint = f" The nearest is {near[0]!r}." if near else ""
    return (
        f"architecture {architecture!r} is not supported.{hint} Supported: {', '.join(known)} "
        "(docs/adding-a-model.md tells how to add one)"
    )
