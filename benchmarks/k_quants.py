"""Octavo against every llama.cpp type from Q2_K to Q8_0: lower mean KL in no more bytes?

`python benchmarks/k_quants.py MODEL WORK --json OUT.jsonl` takes a model (a Hugging Face directory
or a GGUF file), an importance matrix and Octavo's calibration from the same tokens, and for every
type, default mix and --pure: llama.cpp's file, and an Octavo artifact that its budget allocator
made in no more bytes of tensors (counted in GGUF blocks, tied tensors once). Both are scored
against the source on held-out text, token by token: in fp32 from dequantized weights, and as they
are executed, llama.cpp's file by llama.cpp, Octavo's artifact natively.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from octavo.backends.base import RuntimeConfig
from octavo.compress.budgeted import Budget, Choice, candidates, choose, parted, recipe_of
from octavo.compress.export_gguf import export_gguf
from octavo.compress.job import Material, compress, read_material
from octavo.compress.recipe import Calibration, Recipe, Step
from octavo.compress.sensitivity import Probing, Sensitivities, measure
from octavo.compress.table import build_encoder
from octavo.evals.divergence import compare_window
from octavo.evals.rivals import FileType, LlamaCpp, LlamaSettings, quantize
from octavo.evals.scorer import ExecutorScorer, Scorer, block_rows
from octavo.evals.statistics import Blocks
from octavo.formats.number_format import NumberFormat
from octavo.io.checkpoint import open_model
from octavo.spec.graph import linear_roles
from octavo.spec.table import family_for_gguf

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
CONTEXT = 512
KINDS = [kind for kind in get_args(FileType) if kind != "f16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="files are kept here, and reused")
    parser.add_argument("--json", type=Path, required=True, help="a line per type is added")
    parser.add_argument("--types", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--calibration", default="", help="a text; its second half is held out")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096, help="of held-out text")
    parser.add_argument("--probed", type=int, default=2048, help="tokens for sensitivities")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    done = _done(arguments.json)
    for kind in arguments.types:
        for pure in (True, False):
            if (kind, pure) not in done:
                line = json.dumps(bench.compare(kind, pure))
                with arguments.json.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


def _done(path: Path) -> set[tuple[str, bool]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["type"], row["pure"]) for row in map(json.loads, lines)}


class Bench:
    """One model, its text, importances and sensitivities; comparisons one after the other."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.model = self._source(arguments.model)
        calibration = Calibration(arguments.calibration, arguments.sequences, arguments.length)
        self.recipe = Recipe((Step("searched", "int4_g32", ("*",)),), calibration=calibration)
        self.material = read_material(self.model, self.recipe, limit=arguments.tokens)
        self.windows = self._windows()
        self.table, self.importance = self._measured(arguments.probed)
        self.base = self._base()

    def _source(self, model: Path) -> Path:
        """The model as one GGUF file of floats: the source of both sides."""
        path = self.work / "source.gguf"
        if not path.exists():
            if model.is_dir():
                export_gguf(model, path)
            else:
                quantize(model, path, "f16")
        return path

    def _windows(self) -> Sequence[Any]:
        from octavo.compress.quality import windows_of

        with open_model(self.model) as opened:
            context = min(CONTEXT, opened.spec.max_positions)
        return windows_of(self.material.held_out[0], context)

    def _measured(self, probed: int) -> tuple[Sensitivities, dict[str, F32]]:
        tokens = self.material.tokens
        assert tokens is not None
        with open_model(self.model) as opened:
            spec = opened.spec
            importance = _importance(Probing(opened.source, spec, tokens[:1], tokens))
            probing = Probing(opened.source, spec, *parted(tokens, spec.vocab, probed))
            formats = [*candidates(spec, "searched"), *map(NumberFormat.parse, EXTRA)]
            kept = self.work / "sensitivities.json"
            table = measure(probing, formats, build_encoder("searched", {}), kept)
        return table, importance

    def _base(self) -> Scorer:
        with closing(_reference(self.model)) as source:
            return Kept(source, self.windows)

    def compare(self, kind: FileType, pure: bool) -> dict[str, Any]:
        begin = time.perf_counter()
        name = f"{kind}{'-pure' if pure else ''}"
        theirs = self.work / f"theirs-{name}.gguf"
        if not theirs.exists():
            quantize(self.model, theirs, kind, pure, 1, self.importance)
        limit = tensor_bytes(theirs)
        ours, choice = self._ours(limit)
        size = tensor_bytes(_exported(ours))
        assert size <= limit, (name, size, limit)
        found = {"type": kind, "pure": pure, "theirs_bytes": limit, "ours_bytes": size,
                 "expected": choice.expected, "formats": _counted(choice)}  # fmt: skip
        found["fp32"] = self._scored(_reference(theirs), _reference(ours))
        llama = LlamaCpp(theirs, CONTEXT, LlamaSettings(threads=1))
        found["executed"] = self._scored(llama, _native(ours))
        return {**found, "seconds": round(time.perf_counter() - begin)}

    def _ours(self, limit: int) -> tuple[Path, Choice]:
        """An artifact within so many bytes; one that another type led to is taken again."""
        with open_model(self.model) as opened:
            spec = opened.spec
        choice = choose(spec, self.table, Budget(bytes=limit), block_bytes)
        out = self.work / f"ours-{choice.bytes}"
        if not out.exists():
            recipe = recipe_of(choice, self.recipe, "searched", spec.tied_head)
            compress(self.model, recipe, out, Material(self.material.tokens, (), "calibration"))
        return out, choice

    def _scored(self, theirs: Scorer, ours: Scorer) -> dict[str, Any]:
        """Mean KL of both against the source in fp32, and of their paired difference."""
        with closing(theirs), closing(ours):
            rival, mine = (_kl(scorer, self.base, self.windows)
                           for scorer in (theirs, ours))  # fmt: skip
        blocks = Blocks(len(mine))
        return {
            "tokens": len(mine),
            "ours": dataclasses.asdict(blocks.mean(mine)),
            "theirs": dataclasses.asdict(blocks.mean(rival)),
            "difference": dataclasses.asdict(blocks.mean(mine - rival)),
        }


