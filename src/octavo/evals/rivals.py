"""llama.cpp as a Scorer and as a rival in benchmarks, through llama-cpp-python's low-level API.

That API mirrors the C functions one to one, so what is timed is `llama_decode` and not Python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ModelFileError, OctavoError, UnsupportedError, UserError

F32 = npt.NDArray[np.float32]
GGML_F32, GGML_F16, GGML_BF16 = 0, 1, 30
KV_TYPES = {"f32": GGML_F32, "f16": GGML_F16, "bf16": GGML_BF16}


def llama_cpp() -> Any:
    """The llama_cpp module, silenced. Raises UnsupportedError when it isn't installed."""
    try:
        import llama_cpp as module
    except ImportError as error:
        raise UnsupportedError(
            "llama.cpp's numbers need the package llama-cpp-python: "
            "`pip install 'octavo[bench]'` (compiles for some minutes)"
        ) from error
    return module


class LlamaCpp:
    """One GGUF file loaded by llama.cpp, one context, one sequence.

    kv: "f16", "bf16" or "f32". flash_attention: True, False, or None for llama.cpp's own choice.
    Raises ModelFileError when llama.cpp can't load the file.
    """

    def __init__(
        self,
        path: Path,
        context: int,
        threads: int = 0,
        batch: int = 512,
        kv: str = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        self._lib = lib = llama_cpp()
        self.name = f"llama.cpp:{path.name}"
        self.context, self.batch_size = context, min(batch, context)
        self._quiet = _quiet(lib)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise ModelFileError(f"{path}: llama.cpp can't load it: give a GGUF file it supports")
        params = self._context_params(threads or len(os.sched_getaffinity(0)), kv, flash_attention)
        self._ctx = lib.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise OctavoError(f"{path}: llama.cpp gives no context of {context} tokens")
        self.vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)
        self._sampler = lib.llama_sampler_init_greedy()

    def _context_params(self, threads: int, kv: str, flash_attention: bool | None) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = self.batch_size
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv]
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        params.no_perf = True
        return params

    def restart(self) -> None:
        """Forget the context."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), False)

    def decode(self, tokens: Sequence[int], position: int, every: bool = False) -> None:
        """Append at most `batch` tokens; logits of every row, or of the last only."""
        if position + len(tokens) > self.context:
            raise UserError(f"{position + len(tokens)} tokens exceed the context {self.context}")
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = position + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = every or row == len(tokens) - 1
        status = self._lib.llama_decode(self._ctx, batch)
        if status:
            raise OctavoError(f"{self.name}: llama_decode failed with status {status}")

    def greedy(self) -> int:
        """The likeliest next token, found natively."""
        return int(self._lib.llama_sampler_sample(self._sampler, self._ctx, -1))

    def read_logits(self, rows: int) -> F32:
        """The logits of the last `decode`: a view [rows, vocab] into llama.cpp's buffer."""
        pointer = self._lib.llama_get_logits(self._ctx)
        view: Any = np.ctypeslib.as_array(pointer, shape=(rows, self.vocab))
        return np.asarray(view, np.float32)

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        """See Scorer.logits."""
        self.restart()
        step = min(rows, self.batch_size)
        for begin in range(0, first, self.batch_size):
            self.decode(tokens[begin : min(first, begin + self.batch_size)], begin)
        for begin in range(first, len(tokens), rows):
            stop = min(begin + rows, len(tokens))
            parts = [
                self._scored(tokens[i : min(stop, i + step)], i) for i in range(begin, stop, step)
            ]
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _scored(self, tokens: Sequence[int], position: int) -> F32:
        self.decode(tokens, position, every=True)
        return self.read_logits(len(tokens)).copy()

    def close(self) -> None:
        """Free everything. The object is unusable afterwards."""
        self._lib.llama_sampler_free(self._sampler)
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._ctx)
        self._lib.llama_model_free(self._model)


def _quiet(lib: Any) -> object:
    """Install a log callback that drops everything; the caller keeps it alive."""
    callback = lib.llama_log_callback(_drop)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _drop(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    del level, text, data


def quantize_pure(source: Path, target: Path, threads: int = 0) -> None:
    """Write `target`: every matrix of a GGUF as Q4_0, embedding and head too (`--pure`).

    `source` may itself be quantized; it is dequantized first. Raises OctavoError on failure.
    """
    lib = llama_cpp()
    keep = _quiet(lib)
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_0
    params.pure = params.allow_requantize = params.quantize_output_tensor = True
    params.nthread = threads or len(os.sched_getaffinity(0))
    status = lib.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    del keep
    if status:
        raise OctavoError(f"{source}: llama.cpp's quantizer failed with status {status}")
