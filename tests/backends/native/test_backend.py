"""What a load refuses, resolves and reports."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from octavo._native import testing
from octavo.backends.base import KvFormat, RuntimeConfig
from octavo.backends.native.backend import NativeBackend, load, resolve_isa
from octavo.backends.native.memory import (
    Budget,
    choose_cache,
    choose_context,
    kv_bytes_per_token,
    kv_layout,
)
from octavo.core.errors import (
    ConfigError,
    FormatError,
    ModelFileError,
    ResourceError,
    UnsupportedError,
)
from octavo.io.weights import RawBlocks
from octavo.spec.decoder import MoeMlp, Role
from support.native_models import (
    BlocksTensor,
    RandomSource,
    gemma_like,
    llama_like,
    load_native,
    text_logits,
)

SPEC = llama_like()
CONFIG = RuntimeConfig(max_tokens=32, max_seqs=2, context=64, threads=1)
GB = 10**9


def test_a_dense_model_is_supported() -> None:
    assert NativeBackend().supports(SPEC, CONFIG).ok


def test_experts_are_refused_with_the_layer_and_a_remedy() -> None:
    moe = replace(SPEC.layers[1], mlp=MoeMlp(4, 2, 32, True))
    answer = NativeBackend().supports(replace(SPEC, layers=(SPEC.layers[0], moe)), CONFIG)
    assert answer.reasons[0].startswith("layer 1: a mixture of experts")
    with pytest.raises(UnsupportedError, match="reference backend"):
        load_native(replace(SPEC, layers=(moe,)), CONFIG)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threads": 1000}, "threads 1000"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"block_size": 24}, "block_size 24"),
        ({"context": 5000}, "1024 positions"),
    ],
)
def test_options_out_of_range_are_named(change: dict[str, int], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        load_native(SPEC, replace(CONFIG, **change))  # type: ignore[arg-type]


def test_an_odd_head_size_is_refused() -> None:
    attention = replace(SPEC.layers[0].attention, head_dim=24)
    spec = replace(SPEC, layers=(replace(SPEC.layers[0], attention=attention),))
    assert "head_dim 24" in NativeBackend().supports(spec, CONFIG).reasons[0]


def test_an_unknown_isa_lists_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=r"isa 'sse9'.*generic"):
        resolve_isa("sse9")
    monkeypatch.setenv("OCTAVO_ISA", "mmx")
    with pytest.raises(UnsupportedError, match="OCTAVO_ISA=mmx"):
        resolve_isa("")


def test_the_environment_picks_the_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_ISA", "generic")
    assert load_native(SPEC, CONFIG).receipt().isa == "generic"


def test_keep_must_name_something() -> None:
    with pytest.raises(ConfigError, match="did you mean 'down'"):
        load_native(SPEC, replace(CONFIG, format="int4_g32", keep=(("dwn", "bf16"),)))
    with pytest.raises(FormatError):
        load_native(SPEC, replace(CONFIG, keep=(("down", "int99"),)))


def test_the_receipt_counts_every_byte() -> None:
    receipt = load_native(SPEC, replace(CONFIG, format="int4_g32")).receipt()
    narrow, wide = 64 * 9 // 16, 896 // 16  # bytes a row of 64 and 96 inputs; panels end on 64
    block = (64 + 32 + 32 + 64 + 96 + 96) * narrow + 64 * wide
    head = 96 * narrow
    vectors = 4 * 64 * 5
    assert receipt.packed_bytes == 2 * block + head
    assert receipt.bytes_per_token == 2 * block + head + vectors
    assert [use.role for use in receipt.kernels] == ["layers 0-1 q,k,v,o,gate,up,down", "head"]
    assert sum(use.bytes_per_token for use in receipt.kernels) == 2 * block + head
    assert receipt.requantized


def test_an_untied_embedding_costs_one_row() -> None:
    spec = replace(SPEC, tied_head=False)
    tied = load_native(SPEC, CONFIG).receipt()
    untied = load_native(spec, CONFIG).receipt()
    assert untied.bytes_per_token == tied.bytes_per_token + 4 * 64
    assert untied.packed_bytes == tied.packed_bytes + 4 * 64 * 96
    assert not untied.requantized


def test_mixed_formats_stand_on_lines_of_their_own() -> None:
    config = replace(CONFIG, format="int4_g32", keep=(("head", "int8_g32"), ("layers.1.v", "bf16")))
    uses = {use.role: use for use in load_native(SPEC, config).receipt().kernels}
    assert uses["head"].format == "int8_g32"
    assert uses["layers 1 v"].activations == "abf16"
    assert uses["layers 0-1 q,k,v,o,gate,up,down"].format == "int4_g32"


def test_strict_names_the_slow_parts() -> None:
    with pytest.raises(UnsupportedError, match=r"strict: no fast kernel on generic for .*down"):
        load_native(SPEC, replace(CONFIG, format="nf4_g32", strict=True, isa="generic"))


def test_a_trellis_runs_everywhere_and_strict_knows_where_it_is_fast() -> None:
    spec = replace(CONFIG, format="trellis2_g32", strict=True)
    with pytest.raises(UnsupportedError, match=r"strict: no fast kernel on generic for .*down"):
        load_native(SPEC, replace(spec, isa="generic"))
    if "avx512vbmi" not in testing.cpu_features().split():
        return
    uses = load_native(SPEC, replace(spec, isa="avx512vnni")).receipt().kernels
    assert {use.kernel for use in uses if use.role.startswith("layers")} == {
        "linear_a8_t2_avx512vbmi"
    }


def test_resolved_configs_have_no_blanks() -> None:
    config = load_native(SPEC, RuntimeConfig(format="int4_g32")).config
    assert config.threads >= 1
    assert config.context == 1024
    assert config.kv_tokens == 1024
    assert (config.activations, config.isa) == ("a8", resolve_isa(""))


def test_context_is_what_memory_allows() -> None:
    per_token = kv_bytes_per_token(kv_layout(SPEC, CONFIG))
    assert per_token == 2 * 2 * 2 * 16 * 2
    config = replace(CONFIG, context=0)
    tight = Budget(packed=GB, available=GB + (64 << 20) + 500 * per_token)
    context, note = choose_context(SPEC, config, per_token, tight)
    assert context == 500
    assert "memory allows" in note
    assert choose_context(SPEC, config, per_token, Budget(GB, 9 * GB)) == (1024, "")


@pytest.mark.parametrize("context", [0, 1024])
def test_too_little_memory_names_need_have_and_remedy(context: int) -> None:
    config = replace(CONFIG, context=context)
    with pytest.raises(ResourceError, match=r"needs 2\.\d+ GB .* 1\.00 GB are available; use a sh"):
        choose_context(SPEC, config, 1000, Budget(2 * GB, GB))


def test_the_advice_names_the_largest_format_that_fits() -> None:
    smaller = (("int8_g32", 1500), ("int4_g32", 800), ("int3_g32", 600))
    budget = Budget(2 * GB, GB, tuple((name, size * 1_000_000) for name, size in smaller))
    with pytest.raises(ResourceError, match=r"use --format int4_g32 \(weights 0\.80 GB\) or fewer"):
        choose_context(SPEC, CONFIG, 1000, budget)
    tighter = replace(budget, available=700_000_000)
    with pytest.raises(ResourceError, match=r"use --format int3_g32"):
        choose_context(SPEC, CONFIG, 1000, tighter)


def test_what_is_granted_limits_a_load_and_smaller_formats_fit_in_it() -> None:
    full = load_native(SPEC, CONFIG).receipt().packed_bytes
    granted = replace(CONFIG, memory=(64 << 20) + full // 2)
    with pytest.raises(ResourceError, match=r"use --format int8_g32"):
        load_native(SPEC, granted)
    assert load_native(SPEC, replace(granted, format="int8_g32")).receipt().packed_bytes < full // 2


def test_a_cache_that_memory_can_not_hold_is_refused_without_a_context_too() -> None:
    with pytest.raises(ResourceError, match=r"cache 9\.00 GB"):
        choose_context(SPEC, replace(CONFIG, context=0, kv_tokens=9_000_000), 1000, Budget(0, GB))


def test_a_servers_cache_holds_what_all_sequences_may_take() -> None:
    config = replace(CONFIG, context=1000, max_seqs=16, kv_tokens=0, kv_share=0.5)
    roomy = Budget(packed=GB, available=GB + (64 << 20) + 2 * 16_000 * 100)
    assert choose_cache(config, 100, roomy) == (replace(config, kv_tokens=16_000), "")
    alone = replace(config, kv_share=0.0)  # a library's
    assert choose_cache(alone, 100, roomy) == (replace(alone, kv_tokens=1000), "")
    asked = replace(config, kv_tokens=20_000)
    assert choose_cache(asked, 100, roomy) == (asked, "")


@pytest.mark.parametrize(
    ("memory", "room", "tokens", "said"),
    [
        (0, 31_999, 15_999, "within 50% of the free memory"),
        (1, 15_999, 15_999, "within the memory granted"),
        (0, 1_500, 1_000, "take up to 16000"),  # one context fits: `choose_context` has looked
    ],
)
def test_a_servers_cache_takes_its_share_and_says_so(
    memory: int, room: int, tokens: int, said: str
) -> None:
    config = replace(CONFIG, context=1000, max_seqs=16, kv_tokens=0, kv_share=0.5, memory=memory)
    found, note = choose_cache(config, 100, Budget(GB, GB + (64 << 20) + room * 100))
    assert found.kv_tokens == tokens
    assert said in note
    assert f"cache of {tokens} tokens" in note


def test_a_load_chooses_its_cache() -> None:
    config = replace(CONFIG, context=100, max_seqs=3, kv_tokens=0, kv_share=0.5)
    executor = load_native(SPEC, config)
    assert executor.config.kv_tokens == 300
    assert executor.kv_blocks == (-(-300 // 16) + 2,)
    with pytest.raises(UnsupportedError, match=r"kv_share 1\.5 is not between 0 and 1"):
        load_native(SPEC, replace(config, kv_share=1.5))


@pytest.mark.parametrize(("name", "value"), [("kv_format", "int3"), ("activations", "a9")])
def test_words_that_nobody_knows_are_refused_with_those_that_are(name: str, value: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name} '{value}' is none of .*, "):
        load_native(SPEC, replace(CONFIG, **{name: value}))


def test_int4_keys_need_whole_groups() -> None:
    with pytest.raises(UnsupportedError, match=r"head_dim that 32 divides; use int8"):
        load_native(SPEC, replace(CONFIG, kv_format="int4"))


@pytest.mark.parametrize(("kv_format", "per_head"), [("bf16", 32), ("fp32", 64), ("int8", 18)])
def test_the_receipt_has_the_bytes_that_a_token_adds(kv_format: KvFormat, per_head: int) -> None:
    executor = load_native(SPEC, replace(CONFIG, kv_format=kv_format))
    heads = sum(2 * layer.attention.kv_heads for layer in SPEC.layers)
    assert executor.receipt().kv_bytes_per_token == per_head * heads
    assert executor.layout.layout_id.endswith(f".{kv_format}")


def test_a_load_that_fails_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is cut off in its last matrix, while others are being packed."""
    source = RandomSource(SPEC)
    last = source.tensor(Role("down", 1))
    whole = type(last).raw

    def raw(view: BlocksTensor, start: int, stop: int) -> RawBlocks:
        if view is last:
            raise ModelFileError("cut off")
        return whole(view, start, stop)

    monkeypatch.setattr(BlocksTensor, "raw", raw)
    before = set(threading.enumerate())
    with pytest.raises(ModelFileError, match="cut off"):
        load(SPEC, source, replace(CONFIG, threads=4))
    assert set(threading.enumerate()) == before


def test_a_large_model_says_that_its_context_is_the_default() -> None:
    spec = replace(SPEC, max_positions=131072)
    context, note = choose_context(spec, replace(CONFIG, context=0), 256, Budget(GB, 9 * GB))
    assert context == 8192
    assert "of the model's 131072: the default" in note


def test_more_threads_than_processors_is_noted() -> None:
    receipt = load_native(SPEC, replace(CONFIG, threads=200)).receipt()
    assert any("200 threads" in note for note in receipt.notes)


def test_a_vector_that_is_not_finite_is_refused() -> None:
    spec = gemma_like()
    source = RandomSource(spec)
    role = next(r for r in source._tensors if r.part == "q_norm")
    source._tensors[role].data.view(np.float32)[0] = np.nan
    with pytest.raises(UnsupportedError, match="layer 0 q_norm"):
        load(spec, source, CONFIG)


def test_the_tied_head_is_packed_once() -> None:
    executor = load_native(SPEC, replace(CONFIG, format="int8_g32"))
    assert np.isfinite(text_logits(executor, [1, 2, 3], 3)).all()
    assert executor.receipt().packed_bytes < 2 * 64 * 96 + 2 * 64 * 480 * 9 // 8 + 64 * 96
