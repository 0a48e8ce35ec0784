"""Squared gradients: those of the whole decoder, text by text; what the driver does with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import ReferenceOptions
from octavo.compress import driver as driving
from octavo.compress.fisher import FisherFile, squared_gradients
from octavo.compress.forecast import predicted_peak
from octavo.compress.job import compress
from octavo.compress.plan import plan
from octavo.compress.recipe import Recipe, Step
from octavo.core.errors import ConfigError, NumericsError
from octavo.io.checkpoint import open_model
from octavo.spec.decoder import Role
from octavo.spec.graph import head_role, role_shape, roles
from support.small_models import material, small_model, tokens

SQUEEZED = Recipe((Step("squeezellm", "lut3_channel"), Step("rtn", "int8_channel", ("embed",))))


def gathered(path: Path, text: np.ndarray, wanted: list[Role]) -> dict[Role, Tensor]:
    with open_model(path) as model:
        return squared_gradients(model.source, model.spec, text, wanted)


def by_the_decoder(path: Path, text: np.ndarray, role: Role) -> Tensor:
    """The same from logits of the plain decoder, in fp64, one text at a time."""
    total: Tensor | float = 0.0
    for row in text:
        with open_model(path) as model:
            options = ReferenceOptions(dtype="fp64", activations="a32", kv_format="fp32")
            decoder = ReferenceDecoder.load(model.source, model.spec, options)
        decoder.weights[role].requires_grad_()
        logits = decoder.forward(row.tolist(), decoder.new_kv())
        logs = torch.log_softmax(logits, -1)[:-1]
        loss = -logs[torch.arange(len(row) - 1), torch.from_numpy(row[1:])].mean()
        (gradient,) = torch.autograd.grad(loss, [decoder.weights[role]])
        total = total + gradient.square()
    assert isinstance(total, Tensor)
    return total / len(text)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_they_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    path, text = small_model(family, tmp_path / "m"), tokens(3, 12)
    with open_model(path) as model:
        head = head_role(model.spec)
    wanted = [Role("q", 0), Role("down", 1), Role("v", 1), head]
    found = gathered(path, text, wanted)
    for role in wanted:
        expected = by_the_decoder(path, text, role).float()
        # fp32 forward and back through two blocks: a few hundred roundings of 2^-24.
        assert (found[role] - expected).abs().max() <= 2e-4 * expected.max(), role


def test_they_are_squared_before_they_are_averaged(tmp_path: Path) -> None:
    path, text = small_model("llama", tmp_path / "m"), tokens(2, 12)
    role = Role("o", 0)
    both = gathered(path, text, [role])[role]
    each = [gathered(path, row[None], [role])[role] for row in text]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_experts_without_tokens_have_none(tmp_path: Path) -> None:
    path = small_model("qwen3_moe", tmp_path / "m")
    with open_model(path) as model:
        experts = [r for r in roles(model.spec) if r.part == "gate"]
    found = gathered(path, tokens(1, 2), experts)
    assert any(not found[role].any() for role in experts)
    assert any(found[role].any() for role in experts)


def test_a_gradient_that_is_no_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("llama", tmp_path / "m")
    monkeypatch.setattr(
        "octavo.compress.fisher.cross_entropy", lambda logits, _: logits.sum() * float("nan")
    )
    with pytest.raises(NumericsError, match=r"layers\.0\.q: a gradient"):
        gathered(path, tokens(1, 8), [Role("q", 0)])


def test_sensitive_weights_end_up_closer(tmp_path: Path) -> None:
    """By their own measure the clusters of squeezellm are better than those of kmeans."""
    path, feed = small_model("llama", tmp_path / "m"), material(4, 24)
    plain = Recipe((Step("kmeans", "lut3_channel"), Step("rtn", "int8_channel", ("embed",))))
    outs = [compress(path, recipe, tmp_path / name, feed).out
            for name, recipe in (("f", SQUEEZED), ("k", plain))]  # fmt: skip
    assert feed.tokens is not None
    with open_model(path) as model:
        wanted = [r for r in roles(model.spec) if r.layer is not None and r.part in ("q", "down")]
        before = {role: model.source.tensor(role).float32() for role in wanted}
    fisher = gathered(path, feed.tokens, wanted)
    lost = []
    for out in outs:
        with open_model(out) as model:
            off = {r: model.source.tensor(r).float32() - before[r] for r in wanted}
        lost.append([float((fisher[r].numpy() * off[r] ** 2).sum()) for r in wanted])
    assert all(ours < theirs for ours, theirs in zip(*lost, strict=True))


def test_a_run_goes_on_behind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feed, calls = small_model("llama", tmp_path / "m"), material(2, 16), []
    whole = compress(path, SQUEEZED, tmp_path / "a", feed)

    def counted(*arguments: object) -> dict[Role, Tensor]:
        calls.append(1)
        return squared_gradients(*arguments)  # type: ignore[arg-type]

    def dies(self: driving.Driver, layer: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driving, "squared_gradients", counted)
        patch.setattr(driving.Driver, "_block", dies)
        with pytest.raises(KeyboardInterrupt):
            compress(path, SQUEEZED, tmp_path / "b", feed)
    with monkeypatch.context() as patch:
        patch.setattr(driving, "squared_gradients", counted)
        again = compress(path, SQUEEZED, tmp_path / "b", feed)
    assert calls == [1]
    for name in ("model.safetensors", "octavo.json"):
        assert (whole.out / name).read_bytes() == (again.out / name).read_bytes()


def test_transforms_would_change_what_they_belong_to(tmp_path: Path) -> None:
    recipe = Recipe((Step("awq"), *SQUEEZED.steps))
    with (
        open_model(small_model("llama", tmp_path / "m")) as model,
        pytest.raises(ConfigError, match=r"squeezellm takes gradients .* awq"),
    ):
        plan(recipe, model.spec)


def test_the_forecast_counts_the_model_three_times(tmp_path: Path) -> None:
    with open_model(small_model("llama", tmp_path / "m")) as model:
        spec = model.spec
        plain = Recipe((Step("kmeans", "lut3_channel"),))
        more = predicted_peak(plan(SQUEEZED, spec), 4096) - predicted_peak(plan(plain, spec), 4096)
        blocks = sum(int(np.prod(role_shape(spec, r))) for r in plan(SQUEEZED, spec).fisher)
        assert more > 2 * 4 * blocks


def test_the_file_gives_back_what_was_put_in(tmp_path: Path) -> None:
    values = {Role("q", 0): torch.rand(3, 5), Role("head"): torch.rand(2, 2)}
    file = FisherFile(tmp_path)
    assert not file.exists()
    file.write(values)
    assert file.exists()
    for role, expected in values.items():
        assert torch.equal(file.read(role), expected)
