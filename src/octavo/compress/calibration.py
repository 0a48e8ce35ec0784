"""Texts become tokens: half of a text calibrates, the other half is kept to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.compress.recipe import Calibration
from octavo.core.errors import UserError
from octavo.core.rng import uniform

if TYPE_CHECKING:
    from octavo.io.tokenizer import Tokenizer

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
KIND_CALIBRATION = 2  # of rng.uniform


@dataclass(frozen=True, slots=True)
class Texts:
    """A text to calibrate on and another to measure on, with the name that reports give them."""

    name: str
    calibration: str
    evaluation: str


def read_texts(name: str) -> Texts:
    """The halves of a UTF-8 file, or Wikipedia's two sets of articles when `name` is "".

    Raises UserError for a file that is missing, empty or not UTF-8, FetchError when there is no
    Wikipedia to be had.
    """
    if not name:
        from octavo.io.corpora import wikipedia

        return Texts("wikipedia", wikipedia("calibration"), wikipedia("evaluation"))
    text = read_whole(name)
    half = _half(text)
    return Texts(Path(name).name, text[:half], text[half:])


def read_whole(name: str) -> str:
    """A UTF-8 file's text. Raises UserError when it is missing, empty or not UTF-8."""
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}: name a readable text file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8: convert the file to UTF-8"
        ) from error
    if not text.strip():
        raise UserError(f"{path}: the text is empty: give a text of some pages")
    return text


def begin_token(tokenizer: Tokenizer) -> int | None:
    """The token that a text of this model begins with, if any."""
    return tokenizer.bos_id if tokenizer.encode("a")[:1] == [tokenizer.bos_id] else None


def sequences(
    tokens: Sequence[int], settings: Calibration, context: int, begin: int | None, seed: int = 0
) -> I64:
    """int64 [sequences, length]: slices spread evenly over the text, one in each equal share of
    it, shifted within it by `seed`. Each begins with `begin` where that is given.

    `length` is cut to the model's `context`. Raises UserError when the text is too short.
    """
    length = min(settings.length, context)
    body = length - (begin is not None)
    share = len(tokens) // settings.sequences
    if share < body:
        fits = len(tokens) // body
        raise UserError(
            f"the calibration half of the text has {len(tokens)} tokens; {settings.sequences} "
            f"sequences of {length} need {settings.sequences * body}. Give a longer text, or "
            + (f"--sequences {fits}" if fits else f"--length {max(8, len(tokens))}")
        )
    starts = [
        i * share + int(uniform(seed, i, kind=KIND_CALIBRATION) * (share - body + 1))
        for i in range(settings.sequences)
    ]
    lead = [] if begin is None else [begin]
    return np.array([[*lead, *tokens[at : at + body]] for at in starts], np.int64)


def digest(tokens: I64) -> str:
    """SHA-256 of calibration tokens and their shape."""
    text = f"{tokens.shape}".encode() + np.ascontiguousarray(tokens).tobytes()
    return hashlib.sha256(text).hexdigest()


def _half(text: str) -> int:
    """Near the middle, behind a line break where there is one."""
    middle = len(text) // 2
    after = text.find("\n", middle, middle + 2000)
    return middle if after < 0 else after + 1
