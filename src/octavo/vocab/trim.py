"""Keep the tokens that a corpus needs: their rows stay as they are, bit for bit.

What is kept: the tokens of the corpus, every byte token and every added token, and all pieces that
are merged on the way to a kept one. A merge stays when both its pieces and its result do. Byte-pair
encoding always takes the earliest merge that applies; leaving out merges that the corpus never took
takes none away that it did, so its text is cut as before, and any other text still has the bytes.
The distribution over what is kept is the model's own, renormalized.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.compress.artifact import write_json
from octavo.core.errors import TokenizerError, UnsupportedError, UserError
from octavo.io.tokenizer import byte_letters

I64 = npt.NDArray[np.int64]
Json = dict[str, Any]


class Merges:
    """The merges of a byte-pair vocabulary, from the `model` of a tokenizer.json."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        if model.get("type") != "BPE":
            raise UnsupportedError(
                f"a {model.get('type')} vocabulary can't be trimmed: which pieces lead to a token "
                "is known for byte-pair encoding (BPE) only"
            )
        self.ids: dict[str, int] = model["vocab"]
        self.pairs = [_pair(merge) for merge in model["merges"]]
        self._rank = {pair: rank for rank, pair in reversed(list(enumerate(self.pairs)))}

    def pieces(self, text: str) -> set[str]:
        """All pieces on the way from the letters of `text` to what it is merged to."""
        parts = list(text)
        seen = set(parts)
        while len(parts) > 1:
            at = min(range(len(parts) - 1), key=lambda i: self._rank_of(parts, i))
            if self._rank_of(parts, at) == len(self.pairs):
                break
            pair = (parts[at], parts[at + 1])
            parts = _merged(parts, pair)
            seen.add("".join(pair))
        return seen

    def _rank_of(self, parts: Sequence[str], i: int) -> int:
        return self._rank.get((parts[i], parts[i + 1]), len(self.pairs))


def kept_ids(tokenizer: Json, used: Iterable[int]) -> I64:
    """Ascending ids to keep for a corpus that used the tokens `used`.

    Raises UnsupportedError for a vocabulary that isn't BPE, UserError for a corpus of none.
    """
    merges = Merges(tokenizer["model"])
    texts = {i: text for text, i in merges.ids.items()}
    added = {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    wanted = set(used)
    if not wanted:
        raise UserError("the corpus holds no tokens: give a text of some pages")
    kept = added | set(_bytes(merges.ids))
    for token in wanted - added:
        if token not in texts:
            raise TokenizerError(f"token {token} is not part of this vocabulary")
        pieces = merges.pieces(texts[token])
        kept |= {token, *(merges.ids[piece] for piece in pieces if piece in merges.ids)}
    unknown = tokenizer["model"].get("unk_token")
    kept |= {merges.ids[unknown]} if unknown in merges.ids else set()
    return np.array(sorted(kept), np.int64)


def trim_tokenizer(tokenizer: Json, kept: I64) -> Json:
    """The tokenizer.json of the kept ids, numbered anew in their order."""
    new = {int(old): index for index, old in enumerate(kept)}
    model = dict(tokenizer["model"])
    texts = {text: new[i] for text, i in model["vocab"].items() if i in new}
    model["vocab"] = texts
    model["merges"] = [merge for merge in model["merges"] if _lasting(_pair(merge), texts)]
    added = [{**entry, "id": new[entry["id"]]} for entry in tokenizer.get("added_tokens", [])]
    changed = {**tokenizer, "model": model, "added_tokens": added}
    if tokenizer.get("post_processor"):
        changed["post_processor"] = _renumbered(tokenizer["post_processor"], new)
    return changed


def trim_files(directory: Path, kept: I64) -> None:
    """Renumber a model directory: tokenizer.json, and the ids that config.json and
    generation_config.json name. Files that would say otherwise (vocab.json, merges.txt) go."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, trim_tokenizer(content, kept))
    new = {int(old): index for index, old in enumerate(kept)}
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            write_json(directory / name, _config(directory / name, new))
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"):
        (directory / name).unlink(missing_ok=True)
    _drop_decoder(directory / "tokenizer_config.json")


def _config(path: Path, new: Mapping[int, int]) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        found = content.get(key)
        if isinstance(found, list):
            content[key] = [new[i] for i in found if i in new]
        elif type(found) is int:
            content[key] = new.get(found)
    return {key: value for key, value in content.items() if value is not None}


def _drop_decoder(path: Path) -> None:
    """`added_tokens_decoder` repeats, by old number, what tokenizer.json says."""
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("added_tokens_decoder", None)
        write_json(path, content)


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with its ids translated: TemplateProcessing's `ids`, pairs of others."""
    if isinstance(value, list):
        return [_renumbered(item, new) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _renumbered(item, new) for key, item in value.items()}
    if isinstance(value.get("ids"), list):
        changed["ids"] = [new[i] for i in value["ids"]]
    for key in ("sep", "cls"):
        if isinstance(value.get(key), list) and len(value[key]) == 2:
            changed[key] = [value[key][0], new[value[key][1]]]
    return changed


def _bytes(ids: Mapping[str, int]) -> Iterable[int]:
    """Ids of the tokens that spell any byte; of all single letters where bytes have no tokens."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    for spelling in (pieces, list(byte_letters())):
        if all(piece in ids for piece in spelling):
            return [ids[piece] for piece in spelling]
    return [i for text, i in ids.items() if len(text) == 1]


def _merged(parts: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Every occurrence of a pair joined, from the left."""
    joined: list[str] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            joined.append(parts[i] + parts[i + 1])
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _lasting(pair: tuple[str, str], texts: Mapping[str, int]) -> bool:
    left, right = pair
    return left in texts and right in texts and left + right in texts
