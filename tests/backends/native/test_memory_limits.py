"""What is reserved and not used does not count against a limit on data."""

from __future__ import annotations

import os
import subprocess
import sys

from support.models import demo_model

SMALL_WEIGHTS = """
import re, resource
from octavo import _native
data = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (data + (16 << 20),) * 2)
arena, plan = _native.Arena(), _native.PackPlan.gguf("Q8_0", 1024, 1024)
weights = []
try:
    while True:
        weights.append(_native.Weight(arena, plan))
except MemoryError:
    print(len(weights))
"""

MEGABYTES_256 = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (256 << 20,) * 2)
from octavo.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}  # its buffers grow with the machine
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def test_an_arena_counts_what_is_allocated_until_the_limit() -> None:
    """Weights of 1.06 MiB under 16: 15 or, as they come in steps of 2, some fewer; then the error
    that the loader expects."""
    done = run(SMALL_WEIGHTS)
    assert 12 <= int(done.stdout) <= 15, done.stderr


def test_a_model_answers_under_256_megabytes_of_data() -> None:
    model = str(demo_model("smollm2-135m"))
    options = "--format int4_g32 --threads 1 --context 512 --max-tokens 4"
    done = run(MEGABYTES_256, "run", model, "Hi", *options.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
