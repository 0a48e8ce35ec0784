"""A factored vocabulary in both backends: two thin products, right and batch invariant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.backends.reference.executor import load_reference
from octavo.core.errors import ConfigError
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role, linear_roles, role_shape, roles
from support.native_models import (
    Chunk,
    RandomSource,
    gemma_like,
    llama_like,
    load_native,
    new_batch,
    step_logits,
    text_logits,
)

CONFIG = RuntimeConfig(max_tokens=64, max_seqs=8, context=128, kv_tokens=1024, threads=2)
TOKENS = [int(t) for t in np.random.default_rng(1).integers(0, 90, 40)]


def factored(spec: DecoderSpec, embed: int, head: int, tied: bool) -> DecoderSpec:
    return replace(spec, embed_rank=embed, head_rank=head, tied_head=tied)


SPECS = {
    "head": factored(llama_like(tied=False), 0, 32, False),
    "both": factored(gemma_like(), 32, 96, False),
    "shared": factored(llama_like(), 32, 32, True),
}


def test_roles_and_shapes_of_a_factored_vocabulary() -> None:
    spec = SPECS["both"]
    names = [role.part for role in roles(spec) if role.layer is None]
    assert names == ["embed", "embed_up", "final_norm", "head_down", "head"]
    assert [role_shape(spec, Role(part)) for part in ("embed", "embed_up")] == [(100, 32), (64, 32)]
    assert [role_shape(spec, Role(part)) for part in ("head_down", "head")] == [(96, 64), (100, 96)]
    assert linear_roles(spec)[0] == Role("embed_up")
    assert linear_roles(spec)[-2:] == (Role("head_down"), Role("head"))
    assert head_role(SPECS["shared"]) == Role("embed")


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("format", "activations"),
    [
        ("source", "a32"),
        ("int8_g32", "a8"),
        ("int4_g32", "a16"),
        ("int8_g32", "a8a16"),
    ],
)
def test_native_agrees_with_the_reference(name: str, format: str, activations: str) -> None:
    """To fp32's rounding through a few layers; integer activations add the rare boundary code."""
    spec = SPECS[name]
    config = replace(CONFIG, format=format, activations=activations, kv_format="fp32")
    native = load_native(spec, config)
    reference = load_reference(RandomSource(spec), spec, config)
    ours, theirs = (text_logits(executor, TOKENS, 40) for executor in (native, reference))
    spread = theirs.std()
    if activations == "a32":
        assert np.abs(ours - theirs).max() < 1e-4 * spread
    else:
        assert np.sqrt(np.square(ours - theirs).mean()) < 0.02 * spread


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("activations", ["auto", "a8a16"])
def test_chunks_threads_and_neighbours_change_no_bit(name: str, activations: str) -> None:
    spec, config = SPECS[name], replace(CONFIG, format="int8_g32", activations=activations)
    whole = text_logits(load_native(spec, config), TOKENS, 40)
    for threads in (1, 2, 3):
        executor = load_native(spec, replace(config, threads=threads))
        for chunk in (1, 7, 40):
            assert np.array_equal(text_logits(executor, TOKENS, chunk), whole)
    executor = load_native(spec, config)
    batch = new_batch(executor)
    both = step_logits(executor, batch, [Chunk(TOKENS, 0, 0), Chunk(TOKENS[:9], 0, 4)])
    assert np.array_equal(both, np.concatenate([whole, whole[:9]]))


def test_greedy_tokens_are_those_of_the_logits() -> None:
    from octavo.evals.scorer import SingleSequence

    executor = load_native(SPECS["both"], replace(CONFIG, format="int8_g32"))
    logits = text_logits(executor, TOKENS, 40)
    assert SingleSequence(executor).prefill(TOKENS) == int(logits[-1].argmax())


def test_the_receipt_counts_both_factors() -> None:
    spec = SPECS["both"]
    receipt = load_native(spec, replace(CONFIG, format="int8_g32")).receipt()
    thin = {use.role: use.products for use in receipt.kernels}
    assert thin["embed_up"] == 64 * 32
    assert thin["head_down"] == 96 * 64
    assert thin["head"] == 100 * 96


def test_keep_knows_the_factors_only_where_there_are_some() -> None:
    config = replace(CONFIG, format="int8_g32", keep=(("head_down", "int4_g32"),))
    formats = {use.role: use.format for use in load_native(SPECS["head"], config).receipt().kernels}
    assert formats["head_down"] == "int4_g32"
    with pytest.raises(ConfigError, match="head_down"):
        load_native(llama_like(), config)
