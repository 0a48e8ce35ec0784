"""A table as two thin ones: W [vocab, hidden] ~ A [vocab, rank] B [rank, hidden].

Eckart and Young: the best A B in the Frobenius norm keeps the `rank` largest singular values of W,
and its squared error is the sum of the others' squares. Embeddings have flat spectra, so what is
approximated here is not W but what it is used for (ALBERT, arXiv 1909.11942, trains its factors;
these are fitted to a model that exists).

head   logits W h of hidden states h with the second moment C = E[h h']: W C^1/2 is approximated,
       each row weighted by how often its token is likely. A row's own error is least for any
       weights, which decide only what the rows share, B.
table  rows looked up: weighted by how often their token occurs; C is the identity.

The factors' columns come with the largest share of the logits first, and few hold most of it. Fewer
bits for all columns but twice as many for the first is what transform coding makes of that: the
first columns are stored again, as what rounding left of them, and the product adds up both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError, NumericsError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_DAMPING = 1e-6  # of C's mean diagonal: directions that no hidden state had stay invertible
_BLOCK = 1 << 14  # rows of a table at a time: its fp64 form stays small


@dataclass(frozen=True, slots=True)
class Factors:
    """rows float32 [vocab, rank]; shared float32 [rank, hidden]; their product is the table.

    energy  the weighted squared singular values, largest first, [hidden]: `lost` sums the rest
    """

    rows: F32
    shared: F32
    energy: F64

    @property
    def lost(self) -> float:
        """Share of the weighted squares that the factors don't hold: exact (Eckart-Young) for
        equal row weights."""
        rank = self.shared.shape[0]
        return float(self.energy[rank:].sum() / self.energy.sum())


def factor(
    table: F32, rank: int, moment: F64 | None = None, row_weight: F64 | None = None
) -> Factors:
    """The best factors of a table for inputs of the second moment `moment` float64 [hidden, hidden]
    (None: the identity) and rows of weight `row_weight` float64 [vocab] (None: equal).

    Raises ConfigError for a rank out of range, NumericsError for values that aren't finite.
    """
    hidden = table.shape[1]
    if not 1 <= rank <= hidden:
        raise ConfigError(f"rank {rank} is not between 1 and the model's {hidden} hidden values")
    root, inverse = _roots(np.eye(hidden) if moment is None else moment)
    energy, vectors = np.linalg.eigh(root @ weighted_gram(table, row_weight) @ root)
    energy, vectors = np.maximum(energy[::-1], 0), vectors[:, ::-1][:, :rank]
    to_rows = np.asarray(root @ vectors, np.float32)
    return Factors(table @ to_rows, np.asarray(vectors.T @ inverse, np.float32), energy)


def rounded_twice(factors: Factors, count: int, format: NumberFormat) -> Factors:
    """Factors of rank + count columns: the first `count` again, less what `format` makes of them.
    The product of the rounded factors is then nearer to the table's. Groups of the format have to
    divide `count` and the rank."""
    if not count:
        return factors
    first = np.ascontiguousarray(factors.rows[:, :count])
    rest = first - encode(first, format).dequantize()
    shared = np.concatenate([factors.shared, factors.shared[:count]])
    return Factors(np.concatenate([factors.rows, rest], axis=1), shared, factors.energy)


def second_moment(states: F32) -> F64:
    """E[h h'] of hidden states float32 [n, hidden]. Raises NumericsError when one isn't finite."""
    wide = states.astype(np.float64)
    if not np.isfinite(wide).all():
        raise NumericsError("a hidden state is not finite: the model can't be factored on this")
    return np.asarray(wide.T @ wide / len(wide))


def weighted_gram(table: F32, row_weight: F64 | None = None) -> F64:
    """W' diag(row_weight) W, float64 [hidden, hidden]."""
    hidden = table.shape[1]
    total = np.zeros((hidden, hidden))
    for start in range(0, len(table), _BLOCK):
        rows = table[start : start + _BLOCK].astype(np.float64)
        scaled = rows if row_weight is None else rows * row_weight[start : start + _BLOCK, None]
        total += scaled.T @ rows
    if not np.isfinite(total).all():
        raise NumericsError("the table holds values that are not finite; the file is damaged")
    return total


def fit_up(table: F32, rows: F32, row_weight: F64 | None = None) -> F32:
    """U float32 [hidden, rank] of least weighted error |table - rows U'|: what makes embeddings of
    a table that serves the head as well."""
    gram = weighted_gram(rows, row_weight)
    gram += _DAMPING * np.trace(gram) / len(gram) * np.eye(len(gram))
    cross = np.zeros((rows.shape[1], table.shape[1]))
    for start in range(0, len(table), _BLOCK):
        part = slice(start, start + _BLOCK)
        left = rows[part].astype(np.float64)
        weighted = left if row_weight is None else left * row_weight[part, None]
        cross += weighted.T @ table[part].astype(np.float64)
    return np.ascontiguousarray(np.linalg.solve(gram, cross).T, np.float32)


def _roots(moment: F64) -> tuple[F64, F64]:
    """C^1/2 and C^-1/2 of a damped second moment."""
    damping = _DAMPING * np.trace(moment) / len(moment)
    values, vectors = np.linalg.eigh(moment)
    values = np.sqrt(np.maximum(values, 0) + damping)
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
