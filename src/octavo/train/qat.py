"""Quantization-aware training of a decoder: full-precision masters, rounded in every forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from octavo.backends.base import KvFormat
from octavo.backends.reference.attention import attend
from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.kv import KvStore
from octavo.backends.reference.options import ReferenceOptions
from octavo.backends.reference.rounding import round_kv
from octavo.backends.reference.weights import Formats, Weights, load_weights, wanted_format
from octavo.core.errors import ConfigError, FormatError, NumericsError, UnsupportedError, UserError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.weights import WeightSource
from octavo.spec.decoder import AttentionSpec, DecoderSpec, Role
from octavo.spec.graph import head_role, linear_roles
from octavo.train.anchored import Anchor
from octavo.train.formats import check_trainable, convert_weight, fake_quantize_weight
from octavo.train.learned import convert_learned, first_steps, learned_weight
from octavo.train.lora import Adapters, LoraConfig

I64 = npt.NDArray[np.int64]


class QatModel:
    """Masters in fp32 and what is made of them: rounded weights, losses, converted tensors.

    masters  one fp32 tensor a role, requiring a gradient
    formats  the number format of each; embedding and linear weights are rounded to theirs, norms,
             biases and routers stay as they are
    options  the roundings of activations and of keys and values that the forward simulates
    factors  with `learn_steps`, what the steps of coded roles were multiplied with since the start
    adapters with `lora`: they alone are trained, and the masters stay
    anchors  encodings to start from (`octavo.train.anchored`): masters and steps are taken from
             them, and zero steps of training give them back. Each stands for its role's format
    """

    def __init__(
        self,
        spec: DecoderSpec,
        masters: Weights,
        formats: Formats,
        options: ReferenceOptions,
        learn_steps: bool = False,
        lora: LoraConfig | None = None,
        anchors: Mapping[Role, QuantizedTensor] | None = None,
    ) -> None:
        self.spec, self.formats, self.options = spec, dict(formats), options
        self.coded = frozenset({Role("embed"), *linear_roles(spec)})
        _check(self.coded, formats, options)
        self.masters = {
            role: w.detach().float().clone().requires_grad_(lora is None)
            for role, w in masters.items()
        }
        self.adapters = Adapters(spec, lora, options.device) if lora else None
        self._masks: Weights = {}
        self._frozen: frozenset[Role] = frozenset()
        self._anchors = self._anchored(anchors or {})
        self._steps = self._first_steps() if learn_steps else {}
        self.factors = {
            role: torch.ones_like(s).requires_grad_() for role, s in self._steps.items()
        }

    @classmethod
    def load(
        cls,
        source: WeightSource,
        spec: DecoderSpec,
        options: ReferenceOptions,
        learn_steps: bool = False,
        lora: LoraConfig | None = None,
    ) -> QatModel:
        """Masters from the source; `options.format` and `options.keep` name the formats to train in
        ("source": those that the weights have). Format "fp32" is plain training. `learn_steps`
        trains the steps too (`octavo.train.learned`), of all coded weights but plain floats.

        Raises FormatError for a format without a straight-through rule or learned step, or that a
        shape can't take, and ModelFileError for a missing or misshapen tensor.
        """
        masters, formats = load_weights(source, spec, replace(options, format="source", keep=()))
        for role in {Role("embed"), *linear_roles(spec)}:
            wanted = wanted_format(role, head_role(spec), options)
            if wanted != "source":
                formats[role] = NumberFormat.parse(wanted)
        return cls(spec, masters, formats, options, learn_steps, lora)

    def parameters(self) -> dict[str, Tensor]:
        """Everything that is trained, by name."""
        steps = {f"{role} steps": factor for role, factor in self.factors.items()}
        if self.adapters:
            return self.adapters.parameters() | steps
        trained = (item for item in self.masters.items() if item[0] not in self._frozen)
        return {str(role): master for role, master in trained} | steps

    def freeze(self, roles: Iterable[Role]) -> None:
        """Leave the masters and steps of these roles as they are."""
        self._frozen |= frozenset(roles)
        for role in self._frozen:
            self.masters[role].requires_grad_(False)
            self.factors.pop(role, None)
            self._steps.pop(role, None)

    def keep_zeros(self, masks: Mapping[Role, Tensor]) -> None:
        """Hold weights at an exact zero where a mask, bool [out, in], is False."""
        self._masks |= {role: mask.to(self.options.device) for role, mask in masks.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what the model computes, by name."""
        return {str(role): master for role, master in self.masters.items()} | self.parameters()

    def recipe(self) -> dict[str, object]:
        """How the model is prepared, as plain data."""
        return {
            "learn_steps": bool(self.factors),
            "anchored": sorted(map(str, self._anchors)),
            "frozen": sorted(map(str, self._frozen)),
            "lora": self.adapters.recipe() if self.adapters else None,
            "activations": self.options.activations,
            "kv_format": self.options.kv_format,
            "formats": {str(role): str(self.formats[role]) for role in sorted(self.coded, key=str)},
        }

    def merge(self) -> None:
        """Put the adapters into the masters, for good. What is prepared stays the same to the bit;
        `parameters` are the masters from now on."""
        if self.adapters is None:
            raise ConfigError("this model has no adapters to merge: give QatModel a lora")
        with torch.no_grad():
            merged = {role: self._merged(role).clone() for role in self.masters}
        self.masters = {role: w.requires_grad_() for role, w in merged.items()}
        self.adapters = None

    def prepared(self) -> Weights:
        """The weights as they will be served, with gradients that reach the masters.

        Raises NumericsError or FormatError naming the tensor whose values can't be rounded.
        """
        return {role: self._prepared(role) for role in self.masters}

    def loss(self, tokens: I64, weights: Weights) -> Tensor:
        """Mean negative log-likelihood, in nats per token, of windows int64 [b, context + 1].

        Raises UserError for tokens or windows that the model can't take.
        """
        logits = self.logits(tokens[:, :-1], weights)
        targets = torch.as_tensor(tokens[:, 1:].copy(), device=self.options.device)
        return F.cross_entropy(logits, targets.flatten())

    def logits(self, tokens: I64, weights: Weights, recompute: bool = False) -> Tensor:
        """[b * n, vocab] for windows int64 [b, n], each from an empty context.

        recompute  keep each layer's input alone for backward (arXiv 1604.06174)
        """
        self._check_tokens(tokens)
        kind = _Recomputing if recompute else ReferenceDecoder
        decoder = kind(self.spec, weights, self.formats, self.options)
        positions = np.tile(np.arange(tokens.shape[1]), tokens.shape[0])
        kv = WindowsKv(tokens.shape[0], self.options.kv_format)
        return decoder.head(decoder.hidden(tokens.flatten(), positions, kv))

    def convert(self) -> dict[Role, QuantizedTensor]:
        """What is stored of every coded role: `dequantize()` is `prepared()`, bit for bit."""
        with torch.no_grad():
            return {role: self._converted(role) for role in self.masters if role in self.coded}

    def kept(self) -> dict[Role, npt.NDArray[np.float32]]:
        """Norms, biases and routers, which stay in fp32."""
        rest = (role for role in self.masters if role not in self.coded)
        return {role: self.masters[role].detach().cpu().numpy().copy() for role in rest}

    def first_broken(self, tokens: I64, weights: Weights) -> str:
        """Where a forward pass over windows first leaves the finite numbers, in words."""
        for layer in range(len(self.spec.layers) + 1):
            if not torch.isfinite(self._hidden_before(layer, tokens, weights)).all():
                return "the embedding" if not layer else f"layer {layer - 1}"
        return "the head"

    def _prepared(self, role: Role) -> Tensor:
        master = self._merged(role)
        if role not in self.coded:
            return master
        try:
            if role in self._anchors:
                return self._anchors[role].rounded(master, self.factors.get(role))
            if role in self._steps:
                steps = self._steps[role] * self.factors[role]
                return learned_weight(master, steps, self.formats[role])
            return fake_quantize_weight(master, self.formats[role])
        except NumericsError as error:
            raise NumericsError(f"{role}: {error}") from error
        except FormatError as error:
            raise FormatError(f"{role}: {error}") from error

    def _converted(self, role: Role) -> QuantizedTensor:
        master, format = self._merged(role), self.formats[role]
        if role in self._anchors:
            return self._anchors[role].convert(master, self.factors.get(role))
        if role in self._steps:
            return convert_learned(master, self._steps[role] * self.factors[role], format)
        return convert_weight(master, format)

    def _anchored(self, anchors: Mapping[Role, QuantizedTensor]) -> dict[Role, Anchor]:
        """Anchors of these encodings, the masters moved to where they round to their codes."""
        found = {}
        for role, tensor in anchors.items():
            try:
                found[role] = Anchor(tensor, self.options.device)
            except FormatError as error:
                raise FormatError(f"{role}: {error}") from error
            self.formats[role] = tensor.format
            with torch.no_grad():
                self.masters[role].copy_(found[role].master(self.masters[role]))
        return found

    def _first_steps(self) -> Weights:
        steps = {role: anchor.steps for role, anchor in self._anchors.items()}
        coded = self.coded - self._anchors.keys()
        for role in (r for r in self.masters if r in coded and not self.formats[r].plain):
            try:
                steps[role] = first_steps(self.masters[role], self.formats[role])
            except FormatError as error:
                raise FormatError(f"{role}: {error}") from error
        return steps

    def _merged(self, role: Role) -> Tensor:
        master = self.masters[role]
        merged = self.adapters.merged(role, master) if self.adapters else master
        return merged * self._masks[role] if role in self._masks else merged

    def _check_tokens(self, tokens: I64) -> None:
        if tokens.shape[1] > self.spec.max_positions:
            raise UserError(
                f"windows of {tokens.shape[1]} tokens exceed the model's "
                f"{self.spec.max_positions} positions: cut them shorter"
            )
        if tokens.min() < 0 or tokens.max() >= self.spec.vocab:
            raise UserError(
                f"token {int(tokens.max())} is outside the model's vocabulary of "
                f"{self.spec.vocab}: tokenize the text with the model's own tokenizer"
            )

    def _hidden_before(self, layer: int, tokens: I64, weights: Weights) -> Tensor:
        cut = replace(self.spec, layers=self.spec.layers[:layer])
        part = ReferenceDecoder(cut, weights, self.formats, self.options)
        positions = np.tile(np.arange(tokens.shape[1]), tokens.shape[0])
        with torch.no_grad():
            kv = WindowsKv(tokens.shape[0], self.options.kv_format)
            return part.hidden(tokens.flatten(), positions, kv)


