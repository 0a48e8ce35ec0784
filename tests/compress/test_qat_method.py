"""`qat` as a recipe's last step: from the encoders' bytes to better ones, through the artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.compress.job import Material, compress
from octavo.compress.methods.qat import Qat, cut
from octavo.compress.recipe import Recipe
from octavo.core.errors import ConfigError, FormatError, UserError
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from octavo.spec.graph import linear_roles, roles
from support.small_models import material, small_model

torch = pytest.importorskip("torch")

FAST = {"batch": 2, "context": 8, "learning_rate": 3e-3}


def recipe(encoder: str, format: str, **options: Any) -> Recipe:
    steps = [
        {"method": "rtn", "format": "int8_g32", "select": ["embed", "head"]},
        {"method": encoder, "format": format},
        {"method": "qat", "options": {**FAST, **options}},
    ]
    return Recipe.from_dict({"steps": steps})


def built(path: Path, chosen: Recipe, out: Path, text: Material | None = None) -> Any:
    compress(path, chosen, out, text or material())
    return out


def weights(path: Path) -> dict[Role, Any]:
    with open_model(path) as opened:
        source, spec = opened.source, opened.spec
        return {role: source.tensor(role).float32().copy() for role in roles(spec)}


def without_training(chosen: Recipe) -> Recipe:
    return replace(chosen, steps=chosen.steps[:-1])


@pytest.mark.parametrize(
    ("encoder", "format"),
    [
        ("gptq", "int3_g32"),
        ("gptq", "int2_g32_asym"),
        ("hqq", "int2_g32_offset"),
        ("rtn", "nf4_g32"),
    ],
)
def test_zero_steps_are_the_encoding(encoder: str, format: str, tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    chosen = recipe(encoder, format, steps=0, learn_steps=format != "nf4_g32")
    trained = weights(built(path, chosen, tmp_path / "trained"))
    plain = weights(built(path, without_training(chosen), tmp_path / "plain"))
    for role, expected in plain.items():
        np.testing.assert_array_equal(trained[role], expected, err_msg=str(role))


def test_a_format_of_its_own_starts_at_round_to_nearest(tmp_path: Path) -> None:
    own = {"method": "qat", "format": "int3_g32", "options": {**FAST, "steps": 0}}
    outside = {"method": "rtn", "format": "int8_g32", "select": ["embed", "head"]}
    path = small_model("qwen2", tmp_path / "m")
    trained = weights(built(path, Recipe.from_dict({"steps": [outside, own]}), tmp_path / "own"))
    plain = weights(built(path, without_training(recipe("rtn", "int3_g32")), tmp_path / "plain"))
    for role, expected in plain.items():
        np.testing.assert_array_equal(trained[role], expected, err_msg=str(role))


def test_training_moves_every_matrix_of_the_blocks_towards_the_model_as_it_came(
    tmp_path: Path,
) -> None:
    path = small_model("qwen2", tmp_path / "m")
    chosen = recipe("gptq", "int2_g32", steps=40, learning_rate=1e-3, patience=0)
    text = material(12, 24)
    plain, trained = (
        built(path, r, tmp_path / name, text)
        for name, r in (("plain", without_training(chosen)), ("trained", chosen))
    )
    assert divergence(path, trained) < 0.9 * divergence(path, plain)
    before, after = weights(plain), weights(trained)
    with open_model(trained) as opened:
        assert opened.spec is not None
        for role in linear_roles(opened.spec):
            if role.layer is not None:
                assert not np.array_equal(before[role], after[role]), role


def divergence(model: Path, other: Path) -> float:
    """Mean KL over the tokens that were trained on: random ones have nothing in common."""
    from octavo.backends.reference.decoder import ReferenceDecoder
    from octavo.backends.reference.options import ReferenceOptions

    logits = []
    for path in (model, other):
        with open_model(path) as opened:
            decoder = ReferenceDecoder.load(opened.source, opened.spec, ReferenceOptions())
            rows = [decoder.logits(text) for text in material(10, 24).tokens]  # type: ignore[index]
            logits.append(torch.log_softmax(torch.from_numpy(np.concatenate(rows)).double(), -1))
    teacher, student = logits
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def test_another_encoding_of_a_format_without_linear_steps_is_refused(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    steps = [
        {"method": "awq"},
        {"method": "rtn", "format": "nf4_g32"},
        {"method": "qat", "options": {**FAST, "steps": 1, "learn_steps": False}},
    ]
    with pytest.raises(FormatError, match="starts at round to nearest"):
        compress(path, Recipe.from_dict({"steps": steps}), tmp_path / "out", material())


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"context": 1},
        {"steps": -1},
        {"precision": "fp8"},
        {"stepz": 1},
        {"activations": "a4"},
        {"kv_format": "int3"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        recipe("rtn", "int4_g32", **options)


def test_the_last_tenth_of_the_sequences_is_held_out() -> None:
    tokens = np.arange(20 * 10).reshape(20, 10)
    corpus = cut(tokens, 4)
    assert corpus.train.shape == (36, 5)
    assert corpus.held_out.flatten().tolist() == tokens[18:].flatten().tolist()
    with pytest.raises(UserError, match="more sequences"):
        cut(tokens[:1], 4)
    assert Qat(steps=0).steps == 0
