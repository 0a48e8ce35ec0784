"""A rotated model is the model it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import Precision, ReferenceOptions
from octavo.compress.methods.quarot import QuaRot
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.io.checkpoint import open_model
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape, roles
from support.model_files import MODELS
from support.small_models import small_model, tokens

PLAIN = [name for name in MODELS if "gemma3" not in name and "gemma2" not in name]


def logits(source: WeightSource, spec: DecoderSpec, dtype: Precision = "fp64") -> Tensor:
    decoder = ReferenceDecoder.load(source, spec, ReferenceOptions(dtype=dtype))
    with torch.no_grad():
        return decoder.forward(tokens(1, 24)[0].tolist(), decoder.new_kv()).double()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_logits_stay(name: str, residual: bool, tmp_path: Path) -> None:
    method = QuaRot(residual=residual, seed=3)
    with open_model(small_model(name, tmp_path)) as model:
        exact = logits(model.source, model.spec)
        # Each rotated weight is rounded to fp32 once: the size of fp32's own rounding on the way.
        noise = (logits(model.source, model.spec, "fp32") - exact).abs().max()
        rotated = method.prepare(model.source, model.spec)
        gap = (logits(rotated, method.respec(model.spec)) - exact).abs().max()
    assert gap <= 16 * noise


@pytest.mark.parametrize("name", PLAIN)
def test_every_tensor_that_the_new_spec_names_is_there(name: str, tmp_path: Path) -> None:
    method = QuaRot()
    with open_model(small_model(name, tmp_path)) as model:
        rotated, spec = method.prepare(model.source, model.spec), method.respec(model.spec)
        assert not spec.tied_head
        for role in roles(spec):
            assert rotated.has(role)
            view = rotated.tensor(role)
            assert view.shape == view.float32().shape == role_shape(spec, role)
            if role.part in ("attn_norm", "mlp_norm", "final_norm"):
                assert (view.float32() == 1).all()


def test_rows_and_blocks_of_a_view_are_its_values(tmp_path: Path) -> None:
    with open_model(small_model("qwen2", tmp_path)) as model:
        view = QuaRot().prepare(model.source, model.spec).tensor(Role("down", 0))
        whole = view.float32()
        assert (view.float32(3, 9) == whole[3:9]).all()
        assert (view.quantized(3, 9).dequantize() == whole[3:9]).all()
        raw = view.raw(3, 9)
        assert raw.type == "F32"
        assert raw.data.tobytes() == whole[3:9].tobytes()


def test_without_the_residual_stream_a_tied_head_stays_tied(tmp_path: Path) -> None:
    with open_model(small_model("qwen2", tmp_path)) as model:
        spec = QuaRot(residual=False).respec(model.spec)
        rotated = QuaRot(residual=False).prepare(model.source, model.spec)
        assert spec == model.spec
        assert spec.tied_head
        for role in (Role("embed"), Role("attn_norm", 0), Role("q", 0), Role("down", 0)):
            kept = model.source.tensor(role).float32()
            assert (rotated.tensor(role).float32() == kept).all()
        assert (
            rotated.tensor(Role("v", 0)).float32() != model.source.tensor(Role("v", 0)).float32()
        ).any()


def test_normed_branches_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with open_model(small_model("gemma3", tmp_path)) as model:
        with pytest.raises(UnsupportedError, match="residual: false"):
            QuaRot().respec(model.spec)
        method = QuaRot(residual=False)
        exact = logits(model.source, model.spec)
        noise = (logits(model.source, model.spec, "fp32") - exact).abs().max()
        gap = (logits(method.prepare(model.source, model.spec), model.spec) - exact).abs().max()
        assert gap <= 16 * noise


def test_nothing_to_rotate_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing is rotated"):
        QuaRot(residual=False, heads=False)


def test_a_planted_outlier_is_spread(tmp_path: Path) -> None:
    """A column of q's weights 50 times larger than the rest: the rows' peaks fall."""
    with open_model(small_model("llama", tmp_path)) as model:
        role = Role("q", 0)
        W = model.source.tensor(role).float32().copy()
        norm = model.source.tensor(Role("attn_norm", 0)).float32()
        W[:, 5] *= 50
        rotated = QuaRot(heads=False).prepare(Planted(model.source, role, W), model.spec)
        after = torch.from_numpy(rotated.tensor(role).float32())
    before = torch.from_numpy(W * norm)
    assert peak(after) < peak(before) / 2


def peak(W: Tensor) -> float:
    """Largest over RMS, on average over rows."""
    return float((W.abs().amax(1) / W.square().mean(1).sqrt()).mean())


class Planted:
    """A source with one matrix replaced."""

    def __init__(self, source: WeightSource, role: Role, values: object) -> None:
        self.source, self.role, self.values = source, role, values

    def tensor(self, role: Role) -> object:
        view = self.source.tensor(role)
        if role != self.role:
            return view
        from support.memory_source import MemoryTensor

        return MemoryTensor(self.values, view.format)  # type: ignore[arg-type]

    def has(self, role: Role) -> bool:
        return self.source.has(role)

    def describe(self) -> str:
        return "planted"