class Kept:
    """The logits of another scorer for these windows, in memory: the source's are wanted again for
    every file that is compared with it."""

    def __init__(self, source: Scorer, windows: Sequence[Any]) -> None:
        self.name, self.vocab = source.name, source.vocab
        rows = block_rows(source.vocab)
        self._logits = {
            window.tokens[:-1].tobytes(): np.concatenate(
                [block.copy() for block in source.logits(window.tokens[:-1].tolist(), 0, rows)]
            )
            for window in windows
        }

    def logits(self, tokens: Sequence[int], first: int, rows: int) -> Iterator[F32]:
        found = self._logits[np.asarray(tokens, np.int32).tobytes()]
        for begin in range(first, len(found), rows):
            yield found[begin : begin + rows]

    def close(self) -> None:
        self._logits.clear()


# One-level types of GGUF that the usual candidates leave out.
EXTRA = ("int4_g32_offset", "int5_g32_offset", "iq4nl_g32")


def block_bytes(format: NumberFormat, shape: tuple[int, int]) -> int:
    """Bytes of a matrix in GGUF blocks."""
    return round(format.bits_per_value(shape) * shape[0] * shape[1] / 8)


def tensor_bytes(path: Path) -> int:
    with open_model(path) as opened:
        return sum(tensor.nbytes for tensor in opened.tensors.values())


def _exported(artifact: Path) -> Path:
    path = artifact.with_suffix(".gguf")
    if not path.exists():
        export_gguf(artifact, path)
    return path


def _counted(choice: Choice) -> dict[str, int]:
    return {name: sum(f == name for f in choice.formats.values())
            for name in sorted(set(choice.formats.values()))}  # fmt: skip


def _importance(probing: Probing) -> dict[str, F32]:
    """Mean squared inputs by tensor name, as llama-imatrix gathers them; of a tied head too."""
    spec = probing.spec
    family = family_for_gguf("llama" if spec.family in ("mistral", "mixtral") else spec.family)
    found = {}
    for role in linear_roles(spec):
        hessian = probing.stats(role).hessian
        assert hessian is not None
        name = family.gguf_tensor(spec, role).name
        found[name] = np.array(hessian.diagonal().numpy() / 2, np.float32)
    return found


def _reference(path: Path) -> Scorer:
    """The dequantized weights, in fp32 throughout."""
    from octavo.backends.reference.executor import load_reference

    with open_model(path) as opened:
        config = RuntimeConfig(context=CONTEXT, max_seqs=1, activations="a32", kv_format="fp32")
        return ExecutorScorer(load_reference(opened.source, opened.spec, config), "fp32")


def _native(path: Path) -> Scorer:
    from octavo.backends.native.backend import load

    with open_model(path) as opened:
        config = RuntimeConfig(context=CONTEXT, max_seqs=1, threads=1)
        return ExecutorScorer(load(opened.spec, opened.source, config), "native")


def _kl(model: Scorer, base: Scorer, windows: Sequence[Any]) -> F64:
    return np.concatenate([compare_window(model, base, window).kl for window in windows])


if __name__ == "__main__":
    main()
