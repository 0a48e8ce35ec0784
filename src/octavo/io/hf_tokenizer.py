"""A `tokenizers` backend from a Hugging Face directory.

tokenizer.json holds the vocabulary and rules; tokenizer_config.json names the special tokens;
generation_config.json and config.json name what ends an answer; the chat template is in
chat_template.jinja, else in tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.errors import TokenizerError
from octavo.io.phrases import read_phrases
from octavo.io.tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def tokenizer_from_directory(path: Path) -> TokenizerParts:
    """Build from a directory. Raises TokenizerError for a missing or damaged file."""
    backend = _backend(path / "tokenizer.json")
    config = _read_json(path / "tokenizer_config.json")
    named = _named_tokens(path, config)
    bos = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
    prefix, suffix = _around(backend)
    return TokenizerParts(
        backend=backend,
        bos_id=bos,
        eos_ids=_end_ids(path, backend, named),
        prefix=_overridden(prefix, bos, config.get("add_bos_token")),
        suffix=suffix,
        named=named,
        chat_template=_chat_template(path, config),
        phrases=read_phrases(path),
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise TokenizerError(
            f"{path.name} is missing: slow-tokenizer files (tokenizer.model, vocab.json) are not "
            "read. Save the model again with a current transformers, which writes it."
        )
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception for every damage
        raise TokenizerError(
            f"{path.name} is damaged or too new for the tokenizers package: {error}. Fetch it "
            "again, or upgrade that package."
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and behind a text, seen on one word."""
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise TokenizerError("the post-processor of tokenizer.json changes the text's own tokens")


def _overridden(prefix: tuple[int, ...], bos: int | None, add_bos: object) -> tuple[int, ...]:
    if bos is None or not isinstance(add_bos, bool):
        return prefix
    others = tuple(i for i in prefix if i != bos)
    return (bos, *others) if add_bos else others


def _named_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    both = _read_json(path / "special_tokens_map.json") | config
    texts = {name: _token_text(both.get(name)) for name in _NAMES}
    return {name: text for name, text in texts.items() if text is not None}


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _end_ids(path: Path, backend: tokenizers.Tokenizer, named: dict[str, str]) -> tuple[int, ...]:
    eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    declared = list(_declared_ends(path))
    return tuple(dict.fromkeys(([] if eos is None else [eos]) + declared))


def _declared_ends(path: Path) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        value = _read_json(path / name).get("eos_token_id")
        for i in value if isinstance(value, list) else [value]:
            if isinstance(i, int) and not isinstance(i, bool) and i >= 0:
                yield i


def _chat_template(path: Path, config: dict[str, Any]) -> str | None:
    own = path / "chat_template.jinja"
    if own.is_file():
        return _read_text(own)
    template = config.get("chat_template")
    if template is None:
        template = _read_json(path / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise TokenizerError("chat_template in tokenizer_config.json is neither text nor a list")
    return template


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} is not valid JSON: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} must hold an object, not {type(value).__name__}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path.name} can't be read: {error}. Fetch it again.") from error
