"""Text to token ids and back, for Hugging Face directories and GGUF files.

Two kinds of text are kept apart: `parse_special=True` is for text of the program's own making, in
which "<|im_end|>" means the control token; with False it is spelled out like any other text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.errors import TokenizerError
from octavo.io.tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    from octavo.io.phrases import PhraseTable

_SPACE = "▁"


class Tokenizer:
    """A vocabulary with its rules. Safe to share between threads."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self._parts = parts
        # The backend keeps "special tokens as text" as state, not as an argument of encode.
        self._lock = threading.Lock()

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids. The model's embedding table may be padded beyond it."""
        if self.phrases is not None:
            return self.phrases.first + len(self.phrases)
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def phrases(self) -> PhraseTable | None:
        """Runs of tokens that the model knows as one; encoding joins them, decoding spells them."""
        return self._parts.phrases

    @property
    def bos_id(self) -> int | None:
        return self._parts.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the model's own end token first."""
        return self._parts.eos_ids

    @property
    def chat_template(self) -> str | None:
        return self._parts.chat_template

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """The special tokens that chat templates know by name: "bos_token", "eos_token", ..."""
        return self._parts.named

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """Texts that are found in a text before its words are: control tokens and others."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items()}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens: never printed, never made from a user's text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        `add_special` puts the model's begin (and end) tokens around it, never a second begin token.
        `parse_special` reads the control tokens written in the text as such.
        """
        ids = self._joined(self._encode(_valid_text(text), parse_special))
        if not add_special:
            return ids
        prefix = list(self._parts.prefix)
        doubled = bool(prefix) and ids[: len(prefix)] == prefix
        return ([] if doubled else prefix) + ids + list(self._parts.suffix)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which no added token is recognized, special or not.

        Text to be continued or that continues another: SentencePiece's leading space is left out.
        Never holds the id of an added token: a vocabulary that would make one from plain letters
        gets the letters one by one.
        """
        ids = self._joined(self._continued(_valid_text(text), self._encode_raw))
        if not set(self.added_tokens.values()).isdisjoint(ids) and len(text) > 1:
            return [i for letter in text for i in self._continued(letter, self._encode_raw)]
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that follows other text: control tokens parsed, nothing put around it."""
        ids = self._continued(_valid_text(text), lambda piece: self._encode(piece, True))
        return self._joined(ids)

    def encode_literal(self, text: str) -> list[int]:
        """Ids of a text that follows other text: control tokens spelled out, other added tokens
        recognized, nothing put around it."""
        ids = self._continued(_valid_text(text), lambda piece: self._encode(piece, False))
        return self._joined(ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids. Bytes that aren't valid UTF-8 become U+FFFD; unknown ids are empty.

        The bytes of all tokens in a row, so that a text streamed piece by piece comes out the same.
        """
        kept = (i for i in ids if not (skip_special and i in self.special_ids))
        text = b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")
        return text[1:] if self.strips_space and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for in the middle of a text (b"" for ids without a text)."""
        if self.phrases is not None and token >= self.phrases.first:
            parts = self.phrases.parts(token)
            return b"" if parts == (token,) else b"".join(map(self.token_bytes, parts))
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._spelling != "bytes" and piece in self.added_tokens:
            return piece.encode()
        return self._piece_bytes(piece)

    @cached_property
    def strips_space(self) -> bool:
        """Whether a decoded text loses the space that encoding put before it."""
        steps = self._decoder.get("decoders", [self._decoder])
        strip = any(step.get("type") == "Strip" and step.get("start", 0) > 0 for step in steps)
        return strip or any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"
            for step in steps
        )

    def token_id(self, text: str) -> int | None:
        """The id whose piece is exactly `text` as the vocabulary spells it, if there is one."""
        found = self._backend.token_to_id(text)
        return None if found is None else int(found)

    def to_json(self) -> str:
        """The backend in the tokenizer.json format (for grammar engines and export)."""
        return self._backend.to_str()

    def _joined(self, ids: list[int]) -> list[int]:
        return ids if self.phrases is None else self.phrases.joined(ids)

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _encode_raw(self, text: str) -> list[int]:
        """The backend's stages by hand, leaving out the one that looks for added tokens."""
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _continued(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        # Encoded behind a line break, which then goes: SentencePiece puts a space before what
        # begins a text, and this doesn't begin one.
        if not text:
            return []
        newline = encode("\n")
        ids = encode("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else encode(text)

    @cached_property
    def _byte_of_letter(self) -> Mapping[str, int]:
        return byte_letters()

    def _piece_bytes(self, piece: str) -> bytes:
        if self._spelling == "bytes":
            table = self._byte_of_letter
            if all(letter in table for letter in piece):
                return bytes(table[letter] for letter in piece)
            return piece.encode()
        if self._spelling == "pieces" and _is_byte_piece(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    @cached_property
    def _decoder(self) -> dict[str, Any]:
        """The backend's decoder as tokenizer.json describes it."""
        decoder = self._backend.decoder
        state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {}
        return state

    @cached_property
    def _spelling(self) -> str:
        """How pieces spell bytes: "bytes" (byte-level), "pieces" (<0x0A>) or "plain"."""
        steps = {step.get("type") for step in self._decoder.get("decoders", [self._decoder])}
        if "ByteLevel" in steps:
            return "bytes"
        return "pieces" if "ByteFallback" in steps else "plain"


def load_tokenizer(path: Path, gguf_metadata: Mapping[str, object] | None = None) -> Tokenizer:
    """The tokenizer of a model directory (tokenizer.json) or a GGUF file.

    `gguf_metadata` spares reading the header again. Raises TokenizerError naming what is missing,
    unknown or damaged.
    """
    if gguf_metadata is not None or path.suffix == ".gguf":
        from octavo.io.gguf_tokenizer import tokenizer_from_gguf

        if gguf_metadata is None:
            gguf_metadata = _read_metadata(path)
        return Tokenizer(_building(path, lambda: tokenizer_from_gguf(gguf_metadata)))
    from octavo.io.hf_tokenizer import tokenizer_from_directory

    return Tokenizer(_building(path, lambda: tokenizer_from_directory(path)))


def _read_metadata(path: Path) -> Mapping[str, object]:
    from octavo.io.gguf_reader import open_gguf

    file = open_gguf(path)
    try:
        # Copied out: number arrays may be views into the mapping.
        return {
            key: value.tolist() if hasattr(value, "tolist") else value
            for key, value in file.metadata.items()
            if key.startswith("tokenizer.")
        }
    finally:
        file.mapping.close()


def _building(path: Path, build: Callable[[], TokenizerParts]) -> TokenizerParts:
    try:
        return build()
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


def _valid_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text holds a lone surrogate at character {error.start}, which has no encoding; "
            "decode the input as UTF-8 first"
        ) from error
    return text


def _is_byte_piece(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def byte_letters() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in kept]
    table = {chr(byte): byte for byte in kept}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
