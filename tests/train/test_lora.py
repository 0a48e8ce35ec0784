"""Adapters: nothing at first, only they train, merged to the bit, and PEFT's own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.io.safetensors_file import open_safetensors
from octavo.spec.decoder import Role
from octavo.spec.table import family_for_hf
from octavo.train.data import make_corpus
from support.trainable import chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
lora = pytest.importorskip("octavo.train.lora")
qat = pytest.importorskip("octavo.train.qat")
trainer = pytest.importorskip("octavo.train.trainer")
options = pytest.importorskip("octavo.backends.reference.options")

CONFIG = lora.LoraConfig(rank=4, alpha=8.0, parts=("q", "down"))


def model_of(name: str = "int4_g32", config: Any = CONFIG) -> Any:
    masters = tiny_masters(tiny_spec())
    formats = dict.fromkeys(masters, NumberFormat.parse(name))
    return qat.QatModel(tiny_spec(), masters, formats, options.ReferenceOptions(), lora=config)


def trained(name: str = "int4_g32") -> Any:
    model = model_of(name)
    corpus = make_corpus(chain(800, seed=1), chain(200, seed=2), 16)
    trainer.Trainer(model, corpus, trainer.TrainConfig(6, 1e-2, batch=4)).run()
    return model


def test_adapters_change_nothing_at_first() -> None:
    plain, adapted = model_of(config=None).prepared(), model_of().prepared()
    for role, weight in plain.items():
        assert torch.equal(weight, adapted[role]), role


@pytest.mark.parametrize("name", ["fp32", "int4_g32"])
def test_only_adapters_train_and_merging_changes_nothing(name: str) -> None:
    model, start = trained(name), model_of(name)
    for role, master in start.masters.items():
        assert torch.equal(model.masters[role], master), role
    assert len(model.parameters()) == 2 * 2 * 2  # A and B of q and down in two layers
    before = {role: weight.detach() for role, weight in model.prepared().items()}
    assert not torch.equal(before[Role("q", 0)], start.prepared()[Role("q", 0)].detach())
    assert torch.equal(before[Role("up", 0)], start.prepared()[Role("up", 0)].detach())
    converted = model.convert()
    model.merge()
    for role, weight in model.prepared().items():
        assert torch.equal(weight, before[role]), role
    for role, tensor in model.convert().items():
        np.testing.assert_array_equal(tensor.codes, converted[role].codes)
    assert Role("q", 0) in model.masters
    assert str(Role("q", 0)) in model.parameters()
    with pytest.raises(ConfigError, match="no adapters to merge"):
        model.merge()


def test_the_merged_weight_is_the_formula() -> None:
    model = trained("fp32")
    named = {name: p.detach() for name, p in model.parameters().items()}
    role = Role("down", 1)
    expected = model.masters[role] + 2.0 * named[f"{role} B"] @ named[f"{role} A"]
    torch.testing.assert_close(model.prepared()[role].detach(), expected.detach())


def test_files_are_those_of_peft(tmp_path: Path) -> None:
    model = trained()
    family = family_for_hf("LlamaForCausalLM")
    model.adapters.save(tmp_path, model.spec, family, "some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config["base_model_name_or_path"] == "some/base"
    file = open_safetensors(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    assert set(file.tensors) == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{letter}.weight"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for letter in "AB"
    }
    stored = file.tensors[name].rows().view(np.float32).reshape(file.tensors[name].shape)
    expected = model.parameters()[f"{Role('q', 1)} B"].detach().numpy()
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "alpha 0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"parts": ("router",)}, "'router'"),
        ({"parts": ()}, "no layer"),
    ],
)
def test_a_config_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora.LoraConfig(**values)
