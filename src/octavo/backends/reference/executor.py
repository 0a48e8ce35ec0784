"""`Executor` over the reference decoder: paged, batched, greedy. Slow, and meant to be believed.

Unlike native, its sums follow torch's kernels, whose rounding depends on the shape of a batch; two
chunkings of one text agree to rounding, not to the bit. The receipt says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from octavo.backends.base import (
    WANT_NORMED,
    KernelUse,
    KvFormat,
    KvGroup,
    KvLayout,
    Receipt,
    RuntimeConfig,
    StepBatch,
    StepCancelled,
    StepResult,
    Support,
)
from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.integer import IN_FLOATS
from octavo.backends.reference.kv import PagedKv
from octavo.backends.reference.options import ReferenceOptions
from octavo.backends.reference.results import check_greedy, fill
from octavo.backends.reference.weights import Formats, load_weights
from octavo.backends.served import (
    VARIANT,
    block_size_for,
    cache_tokens,
    check_variant,
    kv_reasons,
    outlier_notes,
    settled,
)
from octavo.core.errors import UnsupportedError
from octavo.formats.kv import kv_head_bytes
from octavo.io.served import served_by
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import kv_groups, linear_roles, roles

KV_BYTES = 2**30  # what a context of 0 may take for keys and values
_NOTE = "rounding depends on the batch's shape: equal to rounding, not bit for bit"


class ReferenceBackend:
    """Every spec, on any torch device."""

    name = "reference"

    def supports(self, spec: DecoderSpec, config: RuntimeConfig) -> Support:
        if config.isa:
            return Support(False, (f"the reference has no kernels for ISA {config.isa!r}",))
        reasons = kv_reasons(spec, config.kv_format)
        return Support(not reasons, reasons)


class ReferenceExecutor:
    """See `Executor`. `decoder` is public: scoring and training use it directly.

    A cancelled step ends before it runs or before it answers: torch can't be stopped in between.
    """

    def __init__(
        self,
        decoder: ReferenceDecoder,
        formats: Formats,
        config: RuntimeConfig,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._notes = notes
        self.spec = decoder.spec
        self.decoder = decoder
        self.config = config
        self.layout = kv_layout(decoder.spec, config)
        self.kv_blocks = (_blocks(config),) * len(self.layout.groups)
        self._formats = formats
        options = decoder.options
        self._kv = PagedKv(self.layout, self.kv_blocks, options.torch_dtype, options.device)
        self._cancelled = threading.Event()

    def step(self, batch: StepBatch) -> StepResult:
        check_greedy(batch)
        n = int(batch.row_start[batch.n_seqs])
        if not n:
            return StepResult()
        self._stop_if_cancelled()
        rows = np.flatnonzero(batch.want[:n]).astype(np.int32)
        with torch.no_grad():
            self._kv.bind(batch)
            tokens, at = batch.token[:n].astype(np.int64), batch.position[:n].astype(np.int64)
            hidden = self.decoder.hidden(tokens, at, self._kv)[torch.from_numpy(rows).long()]
            self._stop_if_cancelled()
            logits = self.decoder.head(hidden).float().cpu().numpy()
            normed = self.decoder.normed(hidden).float().cpu().numpy()
        behind = (batch.want[rows] & WANT_NORMED) != 0
        states = np.where(behind[:, None], normed, hidden.float().cpu().numpy())
        return fill(batch, rows, logits, states)

    def cancel(self) -> None:
        self._cancelled.set()

    def clear_cancel(self) -> None:
        self._cancelled.clear()

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise StepCancelled("the step was cancelled before it finished")

    def copy_blocks(self, group: int, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self._kv.copy(group, source, target)

    def read_blocks(self, group: int, blocks: Sequence[int]) -> bytes:
        return self._kv.read(group, blocks)

    def write_blocks(self, group: int, blocks: Sequence[int], data: bytes) -> None:
        self._kv.write(group, blocks, data)

    def reset_state(self, slot: int, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Nothing to set: token counts only serve penalties, which `step` refuses."""

    def receipt(self) -> Receipt:
        options = self.decoder.options
        kernels = tuple(self._use(role) for role in linear_roles(self.spec))
        return Receipt(
            backend="reference",
            isa=f"torch {options.dtype} on {options.device}",
            threads=torch.get_num_threads(),
            kv_format=self.config.kv_format,
            bytes_per_token=sum(use.bytes_per_token for use in kernels) + self._norm_bytes(),
            packed_bytes=sum(w.nbytes for w in self.decoder.weights.values()),
            kernels=kernels,
            requantized=self.config.format != "source",
            notes=(
                _NOTE,
                *self._notes,
                *outlier_notes(*self._outliers()),
                *_pipeline_notes(self.config, kernels),
            ),
            kv_bytes_per_token=sum(self.layout.block_bytes) // self.layout.block_size,
        )

    def close(self) -> None:
        """Drops weights and cache."""
        self.decoder.weights.clear()
        del self._kv

    def _use(self, role: Role) -> KernelUse:
        weight, rule = self.decoder.weights[role], self.decoder.rules[role]
        return KernelUse(
            role=str(role),
            kernel="torch linear",
            format=str(self._formats[role]),
            activations=str(rule),
            bytes_per_token=weight.nbytes,
        )

    def _outliers(self) -> tuple[int, int]:
        return self.decoder.inputs_seen, self.decoder.outliers_seen

    def _norm_bytes(self) -> int:
        weights = self.decoder.weights
        small = sum(weights[role].nbytes for role in roles(self.spec) if weights[role].ndim == 1)
        return small + weights[Role("embed")][0].nbytes


