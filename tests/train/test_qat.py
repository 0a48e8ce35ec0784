"""The model in training: what it computes before any step, and what it converts to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import FormatError, NumericsError, UnsupportedError, UserError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import encode
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import Role
from octavo.spec.graph import linear_roles
from octavo.spec.table import family_for_hf
from support.memory_source import MemorySource, checkpoint_tensors
from support.tiny_models import VOCAB, WINDOW, tiny_model, tiny_values
from support.trainable import tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
qat = pytest.importorskip("octavo.train.qat")
decoders = pytest.importorskip("octavo.backends.reference.decoder")
options = pytest.importorskip("octavo.backends.reference.options")

TOKENS = np.random.default_rng(0).integers(3, VOCAB, (3, 2 * WINDOW + 3))


def source_of(family: str, directory: Path) -> tuple[Any, MemorySource]:
    values = tiny_values(family)
    kind = family_for_hf(values["architectures"][0])
    spec = kind.from_hf(ConfigReader(values, "config.json"))
    tensors = checkpoint_tensors(tiny_model(family), directory)
    return spec, MemorySource(spec, tensors, kind.hf_tensor)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MemorySource]:
    return source_of("llama", tmp_path_factory.mktemp("qat"))


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize("name", ["int4_g32", "nf4_g32"])
def test_zero_steps_are_round_to_nearest(family: str, name: str, tmp_path: Path) -> None:
    spec, source = source_of(family, tmp_path)
    plan = options.ReferenceOptions(
        format=name, keep=(("down", "int8_g16"),), activations="auto", kv_format="bf16"
    )
    model = qat.QatModel.load(source, spec, plan)
    served = decoders.ReferenceDecoder.load(source, spec, plan)
    prepared = model.prepared()
    assert prepared.keys() == served.weights.keys()
    for role, weight in served.weights.items():
        assert torch.equal(prepared[role], weight), role
    text = TOKENS[:1]
    with torch.no_grad():
        assert torch.equal(model.logits(text, prepared), torch.from_numpy(served.logits(text[0])))


def test_windows_side_by_side_are_windows_alone(llama: Any) -> None:
    spec, source = llama
    model = qat.QatModel.load(source, spec, options.ReferenceOptions(dtype="fp32"))
    with torch.no_grad():
        weights = model.prepared()
        together = model.logits(TOKENS, weights).unflatten(0, TOKENS.shape)
        for text, logits in zip(TOKENS, together, strict=True):
            # fp32 sums whose order depends on the number of rows
            torch.testing.assert_close(logits, model.logits(text[None], weights), rtol=0, atol=1e-4)


def test_convert_is_prepare(llama: Any) -> None:
    spec, source = llama
    plan = options.ReferenceOptions(format="int3_g32", keep=(("head", "int8_g32"),))
    model = qat.QatModel.load(source, spec, plan)
    with torch.no_grad():
        for master in model.masters.values():
            master.add_(torch.randn(master.shape) * 0.01)  # as training would
    prepared, converted = model.prepared(), model.convert()
    assert converted.keys() == {Role("embed"), *linear_roles(spec)}
    for role, tensor in converted.items():
        values = prepared[role].detach().numpy()
        np.testing.assert_array_equal(tensor.dequantize().view(np.int32), values.view(np.int32))
        again = encode(model.masters[role].detach().numpy(), model.formats[role])
        np.testing.assert_array_equal(tensor.codes, again.codes)
    assert {*converted, *model.kept()} == set(model.masters)


def test_gradients_reach_every_master(llama: Any) -> None:
    spec, source = llama
    model = qat.QatModel.load(source, spec, options.ReferenceOptions(format="int4_g32"))
    model.loss(TOKENS, model.prepared()).backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in model.masters.values())


def test_loss_is_the_mean_negative_log_likelihood(llama: Any) -> None:
    spec, source = llama
    model = qat.QatModel.load(source, spec, options.ReferenceOptions())
    decoder = decoders.ReferenceDecoder.load(source, spec, options.ReferenceOptions())
    losses = []
    for text in TOKENS:
        logits = decoder.logits(text[:-1]).astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses.extend(-logits[np.arange(len(text) - 1), text[1:]])
    loss = model.loss(TOKENS, model.prepared()).item()
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def model_of(name: str = "int4_g32") -> Any:
    spec = tiny_spec()
    formats = dict.fromkeys(tiny_masters(spec), NumberFormat.parse(name))
    return qat.QatModel(spec, tiny_masters(spec), formats, options.ReferenceOptions())


def test_the_constructor_copies_what_it_trains() -> None:
    spec = tiny_spec()
    weights = tiny_masters(spec)
    formats = dict.fromkeys(weights, NumberFormat.parse("int4_g32"))
    model = qat.QatModel(spec, weights, formats, options.ReferenceOptions())
    with torch.no_grad():
        model.masters[Role("head")].zero_()
    assert weights[Role("head")].any()


def test_formats_that_cannot_be_trained_are_named_with_their_tensor(llama: Any) -> None:
    spec, source = llama
    with pytest.raises(FormatError, match=r"embed: lut4_channel has no straight-through rule"):
        qat.QatModel.load(source, spec, options.ReferenceOptions(format="lut4_channel"))
    plan = options.ReferenceOptions(format="int4_g48")
    with pytest.raises(FormatError, match="embed: int4_g48 can't take a weight"):
        qat.QatModel.load(source, spec, plan).prepared()
    with pytest.raises(UnsupportedError, match="dtype"):
        qat.QatModel.load(source, spec, options.ReferenceOptions(dtype="fp64"))


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    model = model_of()
    with pytest.raises(UserError, match="token 32 is outside the model's vocabulary of 32"):
        model.logits(np.array([[1, 32]]), model.prepared())


def test_windows_longer_than_the_model_are_refused() -> None:
    model = model_of()
    with pytest.raises(UserError, match="windows of 65 tokens exceed the model's 64 positions"):
        model.loss(np.zeros((1, 66), np.int64), model.prepared())


def test_a_broken_weight_is_named() -> None:
    model = model_of()
    with torch.no_grad():
        model.masters[Role("up", 1)][3, 4] = float("nan")
    with pytest.raises(NumericsError, match=r"layer 1 up: .*not finite"):
        model.prepared()


@pytest.mark.parametrize(
    ("role", "where"),
    [(Role("embed"), "the embedding"), (Role("down", 1), "layer 1"), (Role("head"), "the head")],
)
def test_the_first_broken_place_is_found(role: Role, where: str) -> None:
    model = model_of()
    weights = {r: w.detach().clone() for r, w in model.prepared().items()}
    weights[role][:] = float("inf")
    assert model.first_broken(np.array([[1, 2, 3]]), weights) == where
