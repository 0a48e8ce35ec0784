"""The driver with made-up methods: what they are given, what becomes of what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.compress import plan as planning
from octavo.compress.base import BlockView, LinearStats, Needs, ScaleFold
from octavo.compress.block import BlockDecoder, load_block
from octavo.compress.driver import Driver
from octavo.compress.plan import plan
from octavo.compress.recipe import BLOCKS, Recipe, Step, from_flags
from octavo.compress.report import MatrixReport, StageReport
from octavo.compress.state import Stage, WorkDirectory
from octavo.core.errors import ConfigError, NumericsError
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import artifact_name
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from octavo.spec.graph import shared_inputs
from support.small_models import small_model, tokens

GPTQ = Recipe((Step("gptq", "int4_g32"),))


@dataclass
class Recorder:
    """Rounds to nearest; keeps the statistics it was given, and fails where it is told to."""

    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.SAMPLES
    fails: int = -1
    given: list[LinearStats] = field(default_factory=list)

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        self.given.append(stats)
        if len(self.given) - 1 == self.fails:
            raise NumericsError("no factor")
        return rtn.encode(weight.numpy(), target)


@dataclass
class Folding:
    """A transform that returns what it is told to."""

    needs: ClassVar[Needs] = Needs.SAMPLES
    scale: Tensor
    producer: str = "attn_norm"

    def plan(
        self, block: BlockView, stats: Mapping[Role, LinearStats], target: NumberFormat
    ) -> Sequence[ScaleFold]:
        assert str(target) == "int4_g32"
        samples = stats[Role("q", block.layer)].samples
        assert samples is not None
        assert samples.shape == (3 * 16, block.spec.hidden)
        producer = Role(self.producer, block.layer)  # type: ignore[arg-type]
        consumers = {"attn_norm": "q", "v": "o"}[self.producer]
        return [ScaleFold(producer, (Role(consumers, block.layer),), self.scale)]  # type: ignore[arg-type]


def run(
    path: Path, recipe: Recipe, work: Path, count: int = 3, length: int = 16
) -> dict[str, Stage]:
    directory = WorkDirectory(work, {"recipe": "r"})
    with open_model(path) as model:
        resolved = plan(recipe, model.spec)
        Driver(model.source, resolved, tokens(count, length), directory).run()
    return {name: directory.read(name) for name in resolved.stages()}


def use(monkeypatch: pytest.MonkeyPatch, encoder: Any = None, transform: Any = None) -> None:
    real = planning.build_encoder

    def build(name: str, options: Mapping[str, object]) -> Any:
        return encoder if name == "gptq" else real(name, options)

    if encoder is not None:
        monkeypatch.setattr(planning, "build_encoder", build)
    if transform is not None:
        monkeypatch.setattr(planning, "build_transform", lambda name, options: transform)


def values(stages: Mapping[str, Stage], role: Role, path: Path) -> Tensor:
    """What an encoded role stands for in its stage."""
    with open_model(path) as model:
        name = artifact_name(model.spec, role)
    stage = stages["first" if role.part == "embed" else str(role.layer)]
    entry = stage.entries[name]
    state = {key: array for key, array in stage.arrays.items() if key.startswith(name)}
    shape = (entry.shape[0], entry.shape[1])
    return torch.from_numpy(
        QuantizedTensor.from_state(state, name, entry.format, shape).dequantize()
    )


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_a_block_sees_what_the_compressed_blocks_before_it_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recorder = small_model(name, tmp_path / "m"), Recorder()
    use(monkeypatch, encoder=recorder)
    stages = run(path, from_flags("gptq", "int4_g32"), tmp_path / "work")
    with open_model(path) as model:
        spec, source = model.spec, model.source
        blocks = [load_block(source, spec, layer) for layer in range(2)]
    coded = {role: values(stages, role, path) for g in shared_inputs(spec, 0) for role in g}
    embed = BlockDecoder(spec, {Role("embed"): values(stages, Role("embed"), path)})
    seen: list[Tensor] = []
    for text in tokens(3, 16):
        x = BlockDecoder(spec, {**blocks[0], **coded}).run_layer(0, embed.embed(text))
        watching = BlockDecoder(spec, blocks[1])
        watching.watcher = lambda role, x: seen.append(x) if role == Role("q", 1) else None
        watching.run_layer(1, x)
    q, k = recorder.given[7], recorder.given[8]
    assert q is k  # gathered once
    assert q.tokens == 48
    assert q.samples is not None
    assert torch.equal(q.samples, torch.cat(seen))
    x = torch.cat(seen).double()
    assert q.hessian is not None
    bound = 2 / 48 * 52 * 2**-24 * (x.abs().T @ x.abs())
    assert ((q.hessian.double() - 2 / 48 * x.T @ x).abs() <= bound).all()


def test_a_tied_embedding_is_encoded_with_the_heads_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recorder = small_model("qwen2", tmp_path / "m"), Recorder()
    use(monkeypatch, encoder=recorder)
    stages = run(path, Recipe((Step("gptq", "int8_g32", ("*",)),)), tmp_path / "work")
    assert recorder.given[-1].tokens == 48
    # As much of the identity comes to the products of 48 tokens in 64 channels, whose least
    # eigenvalue is 0: an embedding is looked up, too.
    hessian = recorder.given[-1].hessian
    assert hessian is not None
    assert len(hessian) > 48
    least = torch.linalg.eigvalsh(hessian)[0]
    assert float(least) == pytest.approx(float(hessian.trace()) / 2 / len(hessian), rel=1e-4)
    assert "model.embed_tokens.weight" in stages["last"].entries
    assert "model.embed_tokens.weight" not in stages["first"].entries


def test_an_untied_embedding_has_no_inputs(tmp_path: Path) -> None:
    with (
        open_model(small_model("qwen3", tmp_path)) as model,
        pytest.raises(ConfigError, match="select embed with rtn"),
    ):
        plan(Recipe((Step("gptq", "int8_g32", ("*",)),)), model.spec)


def test_a_matrix_whose_numerics_fail_falls_back_and_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("llama", tmp_path / "m")
    use(monkeypatch, encoder=Recorder(fails=9))
    stages = run(path, GPTQ, tmp_path / "work")
    reports = [m for stage in stages.values() for m in stage.report.matrices]
    listed = [(m.name, m.method, m.fallback) for m in reports if m.fallback]
    assert listed == [("layers.1.v", "rtn", "no factor")]
    assert [m.method for m in reports].count("gptq") == 13


def test_without_a_fallback_the_failure_names_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, encoder=Recorder(fails=0))
    with pytest.raises(NumericsError, match=r"layers\.0\.q: no factor"):
        run(small_model("llama", tmp_path / "m"), Recipe(GPTQ.steps, "none"), tmp_path / "work")


def test_an_expert_that_no_token_reaches_falls_back(tmp_path: Path) -> None:
    path = small_model("mixtral", tmp_path / "m")
    stages = run(path, GPTQ, tmp_path / "work", 1, 1)  # one token, two of three experts
    dead = [m for m in stages["0"].report.matrices if m.fallback]
    assert {m.fallback for m in dead} == {"no calibration token reached it"}
    assert len({m.name.split(".")[3] for m in dead}) == 1
    assert len(dead) == 3


def test_a_fold_that_keeps_the_output_reaches_weights_and_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("qwen2", tmp_path / "m")
    scale = torch.exp2(torch.arange(64) % 3 - 1.0)
    recipe = Recipe((Step("smoothquant"), *GPTQ.steps))
    plain, scaled = Recorder(), Recorder()
    use(monkeypatch, encoder=plain, transform=Folding(torch.ones(64)))
    run(path, recipe, tmp_path / "plain")
    use(monkeypatch, encoder=scaled, transform=Folding(scale))
    stages = run(path, recipe, tmp_path / "scaled")
    before, after = plain.given[0].samples, scaled.given[0].samples
    assert before is not None
    assert after is not None
    assert torch.equal(after, before / scale)
    [fold] = stages["0"].report.folds
    assert fold.applied
    assert fold.gap <= fold.tolerance
    with open_model(path) as model:
        norm = model.source.tensor(Role("attn_norm", 0)).float32()
        name = artifact_name(model.spec, Role("attn_norm", 0))
    assert np.array_equal(stages["0"].arrays[name], norm / scale.numpy())


@pytest.mark.parametrize(
    ("producer", "scale", "reason"),
    [
        ("attn_norm", torch.full((64,), 1e-42), "moved by more than rounding"),
        ("v", torch.linspace(1, 2, 64), "equal scales"),
        ("attn_norm", torch.zeros(64), "not positive"),
    ],
)
def test_a_fold_that_changes_the_output_is_rolled_back_and_listed(
    producer: str, scale: Tensor, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("qwen2", tmp_path / "m")
    without = run(path, GPTQ, tmp_path / "without")
    use(monkeypatch, transform=Folding(scale * torch.ones(64), producer))
    recipe = Recipe((Step("smoothquant"), *GPTQ.steps))
    stages = run(path, recipe, tmp_path / "work")
    for layer in ("0", "1"):
        [fold] = stages[layer].report.folds
        assert not fold.applied
        assert reason in fold.reason
        for name, array in without[layer].arrays.items():
            assert np.array_equal(stages[layer].arrays[name], array)


def test_a_transform_for_what_nobody_encodes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("qwen2", tmp_path / "m")
    use(monkeypatch, transform=Folding(torch.ones(64)))
    recipe = Recipe((Step("smoothquant"), Step("gptq", "int4_g32", ("down",))))
    with pytest.raises(ConfigError, match="no step encodes"):
        run(path, recipe, tmp_path / "work")


def test_what_no_step_selects_is_stored_as_it_came(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    stages = run(path, Recipe((Step("rtn", "int4_g32", ("down",)),)), tmp_path / "work")
    with open_model(path) as model:
        stored = model.source.tensor(Role("q", 1)).float32()
        name = artifact_name(model.spec, Role("q", 1))
    assert str(stages["1"].entries[name].format) == "fp32"
    assert np.array_equal(stages["1"].arrays[name], stored)
    assert Recipe((Step("rtn", "int4_g32"),)).steps[0].select == BLOCKS


def test_stages_come_back_as_they_were_written(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "work", {"recipe": "a"})
    report = StageReport("x", (MatrixReport("m", "rtn", "int4_g32", 4.5, 0.25, None, "why"),))
    stage = Stage(report, {}, {})
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    tensor = rtn.encode(weight, NumberFormat.parse("int4_g32_se8m0"))
    stage.add_matrix("m", tensor)
    stage.add_float32("n", weight[0])
    work.write("x", stage)
    again = WorkDirectory(tmp_path / "work", {"recipe": "a"}).read("x")
    assert again.report == report
    assert again.entries == stage.entries
    for name, array in stage.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert np.array_equal(again.arrays[name], array)
    with pytest.raises(ConfigError, match="another recipe"):
        WorkDirectory(tmp_path / "work", {"recipe": "b"})
