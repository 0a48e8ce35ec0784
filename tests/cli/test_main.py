"""The command's front: errors as one line, exit statuses, lightness."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from octavo.cli import main as front
from octavo.core.errors import InternalError, ModelFileError, RequestError

HEAVY = ("numpy", "torch", "transformers", "rich", "tokenizers", "jinja2", "fastapi", "pydantic")


def run(
    *words: str, code: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    program = (
        code or f"import sys; from octavo.cli.main import main; sys.exit(main({list(words)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@click.command("fails")
@click.option("--json", "as_json", is_flag=True)
@click.argument("kind")
def failing(kind: str, as_json: bool) -> None:
    errors = {
        "model": ModelFileError("model.gguf: cut off at byte 7:\n fetch it again"),
        "request": RequestError("max_tokens must be at least 1", param="max_tokens"),
        "ours": InternalError("a block is owned twice"),
        "bug": ValueError("no such block"),
        "interrupt": KeyboardInterrupt(),
        "pipe": BrokenPipeError(),
    }
    raise errors[kind]


@pytest.fixture
def with_failing_command(monkeypatch: pytest.MonkeyPatch) -> None:
    original = front.LazyGroup.get_command
    monkeypatch.setattr(
        front.LazyGroup,
        "get_command",
        lambda self, ctx, name: failing if name == "fails" else original(self, ctx, name),
    )
    monkeypatch.delenv("OCTAVO_DEBUG", raising=False)


@pytest.mark.usefixtures("with_failing_command")
@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("model", 2, "model.gguf: cut off at byte 7: fetch it again"),
        ("request", 2, "max_tokens must be at least 1"),
        ("ours", 1, "a block is owned twice"),
        (
            "bug",
            1,
            "ValueError: no such block: this is a bug of ours; please report it with what "
            "OCTAVO_DEBUG=1 shows",
        ),
    ],
)
def test_errors_are_one_line_and_an_exit_status(
    kind: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front.main(["fails", kind]) == status
    captured = capsys.readouterr()
    assert captured.err == f"octavo: error: {words}\n"
    assert captured.out == ""


@pytest.mark.usefixtures("with_failing_command")
def test_json_errors_come_on_stdout_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["fails", "model", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "type": "ModelFileError",
            "message": "model.gguf: cut off at byte 7: fetch it again",
            "exit_status": 2,
        }
    }
    assert captured.err.count("\n") == 1


@pytest.mark.usefixtures("with_failing_command")
def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    with pytest.raises(ModelFileError):
        front.main(["fails", "model"])


@pytest.mark.usefixtures("with_failing_command")
def test_interrupt_has_the_shells_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["fails", "interrupt"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nope"], "'nope'"),
        (["doctor", "--nope"], "--nope"),
        (["run"], "MODEL"),
        (["run", "m", "p", "--temperature", "-1"], "--temperature"),
        (["run", "m", "p", "--top-p", "1.5"], "--top-p"),
        (["run", "m", "p", "--threads", "-2"], "--threads"),
        (["run", "m", "p", "--threads", "many"], "--threads"),
        (["run", "m", "p", "--kv", "int3"], "--kv"),
        (["run", "m", "p", "--keep", "head"], "PART=FORMAT"),
        (["run", "m", "p", "--seed", str(1 << 64)], "--seed"),
        (["run", "m", "p", "--max-tokens", "0"], "--max-tokens"),
        (["bench", "m", "-r", "0"], "-r"),
        (["eval", "m"], "--text"),
    ],
)
def test_usage_errors_name_the_option_and_the_help(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert "--help`" in captured.err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in front.COMMANDS)
    assert front.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("octavo, version ")


def test_no_arguments_show_the_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(front.COMMANDS))
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: octavo {name} ")
    _, _, commands = text.partition("\nCommands:\n")
    for line in commands.splitlines():  # of a group; a description may go on in the next line
        if line.startswith("  ") and line[2] != " ":
            assert front.main([name, line.split()[0], "--help"]) == 0
            assert "--json" in capsys.readouterr().out
    assert commands or "--json" in text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from octavo.cli.main import main; main(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import os, sys, json; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "from octavo.cli.main import main; sys.exit(main(['--help']))"
    )
    done = run(code=code)
    assert done.returncode == front.BROKEN_PIPE
    assert done.stderr == ""


def test_missing_model_file_is_one_line() -> None:
    done = run("run", "/nowhere/model.gguf", "Hello")
    assert done.returncode == 2
    assert "/nowhere/model.gguf" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
