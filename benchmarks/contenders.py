"""Who takes part in `versus.py`: engines, their settings, and where their programs are.

A setup is plain data: it starts a runner, and it is recorded with the figures.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from engines import Child, Task
from make_rivals import rival_file
from programs import BenchProgram, ProgramSettings

Setup = Mapping[str, Any]
Use = Literal["prefill", "decode", "together", "depth"]
CONTEXT = 4352  # 4096 and a run behind it
SEQUENCES = 16
OURS: Mapping[str, tuple[str, list[list[str]], str]] = MappingProxyType(
    {  # contender -> format, exceptions, KV format
        "octavo a": ("int4_g32", [], "bf16"),
        "octavo b": ("int4_g32", [["head", "int8_g32"]], "bf16"),
        "octavo a kv8": ("int4_g32", [], "int8"),
    }
)
FILES = MappingProxyType({"a": "q4_0-pure", "b": "q4_0"})


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of the comparison files and of ik_llama.cpp's programs, OpenVINO's Python; and
    how many threads everyone has."""

    files: Path
    ik: Path | None = None
    openvino: Path | None = None
    threads: int = 2


class Runner(Protocol):
    """Seconds of a task. Raises NotImplementedError (can't) or RuntimeError (failed)."""

    facts: dict[str, Any]
    command: list[str]

    def measure(self, task: Task) -> float: ...

    def ask(self, what: str) -> Any: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Contender:
    """One line of the tables. `settings`: what the tuning pass tries; `chosen`: by use."""

    name: str
    settings: list[Setup]
    chosen: dict[str, Setup] = field(default_factory=dict)

    def setup(self, use: Use) -> Setup:
        return self.chosen.get(use, self.settings[0])


def ours(places: Places, model: str, name: str) -> Contender:
    number_format, keep, kv = OURS[name]
    setup = {
        "engine": "octavo", "model": str(rival_file(places.files, model, "f16")),
        "format": number_format, "keep": keep, "kv": kv,
        "threads": places.threads, "context": CONTEXT, "sequences": SEQUENCES,
    }  # fmt: skip
    return Contender(name, [setup])


def llama_cpp(places: Places, model: str, pair: str, kv: str = "f16") -> Contender:
    """Flash attention on and off, repacking on and off, one thread and all."""
    base = {
        "engine": "llama.cpp", "model": str(rival_file(places.files, model, FILES[pair])),
        "kv": kv, "context": CONTEXT,
    }  # fmt: skip
    switches = [(True, True), (False, True), (True, False), (False, False)]
    if kv != "f16":
        switches = [(flash, repack) for flash, repack in switches if flash]
    settings: list[Setup] = [
        {**base, "threads": places.threads, "flash_attention": flash, "repack": repack}
        for flash, repack in switches
    ]
    settings.append({**settings[0], "threads": 1})
    name = f"llama.cpp {pair}" + (" kv8" if kv == "q8_0" else "")
    return Contender(name, settings)


def ik(places: Places, model: str, pair: str) -> Contender:
    base = {
        "engine": "ik_llama.cpp", "programs": str(places.ik),
        "model": str(rival_file(places.files, model, FILES[pair])),
    }  # fmt: skip
    settings = [
        {**base, "threads": threads, "flash_attention": flash, "repack": repack}
        for threads, flash, repack in (
            (places.threads, True, True),
            (places.threads, True, False),
            (places.threads, False, True),
            (1, True, True),
        )
    ]
    return Contender(f"ik_llama.cpp {pair}", list(settings))


def openvino(places: Places, model: str) -> Contender:
    """Its precisions are the files that it can load."""
    settings = [
        {"engine": "openvino", "python": str(places.openvino), "threads": places.threads,
         "model": str(rival_file(places.files, model, kind)), "sequences": SEQUENCES}
        for kind in ("f16", "q8_0", "q4_0")
    ]  # fmt: skip
    return Contender("openvino", list(settings))


def torch(places: Places, model: str, weights: str, compiled: bool) -> Contender:
    name = f"torch {weights}" if compiled else "transformers bf16"
    setup = {
        "engine": "torch", "model": str(rival_file(places.files, model, "f16")),
        "threads": places.threads, "weights": weights, "compile": compiled,
        "context": CONTEXT, "sequences": SEQUENCES,
    }  # fmt: skip
    return Contender(name, [setup])


