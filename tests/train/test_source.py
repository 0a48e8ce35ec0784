"""Prepare = convert = serve: what trained runs in every backend, unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import ModelFileError
from octavo.formats.number_format import NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.safetensors_file import open_safetensors, write_safetensors
from octavo.spec.decoder import Role
from octavo.spec.graph import linear_roles, role_shape, roles
from octavo.train.data import make_corpus
from support.trainable import VOCAB, chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
qat = pytest.importorskip("octavo.train.qat")
trainer = pytest.importorskip("octavo.train.trainer")
sources = pytest.importorskip("octavo.train.source")
decoders = pytest.importorskip("octavo.backends.reference.decoder")
options = pytest.importorskip("octavo.backends.reference.options")

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24)


@pytest.fixture(scope="module", params=["int3_g32", "int4_g32_asym", "nf4_g32"])
def trained(request: pytest.FixtureRequest) -> Any:
    spec = tiny_spec()
    masters = tiny_masters(spec)
    formats = dict.fromkeys(masters, NumberFormat.parse(request.param))
    model = qat.QatModel(spec, masters, formats, options.ReferenceOptions())
    corpus = make_corpus(chain(800, seed=1), chain(200, seed=2), 32)
    trainer.Trainer(model, corpus, trainer.TrainConfig(3, learning_rate=1e-2)).run()
    return model


def test_the_source_holds_what_training_simulated(trained: Any) -> None:
    source, prepared = sources.TrainedSource(trained), trained.prepared()
    for role in roles(trained.spec):
        view, expected = source.tensor(role), prepared[role].detach().numpy()
        assert view.shape == role_shape(trained.spec, role)
        np.testing.assert_array_equal(view.float32(), expected)
        if role in {Role("embed"), *linear_roles(trained.spec)}:
            assert view.format == trained.formats[role]
            np.testing.assert_array_equal(view.quantized(3, 9).dequantize(), expected[3:9])
            np.testing.assert_array_equal(view.float32(3, 9), expected[3:9])
            raw = view.raw(3, 9)
            np.testing.assert_array_equal(raw.data.view(np.float32), expected[3:9])
        view.drop()
    with pytest.raises(ModelFileError, match="layer 7 q"):
        source.tensor(Role("q", 7))
    assert not source.has(Role("q", 7))


def test_the_reference_computes_what_training_simulated(trained: Any) -> None:
    source = sources.TrainedSource(trained)
    decoder = decoders.ReferenceDecoder.load(source, trained.spec, trained.options)
    with torch.no_grad():
        simulated = trained.logits(TOKENS[None], trained.prepared())
    assert torch.equal(simulated, torch.from_numpy(decoder.logits(TOKENS)))


def test_native_serves_what_was_trained(trained: Any) -> None:
    pytest.importorskip("octavo._native")
    from octavo.backends.native.backend import load
    from support.native_models import text_logits

    source = sources.TrainedSource(trained)
    config = RuntimeConfig(context=64, activations="a32", kv_format="fp32", threads=1)
    executor = load(trained.spec, source, config)
    try:
        native = text_logits(executor, TOKENS.tolist(), len(TOKENS))
    finally:
        executor.close()
    with torch.no_grad():
        simulated = trained.logits(TOKENS[None], trained.prepared()).numpy()
    exact = decoders.ReferenceDecoder.load(
        source, trained.spec, options.ReferenceOptions(dtype="fp64")
    ).logits(TOKENS)
    # both sum in fp32, in other orders: each is about as far from fp64 as the other
    tolerance = 4 * np.abs(simulated - exact).max()
    assert tolerance < 1e-3 * np.abs(exact).max()
    np.testing.assert_allclose(native, simulated, rtol=0, atol=tolerance)


def test_written_codes_are_those_of_the_forward(trained: Any, tmp_path: Path) -> None:
    converted = trained.convert()
    arrays = {}
    for role, tensor in converted.items():
        arrays.update(tensor.state(str(role)))
    write_safetensors(tmp_path / "trained.safetensors", arrays)
    file = open_safetensors(tmp_path / "trained.safetensors")
    prepared = trained.prepared()
    for role, tensor in converted.items():
        state = {
            name: stored.rows().reshape(-1).view(arrays[name].dtype).reshape(stored.shape)
            for name, stored in file.tensors.items()
            if name.startswith(f"{role}.")
        }
        read = QuantizedTensor.from_state(state, str(role), tensor.format, tensor.shape)
        np.testing.assert_array_equal(read.unpacked_codes(), tensor.unpacked_codes())
        np.testing.assert_array_equal(read.dequantize(), prepared[role].detach().numpy())
