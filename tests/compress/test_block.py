"""Blocks of the reference, one at a time: outputs, watched inputs, and scales that move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import Precision, ReferenceOptions
from octavo.compress.base import ScaleFold
from octavo.compress.block import BlockDecoder, View, folded, load_block, load_tensor, unchanged
from octavo.core.errors import InternalError, NumericsError
from octavo.io.checkpoint import open_model
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import FoldEdge, fold_edges, role_shape, shared_inputs
from support import model_files
from support.model_files import MODELS
from support.small_models import small_model, small_weights, tokens

Weights = dict[Role, torch.Tensor]
I64 = npt.NDArray[np.int64]


def block(name: str, tmp_path: Path) -> tuple[DecoderSpec, Weights]:
    with open_model(small_model(name, tmp_path / name)) as model:
        return model.spec, load_block(model.source, model.spec, 1)


def inputs(spec: DecoderSpec) -> torch.Tensor:
    return torch.randn(20, spec.hidden, generator=torch.Generator().manual_seed(1))


def fold_of(spec: DecoderSpec, edge: FoldEdge, seed: int = 0) -> ScaleFold:
    """Random scales from 1/8 to 8 that a grouped value head shares."""
    width = role_shape(spec, edge.targets[0])[-1]
    spread = torch.rand(width // edge.repeat, generator=torch.Generator().manual_seed(seed))
    scale = torch.exp2(6 * spread - 3)
    if edge.repeat > 1:
        scale = scale.reshape(-1, 1, edge.block).expand(-1, edge.repeat, -1).reshape(-1)
    return ScaleFold(edge.source, edge.targets, scale)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_in_order_are_the_decoder(name: str, tmp_path: Path) -> None:
    with open_model(small_model(name, tmp_path)) as model:
        spec, source = model.spec, model.source
        text = tokens(1, 20)[0]
        plain, exact = (hidden(source, spec, dtype, text) for dtype in ("fp32", "fp64"))
        table = load_tensor(source, Role("embed"))
        x = BlockDecoder(spec, {Role("embed"): table}).embed(text)
        for layer in range(len(spec.layers)):
            x = BlockDecoder(spec, load_block(source, spec, layer)).run_layer(layer, x)
    # The same sums in another order: what fp32 loses, and a few times that for bad luck.
    noise = (plain - exact).abs().max() + 2**-24 * exact.abs().max()
    assert (x - exact).abs().max() <= 8 * noise


def hidden(source: WeightSource, spec: DecoderSpec, dtype: Precision, text: I64) -> torch.Tensor:
    whole = ReferenceDecoder.load(source, spec, ReferenceOptions(dtype=dtype))
    with torch.no_grad():
        return whole.hidden(text, np.arange(20), whole.new_kv()).double()


@pytest.mark.parametrize("name", MODELS)
def test_halves_lose_what_rounding_to_bf16_loses(name: str, tmp_path: Path) -> None:
    spec, weights = block(name, tmp_path)
    x = inputs(spec)
    exact = BlockDecoder(spec, weights).run_layer(1, x)
    lost = BlockDecoder(spec, weights, halves=True).run_layer(1, x) - exact
    added = (exact - x).square().mean().sqrt()
    # inputs, weights and sums of seven products, one behind the other, are rounded by 2^-9 at most
    assert 0 < lost.square().mean().sqrt() <= 3 * 7 * 2**-9 * added


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_input_is_watched_and_shared_ones_are_equal(name: str, tmp_path: Path) -> None:
    spec, weights = block(name, tmp_path)
    seen: dict[Role, torch.Tensor] = {}
    decoder = BlockDecoder(spec, weights)
    decoder.watcher = seen.__setitem__
    decoder.run_layer(1, inputs(spec))
    for group in shared_inputs(spec, 1):
        reached = [role for role in group if role in seen]
        assert len(reached) in (0, len(group))
        for role in reached:
            assert torch.equal(seen[role], seen[group[0]])


@pytest.mark.parametrize("name", MODELS)
def test_folds_leave_the_output_and_half_folds_do_not(name: str, tmp_path: Path) -> None:
    spec, weights = block(name, tmp_path)
    x = inputs(spec)
    for edge in fold_edges(spec, 1):
        changed = folded(spec, 1, weights, fold_of(spec, edge))
        assert edge.source in changed
        same, gap, tolerance = unchanged(spec, 1, weights, {**weights, **changed}, x)
        assert same, (edge.source, gap, tolerance)
        reached = edge.targets[0].expert in (None, 0)
        half = {**weights, **{role: changed[role] for role in edge.targets}}
        assert not unchanged(spec, 1, weights, half, x)[0] or not reached


def test_heads_that_share_a_value_head_need_equal_scales(tmp_path: Path) -> None:
    spec, weights = block("llama", tmp_path)
    edge = next(edge for edge in fold_edges(spec, 1) if edge.repeat > 1)
    scale = torch.linspace(1, 2, role_shape(spec, edge.targets[0])[-1])
    with pytest.raises(NumericsError, match="equal scales"):
        folded(spec, 1, weights, ScaleFold(edge.source, edge.targets, scale))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_must_be_positive_and_finite(tmp_path: Path, value: float) -> None:
    spec, weights = block("llama", tmp_path)
    fold = ScaleFold(Role("attn_norm", 1), (Role("q", 1),), torch.full((spec.hidden,), value))
    with pytest.raises(NumericsError, match="positive and finite"):
        folded(spec, 1, weights, fold)


def test_a_scale_moves_along_an_edge_of_the_spec_only(tmp_path: Path) -> None:
    spec, weights = block("llama", tmp_path)
    ones = torch.ones(spec.hidden)
    for producer, consumer in (("attn_norm", "gate"), ("gate", "down"), ("mlp_norm", "q")):
        fold = ScaleFold(Role(producer, 1), (Role(consumer, 1),), ones)  # type: ignore[arg-type]
        with pytest.raises(InternalError, match="no scale can move"):
            folded(spec, 1, weights, fold)


def test_views_run_modules_with_other_weights(tmp_path: Path) -> None:
    spec, weights = block("llama", tmp_path)
    view = View(spec, 1, 10, weights)
    x = inputs(spec)
    zero = {Role("o", 1): torch.zeros_like(weights[Role("o", 1)])}
    assert not view.output(Role("q", 1), x, zero).any()
    assert view.output(Role("q", 1), x, {}).any()
    halves = [view.output(Role("v", 1), part, {}) for part in (x[:10], x[10:])]
    assert torch.equal(view.output(Role("v", 1), x, {}), torch.cat(halves))
    o = weights[Role("o", 1)]
    assert torch.equal(view.output(Role("o", 1), x, {}), torch.nn.functional.linear(x, o))


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    values = small_weights("llama")
    values["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    path = model_files.write_hf(tmp_path, MODELS["llama"], values)
    with open_model(path) as model, pytest.raises(NumericsError, match="layer 1 up"):
        load_block(model.source, model.spec, 1)
