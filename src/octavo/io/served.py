"""What an artifact was compressed for: activations, and the format of keys and values.

Stored in the manifest as `runtime`; the quality in it was measured with them, so that whatever
runs the artifact takes them unless it is told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.io.weights import WeightSource


@dataclass(frozen=True, slots=True)
class Served:
    """Names as `RuntimeConfig` has them; "auto" where the artifact asks for nothing.

    keep    (part, activations) exceptions, the last that names a matrix counting
    maxima  of static activations: the largest input of each matrix while calibrating, by its name
            ("layers.3.down", "head")
    """

    activations: str = "auto"
    kv: str = "auto"
    keep: tuple[tuple[str, str], ...] = ()
    maxima: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """As the manifest has it; `from_dict`'s inverse."""
        return {
            "activations": self.activations,
            "kv": self.kv,
            "keep": [list(pair) for pair in self.keep],
            "maxima": dict(self.maxima),
        }

    @classmethod
    def from_dict(cls, content: object) -> Served:
        """Raises ValueError, saying what is wrong with it."""
        if not isinstance(content, Mapping) or content.keys() - set(cls().to_dict()):
            raise ValueError("must be an object of activations, kv, keep and maxima")
        words = {key: content.get(key, "auto") for key in ("activations", "kv")}
        if not all(isinstance(word, str) for word in words.values()):
            raise ValueError("activations and kv must be texts")
        pairs: Any = content.get("keep", [])
        if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
            raise ValueError("keep must be a list of pairs of texts")
        maxima: Any = content.get("maxima", {})
        if not isinstance(maxima, Mapping) or not all(_is_size(x) for x in maxima.values()):
            raise ValueError("maxima must be finite numbers, not negative")
        keep = tuple((part, name) for part, name in pairs)
        return cls(words["activations"], words["kv"], keep, dict(maxima))


def served_by(source: WeightSource) -> Served:
    """What the artifact behind a source was compressed for; of anything else, nothing."""
    found = getattr(source, "served", None)
    return found if isinstance(found, Served) else Served()


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)


def _is_size(x: object) -> bool:
    return isinstance(x, (int, float)) and type(x) is not bool and 0 <= x < math.inf
