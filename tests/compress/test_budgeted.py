"""From a budget to a recipe: sizes as stored, sensitivities that add up, a gain over uniform."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo.compress.block import BlockDecoder
from octavo.compress.budgeted import (
    CANDIDATES,
    SENSITIVITY,
    Budget,
    budgeted,
    cache_bytes,
    choose,
    keep,
    parted,
    placeholder,
    sensitivity_file,
    stored_bytes,
)
from octavo.compress.job import compress
from octavo.compress.recipe import matrices, role_name
from octavo.compress.sensitivity import Probing, Sensitivities, measure
from octavo.compress.table import build_encoder
from octavo.core.errors import ConfigError
from octavo.formats import rtn
from octavo.formats.layouts import chosen
from octavo.formats.number_format import NumberFormat
from octavo.io.artifact import open_artifact
from octavo.io.checkpoint import open_model
from octavo.io.gguf_blocks import dequantize
from octavo.io.gguf_search import search
from octavo.io.served import served_by
from octavo.spec.decoder import AttentionSpec, DecoderSpec, Role
from octavo.spec.graph import role_shape
from support.small_models import material, small_model, tokens

BITS = ("int3_g32", "int4_g32", "int5_g32", "int8_g32")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.25bpw", Budget(bits=4.25)),
        ("90MB", Budget(bytes=90_000_000)),
        ("kl:0.02", Budget(kl=0.02)),
        ("kl:2e-2", Budget(kl=0.02)),
        ("90MB@4096", Budget(bytes=90_000_000, tokens=4096)),
        ("3bpw@1", Budget(bits=3, tokens=1)),
        ("kl:0.1@9", Budget(kl=0.1, tokens=9)),
    ],
)
def test_budgets_are_read(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "4", "4bp", "-1bpw", "0MB", "kl:", "kl:.", "1..2bpw", "infMB", "9MB@", "9MB@-1"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"4\.25bpw, 90MB or kl:0\.02"):
        Budget.parse(text)


@pytest.mark.parametrize("name", CANDIDATES)
def test_stored_bytes_are_those_of_an_encoding(name: str) -> None:
    format = NumberFormat.parse(name)
    weight = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    assert stored_bytes(format, (6, 512)) == rtn.encode(weight, format).nbytes


@pytest.mark.parametrize("name", ["ternary_channel", "ternary_g64"])
def test_stored_bytes_of_ternary_codes_are_those_of_five_a_byte(name: str) -> None:
    format = NumberFormat.parse(name)
    tensor = rtn.encode(np.random.default_rng(0).standard_normal((6, 512), np.float32), format)
    _, parts = chosen(tensor)
    assert stored_bytes(format, (6, 512)) == parts["codes"].nbytes + tensor.scales.nbytes


def probing(path: Path, count: int = 2) -> Probing:
    with open_model(path) as model:
        text = tokens(2 * count, 48)
        return Probing(model.source, model.spec, text[:count], text[count:])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model("llama", tmp_path_factory.mktemp("budget") / "m")


@pytest.fixture(scope="module")
def probed(model: Path) -> Probing:
    return probing(model)


def table(probed: Probing, kept: Path | None = None) -> Sensitivities:
    formats = [NumberFormat.parse(name) for name in BITS]
    return measure(probed, formats, build_encoder("rtn", {}), kept)


def test_a_matrix_left_as_it_is_costs_nothing(probed: Probing) -> None:
    for role in (Role("embed"), Role("head"), Role("q", 0), Role("down", 1)):
        assert abs(probed.kl(role, probed.weights[role])) < 1e-7


def test_estimates_are_near_what_is_measured(probed: Probing) -> None:
    """The estimate against the same matrix measured end to end. Roundings are random, and so is
    the share of them that a few tokens notice: single ones within 3, the middle within 1.3."""
    found, ratios = table(probed), []
    for role in matrices(probed.spec):
        hessian = probed.stats(role).hessian
        assert hessian is not None
        for name, kind in (("int4_g32", "Q4_0"), ("int5_g32", "Q5_0"), ("int8_g32", "Q8_0")):
            weigh = hessian.diagonal().contiguous().numpy()
            rounded = dequantize(kind, search(kind, probed.weights[role].numpy(), weigh))
            true = probed.kl(role, torch.from_numpy(rounded))
            ratios.append((found.kl[role_name(role)][name] + 1e-7) / (true + 1e-7))
    assert min(ratios) > 1 / 3
    assert max(ratios) < 3
    assert 1 / 1.3 < np.median(ratios) < 1.3


def test_single_costs_add_up_to_the_joint_one(probed: Probing) -> None:
    """At 5 bits, within a factor of 2 (methods.md, section 15)."""
    five = NumberFormat.parse("int5_g32")
    rounded = {
        role: torch.from_numpy(rtn.encode(probed.weights[role].numpy(), five).dequantize())
        for role in matrices(probed.spec)
    }
    single = sum(probed.kl(role, values) for role, values in rounded.items())
    joint = Probing.__new__(Probing)
    for name, value in vars(probed).items():
        setattr(joint, name, value)
    joint.weights = {**probed.weights, **rounded}
    assert 0.5 < single / joint.kl(Role("embed"), rounded[Role("embed")]) < 2


def test_measurements_are_kept_and_gone_on_with(
    probed: Probing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "s.json"
    whole = table(probed, kept)
    content = json.loads(kept.read_text())
    names = list(content)
    kept.write_text(json.dumps({name: content[name] for name in names[:-2]}))
    measured = []
    kl = Probing.kl
    monkeypatch.setattr(
        Probing, "kl", lambda self, role, w: measured.append(role) or kl(self, role, w)
    )
    assert table(probed, kept) == whole
    assert [role_name(role) for role in measured] == names[-2:]


def plain_size(format: NumberFormat, shape: tuple[int, int]) -> int:
    return round(format.bits_per_value(shape) * shape[0] * shape[1] / 8)


@pytest.mark.parametrize("bpw", [4.0, 5.0, 6.0])
def test_a_choice_costs_less_than_uniform_in_no_more_bytes(probed: Probing, bpw: float) -> None:
    found, spec = table(probed), probed.spec
    shapes = [role_shape(spec, role) for role in matrices(spec)]
    uniform = [
        (sum(plain_size(NumberFormat.parse(f), (s[0], s[1])) for s in shapes),
         sum(found.kl[role_name(r)][f] for r in matrices(spec)))
        for f in BITS
    ]  # fmt: skip
    rest = sum(4 * w.numel() for w in probed.weights.values() if w.ndim == 1)
    limit = int(sum(w.numel() for w in probed.weights.values()) * bpw / 8)
    choice = choose(spec, found, Budget(bytes=limit), plain_size)
    assert choice.bytes <= limit
    assert choice.expected <= min(cost for size, cost in uniform if size + rest <= limit)


def test_a_budgeted_artifact_has_the_size_and_its_sensitivities(
    model: Path, tmp_path: Path
) -> None:
    feed, out = material(2, 48), tmp_path / "a"
    assert feed.tokens is not None
    budget = Budget(bits=5.0)
    recipe, choice = budgeted(model, placeholder(), budget, feed.tokens, sensitivity_file(out))
    result = compress(model, recipe, out, feed)
    keep(out, choice)
    assert result.report.bytes == choice.bytes
    assert choice.bytes * 8 <= 5.0 * result.report.parameters
    content = json.loads((out / SENSITIVITY).read_text())
    assert content["formats"] == dict(choice.formats)
    with open_model(out) as opened:  # the checksums hold
        open_artifact(out, opened.spec)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_expected_kl_is_kept_with_fewer_bytes_for_more_of_it(probed: Probing) -> None:
    found = table(probed)
    least = sum(min(row.values()) for row in found.kl.values())
    choices = [choose(probed.spec, found, Budget(kl=factor * least)) for factor in (1.01, 4, 40)]
    assert [c.expected <= f * least for c, f in zip(choices, (1.01, 4, 40), strict=True)]
    sizes = [choice.bytes for choice in choices]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_measurements_of_another_text_are_refused(model: Path, tmp_path: Path) -> None:
    kept = sensitivity_file(tmp_path / "a")
    budgeted(model, placeholder(), Budget(bits=5.0), tokens(1, 24), kept, "rtn")
    with pytest.raises(ConfigError, match="another model, text or method"):
        budgeted(model, placeholder(), Budget(bits=5.0), tokens(1, 24, 1), kept, "rtn")


def of_attention(spec: DecoderSpec, layer: int, attention: AttentionSpec) -> DecoderSpec:
    layers = list(spec.layers)
    layers[layer] = replace(layers[layer], attention=attention)
    return replace(spec, layers=tuple(layers))


def test_cache_bytes_are_those_of_the_cache(probed: Probing) -> None:
    """Of heads of 64: two bytes a value, a byte and a scale of two, half a byte and two scales."""
    spec = probed.spec
    for layer in range(len(spec.layers)):
        attention = replace(spec.layers[layer].attention, head_dim=64)
        spec = of_attention(spec, layer, attention)
    heads = sum(layer.attention.kv_heads for layer in spec.layers)
    assert cache_bytes(spec, "bf16", 10) == 2 * 10 * heads * 128
    assert cache_bytes(spec, "int8", 10) == 2 * 10 * heads * 66
    assert cache_bytes(spec, "int4", 10) == 2 * 10 * heads * 36
    first = spec.layers[0].attention
    windowed = of_attention(spec, 0, replace(first, window=4))
    assert cache_bytes(windowed, "bf16", 10) == 2 * 128 * (10 * heads - 6 * first.kv_heads)


@pytest.fixture(scope="module")
def cached(probed: Probing) -> Sensitivities:
    formats = [NumberFormat.parse(name) for name in BITS]
    return measure(probed, formats, build_encoder("rtn", {}), caches=("bf16", "int8"))


def test_coarser_caches_cost_more(cached: Sensitivities) -> None:
    assert 0 <= cached.cache["bf16"] < cached.cache["int8"]


def test_keys_and_values_take_part_in_the_budget(probed: Probing, cached: Sensitivities) -> None:
    """With many tokens it pays to make the cache small; with none it isn't chosen at all."""
    spec = probed.spec
    weights = choose(spec, cached, Budget(bits=5.2))
    assert weights.kv == ""
    tokens = 4096
    least = min(cache_bytes(spec, kv, tokens) for kv in cached.cache)
    tight = choose(spec, cached, Budget(bytes=weights.bytes + least, tokens=tokens))
    assert tight.kv == min(cached.cache, key=lambda kv: cache_bytes(spec, kv, tokens))
    assert tight.bytes <= weights.bytes + least
    roomy = choose(spec, cached, Budget(bytes=10**9, tokens=tokens))
    assert roomy.kv == min(cached.cache, key=lambda kv: cached.cache[kv])
    assert roomy.expected == pytest.approx(
        min(cached.cache.values()) + sum(min(row.values()) for row in cached.kl.values())
    )


