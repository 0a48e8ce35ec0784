"""Which of the phrases that begin alike it is, fitted to what the base model says of it.

The share of its first part's probability that a phrase has in a text (`octavo.vocab.phrase_start`)
knows how often, not when. A head's row can tell by the hidden state: inside the group of all tokens
that begin with one part this is a multinomial logistic regression on the states in which the base
model predicts that part, and no pass through the model is needed to fit it. Targets are not what
came but the base model's probabilities of the next parts, read off one part later: a choice at
every token on the way (`octavo.vocab.phrase_tree`). Each row is pulled to its start by a normal
prior on its weights, in coordinates in which the states' second moment is the identity: without it
the fit learns the text by heart.

A fit leaves open what all rows of a group have in common, and that would change how likely the
first part is: the logarithm of the group's sum is taken back, as far as a direction can, by least
squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.vocab.lowrank import second_moment
from octavo.vocab.phrase_tree import Choice, PhraseTree

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_PRIOR = 100.0  # precision of a weight: with 256 of them a logit's deviation is 1.6
_DAMPING = 1e-3  # of the second moment's mean diagonal
_ITERATIONS = 25
_LEAST = 1e-20  # of a probability whose logarithm is taken
_AT_ONCE = 1024  # states whose logits are taken at a time
_OTHERS = 2000  # states of any kind beside a group's own, where its sum shall not change either


@dataclass(frozen=True, slots=True)
class Text:
    """A text as the base model has read it.

    tokens  int64 [n], its own; windows of them were read from an empty context
    window  tokens of each but the last
    states  float32 [n, hidden] that the head reads behind each
    """

    tokens: I64
    window: int
    states: F32


@dataclass(frozen=True, slots=True)
class Visits:
    """Where a choice was made, int64 [n] each: places in a text whose states predict the first part
    (`read`), and whose states predict what is next (`at`)."""

    read: I64
    at: I64


def visits(text: Text, tree: PhraseTree) -> dict[int, Visits]:
    """Of every token that phrases go on from and that the text reaches."""
    found: dict[int, list[tuple[int, int]]] = {}
    for begin in range(0, len(text.tokens), text.window):
        window = text.tokens[begin : begin + text.window].tolist()
        place = begin  # of the last token read; the window's first has nothing before it
        for token in tree.phrases.joined(window[1:]):
            for step, size in tree.chosen(token):
                found.setdefault(step, []).append((place, place + size))
            place += len(tree.phrases.parts(token))
    pairs = {token: np.array(rows, np.int64) for token, rows in found.items()}
    return {token: Visits(rows[:, 0], rows[:, 1]) for token, rows in pairs.items()}


@dataclass(frozen=True, slots=True)
class _Node:
    """A choice inside a group.

    rows     int64 [v], of the group's places: where it was made
    columns  int64 [m], of the group's tokens: those it chooses from
    member   float32 [m, k + 1]: 1 where a token is of a class
    wanted   float32 [v, k + 1]: the base model's probabilities of the classes
    """

    rows: Tensor
    columns: Tensor
    member: Tensor
    wanted: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """Cross entropy, summed, of logits [places, tokens of the group]."""
        own = logits[self.rows[:, None], self.columns]
        likely = torch.softmax(own, dim=-1) @ self.member
        return -(self.wanted * likely.clamp_min(_LEAST).log()).sum()


class Reader:
    """What the base model says at places of a text: `head` float32 [vocab, hidden] is its own."""

    def __init__(self, text: Text, head: F32, softcap: float | None) -> None:
        self._states, self._head = torch.from_numpy(text.states), torch.from_numpy(head)
        self._softcap = softcap
        starts = range(0, len(self._states), _AT_ONCE)
        parts = (self._logits(self._states[i : i + _AT_ONCE], self._head) for i in starts)
        self._total = torch.cat([torch.logsumexp(part, dim=-1) for part in parts])

    def likely(self, at: I64, parts: I64) -> Tensor:
        """float32 [n, k]: that each of the parts is next, at n places."""
        places = torch.from_numpy(at)
        logits = self._logits(self._states[places], self._head[torch.from_numpy(parts)])
        return (logits - self._total[places, None]).exp()

    def classes(self, at: I64, choice: Choice) -> Tensor:
        """float32 [n, k + 1]: probabilities of a choice's classes, the rest's the last."""
        likely = self.likely(at, choice.parts)
        return torch.cat([likely, (1 - likely.sum(dim=-1, keepdim=True)).clamp_min(0)], dim=-1)

    def _logits(self, states: Tensor, rows: Tensor) -> Tensor:
        logits = states @ rows.T
        cap = self._softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Splitter:
    """Fits group after group on one text."""

    def __init__(self, text: Text, reader: Reader, tree: PhraseTree) -> None:
        self._tree, self._seen = tree, visits(text, tree)
        self._reader = reader
        self._states = torch.from_numpy(text.states)
        self._whiten = torch.from_numpy(_whitening(text.states))
        others = self._states[:: max(1, len(self._states) // _OTHERS)]
        self._others = others @ self._whiten

    def shifts(self, start: F32) -> F32:
        """Float32 [vocab + phrases, hidden], to add to the head's rows, from those of a start."""
        shifts: F32 = start.copy()
        for root in self._tree.choices:
            if root < self._tree.phrases.first and root in self._seen:
                tokens = self._tree.choices[root].tokens
                shifts[tokens] += self._moved(root, torch.from_numpy(shifts[tokens])).numpy()
        return shifts

    def _moved(self, root: int, begun: Tensor) -> Tensor:
        """[tokens of the group, hidden]"""
        read = self._seen[root].read
        raw = self._states[torch.from_numpy(read)]
        first, states = raw @ begun.T, raw @ self._whiten
        nodes = list(self._nodes(root, read))
        moves = _least(len(begun), states, first, nodes)
        return (moves - self._common(moves, begun, states, first)) @ self._whiten.T

    def _nodes(self, root: int, read: I64) -> Iterator[_Node]:
        """The root's choice and those behind it; a place is visited once by each."""
        column = {token: i for i, token in enumerate(self._tree.choices[root].tokens.tolist())}
        for token in column:
            if token not in self._tree.choices or token not in self._seen:
                continue
            choice, seen = self._tree.choices[token], self._seen[token]
            if len(choice.parts):
                yield _Node(
                    torch.from_numpy(np.searchsorted(read, seen.read)),
                    torch.tensor([column[t] for t in choice.tokens.tolist()]),
                    F.one_hot(torch.from_numpy(choice.classes), len(choice.parts) + 1).float(),
                    self._reader.classes(seen.at, choice),
                )

    def _common(self, moves: Tensor, begun: Tensor, states: Tensor, first: Tensor) -> Tensor:
        """[hidden]: the direction along which the group's sum has changed, which is undone."""
        others = self._others @ torch.linalg.solve(self._whiten, begun.T)
        x = torch.cat([states, self._others])
        sums = torch.logsumexp(torch.cat([first, others]) + x @ moves.T, dim=-1)
        gram = x.T @ x + _PRIOR * torch.eye(x.shape[1])
        found: Tensor = torch.linalg.solve(gram, x.T @ sums)
        return found


def _least(count: int, states: Tensor, first: Tensor, nodes: Sequence[_Node]) -> Tensor:
    """The weights, float32 [count, hidden], of least loss under the prior."""
    weights = torch.zeros(count, states.shape[1], requires_grad=True)
    descent = torch.optim.LBFGS(
        [weights], max_iter=_ITERATIONS, history_size=8, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        descent.zero_grad()
        logits = first + states @ weights.T
        total = _PRIOR / 2 * weights.square().sum()
        for node in nodes:
            total = total + node.loss(logits)
        torch.autograd.backward([total])
        return total

    if nodes:
        descent.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _whitening(states: F32) -> F32:
    """W, symmetric float32 [hidden, hidden]: the second moment of states W is the identity."""
    moment = second_moment(states)
    damped = moment + _DAMPING * np.trace(moment) / len(moment) * np.eye(len(moment))
    values, vectors = np.linalg.eigh(damped)
    return np.asarray((vectors * values**-0.5) @ vectors.T, np.float32)
