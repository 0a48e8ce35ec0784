"""Where curves cross, and what binds each of their points."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from crossing import bounds, crossings, plans
from curves import svg

FLAT = {1: 100.0, 2: 200.0, 4: 400.0, 8: 500.0, 16: 520.0}  # a step costs the same up to 4


def test_memory_binds_while_a_step_costs_the_same() -> None:
    assert bounds(FLAT) == {1: "memory", 2: "memory", 4: "compute", 8: "compute", 16: "compute"}


def test_a_crossing_lies_between_the_batches_where_the_order_changes() -> None:
    other = {1: 50.0, 2: 100.0, 4: 200.0, 8: 1000.0, 16: 2000.0}
    (found,) = crossings({"flat": FLAT, "steep": other})
    assert found["ahead_beyond"] == "steep"
    # gaps are ln 2 and -ln 2: straight lines meet half way between 4 and 8, in logarithms
    assert found["batch"] == pytest.approx(4 * 2**0.5)


def test_curves_that_keep_their_order_do_not_cross() -> None:
    assert crossings({"a": FLAT, "b": {batch: rate / 2 for batch, rate in FLAT.items()}}) == []


def test_unquantized_weights_have_one_plan_only() -> None:
    names = list(plans())
    assert [name for name in names if name.startswith("bf16")] == ["bf16 abf16"]
    assert {"int4_g32 a8", "int4_g32 abf16", "int8_g32 a8"} <= set(names)


def test_the_picture_is_well_formed_and_has_every_point() -> None:
    picture = svg({"a<b": FLAT, "c": {1: 10.0, 64: 2000.0}}, "x & y")
    tree = ElementTree.fromstring(picture)
    assert len(tree.findall("{*}circle")) == len(FLAT) + 2
    assert len(tree.findall("{*}polyline")) == 2
    for dot in tree.findall("{*}circle"):
        assert 0 <= float(dot.get("cx", "-1")) <= 760
        assert 0 <= float(dot.get("cy", "-1")) <= 460
