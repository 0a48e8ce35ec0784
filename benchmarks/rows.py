"""Rows of a long measurement, kept in a file as they come: a run that is stopped goes on where it
was, and rows measured under other conditions are never mixed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.compress.artifact import write_json


class Rows:
    """A JSON file `{condition: value, ..., key: {name: row}}`.

    What the file holds is kept if all `conditions` are the same there (`about`, such as a date, may
    differ), else it begins anew.
    """

    def __init__(
        self, path: Path, key: str, conditions: Mapping[str, str], about: Mapping[str, str]
    ) -> None:
        self._path, self._key = path, key
        self._head = {**conditions, **about}
        before: dict[str, Any] = {}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
        same = all(before.get(name) == value for name, value in conditions.items())
        self._rows: dict[str, Any] = dict(before.get(key, {})) if same else {}

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def add(self, name: str, row: Mapping[str, object]) -> None:
        """Written at once: what is measured stays, whatever comes."""
        self._rows[name] = dict(row)
        write_json(self._path, {**self._head, self._key: self._rows})

    def in_order(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Those of `names` that are there."""
        return {name: self._rows[name] for name in names if name in self._rows}
