"""A `tokenizers` backend from GGUF metadata: byte-level BPE, SentencePiece BPE, Gemma 4's BPE.

SentencePiece files carry scores and no merges. The merges are derived: every way to cut a piece
into two pieces is a merge, and the higher the piece's score the earlier it happens. For 262k pieces
that takes seconds, so the result is kept in the cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ResourceError, TokenizerError
from octavo.io.cache import cache_directory, cache_root
from octavo.io.mapping import replacing
from octavo.io.pre_tokenizers import PreTokenizer, pre_tokenizer
from octavo.io.tokenizer_parts import TokenizerParts

if TYPE_CHECKING:
    import tokenizers

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPACE = "▁"
_MERGES_VERSION = 1  # of the cached file's content: raise it when the derivation changes
_MERGES = "merges"  # the sub-directory of the cache
_CACHE_ABOVE = 65_536  # pieces; deriving for fewer is quicker than a file is worth

# Control tokens that end an answer whatever the file calls its end token: chat models stop with one
# of these, and many files name only the end of a document.
_END_TEXTS = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|endoftext|>"),
        *("<|end_of_text|>", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<|eot|>"),
        *("<|end_of_turn|>", "<end_of_utterance>", "<EOT>", "[EOT]", "[EOS]"),
        "<｜end▁of▁sentence｜>",
    )
)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TokenizerParts:
    """Build from the `tokenizer.*` keys of a GGUF file.

    Raises TokenizerError for a kind or pre-tokenizer that is not known, and for missing or
    ill-typed keys.
    """
    model = _text(metadata, "tokenizer.ggml.model")
    tokens = _tokens(metadata)
    if model == "gpt2":
        pre = pre_tokenizer(_text(metadata, "tokenizer.ggml.pre"))
        backend, add_bos = _byte_level(tokens, _merges(metadata), pre), pre.add_bos
    elif model == "llama":
        prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True)
        backend, add_bos = _sentencepiece(tokens, metadata, prefix), True
    elif model == "gemma4":
        backend, add_bos = _raw_bpe(tokens, _merges(metadata)), True
    else:
        raise TokenizerError(
            f"tokenizer.ggml.model is {model!r}; known are gpt2 (byte-level BPE), llama "
            "(SentencePiece) and gemma4. Use the model's Hugging Face directory with its "
            "tokenizer.json."
        )
    types = _types(metadata, len(tokens))
    _add_tokens(backend, tokens, types)
    return _parts(backend, metadata, tokens, types, add_bos)


def _parts(
    backend: tokenizers.Tokenizer,
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: npt.NDArray[np.int32],
    add_bos: bool,
) -> TokenizerParts:
    bos = _id(metadata, "tokenizer.ggml.bos_token_id", len(tokens))
    eos = _id(metadata, "tokenizer.ggml.eos_token_id", len(tokens))
    begin = bos is not None and _flag(metadata, "tokenizer.ggml.add_bos_token", add_bos)
    end = eos is not None and _flag(metadata, "tokenizer.ggml.add_eos_token", False)
    template = metadata.get("tokenizer.chat_template")
    return TokenizerParts(
        backend=backend,
        bos_id=bos,
        eos_ids=_end_ids(metadata, tokens, types),
        prefix=(bos,) if begin and bos is not None else (),
        suffix=(eos,) if end and eos is not None else (),
        named=_named(metadata, tokens),
        chat_template=template if isinstance(template, str) else None,
    )


def _end_ids(
    metadata: Mapping[str, Any], tokens: list[str], types: npt.NDArray[np.int32]
) -> tuple[int, ...]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    named = (_id(metadata, f"tokenizer.ggml.{key}", len(tokens)) for key in keys)
    known = (int(i) for i in np.flatnonzero(types == _CONTROL) if tokens[i] in _END_TEXTS)
    return tuple(dict.fromkeys([i for i in named if i is not None] + list(known)))


def _named(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {
        name: _id(metadata, f"tokenizer.ggml.{key}_token_id", len(tokens))
        for name, key in keys.items()
    }
    return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}


def _add_tokens(
    backend: tokenizers.Tokenizer, tokens: list[str], types: npt.NDArray[np.int32]
) -> None:
    from tokenizers import AddedToken

    def added(kind: int, special: bool) -> list[AddedToken]:
        texts = (tokens[i] for i in np.flatnonzero(types == kind))
        return [AddedToken(text, special=special, normalized=False) for text in texts if text]

    backend.add_special_tokens(added(_CONTROL, True))
    backend.add_tokens(added(_USER_DEFINED, False))


def _byte_level(
    tokens: list[str], merges: list[tuple[str, str]], pre: PreTokenizer
) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    backend = Tokenizer(_bpe(tokens, merges, ignore_merges=pre.ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, as_bytes])
    backend.decoder = decoders.ByteLevel()
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(
    tokens: list[str], metadata: Mapping[str, Any], space_prefix: bool
) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, normalizers

    scores = _scores(metadata, len(tokens))
    types = _types(metadata, len(tokens))
    pairs = derived_merges(tokens, scores, types)
    merges = [(tokens[left], tokens[right]) for left, right in pairs.tolist()]
    unknown = _id(metadata, "tokenizer.ggml.unknown_token_id", len(tokens))
    unknown_text = tokens[unknown] if unknown is not None else None
    backend = Tokenizer(_bpe(tokens, merges, byte_fallback=True, unknown=unknown_text))
    prepend = [normalizers.Prepend(_SPACE)] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    backend.decoder = _piece_decoder(strip=space_prefix)
    return backend


def _raw_bpe(tokens: list[str], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

    backend = Tokenizer(_bpe(tokens, merges, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    backend.decoder = _piece_decoder(strip=False)
    return backend


def _bpe(
    tokens: list[str],
    merges: list[tuple[str, str]],
    byte_fallback: bool = False,
    ignore_merges: bool = False,
    unknown: str | None = None,
) -> tokenizers.models.BPE:
    from tokenizers.models import BPE

    try:
        return BPE(
            _vocabulary(tokens),
            merges,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
            fuse_unk=unknown is not None,
            unk_token=unknown,
        )
    except Exception as error:  # the package raises bare Exception
        raise TokenizerError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from error


def _piece_decoder(strip: bool) -> tokenizers.decoders.Decoder:
    from tokenizers import decoders

    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def derived_merges(
    tokens: list[str], scores: npt.NDArray[np.float32], types: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """Merges as rows (left id, right id), earliest first; from the cache when it has them."""
    if len(tokens) < _CACHE_ABOVE:
        return _derive_merges(tokens, scores, types)
    name = f"{_digest(tokens, scores, types)}.npy"
    if (kept := _read_merges(cache_root() / _MERGES / name, len(tokens))) is not None:
        return kept
    merges = _derive_merges(tokens, scores, types)
    # A cache that can't be written costs time at the next start, and nothing else.
    with contextlib.suppress(ResourceError), replacing(cache_directory(_MERGES) / name) as file:
        np.save(file, merges)
    return merges


def _read_merges(path: Path, size: int) -> npt.NDArray[np.int32] | None:
    """The cached merges, or None when there is no sound file (a damaged one is derived anew)."""
    try:
        merges = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = merges.dtype == np.int32 and merges.ndim == 2 and merges.shape[1] == 2
    if not sound or (merges.size and (merges.min() < 0 or merges.max() >= size)):
        return None
    return np.asarray(merges, dtype=np.int32)


def _derive_merges(
    tokens: list[str], scores: npt.NDArray[np.float32], types: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    mergeable = np.flatnonzero((types == _NORMAL) | (types == _UNUSED))
    ids = {tokens[i]: int(i) for i in mergeable}
    found: list[tuple[int, int, int]] = []
    for piece, whole in ids.items():
        for cut in range(1, len(piece)):
            left = ids.get(piece[:cut])
            if left is not None and (right := ids.get(piece[cut:])) is not None:
                found.append((whole, left, right))
    table = np.array(found, dtype=np.int32).reshape(-1, 3)
    order = np.lexsort((table[:, 2], table[:, 1], -scores[table[:, 0]]))
    return np.ascontiguousarray(table[order, 1:])


def _digest(
    tokens: list[str], scores: npt.NDArray[np.float32], types: npt.NDArray[np.int32]
) -> str:
    digest = hashlib.sha256(f"merges {_MERGES_VERSION}\n".encode())
    digest.update("\n\0".join(tokens).encode("utf-8", "surrogatepass"))
    digest.update(scores.tobytes())
    digest.update(types.tobytes())
    return digest.hexdigest()[:32]


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    # The first of two equal tokens keeps its id: later ones are padding of the embedding table.
    return {token: i for i, token in reversed(list(enumerate(tokens)))}


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for line in _strings(metadata, "tokenizer.ggml.merges"):
        # From the second character on: a piece may itself begin with a space.
        cut = line.find(" ", 1)
        if cut < 0:
            raise TokenizerError(f"tokenizer.ggml.merges holds {line!r}, which is not a pair")
        pairs.append((line[:cut], line[cut + 1 :]))
    return pairs


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise TokenizerError("tokenizer.ggml.tokens is empty: the file holds no vocabulary")
    return tokens


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = _value(metadata, key)
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TokenizerError(f"{key} must be a list of strings, not {type(values).__name__}")
    strings = list(values)
    if any(type(value) is not str for value in strings):
        raise TokenizerError(f"{key} must hold strings only")
    return strings


def _types(metadata: Mapping[str, Any], size: int) -> npt.NDArray[np.int32]:
    if "tokenizer.ggml.token_type" not in metadata:
        return np.full(size, _NORMAL, np.int32)
    return _numbers(metadata, "tokenizer.ggml.token_type", size).astype(np.int32)


def _scores(metadata: Mapping[str, Any], size: int) -> npt.NDArray[np.float32]:
    return _numbers(metadata, "tokenizer.ggml.scores", size).astype(np.float32)


def _numbers(metadata: Mapping[str, Any], key: str, size: int) -> npt.NDArray[Any]:
    try:
        values = np.asarray(_value(metadata, key))
    except ValueError as error:
        raise TokenizerError(f"{key} must be a list of numbers") from error
    if values.shape != (size,) or values.dtype.kind not in "iuf":
        raise TokenizerError(f"{key} must hold one number per token ({size}), not {values.shape}")
    return values


def _id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, (int, np.integer)) or not 0 <= int(value) < size:
        raise TokenizerError(f"{key} is {value!r}, not an id below {size}")
    return int(value)


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise TokenizerError(f"{key} must be true or false, not {value!r}")
    return bool(value)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = _value(metadata, key)
    if not isinstance(value, str):
        raise TokenizerError(f"{key} must be text, not {type(value).__name__}")
    return value


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    if key not in metadata:
        raise TokenizerError(f"the file lacks {key}, without which text can't be turned to tokens")
    return metadata[key]
