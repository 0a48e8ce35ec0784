"""Prune and train steps with made-up methods: what they are given, what becomes of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress import plan as planning
from octavo.compress import recipe as recipes
from octavo.compress import table
from octavo.compress.base import LinearStats, Needs, TrainTask
from octavo.compress.driver import Driver
from octavo.compress.job import compress
from octavo.compress.plan import plan
from octavo.compress.recipe import Recipe, Step, from_flags
from octavo.compress.state import Stage, WorkDirectory, merged
from octavo.core.errors import ConfigError, FormatError, InternalError, NumericsError
from octavo.core.registry import Registry
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import artifact_name
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from support.small_models import material, small_model, tokens


@dataclass(frozen=True, slots=True)
class Halver:
    """Keeps the larger half of the inputs of each row by |W| times mean |x|."""

    needs: ClassVar[Needs] = Needs.MEAN_ABS

    def mask(self, weight: Tensor, stats: LinearStats) -> Tensor:
        assert stats.mean_abs is not None
        score = weight.abs() * stats.mean_abs
        half = score.shape[1] // 2
        return torch.zeros_like(weight, dtype=torch.bool).scatter(
            1, score.topk(half, 1).indices, True
        )


@dataclass(frozen=True, slots=True)
class Refuser:
    """Can't use any statistics."""

    needs: ClassVar[Needs] = Needs.NOTHING

    def mask(self, weight: Tensor, stats: LinearStats) -> Tensor:
        raise NumericsError("no scores")


@dataclass(frozen=True, slots=True)
class Shrinker:
    """ "Trains" every matrix to half of itself, and the final norm to ones."""

    needs_tokens: ClassVar[bool] = True
    seen: ClassVar[list[TrainTask]] = []

    returns: str = "all"

    def train(self, task: TrainTask) -> Mapping[Role, QuantizedTensor | Tensor]:
        self.seen.append(task)
        found: dict[Role, QuantizedTensor | Tensor] = {}
        for role, encoded in task.encoded.items():
            tensor = encoded.load()
            found[role] = rtn.encode(tensor.dequantize() / np.float32(2), tensor.format)
        if self.returns == "dense":
            ones = np.ones(found[Role("q", 0)].shape, np.float32)
            found[Role("q", 0)] = rtn.encode(ones, NumberFormat.parse("int4_g32"))
        if self.returns == "alien":
            found[Role("embed")] = rtn.encode(np.ones((8, 64), np.float32), tensor.format)
        found[Role("final_norm")] = torch.ones_like(task.vectors[Role("final_norm")]())
        return found


@pytest.fixture(autouse=True)
def _more_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"{__name__}:"
    rows = [table.METHODS.get(name) for name in table.METHODS]
    rows += [
        table.Method("halver", "prune", here + "Halver"),
        table.Method("refuser", "prune", here + "Refuser"),
        table.Method("shrinker", "train", here + "Shrinker"),
    ]
    methods = Registry("compression method", rows, lambda row: row.name)
    for module in (table, recipes, planning):
        monkeypatch.setattr(module, "METHODS", methods)
    Shrinker.seen.clear()


def run(path: Path, recipe: Recipe, work: Path) -> dict[str, Stage]:
    directory = WorkDirectory(work, {"recipe": "r"})
    with open_model(path) as model:
        resolved = plan(recipe, model.spec)
        Driver(model.source, resolved, tokens(3, 16), directory).run()
    return {name: directory.read(name) for name in resolved.stages()}


def names(path: Path, parts: Sequence[str], layer: int = 0) -> list[str]:
    with open_model(path) as model:
        return [artifact_name(model.spec, Role(part, layer)) for part in parts]  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ["rtn", "gptq", "awq_clip", "kmeans", "bf16"])
