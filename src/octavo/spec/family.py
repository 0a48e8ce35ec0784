"""The contract of a model family: configs become specs, roles become tensor references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from octavo.spec.config_reader import ConfigReader  # typed, strict reads
from octavo.spec.decoder import DecoderSpec, Role


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a role's tensor lies in a file, and how it differs from the Hugging Face layout.

    name       the tensor's name in the file.
    rows       (start, stop) of a fused tensor's rows (Phi-3's qkv_proj and gate_up_proj), or None.
    unpermute  heads whose rows the file stores interleaved (GGUF of the Llama family: q and k);
               0 when the rows are in Hugging Face order.
    add        constant to add after reading (Gemma's norms from Hugging Face files: 1.0).
    index      index along a leading expert axis of a stacked tensor, or None.
    """

    name: str
    rows: tuple[int, int] | None = None
    unpermute: int = 0
    add: float = 0.0
    index: int | None = None


class Family(Protocol):
    """One model family, in one file. Reads are typed and strict; unread keys are reported."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # of config.json
    gguf_architectures: ClassVar[tuple[str, ...]]  # of general.architecture

    def from_hf(self, config: ConfigReader) -> DecoderSpec: ...

    def from_gguf(self, config: ConfigReader) -> DecoderSpec:
        """`config` serves the header's keys with the architecture prefix removed, plus facts read
        off the tensors: "vocab_size" (rows of token_embd), "tied_head" (no output.weight),
        "qkv_bias", "out_bias", "mlp_bias", "qk_norm" (bools), and when present the contents of
        rope_freqs.weight, rope_factors_short.weight and rope_factors_long.weight as "rope_factors",
        "rope_factors_short" and "rope_factors_long" (lists of floats)."""

    def hf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef: ...

    def gguf_tensor(self, spec: DecoderSpec, role: Role) -> TensorRef: ...
