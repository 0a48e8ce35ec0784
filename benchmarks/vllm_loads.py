"""Does vLLM load what is exported as compressed-tensors, and compute what it says?

    python benchmarks/vllm_loads.py MODEL WORK --vllm PYTHON [--formats F ...] [--text FILE]

MODEL is a Hugging Face directory, PYTHON the interpreter of an environment that has vLLM. Blocks
are rounded to each format (F:A asks for activations A as well), embedding and head stay bf16; vLLM
runs the export in bf16. Its log-probabilities of a text's tokens are compared with those of the
same dequantized weights in fp32 throughout, and beside it those of transformers on these weights in
bf16: what bf16 itself costs. A format that vLLM refuses is printed with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.backends.base import RuntimeConfig
from octavo.compress.export import export_compressed_tensors, export_hf
from octavo.compress.job import Material, compress
from octavo.compress.recipe import from_flags
from octavo.evals.scorer import ExecutorScorer
from octavo.io.checkpoint import open_model
from octavo.io.corpora import stdlib_code
from octavo.io.served import served_by
from octavo.io.tokenizer import load_tokenizer

F64 = npt.NDArray[np.float64]
Prompts = Sequence[Sequence[int]]
FORMATS = (
    "int4_g64", "int4_g64_sbf16", "int8_channel", "int8_channel:a8_token", "fp8_e4m3_channel",
)  # fmt: skip
# Runs in vLLM's environment: the log-probability and the likeliest token of every prompt token but
# the first, one prompt after the other.
_THEIRS = """
import json, sys
from vllm import LLM, SamplingParams
model, length, prompts = json.loads(sys.argv[1])
llm = LLM(model, dtype="bfloat16", enforce_eager=True, max_model_len=length + 1, max_num_seqs=1,
          enable_prefix_caching=False, skip_tokenizer_init=True)
params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
found = []
for prompt in prompts:
    [answer] = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    for token, scores in zip(prompt[1:], answer.prompt_logprobs[1:]):
        first = next(key for key, score in scores.items() if score.rank == 1)
        found.append((scores[token].logprob, first))
print("FOUND " + json.dumps(found))
"""
_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0", "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scores:
    """Of every prompt token but each first: its log-probability in nats, and the likeliest one."""

    logprobs: F64
    likeliest: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Refused:
    """What vLLM said, its last error."""

    words: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="a new directory; artifacts are kept there")
    parser.add_argument("--vllm", required=True, help="a Python that imports vLLM")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--text", type=Path, help="the standard library's code by default")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of each prompt")
    wanted = parser.parse_args()
    text = wanted.text.read_text() if wanted.text else stdlib_code("evaluation")
    need = wanted.prompts * wanted.length
    ids = load_tokenizer(wanted.model).encode(text[: 16 * need], add_special=False)[:need]
    prompts = np.asarray(ids).reshape(wanted.prompts, wanted.length).tolist()
    source = reference(wanted.model, prompts)
    for name in wanted.formats:
        artifact, export = made(wanted.model, name, wanted.work)
        theirs = by_vllm(wanted.vllm, export, prompts)
        if isinstance(theirs, Refused):
            print(f"{name}: refused: {theirs.words}", flush=True)
            continue
        ours = reference(artifact, prompts)
        plain = by_transformers(wanted.work / f"{name}-hf", prompts)
        print(
            f"{name}: {len(ours.logprobs)} log-probabilities; RMS from ours in fp32: vLLM "
            f"{rms(theirs, ours):.4f}, transformers in bf16 {rms(plain, ours):.4f}, the source "
            f"{rms(source, ours):.4f}; same top token as ours: vLLM {same_top(theirs, ours):.1%}, "
            f"transformers {same_top(plain, ours):.1%}, the source {same_top(source, ours):.1%}",
            flush=True,
        )


def made(model: Path, name: str, work: Path) -> tuple[Path, Path]:
    """The artifact with its blocks rounded to `name`, and its export; a dequantized one beside."""
    work.mkdir(parents=True, exist_ok=True)
    artifact, export, plain = (work / f"{name}{end}" for end in ("", "-ct", "-hf"))
    format, _, activations = name.partition(":")
    recipe = from_flags("rtn", format, (("embed", "bf16"), ("head", "bf16")))
    if activations:
        kept = (("head", "a32"),)
        recipe = replace(recipe, activations=activations, keep_activations=kept)
    if not artifact.exists():
        compress(model, recipe, artifact, Material(None, ()))
    if not export.exists():
        export_compressed_tensors(artifact, export, "bf16")
    if not plain.exists():
        export_hf(artifact, plain)
    return artifact, export


def by_vllm(python: str, export: Path, prompts: Prompts) -> Scores | Refused:
    asked = json.dumps([str(export.resolve()), max(map(len, prompts)), prompts])
    done = subprocess.run(
        [python, "-c", _THEIRS, asked],
        capture_output=True, text=True, check=False, env={**os.environ, **_SETTINGS},
    )  # fmt: skip
    lines = (done.stdout + done.stderr).splitlines()
    found = next((line for line in lines if line.startswith("FOUND ")), None)
    if found is None:
        return Refused(_reason(lines))
    logprobs, likeliest = zip(*json.loads(found.removeprefix("FOUND ")), strict=True)
    return Scores(np.array(logprobs, np.float64), np.array(likeliest, np.int64))


def _reason(lines: Sequence[str]) -> str:
    """The last error, with the indented lines that go on with it."""
    said = [line.removeprefix("[rank0]: ").removeprefix("[rank0]:") for line in lines]
    at = max((i for i, line in enumerate(said) if "Error: " in line), default=len(said) - 1)
    return " ".join(line.strip() for line in said[at : at + 4] if line.strip())


def reference(path: Path, prompts: Prompts) -> Scores:
    """The dequantized weights in fp32 throughout, activations rounded where the artifact asks."""
    from octavo.backends.reference.executor import load_reference

    with open_model(path) as opened:
        asked = served_by(opened.source).activations != "auto"
        config = RuntimeConfig(
            context=max(map(len, prompts)), max_seqs=1, kv_format="fp32",
            activations="auto" if asked else "a32",
        )  # fmt: skip
        executor = load_reference(opened.source, opened.spec, config)
    with closing(ExecutorScorer(executor, "fp32")) as scorer:
        blocks = (np.concatenate(list(scorer.logits(p[:-1], 0, len(p)))) for p in prompts)
        return _scores(list(blocks), prompts)


def by_transformers(path: Path, prompts: Prompts) -> Scores:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = [model(torch.tensor([p[:-1]])).logits[0].float().numpy() for p in prompts]
    return _scores(logits, prompts)


def _scores(logits: Sequence[npt.NDArray[np.float32]], prompts: Prompts) -> Scores:
    wide = np.concatenate(logits).astype(np.float64)
    nexts = np.concatenate([prompt[1:] for prompt in prompts])
    top = wide.max(1, keepdims=True)
    scaled = wide - top - np.log(np.exp(wide - top).sum(1, keepdims=True))
    return Scores(scaled[np.arange(len(nexts)), nexts], wide.argmax(1))


def rms(left: Scores, right: Scores) -> float:
    return float(np.sqrt(np.mean((left.logprobs - right.logprobs) ** 2)))


def same_top(left: Scores, right: Scores) -> float:
    return float(np.mean(left.likeliest == right.likeliest))


if __name__ == "__main__":
    main()
