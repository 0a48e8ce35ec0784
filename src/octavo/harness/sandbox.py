"""Runs programs that a model wrote: each in a confined process (`confined.py`), for a time."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.core.errors import UnsupportedError
from octavo.harness import confined

Outcome = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: seconds of wall time (and of CPU time, rounded up), bytes of address space,
    bytes of a file."""

    seconds: float = 5.0
    memory: int = 1 << 30
    file_size: int = 1 << 20


def run(program: str, limits: Limits | None = None) -> Outcome:
    """`passed` when the program ran to its end without an exception.

    Raises UnsupportedError where the machine can't confine it: it is not run then.
    """
    given = limits or Limits()
    word = secrets.token_hex(16)
    wanted = {
        "word": word, "memory": given.memory, "file_size": given.file_size,
        "seconds": int(-(-given.seconds // 1)),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [sys.executable, "-I", confined.__file__], cwd=directory, env={},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(
                f"{json.dumps(wanted)}\n{program}".encode(), given.seconds
            )
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            _end(process)
    if process.returncode == confined.REFUSED:
        raise UnsupportedError(
            "programs can't be confined here: it takes Linux 6.2 or later with Landlock and user "
            "namespaces; run it in a container or a virtual machine that has them"
        )
    return "passed" if said == word.encode() else "failed"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process and of those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def can_confine() -> bool:
    """Whether this machine can."""
    if not Path("/proc/self").exists():
        return False
    try:
        return run("") == "passed"
    except UnsupportedError:
        return False
