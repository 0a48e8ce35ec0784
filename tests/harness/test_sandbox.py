"""What a model wrote runs confined: it can't write, talk, take memory or time, or claim success."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.core.errors import UnsupportedError
from octavo.harness import sandbox
from octavo.harness.sandbox import Limits, can_confine, run

pytestmark = pytest.mark.skipif(not can_confine(), reason="no Landlock or user namespaces here")


@pytest.mark.parametrize(
    "program",
    [
        "x = 1",
        "import math\nassert math.pi > 3",
        "open('a', 'w').write('x')\nprint(open('a').read())",
    ],
)
def test_what_runs_to_its_end_passes(program: str) -> None:
    assert run(program) == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "assert False", "1 / 0", "this is no program", "import sys\nsys.exit(0)",
        "import os\nos._exit(0)", "raise SystemExit", "import os\nos.kill(os.getpid(), 9)",
    ],
)  # fmt: skip
def test_what_does_not_fails(program: str) -> None:
    assert run(program) == "failed"


def test_a_program_that_goes_on_is_ended(tmp_path: Path) -> None:
    assert run("while True: pass", Limits(seconds=0.5)) == "timed out"
    sleeping = "import os, time\nos.fork()\ntime.sleep(600)"
    assert run(sleeping, Limits(seconds=0.5)) == "timed out"


def test_files_outside_stay(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")
    for attack in (
        f"open({str(kept)!r}, 'w')", f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, 'x')", f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.mkdir({str(tmp_path / 'd')!r})",
    ):  # fmt: skip
        assert run(attack) == "failed"
    assert kept.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_there_is_no_network() -> None:
    connect = "import socket\nsocket.create_connection(('127.0.0.1', {}), 1)"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert run(connect.format(server.getsockname()[1])) == "failed"


def test_memory_and_files_are_bounded() -> None:
    assert run("x = bytearray(1 << 30)", Limits(memory=1 << 29)) == "failed"
    assert run("x = bytearray(1 << 26)", Limits(memory=1 << 29)) == "passed"
    assert run("open('a', 'wb').write(bytes(1 << 16)).real", Limits(file_size=1 << 12)) == "failed"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_SECRET", "x")
    assert run("import os\nassert 'OCTAVO_SECRET' not in os.environ") == "passed"


def test_a_machine_that_cannot_confine_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "confined.py"
    refusing.write_text("import sys\nsys.stdin.read()\nsys.exit(97)\n")
    monkeypatch.setattr(sandbox.confined, "__file__", str(refusing))
    with pytest.raises(UnsupportedError, match="can't be confined"):
        run("x = 1")
