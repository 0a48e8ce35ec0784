"""Which layout a config.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from octavo.core.errors import ConfigError, UnsupportedError
from octavo.io.foreign.awq import Awq
from octavo.io.foreign.bitsandbytes import BitsAndBytes
from octavo.io.foreign.compressed_tensors import CompressedTensors
from octavo.io.foreign.gptq import Gptq
from octavo.io.foreign.module import Layout

_LAYOUTS: Mapping[str, Callable[[Mapping[str, Any]], Layout]] = MappingProxyType(
    {
        "gptq": Gptq.from_config,
        "awq": Awq.from_config,
        "compressed-tensors": CompressedTensors.from_config,
        "bitsandbytes": BitsAndBytes.from_config,
    }
)


def layout_of(config: Mapping[str, object], path: Path) -> Layout | None:
    """The layout that config.json's `quantization_config` names; None when it has none.

    Raises UnsupportedError for a tool or variant that isn't read, ConfigError for nonsense; both
    name `path`.
    """
    method = config.get("quantization_config")
    if method is None:
        return None
    name = method.get("quant_method") if isinstance(method, Mapping) else method
    if not isinstance(method, Mapping) or not isinstance(name, str) or name not in _LAYOUTS:
        raise UnsupportedError(
            f"{path}: weights quantized as {name!r} can't be read; read are "
            f"{', '.join(_LAYOUTS)}. Use the original checkpoint or a GGUF file."
        )
    try:
        return _LAYOUTS[name](method)
    except (UnsupportedError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error
