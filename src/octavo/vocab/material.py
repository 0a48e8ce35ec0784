"""The texts that a vocabulary is fitted to and measured on, as tokens."""

from __future__ import annotations

from pathlib import Path

from octavo.compress import calibration
from octavo.compress.quality import HeldOut
from octavo.io.checkpoint import open_model
from octavo.vocab.measure import tokenizer_of

_WINDOW = 512  # tokens of a text: each begins anew
_LONG_TOKEN = 32  # characters: more than any text's average


def read_texts(
    path: Path, name: str, fitted: int, measured: int
) -> tuple[list[list[int]], HeldOut]:
    """Windows of `fitted` tokens of one half of a text file ("": Wikipedia), each with the model's
    begin token, and the first `measured` tokens of the other half.

    Raises UserError for a file that is missing, empty or not UTF-8.
    """
    with open_model(path) as model:
        tokenizer = tokenizer_of(model)
        window = min(_WINDOW, model.spec.max_positions)
    begin = calibration.begin_token(tokenizer)
    texts = calibration.read_texts(name)
    ids = tokenizer.encode(texts.calibration[: fitted * _LONG_TOKEN], add_special=False)[:fitted]
    lead = [] if begin is None else [begin]
    body = window - len(lead)
    windows = [lead + ids[start : start + body] for start in range(0, len(ids), body)]
    held = tokenizer.encode(texts.evaluation[: measured * _LONG_TOKEN], add_special=False)
    return windows, HeldOut(texts.name, tuple(held[:measured]), begin)
