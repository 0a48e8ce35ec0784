"""Recipes: what they say, what they refuse, and which matrices a selector means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from octavo.compress.recipe import Calibration, Recipe, Step, assign, from_flags, role_name
from octavo.compress.table import METHODS, build
from octavo.core.errors import ConfigError, FormatError
from octavo.spec.decoder import (
    AttentionSpec,
    DecoderSpec,
    DenseMlp,
    LayerSpec,
    MoeMlp,
    RopeSpec,
)

TEXT = """
seed: 3
fallback: none
calibration: {text: notes.txt, sequences: 4, length: 64}
steps:
  - {method: awq, options: {points: 5}}
  - {method: gptq, format: int4_g32, options: {damp: 0.05}}
  - {method: rtn, format: int8_g32, select: [head, "layers.*.down"]}
"""


def spec(tied: bool = False, moe: bool = False) -> DecoderSpec:
    attention = AttentionSpec(4, 2, 16, 0.25, RopeSpec(1e4, 16))
    mlp = MoeMlp(3, 2, 96, True) if moe else DenseMlp(96)
    return DecoderSpec("llama", 256, 64, (LayerSpec(attention, mlp),) * 2, 1e-5, 128, tied)


def load(tmp_path: Path, text: str = TEXT) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return Recipe.load(path)


def formats(recipe: Recipe, of: DecoderSpec) -> dict[str, tuple[str, str]]:
    return {role_name(r): (s.method, s.format) for r, s in assign(recipe, of).items()}


def test_yaml_says_steps_with_their_options(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert [step.method for step in recipe.steps] == ["awq", "gptq", "rtn"]
    assert recipe.steps[1].options == {"damp": 0.05}
    assert recipe.calibration == Calibration("notes.txt", 4, 64)
    assert (recipe.seed, recipe.fallback) == (3, "none")
    found = formats(recipe, spec())
    assert found["layers.1.q"] == ("gptq", "int4_g32")
    assert found["layers.1.down"] == ("rtn", "int8_g32")
    assert found["head"] == ("rtn", "int8_g32")
    assert "embed" not in found


def test_plain_data_round_trips_and_keeps_the_digest(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert Recipe.from_dict(recipe.to_dict()).to_dict() == recipe.to_dict()
    assert Recipe.from_dict(recipe.to_dict()).digest() == recipe.digest()


def test_the_digest_tells_what_is_done_but_not_where_the_text_lies(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    moved = replace(recipe, calibration=replace(recipe.calibration, text="other.txt"))
    assert moved.digest() == recipe.digest()
    longer = replace(recipe, calibration=replace(recipe.calibration, length=65))
    others = (longer, replace(recipe, seed=4), replace(recipe, steps=recipe.steps[1:]))
    assert len({recipe.digest(), *(other.digest() for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: []", "did you mean 'steps'"),
        ("steps: []", "needs steps"),
        ("- a", "must be a mapping"),
        ("steps: [{method: gptk, format: int4_g32}]", "did you mean gptq"),
        ("steps: [{method: gptq, format: int4_g32, selekt: q}]", "did you mean 'select'"),
        ("steps: [{method: gptq, format: int4_g32, options: {dampp: 1}}]", "did you mean 'damp'"),
        ("steps: [{method: gptq}]", "needs a format"),
        ("steps: [{method: awq, format: int4_g32}]", "a transform has no format"),
        ("steps: [{method: awq}]", "encodes nothing"),
        ("steps: [{method: rtn, format: int4_g32}, {method: awq}]", "preparations come first"),
        ("steps: [{method: rtn, format: int4_g32, select: []}]", "select is empty"),
        ("steps: [{method: rtn, format: int4_g32, select: [1]}]", "glob"),
        ("steps: [{format: int4_g32}]", "needs a method"),
        ("steps: [{method: rtn, format: int4_g32}]\nseed: -1", "seed"),
        ("steps: [{method: rtn, format: int4_g32}]\nfallback: x", "no compression method"),
        ("steps: [{method: rtn, format: int4_g32}]\ncalibration: {length: 0}", "at least 8"),
        ("steps: [{method: rtn, format: int4_g32}]\ncalibration: {len: 9}", "did you mean"),
        ("steps: {", "can't be read as YAML"),
    ],
)
def test_bad_recipes_get_one_error_that_names_file_and_remedy(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as raised:
        load(tmp_path, text)
    assert words in str(raised.value)


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="int4_g32"):
        load(tmp_path, "steps: [{method: rtn, format: int4_g33x}]")


def test_flags_make_the_recipe_that_they_say() -> None:
    recipe = from_flags("gptq", "int4_g32", (("head", "int8_g32"), ("layers.0.down", "int8_g32")))
    found = formats(recipe, spec())
    assert found["embed"] == ("rtn", "int4_g32")
    assert found["head"] == ("rtn", "int8_g32")
    assert found["layers.0.down"] == ("gptq", "int8_g32")
    assert found["layers.1.down"] == ("gptq", "int4_g32")
    assert len(found) == 2 * 7 + 2


def test_after_a_transform_comes_the_encoder_it_goes_with() -> None:
    assert [s.method for s in from_flags("awq", "int4_g32").steps] == ["awq", "rtn", "awq_clip"]
    assert [s.method for s in from_flags("smoothquant", "int4_g32").steps] == ["smoothquant", "rtn"]


@pytest.mark.parametrize(
    ("asked", "outside"),
    [
        ("lut4_g32", "int4_g32"),
        ("lut1_channel_sbf16", "int2_channel_sbf16"),
        ("nf4_g32", "nf4_g32"),
    ],
)
def test_embedding_and_head_are_integers_where_levels_are_learned(asked: str, outside: str) -> None:
    found = from_flags("kmeans", asked).steps
    assert [(s.method, s.format) for s in found] == [("rtn", outside), ("kmeans", asked)]
    kept = from_flags("kmeans", asked, (("embed", "int8_g32"),)).steps
    assert kept == (*found, Step("rtn", "int8_g32", ("embed",)))


def test_the_head_of_a_tied_model_is_its_embedding() -> None:
    found = formats(from_flags("rtn", "int4_g32", (("head", "int8_g32"),)), spec(tied=True))
    assert found["embed"] == ("rtn", "int8_g32")
    assert "head" not in found


def test_experts_have_names_of_their_own() -> None:
    step = Step("rtn", "int4_g32", ("layers.1.experts.2.*",))
    assert set(formats(Recipe((step,)), spec(moe=True))) == {
        f"layers.1.experts.2.{part}" for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("pattern", ["layers.7.q", "router", "dawn"])
def test_a_selector_that_matches_nothing_is_refused(pattern: str) -> None:
    recipe = Recipe((Step("rtn", "int4_g32", (pattern,)),))
    with pytest.raises(ConfigError, match="matches no matrix"):
        assign(recipe, spec())


def test_a_shape_that_cannot_take_the_format_is_refused_before_anything_runs() -> None:
    with pytest.raises(FormatError, match="Groups that fit"):
        assign(from_flags("rtn", "int4_g128"), spec())


HOOKS = {
    "prepare": "prepare", "transform": "plan", "prune": "mask", "encode": "encode",
    "train": "train",
}  # fmt: skip


def test_every_method_of_the_table_can_be_built() -> None:
    for name in METHODS:
        built = build(name, {})
        assert hasattr(built, HOOKS[METHODS.get(name).kind]) or METHODS.get(name).blocks
