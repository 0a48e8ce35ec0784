"""Find the phrases that save most tokens on a corpus, across word boundaries.

SuperBPE (arXiv 2503.13423) goes on merging pairs without regard to words; here the tokenizer stands
already, so runs of its tokens compete by what they save: occurrences times (tokens - 1), as in
AdaptiVocab (arXiv 2503.19693). Runs overlap, so occurrences alone promise too much: four times as
many candidates as wanted are taken, the corpus is cut with them, and those that are used least go,
a quarter at a time, until as many are left as were asked for. With a price, what a phrase saves is
what is left when the nats that it costs are paid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from octavo.core.errors import ConfigError, UserError
from octavo.io.phrases import PhraseTable

Phrase = tuple[int, ...]
Costs = Callable[[Sequence[Phrase]], Mapping[Phrase, float]]


@dataclass(frozen=True, slots=True)
class MinePlan:
    """What may become a phrase.

    count    phrases to find
    words    of a phrase at most (a word begins at white space)
    tokens   of a phrase at most
    least    occurrences at least
    price    tokens that a nat must save which a phrase costs (`octavo.vocab.predictable`)
    """

    count: int
    words: int = 5
    tokens: int = 8
    least: int = 4
    price: float = 0.0

    def __post_init__(self) -> None:
        if min(self.count, self.words) < 1 or self.tokens < 2 or self.least < 2:
            raise ConfigError("give at least 1 phrase of 1 word and 2 tokens that occurs twice")
        if not self.price >= 0:
            raise ConfigError(f"price is {self.price}: give 0 tokens per nat, or more")


@dataclass(frozen=True, slots=True)
class Saving:
    """Phrases of one number of words: how many there are, how often the corpus uses them, and the
    tokens that it saves."""

    words: int
    phrases: int
    uses: int
    saved: int


def mine(
    texts: Sequence[Sequence[int]],
    plan: MinePlan,
    spell: Callable[[int], bytes],
    first: int,
    costs: Costs | None = None,
) -> PhraseTable:
    """The phrases of texts given as tokens below `first`; `spell` gives a token's bytes (none for
    control tokens, which no phrase holds); `costs` tells the nats that one use of each run costs,
    where they have a price. Most saving first.

    Raises UserError when nothing occurs often enough.
    """
    found = _candidates(texts, plan, spell)
    runs = sorted(found, key=lambda run: (-found[run] * (len(run) - 1), run))
    cost = costs(runs) if plan.price and costs else dict.fromkeys(runs, 0.0)
    worth = {run: len(run) - 1 - plan.price * cost[run] for run in runs}
    paying = [run for run in runs if worth[run] > 0]
    chosen = sorted(paying, key=lambda run: -found[run] * worth[run])[: 4 * plan.count]
    if not chosen:
        raise UserError(
            f"no run of tokens occurs {plan.least} times: give a longer text of one kind"
        )
    while True:
        used = usage(texts, PhraseTable(first, chosen))
        ranked = sorted(chosen, key=lambda run: (-used[run] * worth[run], run))
        ranked = [phrase for phrase in ranked if used[phrase] >= plan.least]
        if len(chosen) <= plan.count:
            return PhraseTable(first, ranked)
        chosen = ranked[: max(plan.count, min(len(ranked), len(chosen) * 3 // 4))]


def usage(texts: Iterable[Sequence[int]], table: PhraseTable) -> Counter[Phrase]:
    """How often each phrase is used where the texts are cut with them."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(token for token in table.joined(text) if token >= table.first)
    return Counter({table.parts(token): count for token, count in counts.items()})


def savings(
    texts: Sequence[Sequence[int]], table: PhraseTable, spell: Callable[[int], bytes]
) -> tuple[Saving, ...]:
    """By the number of words."""
    used = usage(texts, table)
    rows: dict[int, list[int]] = {}
    for phrase in table.phrases:
        row = rows.setdefault(word_count(phrase, spell), [0, 0, 0])
        row[0] += 1
        row[1] += used[phrase]
        row[2] += used[phrase] * (len(phrase) - 1)
    return tuple(Saving(words, *row) for words, row in sorted(rows.items()))


def word_count(phrase: Sequence[int], spell: Callable[[int], bytes]) -> int:
    """Words of a phrase; white space alone is one."""
    return max(1, len(b"".join(map(spell, phrase)).decode("utf-8", "replace").split()))


def _candidates(
    texts: Sequence[Sequence[int]], plan: MinePlan, spell: Callable[[int], bytes]
) -> Counter[Phrase]:
    """How often runs occur that do so often enough. A run is counted only where the one without
    its last token was frequent: no other can be."""
    spelled = {token: spell(token) for text in texts for token in set(text)}
    rows = [tuple(text) for text in texts]
    frequent: set[Phrase] = {(token,) for token, piece in spelled.items() if piece}
    found: Counter[Phrase] = Counter()
    for size in range(2, plan.tokens + 1):
        counts: Counter[Phrase] = Counter(
            row[i : i + size]
            for row in rows
            for i in range(len(row) - size + 1)
            if row[i : i + size - 1] in frequent and spelled[row[i + size - 1]]
        )
        enough = {run: n for run, n in counts.items() if n >= plan.least}
        frequent = {run for run in enough if word_count(run, spelled.__getitem__) <= plan.words}
        found.update({run: enough[run] for run in frequent})
    return found
