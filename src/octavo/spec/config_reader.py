"""Typed, strict reads of a config: a lying, missing or ill-typed key is one clear error.

A reader remembers what was read, so that `unread` can name the keys that nobody understood.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from octavo.core.errors import ConfigError

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 4096

# Keys that never change what the decoder computes: provenance, training, token ids, library hints.
HARMLESS = frozenset({
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id",
    "cache_implementation", "chunk_size_feed_forward", "decoder_start_token_id", "dtype",
    "embd_pdrop", "eos_token_id", "hidden_dropout", "id2label", "initializer_range",
    "is_encoder_decoder", "keys_to_ignore_at_inference", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
    "pretraining_tp", "problem_type", "resid_pdrop", "return_dict", "router_aux_loss_coef",
    "router_jitter_noise", "torch_dtype", "transformers_version", "unk_token_id", "use_cache",
})  # fmt: skip


class ConfigReader:
    """Reads over a nested mapping. A JSON null counts as absent, except for `*_or_none`.

    `source` names the file for messages. Every read raises ConfigError that names the file, the
    key, what was found and what was expected.
    """

    def __init__(self, values: Mapping[str, object], source: str, path: str = "") -> None:
        self._values = values
        self._source = source
        self._path = path
        self._read: set[str] = set()
        self._children: dict[str, ConfigReader] = {}

    def has(self, key: str) -> bool:
        """Whether the key is there, be it null. Does not count as a read."""
        return key in self._values

    def given(self, key: str) -> bool:
        """Whether the key is there and not null. Does not count as a read."""
        return self._values.get(key) is not None

    def int_(self, key: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """An integer in [low, high]; absent: `default`, or an error when that is None."""
        found = self._get(key, default, f"an integer from {low} to {high}")
        return self._as_int(key, found, low, high)

    def int_or_none(self, key: str, default: int | None = None, low: int = 1) -> int | None:
        """An integer of at least `low`, or null; absent: `default`."""
        self._read.add(key)
        found = self._values.get(key, default)
        return None if found is None else self._as_int(key, found, low, MAX_SIZE)

    def float_(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """A finite number above `low`; absent: `default`, or an error when that is None."""
        found = self._get(key, default, f"a number above {low:g}")
        return self._as_float(key, found, low)

    def float_or_none(self, key: str, default: float | None = None) -> float | None:
        """A finite number above zero, or null; absent: `default`."""
        self._read.add(key)
        found = self._values.get(key, default)
        return None if found is None else self._as_float(key, found, 0.0)

    def bool_(self, key: str, default: bool | None = None) -> bool:
        found = self._get(key, default, "true or false")
        if not isinstance(found, bool):
            raise self.error(key, "true or false")
        return found

    def str_(self, key: str, default: str | None = None) -> str:
        found = self._get(key, default, "a string")
        if not isinstance(found, str):
            raise self.error(key, "a string")
        return found

    def choice(self, key: str, options: Iterable[str], default: str | None = None) -> str:
        """A string that must be one of `options`."""
        found, known = self.str_(key, default), tuple(options)
        if found not in known:
            raise self.error(key, "one of " + ", ".join(known))
        return found

    def ints(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        items = self._list(key, default, "a list of integers")
        return tuple(self._as_int(key, item, 0, MAX_SIZE) for item in items)

    def floats(self, key: str, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """A list of finite numbers above zero (rope factors; nothing else is a list of floats)."""
        items = self._list(key, default, "a list of positive numbers")
        return tuple(self._as_float(key, item, 0.0) for item in items)

    def strs(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        items = self._list(key, default, "a list of strings")
        if not all(isinstance(item, str) for item in items):
            raise self.error(key, "a list of strings")
        return tuple(str(item) for item in items)

    def expect(self, key: str, *allowed: object) -> None:
        """The key is absent, null, or one of `allowed`: what else it could say isn't supported."""
        self._read.add(key)
        found = self._values.get(key)
        if found is not None and found not in allowed:
            raise self.error(key, " or ".join(map(repr, allowed)))

    def ignore(self, *keys: str) -> None:
        """Counts keys as understood: they say nothing that the caller does not know already."""
        self._read.update(keys)

    def sub(self, key: str) -> ConfigReader:
        """A reader of a nested mapping; its unread keys are reported under this one's."""
        if key not in self._children:
            found = self._get(key, None, "a mapping")
            if not isinstance(found, Mapping):
                raise self.error(key, "a mapping")
            self._children[key] = ConfigReader(found, self._source, f"{self._path}{key}.")
        return self._children[key]

    def unread(self) -> tuple[str, ...]:
        """Full names of keys that nobody read and that aren't known to be harmless."""
        mine = (key for key in self._values if key not in self._read and key not in HARMLESS)
        names = [self._path + key for key in mine]
        for child in self._children.values():
            names.extend(child.unread())
        return tuple(sorted(names))

    def expect_all_read(self) -> None:
        """Raises when a key was not understood: used where an unknown key would change numbers."""
        names = self.unread()
        if names:
            raise ConfigError(
                f"{self._source}: unknown key {names[0]!r}, which Octavo can't honour"
            )

    def error(self, key: str, expected: str) -> ConfigError:
        """The error that says what was found under `key` and what was expected."""
        text = repr(self._values.get(key))
        found = text if len(text) <= 80 else text[:77] + "..."
        return ConfigError(f"{self._source}: {self._path}{key} is {found}, expected {expected}")

    def _get(self, key: str, default: object, expected: str) -> object:
        self._read.add(key)
        found = self._values.get(key)
        if found is None:
            found = default
        if found is None:
            name = self._path + key
            raise ConfigError(f"{self._source}: {name} is missing, expected {expected}")
        return found

    def _list(self, key: str, default: tuple[object, ...] | None, expected: str) -> list[object]:
        found = self._get(key, default, expected)
        if isinstance(found, list | tuple):
            return list(found)
        as_list = getattr(found, "tolist", None)  # arrays of a GGUF header or tensor
        items = as_list() if callable(as_list) else None
        if not isinstance(items, list):
            raise self.error(key, expected)
        return items

    def _as_int(self, key: str, found: object, low: int, high: int) -> int:
        if isinstance(found, bool) or not isinstance(found, Integral):
            raise self.error(key, f"an integer from {low} to {high}")
        number = int(found)
        if not low <= number <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return number

    def _as_float(self, key: str, found: object, low: float) -> float:
        if isinstance(found, bool) or not isinstance(found, Real):
            raise self.error(key, f"a number above {low:g}")
        number = float(found)
        if not (math.isfinite(number) and number > low):
            raise self.error(key, f"a finite number above {low:g}")
        return number
