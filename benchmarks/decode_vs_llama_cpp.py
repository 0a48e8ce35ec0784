"""Decode and prefill of a model with every tensor in 4 bits, against llama.cpp's `--pure` Q4_0.

Every engine and setting has a fresh process of its own; rounds go over all of them. llama.cpp
counts with its best setting (threads 1 and 2, flash attention on and off), chosen by its median
over the same rounds. With --memory: peak proportional memory of fresh processes instead.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines import Child, Task
from make_rivals import read_per_token
from peak import peak_memory

from octavo.cli.output import emit_json, markdown_table
from octavo.core.hardware import probe
from octavo.evals.rivals import quantize_pure
from octavo.io.hub import resolve_model

CONTEXT = 1024
FORMAT = "int4_g32"


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as place:
        pure = Path(place) / "pure-q4_0.gguf"
        quantize_pure(resolve_model(arguments.model), pure)
        result = memory(arguments, pure) if arguments.memory else speed(arguments, pure)
    if arguments.json:
        emit_json(result)
    else:
        print(_memory_table(result) if arguments.memory else _speed_table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode a round")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--threads", type=int, default=0, help="ours; 0: the machine's")
    parser.add_argument("--memory", action="store_true", help="measure memory, not speed")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def speed(arguments: argparse.Namespace, pure: Path) -> dict[str, Any]:
    """Medians, the ratio of every round, and the bytes of both."""
    with children(setups(arguments, pure)) as running:
        for child in running:  # warm caches and thread pools
            child.do("prefill", 16)
            child.do("decode", 16)
        rates = _rounds(arguments, running)
        ours = running[0].facts
        costs = {child.name: child.facts for child in running[1:]}
    best = max(list(rates)[1:], key=lambda name: statistics.median(rates[name]["decode"]))
    theirs = read_per_token(pure)
    return {
        "model": arguments.model,
        "machine": probe().cpu,
        "rounds": arguments.rounds,
        "octavo": ours,
        "llama_cpp_setting": best,
        "llama_cpp_argmax": costs[best],
        "octavo_bytes_per_token": ours["bytes_per_token"],
        "llama_cpp_bytes_per_token": theirs,
        "bytes_ratio": ours["bytes_per_token"] / theirs,
        **_compared(rates, best, "decode"),
        **_compared(rates, _best(rates, "prefill"), "prefill"),
        "samples": rates,
    }


def _best(rates: Mapping[str, Mapping[str, Sequence[float]]], what: str) -> str:
    """llama.cpp's setting with the best median."""
    return max(list(rates)[1:], key=lambda name: statistics.median(rates[name][what]))


def _compared(
    rates: Mapping[str, Mapping[str, Sequence[float]]], best: str, what: str
) -> dict[str, Any]:
    """Medians of both, the ratio round by round, and the median of those ratios."""
    ours, theirs = rates["octavo"][what], rates[best][what]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        f"octavo_{what}": statistics.median(ours),
        f"llama_cpp_{what}": statistics.median(theirs),
        f"{what}_ratio": statistics.median(ratios),
        f"{what}_ratios": ratios,
        f"llama_cpp_{what}_setting": best,
    }


def _rounds(
    arguments: argparse.Namespace, running: Sequence[Child]
) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by engine and test. Each round starts one engine further on."""
    rates: dict[str, dict[str, list[float]]] = {
        child.name: {"decode": [], "prefill": []} for child in running
    }
    for number in range(arguments.rounds):
        turn = number % len(running)
        for child in [*running[turn:], *running[:turn]]:
            for what, tokens in (("decode", arguments.decode), ("prefill", arguments.prefill)):
                rates[child.name][what].append(tokens / child.do(what, tokens))
    return rates


def setups(arguments: argparse.Namespace, pure: Path) -> list[tuple[str, dict[str, Any]]]:
    """Ours first, then llama.cpp's settings."""
    ours = {
        "engine": "octavo", "model": arguments.model, "context": CONTEXT,
        "threads": arguments.threads, "format": FORMAT,
    }  # fmt: skip
    theirs = [
        (
            f"llama.cpp t{threads} fa{int(flash)}",
            {
                "engine": "llama.cpp", "model": str(pure), "context": CONTEXT,
                "threads": threads, "kv": "f16", "flash_attention": flash,
            },
        )
        for threads in sorted({1, probe().threads})
        for flash in (False, True)
    ]  # fmt: skip
    return [("octavo", ours), *theirs]


@contextmanager
def children(wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Child]]:
    """Loaded one after the other, ended together."""
    started: list[Child] = []
    try:
        for name, setup in wanted:
            started.append(Child(name, setup))
            started[-1].ready()
        yield started
    finally:
        for child in started:
            child.close()


def memory(arguments: argparse.Namespace, pure: Path) -> dict[str, Any]:
    """Proportional memory of a fresh process each: its peak, and after the last token."""
    (_, ours), *others = setups(arguments, pure)
    theirs = next(setup for name, setup in others if name.endswith("fa1"))
    theirs["threads"] = probe().threads
    ours["engine"] = "octavo-library"
    task = Task("decode", arguments.decode)
    mine = peak_memory("octavo", ours, task)
    rival = peak_memory("llama.cpp", theirs, task)
    return {
        "model": arguments.model,
        "context": CONTEXT,
        "decoded": arguments.decode,
        "octavo_pss": mine[0],
        "octavo_pss_after": mine[1],
        "llama_cpp_pss": rival[0],
        "llama_cpp_pss_after": rival[1],
    }


def _speed_table(result: Mapping[str, Any]) -> str:
    rows = [
        (
            what,
            f"{result[f'octavo_{what}']:.1f}",
            f"{result[f'llama_cpp_{what}']:.1f}",
            result[f"llama_cpp_{what}_setting"],
            f"{result[f'{what}_ratio']:.2f}",
            f"{min(result[f'{what}_ratios']):.2f} to {max(result[f'{what}_ratios']):.2f}",
        )
        for what in ("decode", "prefill")
    ]
    header = ("test", "octavo t/s", "llama.cpp t/s", "its best setting", "ratio", "ratio by round")
    table = markdown_table(header, rows, ("left",) + ("right",) * 5)
    ours, theirs = result["octavo_bytes_per_token"], result["llama_cpp_bytes_per_token"]
    return (
        f"{table}\n\nbytes per token: {ours / 1e6:.2f} MB and {theirs / 1e6:.2f} MB "
        f"(ratio {result['bytes_ratio']:.4f}); kernels {', '.join(result['octavo']['kernels'])}; "
        f"{result['rounds']} rounds; {time.strftime('%Y-%m-%d')}, {result['machine']}"
    )


def _memory_table(result: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{result[f'{key}_pss'] / 1e6:.1f}", f"{result[f'{key}_pss_after'] / 1e6:.1f}")
        for name, key in (("octavo", "octavo"), ("llama.cpp", "llama_cpp"))
    ]
    return markdown_table(("engine", "peak MB", "after MB"), rows, ("left", "right", "right"))


if __name__ == "__main__":
    main()