class _Recomputing(ReferenceDecoder):
    """Keeps the input of each layer and computes the rest again backward."""

    def layer(self, layer: int, x: Tensor, table: tuple[Tensor, Tensor], kv: KvStore) -> Tensor:
        once = super().layer
        found: Tensor = checkpoint(once, layer, x, table, kv, use_reentrant=False)
        return found


class WindowsKv:
    """Keys and values of equally long texts side by side, each whole: nothing is kept."""

    def __init__(self, texts: int, format: KvFormat) -> None:
        self._texts, self._format = texts, format

    def attend(self, layer: int, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        del layer
        k, v = round_kv(k, v, self._format)
        at = torch.arange(q.shape[0] // self._texts, device=q.device)
        q, k, v = (x.view(self._texts, -1, *x.shape[1:]) for x in (q, k, v))
        return attend(spec, q, k, v, at, at).flatten(0, 1)


def _check(
    coded: frozenset[Role], formats: Mapping[Role, NumberFormat], options: ReferenceOptions
) -> None:
    if options.dtype != "fp32":
        raise UnsupportedError("training rounds fp32 masters: leave dtype at fp32")
    for role in sorted(coded, key=str):
        try:
            check_trainable(formats[role])
        except FormatError as error:
            raise FormatError(f"{role}: {error}") from error
