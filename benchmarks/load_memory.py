"""Peak anonymous memory while a model loads (no tokenizer, no KV pool to speak of)."""

from __future__ import annotations

import argparse
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.cli.output import emit_json, fields, human_decimal
from octavo.core.hardware import parse_kilobytes

LOAD = """
import json, sys
from octavo.backends.native.backend import load
from octavo.backends.base import RuntimeConfig
from octavo.io.checkpoint import open_model
from octavo.io.hub import resolve_model
model, number_format, activations = sys.argv[1:]
config = RuntimeConfig(context=16, max_seqs=1, format=number_format, activations=activations)
with open_model(resolve_model(model)) as opened:
    executor = load(opened.spec, opened.source, config)
print(executor.receipt().packed_bytes, flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--format", default="source")
    parser.add_argument("--activations", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.model, arguments.format, arguments.activations)
    if arguments.json:
        emit_json(result)
        return
    sizes = {k: human_decimal(result[k]) for k in ("packed_bytes", "peak_anonymous", "after")}
    print(fields({**sizes, "samples": str(result["samples"])}))


def measure(model: str, number_format: str, activations: str) -> dict[str, Any]:
    """Load in a fresh process and watch it from here."""
    child = subprocess.Popen(
        [sys.executable, "-c", LOAD, model, number_format, activations],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    seen = list(_watch(child))
    line = child.stdout.readline()
    child.stdin.close()
    if child.wait() or not line:
        raise SystemExit(f"loading {model} failed with status {child.returncode}")
    return {
        "model": model,
        "format": number_format,
        "packed_bytes": int(line),
        "peak_anonymous": max(seen),
        "after": seen[-1],
        "samples": len(seen),
    }


def _watch(child: subprocess.Popen[str]) -> Iterator[int]:
    """Anonymous bytes every millisecond or so, until the child waits or has ended."""
    assert child.stdout is not None
    status = Path(f"/proc/{child.pid}/status")
    while True:
        text = status.read_text()
        yield parse_kilobytes(text).get("RssAnon", 0)
        if child.poll() is not None or _readable(child):
            return
        time.sleep(0.001)


def _readable(child: subprocess.Popen[str]) -> bool:
    assert child.stdout is not None
    return bool(select.select([child.stdout], [], [], 0)[0])


if __name__ == "__main__":
    main()