RIVALS = ("llama.cpp", "ik_llama.cpp", "openvino", "transformers", "torch")


def absent(places: Places, rival: str) -> str:
    """Why a rival can't take part here; "" when it can."""
    if rival == "ik_llama.cpp" and not _programs(places.ik):
        return "its llama-bench and llama-batched-bench are in no directory given by --ik"
    if rival == "openvino" and not (places.openvino and places.openvino.exists()):
        return "no Python with openvino-genai given by --openvino"
    module = {"llama.cpp": "llama_cpp", "transformers": "transformers", "torch": "torch"}.get(rival)
    if module and not _importable(module):
        return f"the package {module} isn't installed"
    return ""


def _programs(directory: Path | None) -> bool:
    names = ("llama-bench", "llama-batched-bench")
    return directory is not None and all((directory / name).is_file() for name in names)


def _importable(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def rivals(places: Places, model: str, wanted: tuple[str, ...]) -> dict[str, Contender]:
    """All lines of the wanted rivals, by name."""
    found: list[Contender] = []
    if "llama.cpp" in wanted:
        found += [llama_cpp(places, model, pair) for pair in FILES]
        found.append(llama_cpp(places, model, "a", "q8_0"))
    if "ik_llama.cpp" in wanted:
        found += [ik(places, model, pair) for pair in FILES]
    if "openvino" in wanted:
        found.append(openvino(places, model))
    if "transformers" in wanted:
        found.append(torch(places, model, "bf16", False))
    if "torch" in wanted:
        found += [torch(places, model, weights, True) for weights in ("int8", "int4")]
    return {contender.name: contender for contender in found}


class Pool:
    """Runners by setup, started when first asked for, and ended together."""

    def __init__(self) -> None:
        self._running: dict[str, Runner] = {}

    def get(self, name: str, setup: Setup) -> Runner:
        """Raises RuntimeError when it doesn't start."""
        key = json.dumps(setup, sort_keys=True)
        if key not in self._running:
            self._running[key] = start(name, setup)
        return self._running[key]

    def keep(self, setups: Iterable[Setup]) -> None:
        """End all others: a dozen engines together would not fit into memory."""
        kept = {json.dumps(setup, sort_keys=True) for setup in setups}
        for key in [key for key in self._running if key not in kept]:
            self._running.pop(key).close()

    def drop(self, setup: Setup) -> None:
        runner = self._running.pop(json.dumps(setup, sort_keys=True), None)
        if runner:
            runner.close()

    def close(self) -> None:
        for runner in self._running.values():
            with contextlib.suppress(OSError):
                runner.close()
        self._running.clear()


@contextlib.contextmanager
def pool() -> Iterator[Pool]:
    """Every process that was started is ended, however the block is left."""
    runners = Pool()
    try:
        yield runners
    finally:
        runners.close()


def start(name: str, setup: Setup) -> Runner:
    """A runner that is ready. Raises RuntimeError when it ends at once."""
    if "programs" in setup:
        switches = {key: setup[key] for key in ("threads", "flash_attention", "repack")}
        settings = ProgramSettings(**switches)
        return BenchProgram(name, Path(setup["programs"]), Path(setup["model"]), settings)
    child = Child(name, setup, setup.get("python", sys.executable))
    try:
        return child.ready()
    except BaseException:
        child.close()
        raise


def for_use(setup: Setup, use: Use) -> Setup:
    """llama.cpp's context is divided among its sequences, so a batch has a process of its own."""
    if setup["engine"] == "llama.cpp" and use == "together":
        return {**setup, "sequences": SEQUENCES}
    return setup


def versions(places: Places) -> dict[str, str]:
    """Of everything that takes part, as each says."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("llama-cpp-python", "torch", "transformers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    if places.openvino:
        code = "import openvino_genai; print(openvino_genai.__version__)"
        done = subprocess.run(
            [places.openvino, "-c", code], capture_output=True, text=True, check=False
        )
        found["openvino-genai"] = done.stdout.strip() or "not importable"
    return found
