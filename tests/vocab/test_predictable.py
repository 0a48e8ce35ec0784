"""What phrases cost: nothing where what is next is chance, most where the context tells."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.core.errors import ConfigError  # noqa: E402
from octavo.vocab.mine import MinePlan, mine  # noqa: E402
from octavo.vocab.phrase_split import Reader, Text  # noqa: E402
from octavo.vocab.predictable import costs, information  # noqa: E402


def test_information_is_the_mutual_one() -> None:
    """Per occurrence, against sums over the joint distribution written out."""
    likely = np.array([[0.9, 0.3, 0.0], [0.1, 0.3, 1.0], [0.2, 0.3, 0.0], [0.4, 0.3, 0.0]])
    found = information(torch.tensor(likely)).numpy()
    mean = likely[:, 0].mean()
    sides = [(likely[:, 0], mean), (1 - likely[:, 0], 1 - mean)]
    joint = sum(float((p / 4 * np.log(p / m)).sum()) for p, m in sides)
    assert found[0] == pytest.approx(joint / mean, rel=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-12)
    # a certain one of four places: the entropy of 1 in 4, over its share; clamped at 1e-7
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert found[2] == pytest.approx(entropy / 0.25, rel=1e-5)


def reading(tokens: list[int], head: np.ndarray, states: np.ndarray) -> tuple[Text, Reader]:
    text = Text(np.array(tokens), len(tokens), states.astype(np.float32))
    return text, Reader(text, head.astype(np.float32), None)


def test_costs_of_longer_runs_add_up() -> None:
    draws = np.random.default_rng(0)
    tokens = [1, 2, 3, 0, 1, 2, 0, 1, 2, 3]
    head, states = draws.standard_normal((4, 5)), draws.standard_normal((10, 5))
    text, reader = reading(tokens, head, states)
    found = costs([(1, 2), (1, 2, 3), (3, 1)], text, reader)
    ones, twos = (reader.likely(np.array(at), np.array([part])) for at, part in
                  (([0, 4, 7], 2), ([1, 5, 8], 3)))  # fmt: skip
    assert found[1, 2] == pytest.approx(float(information(ones)))
    assert found[1, 2, 3] == pytest.approx(found[1, 2] + float(information(twos)))
    text, reader = reading(tokens[:3], head, states[:3])
    assert costs([(0, 1)], text, reader)[0, 1] == np.inf


def test_a_price_leaves_out_what_costs_more_than_it_saves() -> None:
    text = [1, 2, 0, 3, 4, 0] * 20
    known = {(1, 2): 0.2, (3, 4): 0.6}

    def found(price: float) -> tuple[tuple[int, ...], ...]:
        def told(runs):  # type: ignore[no-untyped-def]
            return {run: known.get(run, 10.0) for run in runs}

        return mine(
            [text], MinePlan(9, tokens=2, price=price), lambda t: b" ab"[:t], 8, told
        ).phrases

    assert set(found(0.0)) >= {(1, 2), (3, 4)}
    assert found(1.0) == ((1, 2), (3, 4))  # as often, and what is left of it is more
    assert found(2.0) == ((1, 2),)
    with pytest.raises(ConfigError, match="price"):
        MinePlan(1, price=-1.0)
