"""The model that a server serves: its names, its tokenizer, and the engine that runs it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.engine.process import ServingClient
from octavo.engine.wire import Ready
from octavo.io.tokenizer import Tokenizer
from octavo.serve.errors import ApiError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`names`: what clients may call it, the first is its own. `generation`: the sampling that the
    model's files suggest. `ready`: what runs, as the engine said first."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    eos: tuple[int, ...]
    generation: Mapping[str, float]
    client: ServingClient
    ready: Ready
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def context(self) -> int:
        return self.ready.limits.context

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.ready.config.kv_tokens

    def check_name(self, name: str | None) -> str:
        """The name to answer with. Raises ApiError 404 for a model that isn't served."""
        if name is None or name in self.names:
            return name or self.name
        served = ", ".join(self.names)
        raise ApiError(
            404, f"the model {name!r} is not served here; served: {served}",
            param="model", code="model_not_found",
        )  # fmt: skip
