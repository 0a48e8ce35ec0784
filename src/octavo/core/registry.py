"""An immutable table of named things whose misses say what exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Generic, TypeVar

from octavo.core.errors import ConfigError, InternalError

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by name. Built once from its items; there is no registration at a distance."""

    def __init__(self, kind: str, items: Iterable[T], name: Callable[[T], str]) -> None:
        self._kind = kind
        self._items: Mapping[str, T] = self._index(items, name)

    def _index(self, items: Iterable[T], name: Callable[[T], str]) -> dict[str, T]:
        table: dict[str, T] = {}
        for item in items:
            if name(item) in table:
                raise InternalError(f"two {self._kind}s are called {name(item)!r}")
            table[name(item)] = item
        return table

    def get(self, name: str) -> T:
        """The item; ConfigError naming the nearest names when there is none."""
        if name not in self._items:
            near = get_close_matches(name, self._items, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(self)}"
            raise ConfigError(f"no {self._kind} is called {name!r}; {hint}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
