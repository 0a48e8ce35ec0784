"""An engine in a process of its own, driven line by line, so that rounds of several interleave.

`python benchmarks/engines.py '{"engine": ..., ...}'` loads and prints a JSON line of facts; then
every line on stdin, a `Task` as JSON with "do": "task", is answered by one line. Times are taken
inside. An engine's module is imported in its own process only: it may need another Python than the
one that drives it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

START = 1  # the first token of a generation
PROMPT = 100  # prompts are the tokens PROMPT, PROMPT + 1, ...
TOGETHER_PROMPT = 32  # tokens before each of the sequences of a batch
TOGETHER_CONTEXT = 128  # of each of them
Fields = Mapping[str, Any]
Kind = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Task:
    """What is timed.

    prefill  `tokens` tokens from an empty context to one next token.
    decode   `tokens` greedy steps of each of `batch` sequences: one behind `depth` tokens, or
             several behind TOGETHER_PROMPT tokens each. What lies before is not timed.
    """

    kind: Kind
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"pp{self.tokens}"
        return f"tg{self.tokens}" + (f" x{self.batch}" if self.batch > 1 else f" @ d{self.depth}")

    @property
    def work(self) -> int:
        """Tokens that count for tokens per second."""
        return self.tokens * self.batch


class Engine(Protocol):
    """Seconds of a task; `describe` is printed after loading. NotImplementedError: can't do it."""

    def describe(self) -> dict[str, Any]: ...

    def prefill(self, tokens: int) -> float: ...

    def decode(self, tokens: int, depth: int) -> float: ...

    def decode_together(self, tokens: int, batch: int) -> float: ...


ENGINES: Mapping[str, tuple[str, str]] = {
    "octavo": ("engine_octavo", "Octavo"),
    "octavo-library": ("engine_octavo", "OctavoLibrary"),
    "llama.cpp": ("engine_llama", "LlamaCppEngine"),
    "openvino": ("engine_openvino", "OpenVino"),
    "torch": ("engine_torch", "Torch"),
}


class Child:
    """The other end of the pipe: a fresh process with one engine.

    It is stopped (SIGSTOP) while it isn't asked anything: some engines' threads go on spinning
    behind their answer, and would take the others' processors.
    """

    def __init__(self, name: str, setup: Fields, python: str = sys.executable) -> None:
        self.name, self.setup = name, dict(setup)
        self.command = [python, __file__, json.dumps(self.setup)]
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.facts: dict[str, Any] = {}

    def ready(self) -> Child:
        """Wait until it has loaded. Raises RuntimeError when it died."""
        self.facts = self._read()
        self._process.send_signal(signal.SIGSTOP)
        return self

    def do(self, what: Kind, tokens: int) -> float:
        """Seconds of "prefill" or "decode" from an empty context."""
        return self.measure(Task(what, tokens))

    def measure(self, task: Task) -> float:
        """Seconds. Raises NotImplementedError when the engine can't do this."""
        return float(self._ask({"do": "task", **asdict(task)})["seconds"])

    def ask(self, what: str) -> Any:
        """A fact found on demand, such as "probe". Raises NotImplementedError."""
        return self._ask({"do": what})["value"]

    def _ask(self, request: Fields) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self._process.send_signal(signal.SIGSTOP)
        if "unable" in answer:
            raise NotImplementedError(answer["unable"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it; by force when it doesn't end by itself."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answer(engine: Engine, request: Fields) -> dict[str, Any]:
    try:
        if request["do"] != "task":
            return {"value": getattr(engine, request["do"])()}
        tokens, batch = request["tokens"], request["batch"]
        if request["kind"] == "prefill":
            return {"seconds": engine.prefill(tokens)}
        if batch > 1:
            return {"seconds": engine.decode_together(tokens, batch)}
        return {"seconds": engine.decode(tokens, request["depth"])}
    except NotImplementedError as error:
        return {"unable": str(error)}


def _end_with_parent() -> None:
    """A stopped process doesn't see the end of its pipe."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _serve(setup: Fields) -> None:
    """Answers go to the real stdout; whatever a library prints goes to stderr. Ctrl-C is for the
    process that drives this one: the end of its pipe ends the engine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    answers, sys.stdout = sys.stdout, sys.stderr
    module, name = ENGINES[setup["engine"]]
    engine: Engine = getattr(importlib.import_module(module), name)(setup)
    print(json.dumps(engine.describe()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(engine, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
