"""Formats of keys and values beside the methods for weights: what `octavo methods` says of them."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.backends.base import REFERENCE_ONLY
from octavo.formats.kv import kv_head_bytes

_HEAD = 64  # elements of a key, of which `bits` speaks
_ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("int8", "head of a token; keys rotated", "arXiv 2404.00456", ()),
    ("int8_dot", "as int8; queries and the softmax's weights in 8 bits too, so that attention's "
     "products are of integers", "", ("integer attention", "integer pipeline")),
    ("int4", "32 channels of a token; rotated", "arXiv 2404.00456", ()),
    ("fp8_e4m3", "none: no scale", "arXiv 2209.05433", ("fp8",)),
    ("fp8_e5m2", "none: no scale", "arXiv 2209.05433", ("fp8",)),
    ("kivi2", "keys: channel of 32 tokens, values: 32 channels of a token; 128 recent tokens in "
     "bf16", "arXiv 2402.02750", ("kivi",)),
    ("kivi4", "as kivi2", "arXiv 2402.02750", ("kivi",)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CacheFormat:
    """A rounding of keys and values as they are written: approximated, dynamic, no data needed.

    bits     per key or value element of a head of 64, scales counted
    shares   what shares a scale
    backend  that runs it: "native", or "reference" where no native kernel does
    """

    name: str
    bits: float
    shares: str
    backend: str
    synonyms: tuple[str, ...]
    source: str


def cache_formats() -> tuple[CacheFormat, ...]:
    return tuple(_row(*row) for row in _ROWS)


def find_cache_formats(term: str) -> tuple[CacheFormat, ...]:
    """Those of this name or, when there is none, of this synonym (any case)."""
    wanted, rows = term.strip().casefold(), cache_formats()
    named = tuple(row for row in rows if row.name == wanted)
    common = ("kv", "kv cache", "key/value cache")
    return named or tuple(row for row in rows if wanted in (*row.synonyms, *common))


def _row(name: str, shares: str, source: str, synonyms: tuple[str, ...]) -> CacheFormat:
    backend = "reference" if name in REFERENCE_ONLY else "native"
    bits = 8 * kv_head_bytes(name, _HEAD) / _HEAD
    return CacheFormat(name, bits, shares, backend, synonyms, source)
