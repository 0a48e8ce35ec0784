"""What every way of loading a tokenizer has to find out, before it becomes a `Tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

    from octavo.io.phrases import PhraseTable


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """A built backend and what lies outside it: which ids begin, end and steer a text.

    `prefix` and `suffix` are put around a text that is encoded with its special tokens. `named`
    holds the special tokens that chat templates know by name ("bos_token", "eos_token", ...).
    `phrases` are runs of the backend's tokens that the model knows as one.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    named: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    phrases: PhraseTable | None = None
