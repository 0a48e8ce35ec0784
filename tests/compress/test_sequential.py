"""Group after group, each seeing what the block gives with the earlier ones encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from octavo.compress import plan as planning
from octavo.compress.base import Encoder, LinearStats, Needs
from octavo.compress.block import BlockDecoder, load_block
from octavo.compress.driver import Driver
from octavo.compress.plan import plan
from octavo.compress.recipe import Calibration, Precision, Recipe, Step
from octavo.compress.sequential import GROUPS
from octavo.compress.state import HiddenStates, WorkDirectory
from octavo.formats import rtn
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import linear_roles
from support.small_models import small_model, tokens

FORMAT = NumberFormat.parse("int3_g16")
RECIPE = Recipe((Step("gptq", "int3_g16"),))
COUNT, LENGTH = 3, 16


@dataclass
class Coarse:
    """Rounds to nearest, so coarsely that later inputs show it; keeps what it was given."""

    needs: ClassVar[Needs] = Needs.HESSIAN | Needs.SAMPLES
    sequential: bool = True
    given: list[tuple[Tensor, LinearStats]] = field(default_factory=list)

    def encode(
        self, weight: Tensor, target: NumberFormat, stats: LinearStats, mask: Tensor | None = None
    ) -> QuantizedTensor:
        self.given.append((weight, stats))
        return rtn.encode(weight.numpy(), target)


def coarse(
    path: Path,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequential: bool = True,
    precision: Precision = "fp32",
) -> Coarse:
    method = Coarse(sequential)

    def build(name: str, options: Mapping[str, object]) -> Encoder:
        return method

    monkeypatch.setattr(planning, "build_encoder", build)
    with open_model(path) as model:
        recipe = replace(RECIPE, calibration=Calibration(precision=precision))
        resolved = plan(recipe, model.spec)
        Driver(model.source, resolved, tokens(COUNT, LENGTH), WorkDirectory(work, {"a": "b"})).run()
    return method


def seen_by_hand(
    spec: DecoderSpec, weights: Mapping[Role, Tensor], x: Tensor, precision: Precision
) -> list[Tensor]:
    """Inputs of the first block's matrices: those of each group from a run of the whole block in
    which all earlier groups are rounded."""
    now, found = dict(weights), {}
    for parts in GROUPS:
        seen: dict[Role, list[Tensor]] = {}
        decoder = BlockDecoder(spec, now, halves=precision == "bf16")
        decoder.watcher = lambda role, rows, seen=seen: seen.setdefault(role, []).append(rows)
        for text in x:
            decoder.run_layer(0, text)
        mine = [role for role in linear_roles(spec) if role.layer == 0 and role.part in parts]
        found.update({role: torch.cat(seen[role]) for role in mine})
        now |= {
            role: torch.from_numpy(rtn.encode(weights[role].numpy(), FORMAT).dequantize())
            for role in mine
        }
    order = [role for parts in GROUPS for role in linear_roles(spec) if role.part in parts]
    return [found[role] for role in order if role.layer == 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "mixtral"])
def test_each_group_sees_the_earlier_ones_encoded(
    name: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model(name, tmp_path / "m")
    given = coarse(path, tmp_path / "work", monkeypatch, precision=precision).given
    with open_model(path) as model:
        weights = load_block(model.source, model.spec, 0)
        table = torch.from_numpy(model.source.tensor(Role("embed")).float32())
        embed = BlockDecoder(model.spec, {Role("embed"): table})
        x = torch.stack([embed.embed(text) for text in tokens(COUNT, LENGTH)])
        wanted = seen_by_hand(model.spec, weights, x, precision)
    for (_, stats), rows in zip(given, wanted, strict=False):
        assert stats.samples is not None
        # The same operations in the same order, but for an expert's rows: bit for bit.
        assert torch.equal(stats.samples, rows)
        assert stats.tokens == len(rows)


def test_later_groups_differ_from_those_of_the_plain_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("llama", tmp_path / "m")
    one = coarse(path, tmp_path / "a", monkeypatch).given
    other = coarse(path, tmp_path / "b", monkeypatch, sequential=False).given
    same = [torch.equal(a.samples, b.samples) for (_, a), (_, b) in zip(one, other, strict=True)]  # type: ignore[arg-type]
    assert same[:7] == [True] * 3 + [False] * 4


def test_nothing_is_left_of_what_lay_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse(small_model("llama", tmp_path / "m"), tmp_path / "work", monkeypatch)
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert not left & {"mixed.f32", "middle.f32", "product.f32"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_next_block_gets_the_encoded_blocks_output(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Tensor] = []
    real = HiddenStates.remove

    def remove(states: HiddenStates) -> None:
        if states._path.name == "hidden-1.f32":
            kept.extend(torch.from_numpy(x) for x in states.read())
        real(states)

    monkeypatch.setattr(HiddenStates, "remove", remove)
    path = small_model("qwen2", tmp_path / "m")
    given = coarse(path, tmp_path / "work", monkeypatch, precision=precision).given
    with open_model(path) as model:
        spec = model.spec
        weights = load_block(model.source, spec, 0)
        table = torch.from_numpy(model.source.tensor(Role("embed")).float32())
    coded = {
        role: torch.from_numpy(rtn.encode(w.numpy(), FORMAT).dequantize())
        for role, w in weights.items()
        if any(w.shape == v.shape and torch.equal(w, v) for v, _ in given)
    }
    assert len(coded) == 7
    decoder = BlockDecoder(spec, {**weights, **coded}, halves=precision == "bf16")
    embed = BlockDecoder(spec, {Role("embed"): table})
    for text, x in zip(tokens(COUNT, LENGTH), kept, strict=True):
        assert torch.equal(decoder.run_layer(0, embed.embed(text)), x)
