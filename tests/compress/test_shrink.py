"""Structured pruning: what stays computes as the whole with the rest set to zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.compress.block import BlockDecoder, load_block
from octavo.compress.importance import LayerImportance, importance
from octavo.compress.shrink import Sizes, choose, shrunken, write_shrunken
from octavo.core.errors import ConfigError, UserError
from octavo.io.checkpoint import OpenModel, open_model
from octavo.spec.decoder import DecoderSpec, MoeMlp, Role
from octavo.spec.graph import roles
from support.small_models import small_model, tokens

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", "phi3", "mixtral", "qwen3_moe")


def scores(spec: DecoderSpec, seed: int = 0) -> tuple[LayerImportance, ...]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for layer in spec.layers:
        experts = layer.mlp.experts if isinstance(layer.mlp, MoeMlp) else 1
        channels = tuple(
            torch.rand(layer.mlp.intermediate, generator=random) for _ in range(experts)
        )
        groups = torch.rand(layer.attention.kv_heads, generator=random)
        found.append(LayerImportance(float(torch.rand(1, generator=random)), groups, channels))
    return tuple(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_keeps_every_value(family: str, tmp_path: Path) -> None:
    path = small_model(family, tmp_path / "m")
    with open_model(path) as whole:
        write_shrunken(whole, choose(whole.spec, scores(whole.spec), Sizes()), tmp_path / "out")
        with open_model(tmp_path / "out") as again:
            assert again.spec == whole.spec
            for role in roles(whole.spec):
                a, b = whole.source.tensor(role).float32(), again.source.tensor(role).float32()
                # Gemma's norms are stored less 1.
                np.testing.assert_allclose(a, b, rtol=0, atol=2**-23 if "norm" in role.part else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_computes_as_the_whole_with_the_rest_silenced(family: str, tmp_path: Path) -> None:
    path = small_model(family, tmp_path / "m")
    with open_model(path) as whole:
        spec = whole.spec
        heads = spec.layers[0].attention.kv_heads
        sizes = Sizes(len(spec.layers) - 1, max(1, heads - 1), spec.layers[0].mlp.intermediate // 2)
        kept = choose(spec, scores(spec), sizes)
        made = write_shrunken(whole, kept, tmp_path / "out")
        assert made == shrunken(spec, kept)
        with open_model(tmp_path / "out") as small:
            assert small.spec == made
            for new, keep in enumerate(kept):
                silenced = silence(whole, keep.layer, keep.groups, keep.channels)
                x = torch.randn(9, spec.hidden, generator=torch.Generator().manual_seed(new))
                want = BlockDecoder(spec, silenced).run_layer(keep.layer, x)
                block = load_block(small.source, made, new)
                got = BlockDecoder(made, block).run_layer(new, x)
                # The same products in other orders: some hundred fp32 roundings of values below it.
                torch.testing.assert_close(got, want, rtol=0, atol=float(want.abs().max()) * 2e-5)


def silence(
    whole: OpenModel,
    layer: int,
    groups: tuple[int, ...],
    channels: tuple[tuple[int, ...], ...],
) -> dict[Role, torch.Tensor]:
    """The block's weights, columns of what is to go set to 0."""
    weights = load_block(whole.source, whole.spec, layer)
    attention = whole.spec.layers[layer].attention
    o = weights[Role("o", layer)].clone()
    by_group = o.reshape(o.shape[0], attention.kv_heads, -1)
    for group in set(range(attention.kv_heads)) - set(groups):
        by_group[:, group] = 0
    weights[Role("o", layer)] = o
    for expert, mine in enumerate(channels):
        at = expert if isinstance(whole.spec.layers[layer].mlp, MoeMlp) else None
        down = weights[Role("down", layer, at)].clone()
        gone = torch.ones(down.shape[1], dtype=torch.bool)
        gone[list(mine)] = False
        weights[Role("down", layer, at)] = down.masked_fill(gone, 0.0)
    return weights