def _pipeline_notes(config: RuntimeConfig, kernels: tuple[KernelUse, ...]) -> tuple[str, ...]:
    """What of a pipeline of integers is in integers, and what isn't."""
    if config.kv_format != "int8_dot":
        return ()
    floats = [
        use.role
        for use in kernels
        if not (use.activations.startswith("a8") and not use.activations.startswith("a8a16"))
        or not use.format.startswith("int")
    ]
    some = f"{len(floats)} of {len(kernels)} linear layers ({', '.join(floats[:3])} ...), "
    return (
        "attention's products (q k, p v) in int8 with exact sums; in floats: "
        + (some if floats else "of linear layers none, ")
        + IN_FLOATS,
    )


def load_reference(
    source: WeightSource,
    spec: DecoderSpec,
    config: RuntimeConfig,
    options: ReferenceOptions | None = None,
) -> ReferenceExecutor:
    """Loads all weights. `config` decides formats and roundings; `options` precision and device.

    Raises ModelFileError for a missing or misshapen tensor, FormatError for a format that a
    shape can't take.
    """
    config, notes = settled(config, source)
    config = resolve(spec, config)
    options = replace(
        options or ReferenceOptions(),
        activations=config.activations,
        keep_activations=config.keep_activations,
        maxima=served_by(source).maxima,
        wide_ratio=config.wide_ratio,
        kv_format=config.kv_format,
        format=config.format,
        keep=config.keep,
        context=config.context,
    )
    weights, formats = load_weights(source, spec, options)
    decoder = ReferenceDecoder(spec, weights, formats, options)
    kinds = [rule.kind for rule in decoder.rules.values()]
    majority = max(sorted(set(kinds)), key=kinds.count)
    if "a8_tensor" in kinds:
        check_variant(config)
        notes = (*notes, VARIANT)
    return ReferenceExecutor(decoder, formats, replace(config, activations=majority), notes)


def resolve(spec: DecoderSpec, config: RuntimeConfig) -> RuntimeConfig:
    """The config with its zeros replaced. UnsupportedError when it can't be served."""
    support = ReferenceBackend().supports(spec, config)
    if not support.ok:
        raise UnsupportedError("; ".join(support.reasons))
    if config.context > spec.max_positions:
        raise UnsupportedError(
            f"context {config.context} exceeds the model's {spec.max_positions} positions; "
            "ask for less"
        )
    per_token = sum(kv_layout(spec, config).block_bytes) / config.block_size
    context = config.context or min(spec.max_positions, max(1, int(KV_BYTES // per_token)))
    config = replace(config, context=context)
    return replace(
        config,
        kv_tokens=cache_tokens(config, int(KV_BYTES // per_token)),
        threads=config.threads or torch.get_num_threads(),
        block_size=block_size_for(config),
        isa="torch",
    )


def kv_layout(spec: DecoderSpec, config: RuntimeConfig) -> KvLayout:
    """Groups of the spec, in blocks of the config's size and format."""
    kv: KvFormat = "bf16" if config.kv_format == "auto" else config.kv_format
    groups = tuple(KvGroup(g.layers, g.kv_heads, g.head_dim, g.window) for g in kv_groups(spec))
    return KvLayout(
        groups=groups,
        block_size=config.block_size,
        format=kv,
        layout_id=f"reference.{kv}",
        block_bytes=tuple(
            2 * len(g.layers) * config.block_size * g.kv_heads * kv_head_bytes(kv, g.head_dim)
            for g in groups
        ),
    )


def _blocks(config: RuntimeConfig) -> int:
    """Enough for kv_tokens however they fall on max_seqs sequences."""
    return -(-config.kv_tokens // config.block_size) + config.max_seqs - 1
