"""What it costs to multiply integers only, from token to logits, on the reference decoder.

KL from the model's own weights with nothing rounded, over windows of a text: with 8-bit weights and
activations, then with an int8 cache, then with attention's products in integers too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import ReferenceOptions
from octavo.io.checkpoint import open_model
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F32, F64 = npt.NDArray[np.float32], npt.NDArray[np.float64]
PLAIN = ReferenceOptions()
STAGES = {
    "weights and activations": ReferenceOptions(format="int8_g32", activations="a8"),
    "and the cache": ReferenceOptions(format="int8_g32", activations="a8", kv_format="int8"),
    "and attention": ReferenceOptions(format="int8_g32", activations="a8", kv_format="int8_dot"),
    "one scale a row": ReferenceOptions(
        format="int8_channel", activations="a8_token", kv_format="int8_dot"
    ),
}
ROWS = 64  # of logits that are compared at a time


def log_softmax(logits: F32) -> F64:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(1, keepdims=True)))


def divergence(base: list[F32], other: list[F32]) -> dict[str, float]:
    """Mean KL(base || other) in nats, and the share of equal top tokens."""
    kl, same = [], []
    for one, two in zip(base, other, strict=True):
        for start in range(0, len(one), ROWS):
            p, q = (log_softmax(x[start : start + ROWS]) for x in (one, two))
            kl.append((np.exp(p) * (p - q)).sum(1))
            same.append(p.argmax(1) == q.argmax(1))
    return {"kl": float(np.concatenate(kl).mean()), "top1": float(np.concatenate(same).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    size = arguments.window
    with open_model(resolve_model(arguments.model)) as model:
        tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
        tokens = tokenizer.encode(arguments.text.read_text(encoding="utf-8"))
        windows = [tokens[i * size : (i + 1) * size] for i in range(arguments.windows)]
        plain = ReferenceDecoder.load(model.source, model.spec, PLAIN)
        base = [plain.logits(window) for window in windows]
        for name, options in STAGES.items():
            decoder = ReferenceDecoder.load(model.source, model.spec, options)
            found = divergence(base, [decoder.logits(window) for window in windows])
            row = {"model": arguments.model, "integers": name, **found}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
