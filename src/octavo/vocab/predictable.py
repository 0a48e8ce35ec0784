"""What a phrase costs: what the model knows of its later parts only once it has read the first.

A phrase is predicted before its first part is read. What the head can say then of the later ones
is taken for the share that they have in the text; what is lost is the mutual information of the
next part and all that came before, given the parts read so far, by the model's own probabilities:
the mean over the places of a beginning of KL(p || mean p), p being of "this part is next" against
all else. Parts that follow almost always, or by chance, cost nothing; those that the context
decides cost most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from octavo.vocab.mine import Phrase
from octavo.vocab.phrase_split import Reader, Text

_EDGE = 1e-7  # probabilities stay that far from 0 and 1


def costs(runs: Sequence[Phrase], text: Text, reader: Reader) -> Mapping[Phrase, float]:
    """Nats that one use of each run costs; every run of more than two tokens has the one without
    its last among them. A run whose beginning the text doesn't have costs infinitely much."""
    nexts: dict[Phrase, list[int]] = {}
    for run in runs:
        nexts.setdefault(run[:-1], []).append(run[-1])
    where = _ends(text, nexts)
    own: dict[Phrase, float] = {}
    for begun, parts in nexts.items():
        found = [np.inf] * len(parts)
        if begun in where:
            at = np.array(where[begun], np.int64)
            found = information(reader.likely(at, np.array(parts, np.int64))).tolist()
        own.update(zip(((*begun, part) for part in parts), found, strict=True))
    return {run: sum(own[run[:size]] for size in range(2, len(run) + 1)) for run in runs}


def information(likely: Tensor) -> Tensor:
    """Nats per occurrence, float32 [k], of parts whose probabilities at n places are [n, k]."""
    p = likely.double().clamp(_EDGE, 1 - _EDGE)
    mean = p.mean(dim=0)
    gap = p * (p / mean).log() + (1 - p) * ((1 - p) / (1 - mean)).log()
    return (gap.mean(dim=0) / mean).float()


def _ends(text: Text, wanted: Mapping[Phrase, object]) -> dict[Phrase, list[int]]:
    """Places in the text at which each run has just been read."""
    longest = max(map(len, wanted))
    found: dict[Phrase, list[int]] = {}
    for begin in range(0, len(text.tokens), text.window):
        window = tuple(text.tokens[begin : begin + text.window].tolist())
        for end in range(1, len(window) + 1):
            for size in range(1, min(longest, end) + 1):
                if (run := window[end - size : end]) in wanted:
                    found.setdefault(run, []).append(begin + end - 1)
    return found
