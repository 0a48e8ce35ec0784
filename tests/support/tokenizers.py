"""Small tokenizers made here: GGUF metadata of every kind, and directories with tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.io.gguf_tokenizer import tokenizer_from_gguf
from octavo.io.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_letters() -> list[str]:
    """GPT-2's letters for the bytes 0 to 255, written out another way than the product does."""
    visible = set(range(33, 127)) | set(range(161, 173)) | set(range(174, 256))
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def byte_level_metadata(pre: str = "smollm", **more: Any) -> dict[str, Any]:
    """All bytes, the merges of "hello", control tokens, and <tool> as a user-defined token."""
    merges = ["h e", "l l", "he ll", "hell o"]
    words = ["he", "ll", "hell", "hello"]
    tokens = [*CONTROL, *byte_letters(), *words, "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 4) + [4],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
        **more,
    }


def sentencepiece_metadata(**more: Any) -> dict[str, Any]:
    """<unk> <s> </s>, 256 byte pieces, letters, and scored words."""
    words = {"▁he": -1.0, "▁h": -2.0, "ll": -3.0, "he": -4.0, "▁hell": -5.0, "▁hello": -6.0}
    letters = ["▁", *"helow"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *words]
    scores = [0.0] * 259 + [-100.0] * len(letters) + list(words.values())
    types = [2, 3, 3] + [6] * 256 + [1] * (len(letters) + len(words))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": CHATML,
        **more,
    }


def byte_level_tokenizer(pre: str = "smollm", **more: Any) -> Tokenizer:
    return Tokenizer(tokenizer_from_gguf(byte_level_metadata(pre, **more)))


def sentencepiece_tokenizer(**more: Any) -> Tokenizer:
    return Tokenizer(tokenizer_from_gguf(sentencepiece_metadata(**more)))


def save_directory(path: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """A Hugging Face directory with the tokenizer's own tokenizer.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@dataclass(frozen=True)
class ByteVocabulary:
    """Token i is the byte i; 256 is special. The simplest tokenizer there is."""

    strips_space: bool = False
    special_ids: frozenset[int] = field(default=frozenset([256]))

    def token_bytes(self, token: int) -> bytes:
        return b"<eos>" if token == 256 else bytes([token])
