"""Activations and KV formats of a recipe: in the artifact, taken by what runs it, overridden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.backends.base import WANT_LOGITS, Executor, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.reference.executor import ReferenceExecutor, load_reference
from octavo.compress.job import compress
from octavo.compress.plan import plan
from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.core.errors import ConfigError, ModelFileError, UnsupportedError
from octavo.engine.loading import load_executor
from octavo.evals.scorer import ExecutorScorer, SingleSequence
from octavo.io.artifact import MANIFEST
from octavo.io.checkpoint import open_model
from octavo.io.served import Served, served_by
from octavo.spec.decoder import Role
from octavo.spec.graph import linear_roles
from support.small_models import material, small_model

INT8 = from_flags("rtn", "int8_g32")


def made(tmp_path: Path, recipe: Recipe, measured: int = 0) -> Path:
    out = tmp_path / "out"
    compress(small_model("llama", tmp_path / "m"), recipe, out, material(measured=measured))
    return out


def loaded(path: Path, config: RuntimeConfig | None = None) -> Executor:
    with open_model(path) as model:
        return load_executor(model.spec, model.source, config or RuntimeConfig(context=32))


def test_an_artifact_runs_with_what_it_was_made_for(tmp_path: Path) -> None:
    keep = (("down", "abf16"), ("layers.1.down", "a8"))
    out = made(tmp_path, replace(INT8, activations="a16", keep_activations=keep, kv="int8"))
    receipt = loaded(out).receipt()
    assert receipt.backend == "native"
    assert receipt.kv_format == "int8"
    by_role = {use.role: use.activations for use in receipt.kernels}
    assert by_role["layers 0 down"] == "abf16"
    assert by_role["layers 1 down"] == "a8_g32"
    assert by_role["head"] == "a16_g32"
    assert (
        "KV int8 and activations a16, down abf16, layers.1.down a8: as the artifact was compressed "
        "for" in receipt.notes
    )


def test_an_option_overrides_the_artifact_and_the_receipt_says_so(tmp_path: Path) -> None:
    out = made(tmp_path, replace(INT8, activations="a16", kv="int8"))
    config = RuntimeConfig(context=32, activations="a8", kv_format="fp32")
    receipt = loaded(out, config).receipt()
    assert receipt.kv_format == "fp32"
    assert {use.activations for use in receipt.kernels} == {"a8_g32"}
    assert any("activations a16, which an option overrides" in note for note in receipt.notes)
    other_weights = loaded(out, RuntimeConfig(context=32, format="fp32")).receipt()
    assert {use.activations for use in other_weights.kernels} == {"a32"}


def test_a_model_that_asks_for_nothing_runs_as_before(tmp_path: Path) -> None:
    receipt = loaded(made(tmp_path, INT8)).receipt()
    assert receipt.kv_format == "bf16"
    assert {use.activations for use in receipt.kernels} == {"a8_g32"}
    assert not any("compressed for" in note for note in receipt.notes)


SCHEMES = ["a8_token", "a8_tensor", "a8_static", "llm_int8"]


def on_the_reference(path: Path) -> ReferenceExecutor:
    with open_model(path) as model:
        return load_reference(model.source, model.spec, RuntimeConfig(context=32))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_natively_as_on_the_reference(scheme: str, tmp_path: Path) -> None:
    """An input on the edge of two codes may be rounded apart, which costs a step of a row's scale:
    far less than the scheme costs from a32."""
    out = made(tmp_path, replace(INT8, activations=scheme))
    native, reference = loaded(out), on_the_reference(out)
    receipt = native.receipt()
    assert receipt.backend == "native"
    assert {use.activations for use in receipt.kernels} == {scheme}
    tokens = [3, 9, 27, 17, 2, 6, 18, 22, 1, 4]
    exact = loaded(out, RuntimeConfig(context=32, activations="a32"))
    ours, want, plain = (
        next(iter(ExecutorScorer(executor, "").logits(tokens, 0, len(tokens)))).copy()
        for executor in (native, reference, exact)
    )
    cost = np.square(want - plain).mean()
    assert cost > 0
    assert np.square(ours - want).mean() < cost / 10
    if scheme == "a8_tensor":
        assert any("not batch-invariant" in note for note in receipt.notes)
        with pytest.raises(UnsupportedError, match="strict: activations a8_tensor"):
            loaded(out, RuntimeConfig(context=32, strict=True))
        return
    loaded(out, RuntimeConfig(context=32, strict=True))
    for chunk in (1, 3):
        sequence = SingleSequence(native)
        sequence.batch.logits = np.empty((len(tokens), ours.shape[1]), np.float32)
        found = []
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            sequence.step(part, WANT_LOGITS)
            found.append(sequence.batch.logits[: len(part)].copy())
        np.testing.assert_array_equal(np.concatenate(found), ours)


def test_schemes_of_one_input_must_agree(tmp_path: Path) -> None:
    keep = (("k", "a8_token"),)
    out = made(tmp_path, replace(INT8, activations="llm_int8", keep_activations=keep))
    with pytest.raises(UnsupportedError, match=r"layer 0 q, k, v.*different scales"):
        loaded(out)


def test_a_pipeline_of_integers_runs_on_the_reference_and_says_what_is_not(tmp_path: Path) -> None:
    out = made(tmp_path, replace(INT8, activations="a8", kv="int8_dot"))
    receipt = loaded(out).receipt()
    assert receipt.backend == "reference"
    assert receipt.kv_format == "int8_dot"
    note = next(note for note in receipt.notes if "in floats" in note)
    assert "linear layers none, norms" in note
    exact = loaded(out, RuntimeConfig(context=32, activations="a32")).receipt()
    assert any("in floats: 15 of 15 linear layers" in note for note in exact.notes)


def test_strict_refuses_a_cache_that_no_kernel_has(tmp_path: Path) -> None:
    plain = made(tmp_path, INT8)
    config = RuntimeConfig(context=32, kv_format="int8_dot")
    with pytest.raises(UnsupportedError, match="strict: no native kernel has int8_dot"):
        loaded(plain, replace(config, strict=True))
    with open_model(plain) as model, pytest.raises(UnsupportedError, match="kernel has int8_dot"):
        load(model.spec, model.source, config)


def test_native_counts_the_outliers_that_the_reference_counts(tmp_path: Path) -> None:
    out = made(tmp_path, replace(INT8, activations="llm_int8"))
    notes = []
    for executor in (loaded(out), on_the_reference(out)):
        text = material().tokens
        assert text is not None
        list(ExecutorScorer(executor, "").logits(text[0].tolist()[:32], 0, 32))
        notes.append([note for note in executor.receipt().notes if "of inputs exceeded" in note])
    assert len(notes[0]) == 1
    assert notes[0] == notes[1]


def test_outliers_are_counted_and_many_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(tmp_path, replace(INT8, activations="llm_int8"))
    executor = on_the_reference(out)
    assert not any("of inputs exceeded" in note for note in executor.receipt().notes)
    text = material().tokens
    assert text is not None
    executor.decoder.logits(text[0].tolist())
    notes = executor.receipt().notes
    assert sum("% of inputs exceeded 6 and were not rounded" in note for note in notes) == 1
    assert not any("more than 1%" in note for note in notes)
    monkeypatch.setattr("octavo.backends.reference.decoder.OUTLIER", 0.5)
    executor.decoder.logits(text[0].tolist())
    assert any("more than 1%" in note for note in executor.receipt().notes)


def test_static_scales_are_the_largest_calibration_inputs(tmp_path: Path) -> None:
    out = made(tmp_path, replace(INT8, activations="a8_static"))
    with open_model(out) as model:
        maxima, spec = served_by(model.source).maxima, model.spec
    executor = on_the_reference(out)
    assert set(maxima) == {
        f"layers.{role.layer}.{role.part}" if role.layer is not None else str(role.part)
        for role in linear_roles(spec)
    }
    # What runs sees no larger inputs on the same text but for the rounding of activations itself.
    seen: dict[Role, float] = {}
    decoder = executor.decoder
    plain = decoder._linear

    def watch(x: torch.Tensor, role: Role, bias: Role | None = None) -> torch.Tensor:
        seen[role] = max(seen.get(role, 0.0), float(x.abs().max()))
        return plain(x, role, bias)

    decoder._linear = watch  # type: ignore[method-assign]
    tokens = material().tokens
    assert tokens is not None
    for text in tokens:
        decoder.logits(text.tolist())
    first = Role("q", 0)
    assert maxima["layers.0.q"] == pytest.approx(seen[first], rel=1e-6)  # no rounding before it
    for role, peak in seen.items():
        name = str(role.part) if role.layer is None else f"layers.{role.layer}.{role.part}"
        assert peak == pytest.approx(maxima[name], rel=0.2)


def test_quality_is_scored_with_them(tmp_path: Path) -> None:
    plain = compress(
        small_model("llama", tmp_path / "m"), INT8, tmp_path / "plain", material(measured=64)
    )
    recipe = replace(INT8, activations="a8_token", kv="int8")
    coarse = compress(tmp_path / "m", recipe, tmp_path / "coarse", material(measured=64))
    assert plain.quality is not None
    assert coarse.quality is not None
    assert coarse.quality.executor.startswith("native")
    assert coarse.quality.executor.endswith("kv int8")
    assert plain.quality.executor.endswith("kv bf16")
    assert coarse.quality.kl != plain.quality.kl
    card = (tmp_path / "coarse" / "README.md").read_text()
    assert "activations `a8_token` and keys and values in `int8`" in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activations": "a9"}, "did you mean 'a8'"),
        ({"kv": "int9"}, "did you mean 'int"),
        ({"kv": "int4"}, "needs a head_dim that 32 divides"),
        ({"keep_activations": (("dwon", "a8"),)}, "did you mean"),
    ],
)
def test_unknown_names_are_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with (
        open_model(small_model("llama", tmp_path)) as model,
        pytest.raises(ConfigError, match=words),
    ):
        plan(replace(INT8, **changes), model.spec)  # type: ignore[arg-type]


def test_activations_that_a_format_cannot_take_are_refused_before_work(tmp_path: Path) -> None:
    with open_model(small_model("llama", tmp_path)) as model:
        recipe = replace(from_flags("rtn", "bf16"), activations="a8")
        with pytest.raises(ConfigError, match=r"layers\.0\.q: a8 multiplies integers"):
            plan(recipe, model.spec)
        partly = Recipe((Step("rtn", "int8_g32", ("down",)),), activations="a8_static")
        with pytest.raises(ConfigError, match=r"no step encodes"):
            plan(partly, model.spec)


def test_recipes_say_it_in_yaml() -> None:
    steps = [{"method": "rtn", "format": "int8_g32"}]
    plain = Recipe.from_dict({"steps": steps, "activations": "a8", "kv": "int8"})
    assert (plain.activations, plain.kv) == ("a8", "int8")
    mixed = Recipe.from_dict({"steps": steps, "activations": {"all": "a8", "head": "a16"}})
    assert mixed.keep_activations == (("head", "a16"),)
    for recipe in (plain, mixed):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict({"steps": steps}).to_dict().keys() == {
        "steps", "fallback", "calibration", "seed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ([], "must be an object"),
        ({"activatoins": "a8"}, "must be an object of"),
        ({"kv": 8}, "must be texts"),
        ({"keep": [["q"]]}, "pairs"),
        ({"maxima": {"q": -1}}, "not negative"),
        ({"maxima": {"q": True}}, "finite"),
    ],
)
def test_a_damaged_manifest_is_refused(runtime: object, words: str, tmp_path: Path) -> None:
    out = made(tmp_path, INT8)
    content = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**content, "runtime": runtime}))
    with pytest.raises(ModelFileError, match=words):
        open_model(out)


def test_schemes_of_a_later_octavo_are_refused(tmp_path: Path) -> None:
    out = made(tmp_path, INT8)
    content = json.loads((out / MANIFEST).read_text())
    content["runtime"] = Served(kv="int3").to_dict()
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match="'int3', which this Octavo doesn't know"):
        loaded(out)


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    recipe = replace(INT8, activations="a8_static")
    out = made(tmp_path, recipe)
    compress(tmp_path / "m", recipe, tmp_path / "again", material())
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert np.isfinite(
        list(json.loads((out / MANIFEST).read_text())["runtime"]["maxima"].values())
    ).all()
