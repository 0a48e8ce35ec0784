"""llama.cpp as a Scorer and as a rival in benchmarks, through llama-cpp-python's low-level API.

That API mirrors the C functions one to one, so what is timed is `llama_decode` and not Python.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ModelFileError, OctavoError, UnsupportedError, UserError

F32 = npt.NDArray[np.float32]
GGML_F32, GGML_F16, GGML_Q8_0, GGML_BF16 = 0, 1, 8, 30
KV_TYPES = {"f32": GGML_F32, "f16": GGML_F16, "q8_0": GGML_Q8_0, "bf16": GGML_BF16}
# llama.h, enum llama_ftype
FILE_TYPES = {
    "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11,
    "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
FileType = Literal[
    "f16", "q4_0", "q4_1", "q8_0", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s",
    "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
]  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How llama.cpp runs a file.

    threads          0: as many as this process may use.
    batch            tokens of one `llama_decode` at most.
    kv               "f32", "f16", "bf16" or "q8_0" (which needs flash attention).
    flash_attention  True, False, or None for llama.cpp's own choice.
    repack           interleave weights at load where it has kernels for that.
    sequences        how many share the context; each gets an equal part of it.
    """

    threads: int = 0
    batch: int = 512
    kv: str = "f16"
    flash_attention: bool | None = None
    repack: bool = True
    sequences: int = 1


class LlamaCpp:
    """One GGUF file loaded by llama.cpp, one context.

    Raises ModelFileError when llama.cpp can't load the file.
    """

    def __init__(self, path: Path, context: int, settings: LlamaSettings | None = None) -> None:
        settings = settings or LlamaSettings()
        self._lib = lib = llama_cpp()
        self.name = f"llama.cpp:{path.name}"
        self.context, self.batch_size = context, min(settings.batch, context)
        self._quiet = _quiet(lib)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        model_params.use_extra_bufts = settings.repack
        self._model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise ModelFileError(f"{path}: llama.cpp can't load it: give a GGUF file it supports")
        self._ctx = lib.llama_init_from_model(self._model, self._context_params(settings))
        if not self._ctx:
            raise OctavoError(f"{path}: llama.cpp gives no context of {context} tokens")
        self.vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)
        self._sampler = lib.llama_sampler_init_greedy()

    def _context_params(self, settings: LlamaSettings) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = self.context
        params.n_batch = params.n_ubatch = self.batch_size
        params.n_seq_max = settings.sequences
        threads = settings.threads or len(os.sched_getaffinity(0))
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[settings.kv]
        chosen = settings.flash_attention
        params.flash_attn_type = -1 if chosen is None else int(chosen)
        params.no_perf = True
        return params

    def restart(self) -> None:
        """Forget the context."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), False)

    def cut(self, length: int, sequence: int = 0) -> None:
        """Forget everything of a sequence behind its first `length` tokens."""
        self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._ctx), sequence, length, -1)

    def decode(
        self, tokens: Sequence[int], position: int, every: bool = False, sequence: int = 0
    ) -> None:
        """Append at most `batch` tokens to one sequence; logits of every row, or of the last."""
        if position + len(tokens) > self.context:
            raise UserError(f"{position + len(tokens)} tokens exceed the context {self.context}")
        for row, token in enumerate(tokens):
            self._put(row, token, position + row, sequence)
            self._batch.logits[row] = every or row == len(tokens) - 1
        self._run(len(tokens))

    def decode_together(self, tokens: Sequence[int], position: int) -> None:
        """Append one token each to as many sequences, all at the same position; all logits."""
        for row, token in enumerate(tokens):
            self._put(row, token, position, row)
            self._batch.logits[row] = True
        self._run(len(tokens))

    def _put(self, row: int, token: int, position: int, sequence: int) -> None:
        batch = self._batch
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence

    def _run(self, rows: int) -> None:
        self._batch.n_tokens = rows
        status = self._lib.llama_decode(self._ctx, self._batch)
        if status:
            raise OctavoError(f"{self.name}: llama_decode failed with status {status}")

    def greedy(self, row: int = -1) -> int:
        """The likeliest next token of a row of the last batch, found natively."""
        return int(self._lib.llama_sampler_sample(self._sampler, self._ctx, row))

    def argmax(self, row: int = -1) -> int:
        """The likeliest next token, found by numpy in llama.cpp's own buffer, without a copy."""
        address = ctypes.addressof(self._lib.llama_get_logits_ith(self._ctx, row).contents)
        buffer = memoryview((ctypes.c_float * self.vocab).from_address(address))
        return int(np.frombuffer(buffer.cast("B"), np.float32).argmax())

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
        return np.array(self.read_logits(len(tokens)), np.float32)

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


def quantize(
    source: Path,
    target: Path,
    kind: FileType,
    pure: bool = False,
    threads: int = 0,
    importance: Mapping[str, F32] | None = None,
) -> None:
    """Write `target` by llama.cpp's own quantizer. `pure`: embedding and head in `kind` as well.

    `importance`: mean squared inputs of matrices, by tensor name (llama-imatrix's file). `source`
    may itself be quantized; it is dequantized first. Raises OctavoError on failure.
    """
    lib = llama_cpp()
    keep = _quiet(lib)
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.pure = pure
    params.allow_requantize = params.quantize_output_tensor = True
    params.nthread = threads or len(os.sched_getaffinity(0))
    given = _importance(lib, importance or {})
    if importance:
        params.imatrix = given
    status = lib.llama_model_quantize(
        os.fsencode(source), os.fsencode(target), ctypes.byref(params)
    )
    del keep, given
    if status:
        raise OctavoError(f"{source}: llama.cpp's quantizer failed with status {status}")


def _importance(lib: Any, importance: Mapping[str, F32]) -> Any:
    """A C array of llama_model_imatrix_data, ended by an entry without a name."""
    entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        numbers = np.ascontiguousarray(values, np.float32)
        entry.name, entry.size = name.encode(), numbers.size
        # ctypes keeps no array alive through a cast pointer: a copy of its own is kept with it.
        entry.data = (ctypes.c_float * numbers.size)(*numbers.tolist())
    return entries


def quantize_pure(source: Path, target: Path, threads: int = 0) -> None:
    """Every matrix of a GGUF as Q4_0 (llama-quantize's `--pure`). See `quantize`."""
    quantize(source, target, "q4_0", True, threads)
