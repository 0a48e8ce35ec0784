"""Artifacts written by earlier versions keep loading, every value as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from octavo.io.artifact import MANIFEST_FORMAT
from octavo.io.checkpoint import open_model
from octavo.spec.graph import roles

GOLDEN = Path(__file__).parents[1] / "support" / "golden"
KEPT = sorted(path.stem for path in GOLDEN.glob("artifact-*.json"))


def test_the_format_written_now_has_a_golden_artifact() -> None:
    assert f"artifact-{MANIFEST_FORMAT}" in KEPT


@pytest.mark.parametrize("name", KEPT)
def test_it_loads_with_the_values_that_it_was_written_with(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    with open_model(GOLDEN / name) as model:
        found = {}
        for role in roles(model.spec):
            view = model.source.tensor(role)
            where = "" if role.layer is None else f"layers.{role.layer}."
            values = np.ascontiguousarray(view.float32())
            digest = hashlib.sha256(values.tobytes()).hexdigest()
            found[where + role.part] = [str(view.format), digest]
    assert found == expected
