"""What a method says of itself, once, for `octavo methods` and whoever reads its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Facts:
    """Beside a method's `needs`.

    output     preserved up to rounding (then `proof` is the test that holds it), or approximated
    quantizes  what its own step stores in fewer bits
    choice     how its numbers are found
    format     one that it is usual with; of a transform or pruner, its encoder's
    synonyms   other words that people look for it by
    source     paper or code
    """

    output: Literal["preserved", "approximated"]
    quantizes: Literal["weights", "nothing by itself"]
    choice: Literal["closed form", "heuristic", "searched on a grid", "solved", "learned"]
    format: str
    source: str
    synonyms: tuple[str, ...] = ()
    proof: str = ""
