"""`octavo serve` as a process of its own, over a tiny model that answers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from support.model_files import HIDDEN, MODELS, weights, write_gguf
from support.tokenizers import byte_level_metadata


def tiny_chat_gguf(path: Path, context: int = 128) -> Path:
    """Two layers of random weights behind a byte-level tokenizer with a chat template."""
    model, metadata = MODELS["qwen3"], byte_level_metadata()
    model = dataclasses.replace(model, header={**model.header, "context_length": context})
    tensors, rng = weights(model), np.random.default_rng(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shape = len(metadata["tokenizer.ggml.tokens"]), HIDDEN
        tensors[name] = rng.standard_normal(shape).astype(np.float32)
    return write_gguf(path, model, tensors, metadata=metadata)


@dataclass(frozen=True)
class ServeProcess:
    """A server that listens at `url` (without /v1)."""

    process: subprocess.Popen[str]
    url: str

    def engine_pid(self) -> int:
        """The engine's process: the server's only child."""
        [child] = children(self.process.pid)
        return child


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process exists and isn't a corpse that nobody has buried yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def serve_command(model: Path, *options: str) -> list[str]:
    program = [sys.executable, "-m", "octavo.cli.main", "serve", str(model), "--json"]
    return [*program, "--threads", "1", *options]


@contextmanager
def serving(model: Path, *options: str, **environment: str) -> Iterator[ServeProcess]:
    """A server on a free port, killed at the end if it still runs."""
    command = serve_command(model, "--port", "0", *options)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    try:
        yield ServeProcess(process, _announced(process.stdout)["url"].removesuffix("/v1"))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _announced(stdout: IO[str]) -> dict[str, Any]:
    """The object that `--json` prints once the server listens."""
    lines: list[str] = []
    for line in stdout:
        lines.append(line)
        if line == "}\n":
            break
    assert lines, "the server ended before it listened"
    found: dict[str, Any] = json.loads("".join(lines))
    return found
