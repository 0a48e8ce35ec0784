from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest

from octavo.io import corpora
from octavo.io.corpora import human_eval, stdlib_code, stdlib_packages, wikipedia
from octavo.io.wiki_markup import plain_text

PAGE = (
    "<page><title>{title}</title><ns>{ns}</ns>{more}<revision><text>{text}</text></revision></page>"
)


def dump(path: Path, pages: list[dict[str, str]]) -> Path:
    body = "".join(PAGE.format(**{"ns": "0", "more": "", **page}) for page in pages)
    file = path / "dump.bz2"
    file.write_bytes(bz2.compress(f'<mediawiki xmlns="http://x/">{body}</mediawiki>'.encode()))
    return file


def test_even_articles_calibrate_and_odd_ones_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [{"title": f"T{i}", "text": f"text {i}"} for i in range(5)]
    pages.insert(1, {"title": "Talk", "text": "no", "ns": "1"})
    pages.insert(2, {"title": "Moved", "text": "no", "more": "<redirect title='x'/>"})
    file = dump(tmp_path, pages)
    monkeypatch.setattr(corpora, "fetch", lambda assembly, directory: file)
    assert wikipedia("calibration") == "T0\n\ntext 0\n\nT2\n\ntext 2\n\nT4\n\ntext 4"
    assert wikipedia("evaluation") == "T1\n\ntext 1\n\nT3\n\ntext 3"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[link]] b [[Page|shown]] c", "a link b shown c"),
        ("x[[File:a.jpg|thumb|a [[b|c]] d]]y", "xy"),
        ("x[[Category:Y]][[de:Z]]", "x"),
        ("a{{t|x={{u}}}}b", "ab"),
        ("a\n{| class=x\n| cell {| inner |}\n|}\nb", "a\n\nb"),
        ('a<ref name="n">b</ref>c<ref name=x />d', "acd"),
        ("== Head ==\ntext", "Head\ntext"),
        ("* one\n** two\n# three", "one\ntwo\nthree"),
        ("[http://x.org shown] [https://y.org]", "shown"),
        ("a<!-- no -->b &lt;b&gt;c&lt;/b&gt; &amp; d", "ab c & d"),
        ("a\n\n\n\n\nb", "a\n\nb"),
    ],
)
def test_markup_goes_and_prose_stays(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_code_splits_share_no_file() -> None:
    first, second = stdlib_code("calibration"), stdlib_code("evaluation")
    assert first.count("def ") > 100
    assert second.count("def ") > 100
    assert "class Path" in first + second or "class OrderedDict" in first + second
    lines = {line for line in first.splitlines() if len(line) > 60}
    shared = [line for line in second.splitlines() if len(line) > 60 and line in lines]
    assert len(shared) < len(lines) / 50


def runs_of_lines(text: str, count: int = 60) -> set[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    return {"\n".join(lines[i : i + count]) for i in range(len(lines) - count + 1)}


def test_code_that_is_trained_on_shares_no_passage_with_what_is_held_out() -> None:
    held_out = runs_of_lines(stdlib_code("evaluation"))
    assert not held_out & runs_of_lines(stdlib_code("calibration"))
    assert not held_out & runs_of_lines(packages := stdlib_packages())
    assert packages.count("def ") > 1000


def test_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    row = {name: name.upper() for name in names} | {"other": 1}
    file = tmp_path / "h.gz"
    file.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    monkeypatch.setattr(corpora, "fetch", lambda assembly, directory: file)
    (problem,) = human_eval()
    assert [getattr(problem, name) for name in names] == [name.upper() for name in names]
