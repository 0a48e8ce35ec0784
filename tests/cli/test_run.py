"""`octavo run` over a fake model: what is printed, and what is asked of the library."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import octavo.api
from octavo.cli.main import main
from octavo.core.errors import InternalError, ResourceError
from support.cli_models import FakeLLM, interrupted_barrier
from support.fakes import FakeExecutor

TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    fake = FakeLLM()
    monkeypatch.setattr(octavo.api, "LLM", fake)
    return fake


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["run", "tiny", *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.usefixtures("llm")
def test_json_is_one_object_with_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_json(capsys, "Hello", "--max-tokens", "5", "--ignore-eos")
    assert len(answer["tokens"]) == 5
    assert answer["prompt_tokens"] == 6
    assert answer["finish_reason"] == "length"
    assert answer["kernels"] == ["linear_a8_w4_fake", "linear_a8_w8_fake"]
    assert [use["role"] for use in answer["fallbacks"]] == ["head"]
    assert (answer["bytes_per_token"], answer["threads"], answer["isa"]) == (1000, 2, "python")
    assert (answer["requantized"], answer["format"], answer["kv"]) == (False, "source", "bf16")
    assert {"time_to_first_token", "seed", "text"} <= set(answer)
    assert answer["prefill_tokens_per_second"] > 0
    assert answer["decode_tokens_per_second"] > 0
    assert answer["step_rows"] == 16  # all that the fake's steps hold


@pytest.mark.usefixtures("llm")
def test_text_ends_with_the_summary_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "tiny", "Hello", "--max-tokens", "5"]
    assert main([*words, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["text"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith(expected)
    assert text.splitlines()[-1].endswith("linear_a8_w4_fake + linear_a8_w8_fake · 2 threads")
    assert "1.0 kB/token" in text


@pytest.mark.usefixtures("llm")
def test_lossy_format_says_so_on_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "Hi", "--max-tokens", "2", "--format", "int4_g32"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("requantized, quality not measured")


@pytest.mark.usefixtures("llm")
def test_own_format_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "Hi", "--max-tokens", "2"]) == 0
    assert "requantized" not in capsys.readouterr().out


def test_options_reach_the_library(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--kv fp32 --threads 3 --isa generic --strict --context 64 --activations a32"
    keeps = "--keep head=int8_g32 --keep embed=bf16 --format int4_g32"
    run_json(capsys, "Hello", "--max-tokens", "1", *options.split(), *keeps.split())
    config = llm.config
    assert (config.kv_format, config.threads, config.isa) == ("fp32", 3, "generic")
    assert (config.strict, config.context, config.activations) == (True, 64, "a32")
    assert config.keep == (("head", "int8_g32"), ("embed", "bf16"))
    assert config.format == "int4_g32"


def test_chat_template_is_applied_unless_raw(
    llm: FakeLLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.template = TEMPLATE
    asked: list[object] = []
    monkeypatch.setattr(
        "octavo.io.chat_template.render_chat",
        lambda tokenizer, messages: asked.append(messages) or [1, 2, 3],
    )
    assert run_json(capsys, "Hello", "--max-tokens", "1")["prompt_tokens"] == 3
    assert asked == [[{"role": "user", "content": "Hello"}]]
    assert run_json(capsys, "Hello", "--raw", "--max-tokens", "1")["prompt_tokens"] == 6
    assert len(asked) == 1


@pytest.mark.usefixtures("llm")
def test_dash_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run_json(capsys, "-", "--max-tokens", "1")["prompt_tokens"] == 7


@pytest.mark.usefixtures("llm")
def test_seed_repeats_and_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("Hello", "--temperature", "1", "--max-tokens", "8", "--ignore-eos")
    first = run_json(capsys, *words)
    again = run_json(capsys, *words, "--seed", str(first["seed"]))
    assert first["tokens"] == again["tokens"]


@pytest.mark.usefixtures("llm")
@pytest.mark.parametrize(
    ("words", "named"),
    [(["", "--raw"], "prompt is empty"), (["x" * 40, "--context", "24"], "24")],
)
def test_bad_prompts_are_one_clear_error(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", *words, "--json"]) == 2
    captured = capsys.readouterr()
    assert named in json.loads(captured.out)["error"]["message"]
    assert captured.err.count("\n") == 1


def test_interrupt_ends_a_long_step_with_the_shells_status(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeExecutor, "_pass_barrier", interrupted_barrier())
    assert main(["run", "tiny", "Hello"]) == 130
    assert llm.executors[0].closed
    assert "Traceback" not in capsys.readouterr().err
    assert "octavo-engine" not in {thread.name for thread in threading.enumerate()}


def test_an_executors_error_keeps_its_type_and_status(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, status in ((ResourceError("no memory"), 2), (InternalError("a bug"), 1)):
        monkeypatch.setattr(FakeExecutor, "_step", raising(error))
        assert main(["run", "tiny", "Hello", "--json"]) == status
        found = json.loads(capsys.readouterr().out)["error"]
        assert (found["type"], found["message"]) == (type(error).__name__, str(error))


def raising(error: Exception) -> Callable[..., None]:
    def step(*_: object) -> None:
        raise error

    return step


def test_model_is_closed_in_the_end(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    run_json(capsys, "Hello", "--max-tokens", "1")
    assert llm.executors[0].closed


@pytest.mark.usefixtures("llm")
def test_a_prefix_is_computed_once_and_read_by_the_next_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    rules = tmp_path / "rules.txt"
    rules.write_text("Be brief. Be kind. Be clear.\n")
    words = ("Hello", "--prefix", str(rules), "--max-tokens", "5", "--ignore-eos")
    answers, lines = [], []
    for _ in range(2):
        assert main(["run", "tiny", *words, "--json"]) == 0
        said = capsys.readouterr()
        answers.append(json.loads(said.out))
        lines.append(said.err)
    plain = run_json(
        capsys, "Be brief. Be kind. Be clear.\n\nHello", "--max-tokens", "5", "--ignore-eos"
    )
    assert answers[0]["tokens"] == answers[1]["tokens"] == plain["tokens"]
    assert (plain["cached_tokens"], answers[1]["cached_tokens"]) == (0, 28)
    assert "0 of 31 tokens read from the store, 31 computed" in lines[0]
    assert "28 of 31 tokens read from the store, 3 computed" in lines[1]


@pytest.mark.parametrize(("text", "says"), [(None, "can't read the prefix"), (" \n", "is empty")])
@pytest.mark.usefixtures("llm")
def test_a_prefix_that_is_no_text_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "rules.txt"
    if text is not None:
        path.write_text(text)
    assert main(["run", "tiny", "Hello", "--prefix", str(path)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("llm")
def test_an_answer_is_held_to_a_regex_or_a_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run_json(capsys, "Hello", "--regex", "[0-9]{3}x")
    assert re.fullmatch("[0-9]{3}x", str(answer["text"]))
    assert answer["finish_reason"] == "stop"
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [[1, 2], true]}', encoding="utf-8")
    answer = run_json(capsys, "Hello", "--json-schema", str(schema), "--temperature", "1")
    assert json.loads(str(answer["text"])) in ([1, 2], True)


@pytest.mark.usefixtures("llm")
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--regex", "["], "unclosed"),
        (["--json-schema", "nowhere.json"], "nowhere.json"),
        (["--regex", "a", "--json-schema", "x"], "exclude"),
    ],
)
def test_what_an_answer_cannot_be_held_to(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", "Hello", *words]) == 2
    assert what in capsys.readouterr().err
