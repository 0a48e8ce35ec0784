"""One decoder for every family, built from its spec: oracle, calibrator and trainer.

Written to be read beside the papers, not to be fast. Differentiable in every weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from octavo.backends.reference.attention import rotate
from octavo.backends.reference.kv import DenseKv, KvStore
from octavo.backends.reference.options import ActivationRule, ReferenceOptions
from octavo.backends.reference.rounding import round_activations
from octavo.backends.reference.weights import Formats, Weights, activation_rules, load_weights
from octavo.formats.activations import OUTLIER
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, MoeMlp, Part, Role, RopeSpec
from octavo.spec.graph import head_role
from octavo.spec.rope import cos_sin

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class ReferenceDecoder:
    """A decoder over `weights`, one tensor per role; a trainer may set requires_grad on them."""

    def __init__(
        self, spec: DecoderSpec, weights: Weights, formats: Formats, options: ReferenceOptions
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.options = options
        self.rules = activation_rules(spec, formats, options)
        self.context = options.context or spec.max_positions
        self.inputs_seen, self.outliers_seen = 0, 0  # of linear layers that run as llm_int8

    @classmethod
    def load(
        cls, source: WeightSource, spec: DecoderSpec, options: ReferenceOptions
    ) -> ReferenceDecoder:
        """Reads every tensor of the spec. ModelFileError when one is missing or misshapen."""
        weights, formats = load_weights(source, spec, options)
        return cls(spec, weights, formats, options)

    def logits(self, tokens: Sequence[int]) -> F32:
        """Logits for every position of one text, float32 [n, vocab]."""
        with torch.no_grad():
            return self.forward(tokens, self.new_kv()).float().cpu().numpy()

    def new_kv(self) -> DenseKv:
        """An empty cache for one sequence."""
        return DenseKv(len(self.spec.layers), self.options.kv_format)

    def forward(self, tokens: Sequence[int], kv: DenseKv) -> torch.Tensor:
        """Logits [n, vocab] of `tokens`, which follow what `kv` holds."""
        positions = np.arange(len(kv), len(kv) + len(tokens))
        return self.head(self.hidden(np.asarray(tokens, np.int64), positions, kv))

    def hidden(self, tokens: I64, positions: I64, kv: KvStore) -> torch.Tensor:
        """Hidden states [rows, hidden] after the last layer, before the final norm."""
        x = self.embed(tokens)
        tables = self._tables(positions)
        for layer, block in enumerate(self.spec.layers):
            x = self.layer(layer, x, tables[block.attention.rope], kv)
        return x

    def embed(self, tokens: I64) -> torch.Tensor:
        index = torch.as_tensor(tokens, device=self.options.device)
        rows = self.weights[Role("embed")][index]
        if self.spec.embed_rank:
            rows = self._linear(rows, Role("embed_up"))
        return rows * self.spec.embed_scale

    def layer(
        self, layer: int, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], kv: KvStore
    ) -> torch.Tensor:
        """One block: x [rows, hidden] plus what attention and MLP add to it."""
        branch = self._attention(layer, self._norm(x, "attn_norm", layer), table, kv)
        x = self._added(x, branch, "attn_post_norm", layer)
        branch = self._mlp(layer, self._norm(x, "mlp_norm", layer))
        return self._added(x, branch, "mlp_post_norm", layer)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] of hidden states."""
        x = self.normed(x)
        if self.spec.head_rank:
            x = self._linear(x, Role("head_down"))
        logits = self._linear(x, head_role(self.spec))
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states behind the final norm, [rows, hidden]."""
        return self._norm(x, "final_norm")

    def _added(self, x: torch.Tensor, branch: torch.Tensor, post: Part, layer: int) -> torch.Tensor:
        """The residual stream after a branch, which some families norm once more."""
        normed = self.spec.layers[layer].post_norms
        return x + (self._norm(branch, post, layer) if normed else branch)

    def _attention(
        self, layer: int, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], kv: KvStore
    ) -> torch.Tensor:
        mixed = self._mixed(layer, x, table, kv)
        return self._linear(mixed, Role("o", layer), Role("o_bias", layer))

    def _mixed(
        self, layer: int, x: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], kv: KvStore
    ) -> torch.Tensor:
        """What the heads give, side by side: o's input."""
        spec = self.spec.layers[layer].attention
        q = self._heads(x, Role("q", layer), Role("q_bias", layer))
        k = self._heads(x, Role("k", layer), Role("k_bias", layer))
        v = self._heads(x, Role("v", layer), Role("v_bias", layer))
        if spec.qk_norm:
            q, k = self._norm(q, "q_norm", layer), self._norm(k, "k_norm", layer)
        return kv.attend(layer, spec, rotate(q, *table), rotate(k, *table), v).flatten(-2)

    def _heads(self, x: torch.Tensor, role: Role, bias: Role) -> torch.Tensor:
        """[rows, heads, head_dim] of q, k or v."""
        assert role.layer is not None
        y = self._linear(x, role, bias)
        return y.reshape(x.shape[0], -1, self.spec.layers[role.layer].attention.head_dim)

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        mlp = self.spec.layers[layer].mlp
        if not isinstance(mlp, MoeMlp):
            return self._gated(layer, x, None)
        scores = torch.softmax(F.linear(x, self.weights[Role("router", layer)]), dim=-1)
        share, chosen = torch.topk(scores, mlp.top_k, dim=-1)
        if mlp.normalize_top_k:
            share = share / share.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in torch.unique(chosen).tolist():
            row, rank = torch.nonzero(chosen == expert, as_tuple=True)
            value = self._gated(layer, x[row], expert) * share[row, rank, None]
            out = out.index_add(0, row, value)
        return out

    def _gated(self, layer: int, x: torch.Tensor, expert: int | None) -> torch.Tensor:
        """down(act(gate(x)) * up(x))"""
        product = self._product(layer, x, expert)
        return self._linear(product, Role("down", layer, expert), Role("down_bias", layer))

    def _product(self, layer: int, x: torch.Tensor, expert: int | None) -> torch.Tensor:
        """act(gate(x)) * up(x): down's input."""
        gate = self._linear(x, Role("gate", layer, expert), Role("gate_bias", layer))
        up = self._linear(x, Role("up", layer, expert), Role("up_bias", layer))
        silu = self.spec.layers[layer].mlp.activation == "silu"
        return (F.silu(gate) if silu else F.gelu(gate, approximate="tanh")) * up

    def _linear(self, x: torch.Tensor, role: Role, bias: Role | None = None) -> torch.Tensor:
        rule: ActivationRule = self.rules[role]
        if rule.kind == "llm_int8":
            self.inputs_seen += x.numel()
            self.outliers_seen += int((x.abs() > OUTLIER).sum())
        return F.linear(
            round_activations(x, rule),
            self.weights[role],
            self.weights.get(bias) if bias else None,
        )

    def _norm(self, x: torch.Tensor, part: Part, layer: int | None = None) -> torch.Tensor:
        """RMS norm (arXiv 1910.07467) over the last axis."""
        mean = x.square().mean(dim=-1, keepdim=True)
        return x * torch.rsqrt(mean + self.spec.norm_eps) * self.weights[Role(part, layer)]

    def _tables(self, positions: I64) -> dict[RopeSpec, tuple[torch.Tensor, torch.Tensor]]:
        """Cosine and sine [rows, pairs] for each rope of the model."""
        ropes = {layer.attention.rope for layer in self.spec.layers}
        return {rope: self._table(rope, positions) for rope in ropes}

    def _table(self, rope: RopeSpec, positions: I64) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = cos_sin(rope, positions, self.context)
        dtype, device = self.options.torch_dtype, self.options.device
        return torch.from_numpy(cos).to(device, dtype), torch.from_numpy(sin).to(device, dtype)
