"""What each matrix is expected to cost in each format, in nats of mean KL on calibration text.

Per matrix one end-to-end measurement: the model runs with that matrix alone encoded, by the
recipe's own method in a probing format, and its distributions are compared with the source's. For
small errors KL is quadratic in them, so that other formats follow from the error of the layer's
output, tr((W - Q) H (W - Q)^T), taken on a sample of rows:

    KL(m, f) = KL(m, probe) * error(m, f) / error(m, probe)

Here H is of the tokens that KL is taken on. What goes into the residual stream is divided by what
that token's stream has when it is read, so each token counts by the inverse of its mean square: in
SmolLM2's layer 11 one token has 99.9 % of the squares of down's inputs, and no more say than others
in what comes out.

The encoder's Hessian is of other tokens than those that KL is taken on: a GPTQ that has more inputs
than tokens leaves their outputs nearly as they were, and all others not. On the tokens that it was
fitted to, SmolLM2's layers at 2 and 3 bits seemed to cost 10 to 80 times less than they did.

What a format of keys and values costs is measured end to end, on the source's own weights.
Measurements are kept in a file as they are made: a run that was interrupted goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.backends.base import KvFormat
from octavo.compress.base import Encoder, LinearStats
from octavo.compress.block import BlockDecoder, load_tensor
from octavo.compress.recipe import matrices, role_name
from octavo.compress.stats import of_both_uses
from octavo.core.errors import FormatError, NumericsError
from octavo.formats import rtn
from octavo.formats.gguf_formats import gguf_type_of
from octavo.formats.number_format import NumberFormat
from octavo.io.gguf_blocks import dequantize
from octavo.io.gguf_search import SHAPES, search
from octavo.io.mapping import replacing
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role, roles, shared_inputs

I64 = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Table = Mapping[str, Mapping[str, float]]  # matrix -> format -> KL

PROBE = "int4_g32"
CACHE = "kv"  # keys and values, among the matrices' names
SAMPLED = 96  # rows of a matrix whose error in each format is taken


class Probing:
    """The source in fp32, and what its layers are given on the probing text: all of it in memory.

    tokens  int64 [sequences, length], on which KL is taken
    fitted  int64 [sequences, length], others, of which the inputs' products are summed
    """

    def __init__(self, source: WeightSource, spec: DecoderSpec, tokens: I64, fitted: I64) -> None:
        self.spec, self.tokens, self._fitted = spec, tokens, fitted
        self.weights = {role: load_tensor(source, role) for role in roles(spec)}
        self._decoder = BlockDecoder(spec, self.weights)
        self._leader = self._leaders()
        self._sums: dict[Role, Tensor] = {}
        self._seen: dict[Role, list[Tensor]] = {}
        self._sum()
        self._inputs = self._run()
        self._base = [self._log_probs(self._decoder, x) for x in self._inputs[-1]]

    def stats(self, role: Role) -> LinearStats:
        """The Hessian of a matrix's inputs; ones on its diagonal where none go in (an embedding
        that isn't the head)."""
        leader = self._leader.get(role)
        width = self.weights[role].shape[1]
        count = self._fitted.size
        if leader is None or leader not in self._sums:
            return LinearStats(tokens=count, hessian=torch.eye(width))
        return LinearStats(tokens=count, hessian=self._sums[leader] * (2 / count))

    def kl(self, role: Role, values: Tensor) -> float:
        """Mean KL from the source's distributions when one matrix has these values."""
        decoder = BlockDecoder(self.spec, {**self.weights, role: values})
        first = len(self.spec.layers) if role.part == "head" else role.layer or 0
        inputs = self._inputs[first]
        if role.part == "embed":
            inputs = [decoder.embed(row) for row in self.tokens]
        return self._kl(decoder, inputs, first)

    def kl_of_cache(self, format: KvFormat) -> float:
        """The same when keys and values are stored in this format."""
        return self._kl(self._decoder, self._inputs[0], 0, format)

    def _kl(
        self, decoder: BlockDecoder, inputs: Sequence[Tensor], first: int, kv: KvFormat = "fp32"
    ) -> float:
        total = 0.0
        for base, x in zip(self._base, inputs, strict=True):
            for layer in range(first, len(self.spec.layers)):
                x = decoder.run_layer(layer, x, kv)
            found = self._log_probs(decoder, x)
            total += float((base.exp() * (base - found)).sum(dtype=torch.float64))
        return total / self.tokens.size

    def _leaders(self) -> dict[Role, Role]:
        """Role -> the first role that reads the same input."""
        found = {head_role(self.spec): head_role(self.spec)}
        for layer in range(len(self.spec.layers)):
            for group in shared_inputs(self.spec, layer):
                found.update(dict.fromkeys(group, group[0]))
        return found

    def _sum(self) -> None:
        """Products of all inputs, the head's included, of one sequence after the other."""
        leaders = set(self._leader.values())

        def watch(role: Role, x: Tensor) -> None:
            if role in leaders:
                if role not in self._sums:
                    self._sums[role] = torch.zeros(x.shape[1], x.shape[1])
                self._sums[role].addmm_(x.T, x)

        self._decoder.watcher = watch
        for row in self._fitted:
            x = self._decoder.embed(row)
            for layer in range(len(self.spec.layers)):
                x = self._decoder.run_layer(layer, x)
            watch(head_role(self.spec), self._decoder.final_norm(x))
        self._decoder.watcher = None

    def felt(self, role: Role) -> Tensor | None:
        """float32 [tokens, in]: a matrix's inputs on the probing text, each token divided by the
        stream that its output goes into. None where none go in."""
        leader = self._leader.get(role)
        return torch.cat(self._seen[leader]).float() if leader in self._seen else None

    def _run(self) -> list[list[Tensor]]:
        """Inputs of every layer, and of the head, per sequence."""
        found = [[self._decoder.embed(row) for row in self.tokens]]
        for layer in range(len(self.spec.layers)):
            found.append([self._watched(layer, x) for x in found[-1]])
        head = head_role(self.spec)
        self._seen[head] = [self._decoder.final_norm(x).bfloat16() for x in found[-1]]
        return found

    def _watched(self, layer: int, x: Tensor) -> Tensor:
        """A block's output. Its matrices' inputs are kept in bf16, which a ratio of errors doesn't
        feel. An expert is given some of the tokens only: those of experts count alike."""
        inputs: dict[Role, list[Tensor]] = {}  # an MLP may run in parts
        leaders = set(self._leader.values())
        self._decoder.watcher = lambda role, rows: inputs.setdefault(role, []).append(rows.clone())
        y = self._decoder.run_layer(layer, x)
        self._decoder.watcher = None
        weigh = y.pow(2).mean(1, keepdim=True).rsqrt()
        for role in leaders & inputs.keys():
            rows = torch.cat(inputs[role])
            if role.part in ("o", "down") and role.expert is None:
                rows = rows * weigh
            self._seen.setdefault(role, []).append(rows.bfloat16())
        return y

    def _log_probs(self, decoder: BlockDecoder, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.log_softmax(decoder.head(x), -1)


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """`kl`: the table;  `probe`: measured KL of each matrix, by name, in the probing format;
    `cache`: measured KL by format of keys and values."""

    kl: Table
    probe: Mapping[str, float]
    cache: Mapping[str, float] = field(default_factory=dict)


def measure(
    probing: Probing,
    formats: Sequence[NumberFormat],
    encoder: Encoder,
    kept: Path | None = None,
    progress: Progress | None = None,
    caches: Sequence[KvFormat] = (),
) -> Sensitivities:
    """The table for every matrix and every format that its shape takes, and `caches` for keys and
    values. `kept`: a JSON file of what was measured before, of the same model, text and formats; it
    is added to."""
    found = _read(kept)
    roles_of = {role_name(role): role for role in matrices(probing.spec)}
    todo = [*roles_of, CACHE] if caches else list(roles_of)
    for done, name in enumerate(todo, 1):
        if name not in found:
            found[name] = (
                {format: probing.kl_of_cache(format) for format in caches}
                if name == CACHE
                else _one(probing, roles_of[name], formats, encoder)
            )
            if kept is not None:
                with replacing(kept) as file:
                    file.write(json.dumps(found, indent=1).encode())
        if progress:
            progress("sensitivity", done, len(todo))
    cache = found.pop(CACHE, {})
    table = {name: {f: v for f, v in row.items() if f != "probe"} for name, row in found.items()}
    return Sensitivities(table, {name: row["probe"] for name, row in found.items()}, cache)


def _one(
    probing: Probing, role: Role, formats: Sequence[NumberFormat], encoder: Encoder
) -> dict[str, float]:
    weight, stats = probing.weights[role], probing.stats(role)
    if role.part == "embed" and probing.spec.tied_head:
        stats = of_both_uses(stats)
    assert stats.hessian is not None
    target = NumberFormat.parse(PROBE)
    if not takes(target, weight.shape):
        target = NumberFormat.parse("int4_channel")
    try:
        encoded = encoder.encode(weight, target, stats)
    except (NumericsError, FormatError):  # what the method isn't for is rounded by the recipe too
        encoded = rtn.encode(weight.numpy(), target)
    kl = probing.kl(role, torch.from_numpy(encoded.dequantize()))
    at = np.linspace(0, len(weight) - 1, min(SAMPLED, len(weight))).astype(np.int64)
    rows, felt = weight[torch.from_numpy(at)], probing.felt(role)
    weigh = stats.hessian.diagonal()
    yardstick = output_error(rows, target, weigh, felt)
    errors = {str(f): output_error(rows, f, weigh, felt)
              for f in formats if takes(f, weight.shape)}  # fmt: skip
    scale = kl / yardstick if yardstick > 0 else 0.0
    return {"probe": kl, **{name: error * scale for name, error in errors.items()}}


def takes(format: NumberFormat, shape: Sequence[int]) -> bool:
    """Whether a weight of this shape splits into the format's groups."""
    try:
        format.groups((shape[0], shape[1]))
    except FormatError:
        return False
    return True


def output_error(rows: Tensor, format: NumberFormat, weigh: Tensor, felt: Tensor | None) -> float:
    """|(W - Q) X^T|^2 of rows that are encoded one by one, their columns weighed by `weigh`, for
    inputs X = `felt` float32 [tokens, in]; None: |W - Q|^2."""
    if format.plain and format.bits > 8:
        return 0.0
    type_name = gguf_type_of(format)
    if type_name is not None and type_name in SHAPES:
        values = dequantize(type_name, search(type_name, rows.numpy(), weigh.contiguous().numpy()))
    else:
        values = rtn.encode(rows.numpy(), format).dequantize()
    wrong = rows - torch.from_numpy(values)
    return float((wrong if felt is None else wrong @ felt.T).square().sum())


def _read(kept: Path | None) -> dict[str, dict[str, float]]:
    if kept is None or not kept.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8"))
    return found
