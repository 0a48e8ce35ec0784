"""Tiny matrices gain nothing from threads, and lose much where cores are busy."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    pytest.importorskip("torch").set_num_threads(1)
