"""Every preparation, transform, encoder and activation scheme: it runs, or says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import ActivationFormat
from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import ReferenceOptions
from octavo.compress.job import compress
from octavo.compress.recipe import Recipe, Step
from octavo.compress.table import METHODS
from octavo.core.errors import ConfigError, FormatError, UnsupportedError
from octavo.formats.activations import takes_a8, takes_a16
from octavo.formats.number_format import NumberFormat
from octavo.io.checkpoint import open_model
from support.small_models import material, small_model, tokens

FORMATS = {
    "rtn": "int4_g32", "gptq": "int4_g32_asym", "hqq": "int4_g32_offset", "kmeans": "lut4_channel",
    "awq_clip": "int4_g32_asym", "awq_salient": "fp32", "autoround": "int4_g32",
    "sparsegpt": "int4_g32", "cast": "bf16", "signs": "ternary_g32", "squeezellm": "lut4_channel",
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "autoround": {"iterations": 3, "batch": 2},
    "awq_salient": {"format": "int4_g32"},
    "awq": {"points": 4},
}
SCHEMES: tuple[ActivationFormat, ...] = ("auto", "a8", "a16", "a8a16", "abf16", "a32", "llm_int8")


def names(kind: str) -> list[str]:
    return [name for name in METHODS if METHODS.get(name).kind == kind]


def step(name: str, format: str = "") -> Step:
    return Step(name, format, options=OPTIONS.get(name, {}))


@pytest.mark.parametrize("encoder", [n for n in names("encode") if n in FORMATS])
@pytest.mark.parametrize("transform", ["", *names("transform")])
@pytest.mark.parametrize("preparation", ["", *names("prepare")])
def test_all_go_together(preparation: str, transform: str, encoder: str, tmp_path: Path) -> None:
    before = [step(name) for name in (preparation, transform) if name]
    outside = Step("rtn", "int8_g32", ("embed", "head"))
    recipe = Recipe((*before, step(encoder, FORMATS[encoder]), outside))
    source = small_model("qwen2", tmp_path / "m")
    if transform and encoder == "squeezellm":
        with pytest.raises(ConfigError, match=f"gradients .* {transform} changes those"):
            compress(source, recipe, tmp_path / "out", material(2, 16))
        return
    if (transform, encoder) == ("awq", "kmeans"):
        with pytest.raises(FormatError, match="codebook"):
            compress(source, recipe, tmp_path / "out", material(2, 16))
        return
    result = compress(source, recipe, tmp_path / "out", material(2, 16))
    stages = result.report.stages
    folds = [fold for stage in stages for fold in stage.folds]
    # Plain floats may have nothing to gain from awq, nor signs, which have one size a group.
    if transform != "awq" or not (NumberFormat.parse(FORMATS[encoder]).plain or encoder == "signs"):
        assert bool(folds) == bool(transform)
    assert all(fold.applied for fold in folds)
    skipped = {m.name.split(".")[-1] for stage in stages for m in stage.matrices if m.fallback}
    assert skipped == ({"q", "k"} if encoder == "awq_clip" else set())
    with open_model(source) as model:
        plain = logits(ReferenceDecoder.load(model.source, model.spec, ReferenceOptions()))
    with open_model(result.out) as model:
        assert model.spec.tied_head != bool(preparation)
        for scheme in SCHEMES:
            options = ReferenceOptions(activations=scheme)
            if not taken(scheme, NumberFormat.parse(FORMATS[encoder])):
                with pytest.raises(UnsupportedError, match="multiplies integers"):
                    ReferenceDecoder.load(model.source, model.spec, options)
                continue
            found = logits(ReferenceDecoder.load(model.source, model.spec, options))
            # Unrelated logits would differ by 1.4 of this; 4-bit ones by far less, ternary by less.
            most = 1.0 if encoder == "signs" else 0.5
            assert np.abs(found - plain).mean() < most * np.abs(plain - plain.mean()).mean()


def taken(scheme: ActivationFormat, weight: NumberFormat) -> bool:
    if scheme in ("a8", "llm_int8"):
        return takes_a8(weight)
    return takes_a16(weight) if "a16" in scheme else True


def logits(decoder: ReferenceDecoder) -> np.ndarray:
    return decoder.logits(tokens(1, 16)[0].tolist())
