from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError, InternalError
from octavo.core.registry import Registry


def test_finds_and_lists_by_name():
    registry = Registry("number", [3, 1], str)
    assert registry.get("3") == 3
    assert list(registry) == ["1", "3"]
    assert len(registry) == 2
    assert "1" in registry
    assert "2" not in registry


def test_a_miss_names_the_nearest():
    registry = Registry("colour", ["green", "blue"], str)
    with pytest.raises(ConfigError, match="did you mean green"):
        registry.get("gren")
    with pytest.raises(ConfigError, match="known: blue, green"):
        registry.get("xyz")


def test_names_are_unique():
    with pytest.raises(InternalError, match="two colours"):
        Registry("colour", ["a", "a"], str)
