"""From what a person writes as a model to a scorer: our executors, the reference, or llama.cpp."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.core.errors import UnsupportedError

if TYPE_CHECKING:
    from octavo.backends.base import RuntimeConfig
    from octavo.evals.scorer import Scorer
    from octavo.io.tokenizer import Tokenizer

RIVAL = "llama.cpp:"
STORED = "logits:"


def open_scorer(name: str, config: RuntimeConfig) -> Scorer:
    """MODEL by the native backend; `llama.cpp:FILE.gguf` by llama.cpp, which ignores `config`
    but for context, threads and the KV format; `logits:FILE` is a base-logits file."""
    if name.startswith(STORED):
        from octavo.evals.base_logits import BaseLogits

        return BaseLogits(Path(name.removeprefix(STORED)))
    if name.startswith(RIVAL):
        return _rival(name.removeprefix(RIVAL), config)
    from octavo.engine.loading import load_executor
    from octavo.evals.scorer import ExecutorScorer
    from octavo.io.checkpoint import open_model

    with open_model(_path(name)) as model:
        executor = load_executor(model.spec, model.source, config)
    receipt = executor.receipt()
    return ExecutorScorer(executor, f"{name} ({config.format}, {receipt.backend} {receipt.isa})")


def open_reference(name: str, config: RuntimeConfig) -> Scorer:
    """MODEL, dequantized, by the torch decoder in fp32 without any rounding."""
    from octavo.evals.scorer import ExecutorScorer
    from octavo.io.checkpoint import open_model

    try:
        from octavo.backends.reference.executor import load_reference
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "the reference decoder needs torch: `pip install 'octavo[torch]'`"
        ) from error
    plain = dataclasses.replace(config, kv_format="fp32", activations="a32")
    with open_model(_path(name)) as model:
        executor = load_reference(model.source, model.spec, plain)
    return ExecutorScorer(executor, f"{name} (reference fp32)")


def load_tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer of a model's own files; of a GGUF, the one in its header."""
    from octavo.io.checkpoint import read_header
    from octavo.io.tokenizer import load_tokenizer

    path = _path(name.removeprefix(RIVAL))
    header = read_header(path)
    return load_tokenizer(path, header.metadata if header.kind == "gguf" else None)


def _rival(file: str, config: RuntimeConfig) -> Scorer:
    from octavo.evals.rivals import LlamaCpp, LlamaSettings

    kv = "f32" if config.kv_format == "fp32" else "bf16"
    return LlamaCpp(_path(file), config.context, LlamaSettings(threads=config.threads, kv=kv))


def _path(name: str) -> Path:
    from octavo.io.hub import resolve_model

    return resolve_model(name)
