from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from octavo.core.errors import UserError
from octavo.serve.batch import Batch, answered, pending, read_lines
from support.serving import Served


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def job(id_: str, prompt: str, **body: object) -> dict[str, object]:
    fields = {"prompt": prompt, "max_tokens": 2, "temperature": 0, **body}
    return {"custom_id": id_, "method": "POST", "url": "/v1/completions", "body": fields}


def write(path: Path, *rows: object) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n")
    return path


def run(served: Served, source: Path, out: Path, parallel: int = 4):
    with out.open("ab") as file:
        batch = Batch(served.model, file, lambda: None)
        return asyncio.run(batch.run(pending(read_lines(source), out), parallel))


def answers(out: Path) -> dict[str | None, dict[str, object]]:
    return {row["custom_id"]: row for row in map(json.loads, out.read_text().splitlines())}


def test_every_line_is_answered_or_explained(served, tmp_path):
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    source = write(
        tmp_path / "in.jsonl",
        job("a", "a"), {**job("c", ""), "url": "/v1/chat/completions", "body": chat},
        "{broken", job("a", "k"), {**job("u", "a"), "url": "/v1/nothing"}, job("t", "a", n="two"),
        job("m", "a", model="other"), "[]", job("", "a"), {**job("b", "a"), "body": 3},
    )  # fmt: skip
    report = run(served, source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in rows) == list(range(1, 11))
    good = {row["line"]: row for row in rows if row["error"] is None}
    assert set(good) == {1, 2}
    assert good[1]["response"]["body"]["choices"][0]["text"] == "bc"
    messages = {row["line"]: row["error"]["message"] for row in rows if row["error"]}
    assert "given before" in messages[4]
    assert "n: " in messages[6]
    assert "not served here" in messages[7]
    assert (report.answered, report.failed) == (2, 8)


def test_prompts_that_begin_alike_run_together(served, tmp_path):
    shared = ["abcdefgh" * 4, "qrstuvwx" * 4]
    rows = [job(str(i), shared[i % 2] + "ab"[i % 3 == 0]) for i in range(12)]
    report = run(served, write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl", parallel=1)
    assert report.cached_tokens == 10 * 32  # all but the first of each, whole blocks


def test_a_run_that_was_cut_off_goes_on(served, tmp_path):
    rows = [job(str(i), chr(97 + i)) for i in range(6)]
    source, out = write(tmp_path / "in.jsonl", *rows, "{broken"), tmp_path / "out.jsonl"
    run(served, source, out)
    whole = answers(out)
    data = out.read_bytes()
    for cut in (0, 5, len(data) // 3, len(data) // 2, len(data) - 1):
        out.write_bytes(data[:cut])
        before = data[:cut].count(b"\n")
        left = pending(read_lines(source), out)
        assert len(left) == 7 - before
        run(served, source, out)
        found = answers(out)
        assert set(found) == set(whole)
        assert len(out.read_text().splitlines()) == 7


def test_a_file_that_is_no_output_is_left_alone(tmp_path):
    out = write(tmp_path / "notes.txt", "dear diary")
    with pytest.raises(UserError, match="line 1 is no answer"):
        answered(out)
    assert out.read_text() == "dear diary\n"


def test_an_unreadable_input(tmp_path):
    (tmp_path / "in").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        read_lines(tmp_path / "in")