def test_a_pruned_weight_is_an_exact_zero_whatever_encodes_it(encoder: str, tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    target = {"kmeans": "lut4_g32", "bf16": "bf16"}.get(encoder, "int4_g32")
    step = Step("rtn" if encoder == "bf16" else encoder, target)
    stages = run(path, Recipe((Step("halver"), step)), tmp_path / "work")
    for name in names(path, ("q", "down")):
        mask = stages["0"].masks[name]
        assert np.array_equal(mask.sum(1), np.full(len(mask), mask.shape[1] // 2))
        assert not stages["0"].matrix(name).dequantize()[~mask].any()
        assert stages["0"].matrix(name).dequantize()[mask].any()
    assert {matrix.zeros for matrix in stages["1"].report.matrices} == {0.5}


def test_only_what_a_pruner_selects_is_pruned(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    recipe = Recipe((Step("halver", select=("down",)), Step("rtn", "int4_g32")))
    reports = run(path, recipe, tmp_path / "work")["0"].report.matrices
    assert [m.name for m in reports if m.zeros is not None] == ["layers.0.down"]


def test_a_format_without_zero_is_refused(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    recipe = Recipe((Step("halver"), Step("rtn", "int4_g32_offset")))
    with pytest.raises(FormatError, match=r"layers\.0\.q: .* can't store exact zeros"):
        run(path, recipe, tmp_path / "work")


def test_a_pruner_that_fails_is_noted_or_ends_the_run(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    recipe = Recipe((Step("refuser", select=("q",)), Step("rtn", "int4_g32")))
    stages = run(path, recipe, tmp_path / "work")
    assert stages["1"].report.notes == ("layers.1.q is not pruned by refuser: no scores",)
    assert not stages["1"].masks
    with pytest.raises(NumericsError, match=r"layers\.0\.q: no scores"):
        run(path, replace(recipe, fallback="none"), tmp_path / "other")


def test_kinds_come_in_one_order() -> None:
    encode, prune, train = Step("rtn", "int4_g32"), Step("halver"), Step("shrinker")
    Recipe((Step("awq"), prune, encode, train))
    for wrong in ((encode, prune), (train, encode), (prune, Step("awq"), encode)):
        with pytest.raises(ConfigError, match="out of order"):
            Recipe(wrong)


def test_flags_put_a_pruner_before_and_a_trainer_behind() -> None:
    assert [s.method for s in from_flags("halver", "int4_g32").steps] == ["halver", "rtn"]
    assert [s.method for s in from_flags("shrinker", "int4_g32").steps] == ["rtn", "shrinker"]
    with pytest.raises(ConfigError, match="has no format"):
        Step("halver", "int4_g32")


def test_a_trainer_with_a_format_of_its_own_brings_its_encoder() -> None:
    outside, plain = Step("rtn", "int8_g32", ("embed",)), Step("shrinker", select=("q",))
    made = Recipe((Step("halver"), outside, Step("shrinker", "int3_g32", ("down",)), plain))
    encoders = (outside, Step("rtn", "int3_g32", ("down",)))
    assert made.steps == (Step("halver"), *encoders, Step("shrinker", select=("down",)), plain)
    assert Recipe.from_dict(made.to_dict()) == made
    assert made.digest() == Recipe(made.steps).digest()
    assert [s.method for s in Recipe((Step("shrinker", "int3_g32"),)).steps] == ["rtn", "shrinker"]
    with pytest.raises(FormatError):
        Step("shrinker", "int99")
    with pytest.raises(ConfigError, match="out of order"):
        Recipe((Step("shrinker", "int3_g32"), Step("rtn", "int4_g32")))


def test_what_is_not_encoded_is_neither_pruned_nor_trained(tmp_path: Path) -> None:
    with open_model(small_model("qwen2", tmp_path)) as model:
        for steps in (
            (Step("halver"), Step("rtn", "int4_g32", ("down",))),
            (Step("rtn", "int4_g32", ("down",)), Step("shrinker")),
        ):
            with pytest.raises(ConfigError, match=r"layers\.0\.q, and no step encodes it"):
                plan(Recipe(steps), model.spec)


def trained() -> Recipe:
    last = Step("shrinker", select=("q", "down"))
    return Recipe((Step("halver"), Step("rtn", "int4_g32"), last))


def test_what_a_trainer_returns_takes_the_place_of_what_was_encoded(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    stages = run(path, trained(), tmp_path / "work")
    [task] = Shrinker.seen
    assert {(role.part, role.layer) for role in task.encoded} == {
        (part, layer) for part in ("q", "down") for layer in (0, 1)
    }
    assert task.tokens is not None
    assert np.array_equal(task.tokens, tokens(3, 16))
    assert task.directory.is_dir()
    whole = merged(list(stages.values()))
    [q] = names(path, ("q",))
    [k] = names(path, ("k",))
    assert np.array_equal(whole.matrix(q).dequantize() * 2, stages["0"].matrix(q).dequantize())
    assert np.array_equal(whole.matrix(k).dequantize(), stages["0"].matrix(k).dequantize())
    assert (whole.arrays["model.norm.weight"] == 1).all()
    assert whole.entries.keys() == {n for stage in stages.values() for n in stage.entries}
    reports = stages["train-0"].report.matrices
    assert {(m.method, m.zeros, m.weight_error) for m in reports} == {("shrinker", 0.5, 0.25)}


@pytest.mark.parametrize(
    ("returns", "error", "words"),
    [
        ("dense", FormatError, r"layers\.0\.q: int4_g32 can't store|exact zeros"),
        ("alien", InternalError, "was not given"),
    ],
)
def test_a_trainer_that_breaks_its_contract_is_caught(
    returns: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    steps = (*trained().steps[:2], Step("shrinker", select=("q",), options={"returns": returns}))
    with pytest.raises(error, match=words):
        run(small_model("qwen2", tmp_path / "m"), Recipe(steps), tmp_path / "work")


def test_a_trained_artifact_holds_each_tensor_once(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    compress(path, Recipe(trained().steps[:2]), tmp_path / "plain", material())
    result = compress(path, trained(), tmp_path / "trained", material())
    with open_model(tmp_path / "trained") as after, open_model(tmp_path / "plain") as plain:
        half, whole = (m.source.tensor(Role("down", 1)).float32() for m in (after, plain))
    assert np.array_equal(half * 2, whole)
    assert result.report.bytes == _stored_bytes(tmp_path / "plain")
    methods = {m.name: m.method for m in result.report.matrices()}
    assert methods["layers.1.down"] == "shrinker"
    assert methods["layers.1.up"] == "rtn"
    assert len(methods) == 14


def _stored_bytes(artifact: Path) -> int:
    with open_model(artifact) as model:
        return sum(tensor.nbytes for tensor in model.tensors.values())


def test_a_killed_training_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    stages = run(path, trained(), tmp_path / "work")
    (tmp_path / "work" / "stage-train-0.safetensors").unlink()
    again = run(path, trained(), tmp_path / "work")
    assert len(Shrinker.seen) == 2
    for name, array in stages["train-0"].arrays.items():
        assert np.array_equal(again["train-0"].arrays[name], array)
