"""What is derived from a spec: shared inputs, fold edges, KV groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import (
    LayerGroup,
    fold_edges,
    head_role,
    kv_groups,
    linear_roles,
    role_shape,
    roles,
    shared_inputs,
)
from octavo.spec.table import family_for_hf
from support.tiny_models import FAMILIES, tiny_values

pytest.importorskip("transformers")


def spec_of(name: str, **changes: Any) -> DecoderSpec:
    values = tiny_values(name, **changes)
    reader = ConfigReader(values, "config.json")
    return family_for_hf(values["architectures"][0]).from_hf(reader)


@pytest.mark.parametrize("name", FAMILIES)
def test_roles_are_distinct_and_shared_inputs_partition_the_linear_ones(name: str) -> None:
    spec = spec_of(name)
    assert len(set(roles(spec))) == len(roles(spec))
    grouped = [
        role
        for layer in range(len(spec.layers))
        for group in shared_inputs(spec, layer)
        for role in group
    ]
    assert len(set(grouped)) == len(grouped)
    assert {*grouped, head_role(spec)} == set(linear_roles(spec))
    for layer in range(len(spec.layers)):
        for group in shared_inputs(spec, layer):
            assert len({role_shape(spec, role)[-1] for role in group}) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_fold_edges_scale_channels_that_the_targets_read(name: str) -> None:
    spec = spec_of(name)
    for layer in range(len(spec.layers)):
        for edge in fold_edges(spec, layer):
            out = role_shape(spec, edge.source)[0]
            for target in edge.targets:
                assert role_shape(spec, target)[-1] == out * edge.repeat, (edge, target)


def test_folding_through_v_leaves_grouped_attention_unchanged() -> None:
    """o reads head h of kv head h // repeat: the diagonal is repeated block by block."""
    spec = spec_of("llama")
    edge = next(e for e in fold_edges(spec, 0) if e.source.part == "v")
    random = np.random.default_rng(0)
    v_out = random.normal(size=role_shape(spec, edge.source)[0])
    o = random.normal(size=role_shape(spec, Role("o", 0)))
    scale = random.uniform(0.5, 2, size=v_out.shape)

    def read(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        blocks = values.reshape(-1, edge.block)
        return np.repeat(blocks, edge.repeat, axis=0).ravel()

    before = o @ read(v_out)
    after = (o / read(scale)) @ read(v_out * scale)
    # Sums of 64 products in fp64: far below any wrong pairing, which is of order 1.
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)


def test_kv_groups_split_by_window_and_keep_every_layer() -> None:
    spec = spec_of("gemma3")
    assert kv_groups(spec) == (
        LayerGroup((0, 2), kv_heads=2, head_dim=32, window=9),
        LayerGroup((1,), kv_heads=2, head_dim=32, window=None),
    )
    assert kv_groups(spec_of("llama")) == (LayerGroup((0, 1), 2, 16, None),)


def test_routers_are_not_linear_roles() -> None:
    spec = spec_of("mixtral")
    assert Role("router", 0) in roles(spec)
    assert Role("router", 0) not in linear_roles(spec)
    assert role_shape(spec, Role("router", 0)) == (4, 64)
    assert Role("down", 1, 3) in linear_roles(spec)
