"""An engine in a process of its own, driven line by line, so that rounds of several interleave.

`python benchmarks/engines.py '{"engine": ..., ...}'` loads and prints a JSON line; then every line
on stdin, such as {"do": "decode", "tokens": 128}, is answered by one line. Times are taken inside.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from octavo.backends.base import Executor

START = 1  # the first token of a generation
PROMPT = 100  # prompts are the tokens PROMPT, PROMPT + 1, ...
Fields = Mapping[str, Any]


class Engine(Protocol):
    """Seconds from an empty context; `describe` is printed after loading."""

    def describe(self) -> dict[str, Any]: ...

    def prefill(self, tokens: int) -> float: ...

    def decode(self, tokens: int) -> float: ...


class Octavo:
    """Our native executor, driven step by step as llama-bench drives llama_decode."""

    def __init__(self, setup: Fields) -> None:
        from octavo.backends.base import RuntimeConfig
        from octavo.backends.native.backend import load
        from octavo.evals.scorer import SingleSequence
        from octavo.io.checkpoint import open_model
        from octavo.io.hub import resolve_model

        config = RuntimeConfig(
            context=setup["context"],
            max_seqs=1,
            threads=setup["threads"],
            format=setup["format"],
            isa=setup.get("isa", ""),
        )
        with open_model(resolve_model(setup["model"])) as model:
            self.executor: Executor = load(model.spec, model.source, config)
        self.sequence = SingleSequence(self.executor)

    def describe(self) -> dict[str, Any]:
        receipt = self.executor.receipt()
        return {
            "bytes_per_token": receipt.bytes_per_token,
            "packed_bytes": receipt.packed_bytes,
            "isa": receipt.isa,
            "threads": receipt.threads,
            "kernels": sorted({use.kernel for use in receipt.kernels}),
        }

    def prefill(self, tokens: int) -> float:
        self.sequence.restart()
        begin = time.perf_counter()
        self.sequence.prefill(range(PROMPT, PROMPT + tokens))
        return time.perf_counter() - begin

    def decode(self, tokens: int) -> float:
        from octavo.evals.throughput import generate

        self.sequence.restart()
        begin = time.perf_counter()
        generate(self.sequence, START, tokens)
        return time.perf_counter() - begin


class OctavoLibrary(Octavo):
    """All that a user's process holds: tokenizer and engine beside the executor."""

    def __init__(self, setup: Fields) -> None:
        from octavo.api import LLM
        from octavo.backends.base import RuntimeConfig
        from octavo.evals.scorer import SingleSequence

        config = RuntimeConfig(context=setup["context"], max_seqs=1, threads=setup["threads"])
        self.llm = LLM(setup["model"], format=setup["format"], config=config)
        self.executor = self.llm.executor
        self.sequence = SingleSequence(self.executor)


class LlamaCppEngine:
    """llama_decode through the low-level API, and the cheaper of two native argmax routes."""

    def __init__(self, setup: Fields) -> None:
        from octavo.evals.rivals import LlamaCpp

        self.llama = LlamaCpp(
            Path(setup["model"]),
            setup["context"],
            setup["threads"],
            kv=setup["kv"],
            flash_attention=setup["flash_attention"],
        )
        self.llama.decode([START], 0)
        routes = {"sampler": self.llama.greedy, "argmax": self.llama.argmax}
        self.costs = {name: _fastest(route) for name, route in routes.items()}
        self.choose = routes[min(self.costs, key=lambda name: self.costs[name])]

    def describe(self) -> dict[str, Any]:
        return {"seconds_per_argmax": self.costs}

    def prefill(self, tokens: int) -> float:
        self.llama.restart()
        prompt = list(range(PROMPT, PROMPT + tokens))
        begin = time.perf_counter()
        for first in range(0, tokens, self.llama.batch_size):
            self.llama.decode(prompt[first : first + self.llama.batch_size], first)
        self.choose()
        return time.perf_counter() - begin

    def decode(self, tokens: int) -> float:
        self.llama.restart()
        token = START
        begin = time.perf_counter()
        for position in range(tokens):
            self.llama.decode((token,), position)
            token = self.choose()
        return time.perf_counter() - begin


def _fastest(route: Any) -> float:
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        route()
        times.append(time.perf_counter() - begin)
    return min(times)


ENGINES: dict[str, Callable[[Fields], Engine]] = {
    "octavo": Octavo,
    "octavo-library": OctavoLibrary,
    "llama.cpp": LlamaCppEngine,
}


class Child:
    """The other end of the pipe: a fresh process with one engine."""

    def __init__(self, name: str, setup: Fields) -> None:
        self.name, self.setup = name, dict(setup)
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self.setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.facts: dict[str, Any] = {}

    def ready(self) -> Child:
        """Wait until it has loaded. Raises RuntimeError when it died."""
        self.facts = self._read()
        return self

    def do(self, what: str, tokens: int) -> float:
        """Seconds of "prefill" or "decode"."""
        self.send(what, tokens)
        return float(self._read()["seconds"])

    def send(self, what: str, tokens: int) -> None:
        assert self._process.stdin is not None
        print(json.dumps({"do": what, "tokens": tokens}), file=self._process.stdin, flush=True)

    def wait(self) -> float:
        """Seconds of what `send` asked for."""
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _serve(setup: Fields) -> None:
    engine: Engine = ENGINES[setup["engine"]](setup)
    print(json.dumps(engine.describe()), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run = {"prefill": engine.prefill, "decode": engine.decode}[request["do"]]
        print(json.dumps({"seconds": run(request["tokens"])}), flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