def test_experts_go_with_their_rows_of_the_router(tmp_path: Path) -> None:
    path = small_model("qwen3_moe", tmp_path / "m")
    with open_model(path) as whole:
        mlp = whole.spec.layers[0].mlp
        assert isinstance(mlp, MoeMlp)
        kept = choose(whole.spec, scores(whole.spec), Sizes(experts=mlp.experts - 1))
        write_shrunken(whole, kept, tmp_path / "out")
        with open_model(tmp_path / "out") as small:
            for new, keep in enumerate(kept):
                old = whole.source.tensor(Role("router", keep.layer)).float32()
                rows = [e for e in keep.experts if e is not None]
                mine = small.source.tensor(Role("router", new)).float32()
                np.testing.assert_array_equal(mine, old[rows])
                for expert, was in enumerate(rows):
                    a = small.source.tensor(Role("gate", new, expert)).float32()
                    b = whole.source.tensor(Role("gate", keep.layer, was)).float32()
                    np.testing.assert_array_equal(a, b)
        with pytest.raises(ConfigError, match="each token takes"):
            choose(whole.spec, scores(whole.spec), Sizes(experts=1))


def test_what_does_nothing_matters_least(tmp_path: Path) -> None:
    """A layer whose outputs are 0 changes nothing; a head and a channel that o and down ignore
    give nothing."""
    path = small_model("qwen2", tmp_path / "m")
    with open_model(path) as whole:
        source = Silent(whole)
        found = importance(source, whole.spec, tokens(3, 16))  # type: ignore[arg-type]
    assert found[0].influence == pytest.approx(0, abs=2**-20)
    assert found[1].influence > 0.01
    assert int(found[1].groups.argmin()) == 0
    assert float(found[1].groups[0]) == 0
    assert float(found[1].channels[0][5]) == 0
    assert int((found[1].channels[0] == 0).sum()) == 1
    kept = choose(whole.spec, found, Sizes(layers=len(found) - 1))
    assert 0 not in [k.layer for k in kept]


class Silent:
    """A source whose layer 0 adds nothing; in layer 1 group 0 and channel 5 are ignored."""

    def __init__(self, whole: OpenModel) -> None:
        self._source, self._spec = whole.source, whole.spec

    def tensor(self, role: Role) -> object:
        values = np.array(self._source.tensor(role).float32())
        if role.layer == 0 and role.part in ("o", "down"):
            values[:] = 0
        attention = self._spec.layers[1].attention
        if role == Role("o", 1):
            values[:, : attention.heads // attention.kv_heads * attention.head_dim] = 0
        if role == Role("down", 1):
            values[:, 5] = 0
        from octavo.compress.shrink import ShrunkenView

        return ShrunkenView(values)


def test_energy_is_that_of_wanda_summed(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    seen: list[torch.Tensor] = []
    with open_model(path) as whole:
        text = tokens(2, 12)
        found = importance(whole.source, whole.spec, text)
        block = load_block(whole.source, whole.spec, 0)
        decoder = BlockDecoder(whole.spec, block)
        decoder.watcher = lambda role, x: seen.append(x) if role.part == "down" else None
        embed = BlockDecoder(
            whole.spec,
            {Role("embed"): torch.from_numpy(whole.source.tensor(Role("embed")).float32())},
        )
        for sequence in text:
            decoder.run_layer(0, embed.embed(sequence))
    X, W = torch.cat(seen).double(), block[Role("down", 0)].double()
    want = X.square().sum(0) * W.square().sum(0)
    torch.testing.assert_close(found[0].channels[0].double(), want, rtol=1e-5, atol=0)


def test_sizes_that_a_layer_has_not_got_are_refused(tmp_path: Path) -> None:
    with open_model(small_model("qwen2", tmp_path / "m")) as whole:
        spec = whole.spec
        for sizes in (Sizes(layers=99), Sizes(groups=0), Sizes(channels=10**6)):
            with pytest.raises(ConfigError, match="to stay"):
                choose(spec, scores(spec), sizes)
        with pytest.raises(ConfigError, match="no experts"):
            choose(spec, scores(spec), replace(Sizes(), experts=2))
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match="exists"):
            write_shrunken(whole, choose(spec, scores(spec), Sizes()), tmp_path / "out")
