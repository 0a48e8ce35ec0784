"""The JSON files of a Hugging Face directory, read with their types checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.io.artifact import is_artifact
from octavo.io.foreign.table import layout_of
from octavo.io.mapping import FileMapping
from octavo.io.safetensors_file import parse_json

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_config(path: Path) -> Mapping[str, object]:
    """config.json as a mapping. Raises ModelFileError, ConfigError, or UnsupportedError when its
    weights are stored in a quantized format that isn't read."""
    config = _read_object(path)
    if not is_artifact(config):
        layout_of(config, path)
    return config


def read_generation_config(directory: Path) -> Mapping[str, object]:
    """generation_config.json, or nothing when there is none."""
    path = directory / "generation_config.json"
    return _read_object(path) if path.exists() else {}


def architecture(config: Mapping[str, object], path: Path) -> str:
    """The one architecture that config.json names."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(
            f"{path}: architectures is {names!r}, expected a list of one name such as "
            "'LlamaForCausalLM'. Take the config.json of the original model."
        )
    return names[0]


def eos_ids(generation: Mapping[str, object], config: Mapping[str, object]) -> tuple[int, ...]:
    """`eos_token_id` (an integer or a list) of generation_config.json, then of config.json."""
    found: dict[int, None] = {}
    for source in (generation, config):
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if type(token) is not int or token < 0:
                raise ConfigError(
                    f"eos_token_id is {value!r}, expected a token id or a list of them. "
                    "Correct generation_config.json or config.json."
                )
            found[token] = None
    return tuple(found)


def sampling_defaults(generation: Mapping[str, object]) -> Mapping[str, float]:
    """The sampling parameters that the model's authors suggest; none when they don't sample."""
    defaults: dict[str, float] = {}
    if generation.get("do_sample") is False:
        return defaults
    for name in _DEFAULTS:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(
                f"{name} is {value!r}, expected a number. Correct generation_config.json."
            )
        defaults[name] = value
    return defaults


def _read_object(path: Path) -> Mapping[str, object]:
    mapping = FileMapping(path)
    try:
        value = parse_json(path, mapping.buffer[:])
    finally:
        mapping.close()
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: is {type(value).__name__}, expected a JSON object.")
    return value
