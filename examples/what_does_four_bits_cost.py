"""KL divergence and size of a few formats against the source, on a text of your own.

python examples/what_does_four_bits_cost.py MODEL TEXT_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.evals.divergence import divergence
from octavo.evals.scorer import ExecutorScorer
from octavo.evals.windows import split
from octavo.io.checkpoint import open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

FORMATS = ("int8_g32", "int4_g32", "int4_g64_asym", "int3_g32", "int2_g32")
CONTEXT = 256


def main(name: str, text: str) -> None:
    with open_model(resolve_model(name)) as model:
        tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
        windows = split(tokenizer.encode(text)[: 4 * CONTEXT], CONTEXT)
        base = load(model.spec, model.source, RuntimeConfig(context=CONTEXT))
        base_scorer = ExecutorScorer(base, "source")
        for number_format in ("source", *FORMATS):
            config = RuntimeConfig(context=CONTEXT, format=number_format)
            executor = load(model.spec, model.source, config)
            scorer = ExecutorScorer(executor, number_format)
            report = divergence(scorer, base_scorer, windows)
            size, kl = executor.receipt().bytes_per_token / 1e6, report.kl_mean
            print(f"{number_format:16} {size:7.1f} MB/token  KL {kl.value:.5f} ± {kl.error:.5f}")
            scorer.close()
        base_scorer.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8"))
