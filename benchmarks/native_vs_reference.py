"""Native against the reference decoder, teacher-forced on the reference's own greedy continuation.

Both run from the same dequantized weights, the reference in fp32 with the plan's roundings
(activations, keys and values). The bar derives from the reference itself: the tolerance is four
times the largest difference between its fp32 and fp64 logits on that very text, and wherever its
two best logits lie further apart than twice that, native must choose the same token. Positions
with a smaller margin are excluded, and counted.

Rounding activations to integers makes the plan discontinuous: a difference of 1e-7 before a
rounding may become one step after it, in fp32 against fp64 as in native against fp32. The
tolerance then measures that, and excludes more. `--activations a32 --kv fp32` compares the
arithmetic alone. For a plan that rounds, the divergence from the plan without roundings is compared
as well: native's and the rounding reference's are samples of the same noise
(docs/decisions/0001-how-native-is-held-to-the-reference.md).
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from octavo.backends.base import WANT_TOKEN, RuntimeConfig
from octavo.backends.native.backend import load
from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.executor import load_reference
from octavo.backends.reference.options import ReferenceOptions
from octavo.evals.scorer import ExecutorScorer, SingleSequence
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.corpora import stdlib_code, wikipedia
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the reference's greedy continuation, with its logits where it chose."""

    tokens: tuple[int, ...]
    prompt: int
    logits: F32  # [continuation, vocab]


def prompts(model: OpenModel, name: str, count: int) -> list[list[int]]:
    """The beginnings of `count` passages of evaluation text: code for coders, else prose."""
    tokenizer = load_tokenizer(model.path, model.metadata if model.kind == "gguf" else None)
    text = stdlib_code("evaluation") if "coder" in name else wikipedia("evaluation")
    stride = len(text) // count
    passages = [text[i * stride : i * stride + 2000] for i in range(count)]
    return [tokenizer.encode(passage)[:PROMPT_TOKENS] for passage in passages]


def continue_greedily(decoder: ReferenceDecoder, prompt: Sequence[int], n: int) -> list[int]:
    import torch

    kv, tokens, fresh = decoder.new_kv(), list(prompt), list(prompt)
    with torch.no_grad():
        for _ in range(n):
            fresh = [int(decoder.forward(fresh, kv)[-1].argmax())]
            tokens += fresh
    return tokens


def reference_texts(
    model: OpenModel, config: RuntimeConfig, starts: list[list[int]], n: int
) -> list[Text]:
    decoder = load_reference(model.source, model.spec, config).decoder
    texts = []
    for start in starts:
        tokens = continue_greedily(decoder, start, n)
        logits = decoder.logits(tokens[:-1])[len(start) - 1 :]
        texts.append(Text(tuple(tokens), len(start), logits))
    return texts


def largest_rounding(model: OpenModel, config: RuntimeConfig, texts: list[Text]) -> float:
    """The largest difference of any logit between the reference in fp32 and in fp64."""
    options = ReferenceOptions(dtype="fp64")
    decoder = load_reference(model.source, model.spec, config, options).decoder
    return max(
        float(np.abs(decoder.logits(t.tokens[:-1])[t.prompt - 1 :] - t.logits).max()) for t in texts
    )


def margins(logits: F32) -> F32:
    best = np.partition(logits, -2, axis=-1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


def divergence(base: F32, other: F32) -> F64:
    """KL(base || other) of each row of logits, in nats."""
    p, q = (log_softmax(x) for x in (base, other))
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def log_softmax(logits: F32) -> F64:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def noise(
    model: OpenModel, config: RuntimeConfig, texts: list[Text], ours: list[F32]
) -> dict[str, float | bool]:
    """Divergence from the plan without roundings, of native and of the rounding reference."""
    exact = replace(config, activations="a32", kv_format="fp32")
    decoder = load_reference(model.source, model.spec, exact).decoder
    native, reference = [], []
    for text, logits in zip(texts, ours, strict=True):
        base = decoder.logits(text.tokens[:-1])[text.prompt - 1 :]
        native.append(divergence(base, logits))
        reference.append(divergence(base, text.logits))
    difference = np.concatenate(native) - np.concatenate(reference)
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return {
        "kl_native": float(np.concatenate(native).mean()),
        "kl_reference": float(np.concatenate(reference).mean()),
        "kl_difference": float(difference.mean()),
        "kl_difference_error": error,
        "kl_no_worse": bool(difference.mean() <= 2 * error),
    }


def native_logits(scorer: ExecutorScorer, text: Text) -> F32:
    blocks = scorer.logits(text.tokens[:-1], text.prompt - 1, 64)
    return np.concatenate([block.copy() for block in blocks])


def free_running(sequence: SingleSequence, text: Text) -> int:
    """How many tokens native generates like the reference before the first difference."""
    token = sequence.prefill(text.tokens[: text.prompt])
    for i, expected in enumerate(text.tokens[text.prompt :]):
        if token != expected:
            return i
        token = int(sequence.step([token], WANT_TOKEN).token[0])
    return len(text.tokens) - text.prompt


def compare(
    model: OpenModel, config: RuntimeConfig, texts: list[Text], tolerance: float
) -> dict[str, float | int | bool]:
    executor = load(model.spec, model.source, config)
    sequence, scorer = SingleSequence(executor), ExecutorScorer(executor, "native")
    disagree = excluded = 0
    worst = 0.0
    ours = [native_logits(scorer, text) for text in texts]
    for text, logits in zip(texts, ours, strict=True):
        clear = margins(text.logits) > 2 * tolerance
        same = logits.argmax(-1) == text.logits.argmax(-1)
        disagree += int((clear & ~same).sum())
        excluded += int((~clear).sum())
        worst = max(worst, float(np.abs(logits - text.logits).max()))
    run = free_running(sequence, texts[0])
    first_unclear = int(np.append(margins(texts[0].logits) <= 2 * tolerance, True).argmax())
    positions = sum(len(t.logits) for t in texts)
    scorer.close()
    plain = config.activations == "a32" and config.kv_format == "fp32"
    return {
        **({} if plain else noise(model, config, texts, ours)),
        "positions": positions,
        "disagreements": disagree,
        "excluded": excluded,
        "excluded_share": excluded / positions,
        "largest_difference": worst,
        "free_running_tokens": run,
        "free_running_equal": run >= min(first_unclear, len(texts[0].logits)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--activations", default="auto", choices=["auto", "a8", "abf16", "a32"])
    parser.add_argument("--kv", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: always JSON")
    arguments = parser.parse_args()
    config = RuntimeConfig(
        context=256, max_seqs=1, activations=arguments.activations, kv_format=arguments.kv
    )
    with open_model(resolve_model(arguments.model)) as model:
        starts = prompts(model, arguments.model, arguments.prompts)
        texts = reference_texts(model, config, starts, arguments.tokens)
        gc.collect()
        rounding = largest_rounding(model, config, texts)
        gc.collect()
        result = compare(model, replace(config), texts, 4 * rounding)
    described = {
        "model": arguments.model,
        "activations": arguments.activations,
        "kv_format": arguments.kv,
        "largest_fp32_to_fp64": rounding,
        "tolerance": 4 * rounding,
    }
    print(json.dumps({**described, **result}))


if __name__ == "__main__":
    main()
