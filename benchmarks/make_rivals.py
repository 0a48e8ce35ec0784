"""The comparison files, by llama.cpp's own quantizer, all from one F16 GGUF.

`python benchmarks/make_rivals.py DIRECTORY [MODEL ...]` dequantizes each demo model to F16, and
quantizes that file: both sides of every comparison start from the same numbers. Files that exist
are kept. The directory takes about 6 GB for all three models; it is never part of the repository.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from octavo.evals.rivals import FileType, quantize
from octavo.io.gguf_reader import open_gguf
from octavo.io.hub import resolve_model

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
# Name of the file -> (llama.cpp's type, every tensor in it).
KINDS: Mapping[str, tuple[FileType, bool]] = MappingProxyType(
    {
        "q4_0-pure": ("q4_0", True),
        "q4_0": ("q4_0", False),
        "q8_0": ("q8_0", False),
        "q4_k_m": ("q4_k_m", False),
    }
)


def rival_file(directory: Path, model: str, kind: str) -> Path:
    """Where `make` puts a file."""
    return directory / f"{Path(model).name.removesuffix('.gguf')}-{kind}.gguf"


def make(directory: Path, model: str) -> list[Path]:
    """Write what is missing of one model; all its paths, F16 first."""
    directory.mkdir(parents=True, exist_ok=True)
    base = rival_file(directory, model, "f16")
    _write(resolve_model(model), base, "f16", False)
    made = [base]
    for name, (kind, pure) in KINDS.items():
        made.append(rival_file(directory, model, name))
        _write(base, made[-1], kind, pure)
    return made


def _write(source: Path, target: Path, kind: FileType, pure: bool) -> None:
    """Under another name first: an interrupted run leaves no half file behind."""
    if target.exists():
        return
    part = target.with_suffix(".part")
    quantize(source, part, kind, pure)
    part.rename(target)


def read_per_token(path: Path) -> int:
    """Weight bytes to read for a token: every tensor, of an untied embedding one row."""
    file = open_gguf(path)
    try:
        sizes = {name: tensor.nbytes for name, tensor in file.tensors.items()}
        if "output.weight" in sizes:
            embedding = file.tensors["token_embd.weight"]
            sizes["token_embd.weight"] = embedding.nbytes // embedding.shape[0]
        return sum(sizes.values())
    finally:
        file.mapping.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    for model in arguments.models:
        begin = time.perf_counter()
        for path in make(arguments.directory, model):
            print(f"{path.name:40} {path.stat().st_size / 1e6:8.1f} MB  "
                  f"{read_per_token(path) / 1e6:8.2f} MB a token")  # fmt: skip
        print(f"{model}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
