"""`octavo shrink` as a function: score on one half of a text, cut, measure on the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from octavo.compress import calibration
from octavo.compress.export import FloatType
from octavo.compress.importance import importance
from octavo.compress.job import EVALUATED, check_output
from octavo.compress.quality import HeldOut, Quality, measure
from octavo.compress.recipe import Calibration
from octavo.compress.shrink import Sizes, choose, parameters, write_shrunken
from octavo.io.checkpoint import open_model
from octavo.io.tokenizer import load_tokenizer
from octavo.spec.graph import roles


@dataclass(frozen=True, slots=True)
class Asked:
    """`tokens`: how many of the held-out half are measured."""

    sizes: Sizes
    text: Calibration = field(default_factory=lambda: Calibration("", 8, 512))
    tokens: int = EVALUATED
    dtype: FloatType = "bf16"


@dataclass(frozen=True, slots=True)
class Shrunk:
    """`layers`: which of `of_layers` stay; parameters of the result, and before."""

    layers: tuple[int, ...]
    of_layers: int
    parameters: int
    before: int
    quality: Quality

    def to_dict(self) -> dict[str, object]:
        return {
            "layers": list(self.layers),
            "of_layers": self.of_layers,
            "parameters": self.parameters,
            "parameters_before": self.before,
            "quality": self.quality.to_dict(),
        }


def shrink(model: Path, out: Path, asked: Asked) -> Shrunk:
    """Raises UserError when `out` exists or the text is too short, ConfigError for sizes that the
    model hasn't got."""
    check_output(out)
    texts = calibration.read_texts(asked.text.text)
    with open_model(model) as opened:
        spec = opened.spec
        tokenizer = load_tokenizer(model, opened.metadata if opened.kind == "gguf" else None)
        begin = calibration.begin_token(tokenizer)
        ids = tokenizer.encode(texts.calibration, add_special=False)
        tokens = calibration.sequences(ids, asked.text, spec.max_positions, begin)
        held = tokenizer.encode(texts.evaluation, add_special=False)[: asked.tokens]
        kept = choose(spec, importance(opened.source, spec, tokens), asked.sizes)
        smaller = write_shrunken(opened, kept, out, asked.dtype)
    quality = measure(out, model, (HeldOut(texts.name, tuple(held), begin),))
    return Shrunk(
        tuple(k.layer for k in kept),
        len(spec.layers),
        parameters(smaller, roles(smaller)),
        parameters(spec, roles(spec)),
        quality,
    )