def test_the_artifact_asks_for_the_cache_that_was_chosen(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    text = tokens(4, 24)
    with open_model(model) as opened:
        room = cache_bytes(opened.spec, "int8", 4096)
    budget = Budget(bytes=120_000 + room, tokens=4096)
    found, choice = budgeted(model, placeholder(), budget, text, sensitivity_file(out), "rtn")
    assert choice.kv == found.kv == "int8"  # heads of 16: int4 needs 32
    compress(model, found, out, material(4))
    with open_model(out) as opened:
        assert served_by(opened.source).kv == "int8"


def test_an_encoder_is_judged_on_tokens_that_it_was_not_fitted_to(
    model: Path, tmp_path: Path
) -> None:
    """With fewer tokens than inputs (24, and 64 or 128) GPTQ leaves their outputs almost alone:
    told on those, a matrix seems to cost a fraction of what it costs on any others."""
    kept, text = tmp_path / "kept.json", tokens(2, 24)
    budgeted(model, placeholder(), Budget(bits=5.0), text, kept)
    told = sum(row["probe"] for row in json.loads(kept.read_text()).values())
    with open_model(model) as opened:
        same = Probing(opened.source, opened.spec, text[1:], text[1:])
    four = [NumberFormat.parse("int4_g32")]
    flattered = sum(measure(same, four, build_encoder("searched", {})).probe.values())
    assert told > 2 * flattered


@pytest.mark.parametrize("length", [48, 600])  # whole, and so long that an MLP runs in parts
def test_a_token_counts_by_the_stream_that_its_output_goes_into(model: Path, length: int) -> None:
    """What `down` is given over the root mean square of the block's output; q's as it comes, since
    a norm stands before it; an embedding that isn't the head is given nothing."""
    with open_model(model) as opened:
        probed = Probing(opened.source, opened.spec, tokens(1, length), tokens(1, 8))
    decoder = BlockDecoder(probed.spec, probed.weights)
    seen: dict[Role, list[torch.Tensor]] = {}
    decoder.watcher = lambda role, x: seen.setdefault(role, []).append(x)
    first = [decoder.run_layer(0, decoder.embed(row)) for row in probed.tokens]
    stream = torch.cat(first).square().mean(1, keepdim=True).sqrt()
    for role, divided in ((Role("down", 0), stream), (Role("q", 0), torch.ones(1))):
        found, want = probed.felt(role), torch.cat(seen[role]) / divided
        assert found is not None
        assert (found - want).abs().max() <= 2**-8 * want.abs().max()  # bf16
    assert (probed.felt(Role("embed")) is None) is not probed.spec.tied_head


def test_experts_have_costs_too(tmp_path: Path) -> None:
    """Each is given some of the tokens only: weighing those by the stream is left out."""
    found = table(probing(small_model("mixtral", tmp_path / "m")))
    costs = [found.kl[name]["int4_g32"] for name in found.kl if "experts" in name]
    assert costs
    assert all(cost >= 0 for cost in costs)


@pytest.mark.parametrize(
    ("sequences", "length", "probed", "fitted"),
    [
        (8, 512, (4, 512), (4, 512)),  # half of a short text
        (32, 512, (4, 512), (28, 512)),
        (2, 4096, (1, 2048), (1, 4096)),  # the beginning of a long sequence
        (1, 8192, (1, 2048), (1, 6144)),  # one sequence: cut, not told twice
        (1, 24, (1, 12), (1, 12)),
        (3, 64, (1, 64), (2, 64)),
    ],
)
def test_what_is_probed_is_no_part_of_what_is_fitted_to(
    sequences: int, length: int, probed: tuple[int, int], fitted: tuple[int, int]
) -> None:
    text = np.arange(sequences * length, dtype=np.int64).reshape(sequences, length)
    one, other = parted(text, 1000)
    assert (one.shape, other.shape) == (probed, fitted)
    assert not set(one.ravel()) & set(other.ravel())
