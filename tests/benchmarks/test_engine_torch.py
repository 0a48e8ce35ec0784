"""gpt-fast's weight-only layers against the plain product."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers isn't installed")
BF16_ROUNDING = 2.0**-8  # relative, of inputs, scales and outputs in bf16


@pytest.mark.parametrize(("kind", "levels"), [("int8", 254), ("int4", 15)])
def test_quantized_layers_stay_within_half_a_step_of_each_weight(kind: str, levels: int) -> None:
    from engine_torch import KINDS

    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 64, dtype=torch.bfloat16)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = linear.weight.double() @ x.double().T
        found = KINDS[kind](linear)(x).double().T - linear.bias.double()[:, None]
    widest = 2 * linear.weight.abs().max().double()  # a step is at most the range over the levels
    size = (linear.weight.abs().double() @ x.abs().double().T).max()
    bound = widest / levels / 2 * x.abs().double().sum(dim=1) + 4 * BF16_ROUNDING * (size + 1)
    assert (found - exact).abs().max() <= bound.max()
    assert (found - exact).abs().max() > 0


def test_every_linear_layer_is_replaced() -> None:
    from engine_torch import Int8Linear, quantize_linears

    model = torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.Sequential(torch.nn.Linear(32, 8))
    )
    quantize_linears(model, Int8Linear)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Int8Linear) == 2
    assert torch.nn.Linear not in kinds
