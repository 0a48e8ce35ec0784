"""`tokenizer.*` keys of a GGUF file from a tokenizer.json: the inverse of `gguf_tokenizer`.

Only what a reader of such a file would rebuild to the same rules is written: a byte-level BPE whose
patterns have a name there, or a SentencePiece BPE whose merges follow from one score per piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.core.errors import TokenizerError
from octavo.io.gguf_tokenizer import derived_merges
from octavo.io.gguf_values import GgufValue, gguf_value
from octavo.io.pre_tokenizers import GPT2_PATTERN, known_pre_tokenizers
from octavo.io.tokenizer import Tokenizer

Json = Mapping[str, Any]
Merges = list[tuple[str, str]]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NAMED = {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


def gguf_vocabulary(tokenizer: Tokenizer, size: int) -> dict[str, GgufValue]:
    """The keys for a model of `size` rows of embedding; ids without a text become unused tokens.

    Raises TokenizerError for rules that such a file can't say, and for ids beyond `size`.
    """
    backend: Json = json.loads(tokenizer.to_json())
    model = backend["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"a GGUF vocabulary is a BPE here, not {model.get('type')!r}")
    tokens, types = _tokens(backend, size)
    merges = [_pair(merge) for merge in model["merges"]]
    rules = _sentencepiece if model.get("byte_fallback") else _byte_level
    found: dict[str, object] = {
        "tokens": tokens,
        **rules(backend, tokens, types, merges),
        "token_type": types,
        **_special(tokenizer),
    }
    keys = {f"tokenizer.ggml.{key}": gguf_value(value) for key, value in found.items()}  # type: ignore[arg-type]
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = gguf_value(tokenizer.chat_template)
    return keys


def _tokens(backend: Json, size: int) -> tuple[list[str], list[int]]:
    """Text and type of every id."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    added = {item["content"]: item for item in backend["added_tokens"]}
    ids = {**backend["model"]["vocab"], **{text: item["id"] for text, item in added.items()}}
    beyond = [text for text, i in ids.items() if not 0 <= i < size]
    if beyond:
        raise TokenizerError(f"token {beyond[0]!r} has id {ids[beyond[0]]}, the model {size} rows")
    unknown = backend["model"].get("unk_token")
    for text, i in ids.items():
        tokens[i] = text
        types[i] = _type(text, added.get(text), unknown, bool(backend["model"]["byte_fallback"]))
    return tokens, types


def _type(text: str, added: Json | None, unknown: str | None, bytes_as_pieces: bool) -> int:
    if text == unknown:
        return _UNKNOWN
    if added is not None:
        return _CONTROL if added["special"] else _USER_DEFINED
    is_byte = bytes_as_pieces and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return _BYTE if is_byte else _NORMAL


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _byte_level(
    backend: Json, tokens: list[str], types: list[int], merges: Merges
) -> dict[str, object]:
    patterns = _patterns(backend.get("pre_tokenizer"))
    wanted = (patterns, bool(backend["model"].get("ignore_merges")), _composes(backend))
    for name, known in known_pre_tokenizers().items():
        if (known.patterns, known.ignore_merges, known.nfc) == wanted:
            texts = [f"{left} {right}" for left, right in merges]
            return {"model": "gpt2", "pre": name, "merges": texts}
    raise TokenizerError(
        "tokenizer.json cuts text by patterns that no GGUF pre-tokenizer has: "
        f"{' then '.join(patterns)}. Export to hf instead."
    )


def _patterns(pre: Json | None) -> tuple[str, ...]:
    """The patterns that cut a text, in order; the last step must be ByteLevel."""
    steps = [] if pre is None else pre.get("pretokenizers", [pre])
    patterns: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            patterns.append(str(step["pattern"].get("Regex", "")))
        elif kind == "ByteLevel" and not step.get("add_prefix_space") and step is steps[-1]:
            return (*patterns, GPT2_PATTERN) if step.get("use_regex", True) else tuple(patterns)
        else:
            raise TokenizerError(f"tokenizer.json cuts text by a {kind} step GGUF has no word for")
    raise TokenizerError("tokenizer.json doesn't spell bytes as letters (ByteLevel)")


def _composes(backend: Json) -> bool:
    kind = (backend.get("normalizer") or {}).get("type")
    if kind not in (None, "NFC"):
        raise TokenizerError(f"tokenizer.json normalizes text ({kind}), which GGUF can't say")
    return kind == "NFC"


def _sentencepiece(
    backend: Json, tokens: list[str], types: list[int], merges: Merges
) -> dict[str, object]:
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    scores = np.array([-rank.get(token, len(rank)) for token in tokens], np.float32)
    pairs = derived_merges(tokens, scores, np.array(types, np.int32))
    derived = [(tokens[left], tokens[right]) for left, right in pairs.tolist()]
    order = [left + right for left, right in merges]
    if set(derived) != set(merges) or order != [left + right for left, right in derived]:
        raise TokenizerError(
            "the merges of tokenizer.json don't follow from one score per piece, which is all that "
            "a GGUF file says of them. Export to hf instead."
        )
    prefix = _space_prefix(backend)
    return {"model": "llama", "scores": scores.tolist(), "add_space_prefix": prefix}


def _space_prefix(backend: Json) -> bool:
    """Whether a space is put before a text. Only spaces may be rewritten otherwise."""
    normalizer = backend.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    pre = backend.get("pre_tokenizer") or {}
    prefix = False
    for step in steps:
        if step == {"type": "Prepend", "prepend": _SPACE}:
            prefix = True
        elif step.get("type") != "Replace" or step.get("content") != _SPACE:
            raise TokenizerError(f"tokenizer.json normalizes text by {step}: GGUF can't say that")
    if pre.get("type") == "Metaspace":
        return prefix or pre.get("prepend_scheme") != "never"
    # Gemma's cuts at spaces, of which its normalizer has left none.
    if pre and (pre.get("type") != "Split" or pre["pattern"] != {"String": " "}):
        raise TokenizerError(f"tokenizer.json cuts text by {pre}: GGUF can't say that")
    return prefix


def _special(tokenizer: Tokenizer) -> dict[str, object]:
    """Ids that begin and end a text, and whether they are put around it."""
    plain, full = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    found: dict[str, object] = dict(zip(_END_KEYS, tokenizer.eos_ids, strict=False))
    if tokenizer.bos_id is not None:
        found["bos_token_id"] = tokenizer.bos_id
    for name, key in _NAMED.items():
        text = tokenizer.named_tokens.get(name)
        token = None if text is None else tokenizer.token_id(text)
        if token is not None:
            found[key] = token
    before = full[: full.index(plain[0])] if plain and plain[0] in full else []
    ends = full[len(before) + len(plain) :]
    if before not in ([], [tokenizer.bos_id]) or ends not in ([], list(tokenizer.eos_ids[:1])):
        raise TokenizerError(f"text becomes {full}: GGUF puts no more than begin and end around it")
    return {**found, "add_bos_token": bool(before), "add_eos_token": bool(ends)}


def copied_vocabulary(metadata: Mapping[str, GgufValue]) -> dict[str, GgufValue]:
    """The keys of another GGUF file, as they stand."""
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
