"""A model that learns rows for phrases; all else of it may stay as it is.

The row of a phrase in the embedding begins as a mean of its parts' rows in which the last weighs
most, and in the head as one in which the first does (AdaptiVocab, arXiv 2503.19693): what follows a
phrase follows its end, and what predicts a phrase predicts its beginning. How likely a phrase then
is comes from shifts (`octavo.vocab.phrase_start`, `octavo.vocab.phrase_split`). A head that was
tied to the embedding becomes a table of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.backends.reference.options import ReferenceOptions
from octavo.backends.reference.weights import Weights
from octavo.formats.number_format import FP32
from octavo.io.phrases import PhraseTable
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role, roles
from octavo.train.qat import QatModel

F32 = npt.NDArray[np.float32]

EMBED, HEAD = Role("embed"), Role("head")
_STEEP = 2.0  # a part weighs e^2 times its neighbour, as in AdaptiVocab

PACE = {EMBED: 10.0, HEAD: 5.0}  # times as fast as all else, where all is trained


class PhraseModel(QatModel):
    """Masters of the base model, and the rows of phrases beside them.

    whole  train every matrix, not the new rows alone
    rows   of phrases as they began, float32 [phrases, hidden] by role
    shifts how likely phrases are at first: float32 [vocab + phrases, hidden], added to the head's
           rows; None: as likely as their parts. Only with `whole` do the old tokens give away what
           phrases take, for only then their rows may move
    """

    def __init__(
        self,
        spec: DecoderSpec,
        masters: Weights,
        phrases: PhraseTable,
        whole: bool = False,
        shifts: F32 | None = None,
    ) -> None:
        untied = {**masters, HEAD: masters[head_role(spec)]}
        wide = replace(spec, vocab=spec.vocab + len(phrases), tied_head=False)
        super().__init__(wide, untied, dict.fromkeys(untied, FP32), ReferenceOptions())
        self.whole = whole
        self.rows = {
            EMBED: first_rows(untied[EMBED], phrases, _STEEP),
            HEAD: first_rows(untied[HEAD], phrases, -_STEEP),
        }
        # What is new has far to go, and what is old would forget at its pace: Adam's steps don't
        # depend on a parameter's size, so the rows' are those of a multiple.
        self._pace = dict(PACE) if whole else dict.fromkeys(PACE, 1.0)
        self._moves = {role: torch.zeros_like(w).requires_grad_() for role, w in self.rows.items()}
        if shifts is not None:
            self._shift(torch.from_numpy(shifts), spec.vocab)

    @classmethod
    def from_source(
        cls,
        source: WeightSource,
        spec: DecoderSpec,
        phrases: PhraseTable,
        whole: bool = False,
        shifts: F32 | None = None,
    ) -> PhraseModel:
        """From a base model's weights."""
        masters = {role: torch.from_numpy(np.array(source.tensor(role).float32(), np.float32))
                   for role in roles(spec)}  # fmt: skip
        return cls(spec, masters, phrases, whole, shifts)

    def parameters(self) -> dict[str, Tensor]:
        new = {f"{role} phrases": moves for role, moves in self._moves.items()}
        old = {str(role): self.masters[role] for role in self.masters if role in self.coded}
        return {**old, **new} if self.whole else new

    def recipe(self) -> dict[str, object]:
        return {**super().recipe(), "phrases": len(self.rows[HEAD]), "whole": self.whole}

    def _shift(self, shifts: Tensor, old: int) -> None:
        with torch.no_grad():
            self.rows[HEAD].add_(shifts[old:])
            if self.whole:
                self.masters[HEAD].add_(shifts[:old])

    def _merged(self, role: Role) -> Tensor:
        master = self.masters[role]
        return torch.cat([master, self.phrase_rows(role)]) if role in self.rows else master

    def phrase_rows(self, role: Role) -> Tensor:
        """float32 [phrases, hidden] of the embedding or the head, as training has moved them."""
        return self.rows[role] + self._pace[role] * self._moves[role]


def first_rows(table: Tensor, phrases: PhraseTable, steep: float) -> Tensor:
    """float32 [phrases, hidden]: means of parts' rows, part i weighing exp(steep * i)."""
    rows = []
    for phrase in phrases.phrases:
        share = torch.softmax(steep * torch.arange(len(phrase), dtype=torch.float32), dim=0)
        rows.append(share @ table.detach()[list(phrase)].float())
    return torch.stack(rows)
