"""A real model from a GGUF file: the artifact runs, keeps its tokenizer, and GPTQ pays."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.compress.job import Material, compress, read_material
from octavo.compress.quality import HeldOut, windows_of
from octavo.compress.recipe import Calibration, Recipe, from_flags
from octavo.evals.perplexity import window_nll
from octavo.evals.scorer import ExecutorScorer
from octavo.io.checkpoint import open_model
from octavo.io.corpora import stdlib_code
from octavo.io.tokenizer import load_tokenizer
from octavo.spec.graph import roles
from support.models import demo_model

TEXT = "The café sells 12 croissants.\n\tdef f(x):\n<|im_end|> hello"


def code(tmp_path: Path) -> str:
    path = tmp_path / "code.txt"
    path.write_text(stdlib_code("calibration")[:400_000])
    return str(path)


@pytest.mark.slow
def test_gptq_loses_less_than_rounding_at_three_bits(tmp_path: Path) -> None:
    path = demo_model("smollm2-135m")
    calibration = Calibration(code(tmp_path), 16, 512)
    kl = {}
    for method in ("rtn", "gptq"):
        recipe = from_flags(method, "int3_g64", (("head", "int8_g32"),), calibration)
        material = read_material(path, recipe, limit=2048)
        result = compress(path, recipe, tmp_path / method, material)
        assert result.quality is not None
        kl[method] = result.quality.texts[0][1].kl_mean
        assert not result.report.fallbacks()
    assert kl["gptq"].high < kl["rtn"].low


def nats(path: Path, config: RuntimeConfig, text: HeldOut) -> float:
    """Per token of held-out text, as the model runs natively."""
    with open_model(path) as opened:
        executor = load(opened.spec, opened.source, config)
    with closing(ExecutorScorer(executor, "")) as scorer:
        windows = windows_of(text, config.context)
        return float(np.concatenate([window_nll(scorer, window) for window in windows]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["ternary_channel", "int2_g64_asym"])
def test_rounding_to_one_or_two_bits_makes_noise_of_a_trained_model(
    format: str, tmp_path: Path
) -> None:
    path = demo_model("smollm2-135m")
    text = read_material(path, from_flags("rtn", format), limit=512).held_out[0]
    plain = RuntimeConfig(context=256, max_seqs=1)
    rounded = replace(plain, format=format, keep=(("embed", "int8_g32"),))
    # ten times the perplexity, at least
    assert nats(path, rounded, text) > nats(path, plain, text) + np.log(10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def test_what_no_step_selects_keeps_the_files_codes(name: str, tmp_path: Path) -> None:
    path = demo_model(name)
    recipe = replace(from_flags("rtn", "int8_g32"))
    only = Recipe((replace(recipe.steps[0], select=("layers.0.q",)),))
    compress(path, only, tmp_path / "out", Material(None, ()))
    with open_model(path) as source, open_model(tmp_path / "out") as model:
        assert model.spec == source.spec
        for role in roles(model.spec):
            ours, theirs = (m.source.tensor(role) for m in (model, source))
            if (role.layer, role.part) != (0, "q"):
                assert ours.format == theirs.format or len(ours.shape) == 1
                assert np.array_equal(ours.float32(0, 8), theirs.float32(0, 8)[:8])
    ours, theirs = load_tokenizer(tmp_path / "out"), load_tokenizer(path)
    for special in (True, False):
        assert ours.encode(TEXT, special) == theirs.encode(TEXT, special)
        assert ours.encode(TEXT, special, True) == theirs.encode(TEXT, special, True)
    assert ours.eos_ids == theirs.eos_ids
    assert ours.chat_template == theirs.chat_template
