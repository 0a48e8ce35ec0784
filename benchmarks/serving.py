"""The server under load, and what its HTTP costs one user: interleaved, with the client's own time.

    python benchmarks/serving.py smollm2-135m --format int4_g32 --threads 2 \\
        --llama-server PROGRAM --llama-model FILE.gguf --vllm PROGRAM --vllm-model DIR --rounds 5
    python benchmarks/serving.py smollm2-135m --format int4_g32 --threads 2 --only single

load      a closed loop of 16 streams, 64 chats of about 128 tokens in and 128 out, on each server
          in turn, the same prompts for all, new ones each round. The client runs on one processor,
          and shares it with the servers.
single    one stream over HTTP against the same decode in a process, alternating.

Ratios are of medians over the rounds; every sample is in the JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from server_process import Running, llama_server, octavo_server, vllm_server

from octavo.api import LLM
from octavo.backends.base import RuntimeConfig
from octavo.cli.output import emit_json
from octavo.engine.request import SamplingParams
from octavo.serve.load import Load, Sample, ServerUnderLoad, Workload, report

_TIMEOUT = 600.0
_TOKENS = 128


def main() -> None:
    arguments = _arguments()
    found: dict[str, Any] = {}
    if arguments.only in (None, "load"):
        found["load"] = load(arguments)
    if arguments.only in (None, "single"):
        found["single"] = single(arguments)
    if arguments.json:
        emit_json(found)
    else:
        _print(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--format", default="source")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--llama-model", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--vllm-model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--client-cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("load", "single"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per server: what each round measured; then medians and ratios over llama-server."""
    with ExitStack() as stack:
        servers = [stack.enter_context(octavo_server(*_octavo(arguments)))]
        if arguments.llama_server is not None:
            servers.append(stack.enter_context(_llama(arguments)))
        if arguments.vllm is not None:
            servers.append(stack.enter_context(_vllm(arguments)))
        rounds: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
        for number in range(arguments.rounds + 1):
            for server in servers if number % 2 else reversed(servers):
                measured = _one_load(server, arguments, seed=number)
                if number:  # the first warms up
                    rounds[server.name].append(measured)
    medians = {name: _medians(values) for name, values in rounds.items()}
    return {"rounds": rounds, "medians": medians, "ratios": _ratios(medians)}


def _octavo(arguments: argparse.Namespace) -> list[str]:
    return [arguments.model, "--format", arguments.format, "--threads", str(arguments.threads),
            "--context", "1024", "--max-num-seqs", str(arguments.concurrency),
            "--kv-tokens", str(1024 * arguments.concurrency)]  # fmt: skip


def _llama(arguments: argparse.Namespace) -> Any:
    context, places = 1024 * arguments.concurrency, arguments.concurrency
    threads = arguments.threads or len(os.sched_getaffinity(0))
    return llama_server(
        arguments.llama_server, arguments.llama_model, 18080, "-t", str(threads), "-np",
        str(places), "-c", str(context), "-fa", "on", "--no-webui",
    )  # fmt: skip


def _vllm(arguments: argparse.Namespace) -> Any:
    """In bf16, since it has no 4-bit weights on processors like these; its prefix cache finds the
    template's head, as ours does."""
    return vllm_server(
        arguments.vllm, arguments.vllm_model, 18081,
        arguments.threads or len(os.sched_getaffinity(0)), "--dtype", "bfloat16",
        "--max-model-len", "1024", "--max-num-seqs", str(arguments.concurrency),
    )  # fmt: skip


@contextmanager
def _pinned(cpu: int) -> Iterator[None]:
    """This process on one processor; the servers keep theirs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _one_load(server: Running, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    work = Workload(arguments.requests, arguments.concurrency, output=_TOKENS, seed=seed)
    client, served = time.process_time(), server.cpu_seconds()
    with _pinned(arguments.client_cpu):
        samples, seconds = asyncio.run(_run(server.url, work))
    found = report(samples, seconds, 1000, 100)
    if found.failed or found.ttft is None or found.tpot is None:
        raise RuntimeError(f"{server.name}: {found.errors}")
    return {
        "output_tokens_per_second": found.output_throughput,
        "ttft_mean_ms": found.ttft.mean,
        "ttft_p95_ms": found.ttft.p95,
        "tpot_median_ms": found.tpot.median,
        "prompt_tokens": found.total_input / found.completed,
        "seconds": seconds,
        "client_cpu_seconds": time.process_time() - client,
        "server_cpu_seconds": server.cpu_seconds() - served,
    }


async def _run(url: str, work: Workload) -> tuple[list[Sample], float]:
    async with ServerUnderLoad(url, None, None, _TIMEOUT) as server:
        return await Load(work, server.send).run(lambda: None)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(values[key] for values in rounds) for key in rounds[0]}


def _ratios(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ours over each of theirs: more throughput and less waiting are better."""
    keys = ("output_tokens_per_second", "ttft_p95_ms", "tpot_median_ms")
    ours = medians["octavo"]
    return {
        name: {key: ours[key] / theirs[key] for key in keys}
        for name, theirs in medians.items()
        if name != "octavo"
    }


def single(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a token after the first, and what HTTP adds, from the fastest of each."""
    config = RuntimeConfig(context=1024, threads=arguments.threads)
    over_http: list[float] = []
    in_process: list[float] = []
    with octavo_server(*_octavo(arguments)) as server, LLM(
        arguments.model, format=arguments.format, config=config
    ) as llm:  # fmt: skip
        for seed in range(4 * arguments.rounds + 1):
            http = asyncio.run(_run(server.url, Workload(1, 1, output=_TOKENS, seed=seed)))[0][0]
            direct = _decode(llm, Load(Workload(1, 1, seed=seed), _nothing).prompts()[0])
            if seed:  # the first warms up
                over_http.append(1e3 * http.per_token)
                in_process.append(1e3 * direct)
    cost = {name: of(over_http) / of(in_process) - 1 for name, of in _SUMMARIES.items()}
    return {"http_ms": over_http, "in_process_ms": in_process, "cost": cost}


_SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "fastest": min,
    "median": statistics.median,
}


async def _nothing(messages: object, output: int) -> Any:
    """Sends nothing: only the prompts are wanted."""
    yield {}


def _decode(llm: LLM, prompt: str) -> float:
    """Seconds a token after the first."""
    params = SamplingParams(max_tokens=_TOKENS, ignore_eos=True)
    arrivals: list[float] = []
    with llm.chat([{"role": "user", "content": prompt}], params, stream=True) as answers:
        for _ in answers:
            arrivals.append(time.perf_counter())
    return (arrivals[-1] - arrivals[0]) / (_TOKENS - 1)


def _print(found: dict[str, Any]) -> None:
    if "load" in found:
        for name, values in found["load"]["medians"].items():
            print(name, "  ".join(f"{key} {value:.1f}" for key, value in values.items()))
        for name, ratios in found["load"]["ratios"].items():
            for key, value in ratios.items():
                print(f"ours over {name}, {key}: {value:.2f}")
    if "single" in found:
        for name, cost in found["single"]["cost"].items():
            print(f"HTTP costs one stream {100 * cost:.1f} % ({name})")


if __name__ == "__main__":
    main()
