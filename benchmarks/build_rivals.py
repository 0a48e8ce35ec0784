"""Build what `versus.py` compares with, outside the repository: llama.cpp's programs, OpenVINO.

`python benchmarks/build_rivals.py DIRECTORY` takes llama.cpp from the source distribution of
llama-cpp-python (the version that is installed), builds llama-bench, llama-batched-bench and
llama-server for this processor with one low-priority job (some tens of minutes), and makes a
virtual environment with openvino-genai. What exists is kept. Any other engine with llama.cpp's two
benchmark programs is given to `versus.py` by its directory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import venv
from importlib.metadata import version
from pathlib import Path

PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "LLAMA_OPENSSL=OFF", "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
)  # fmt: skip
LOW = ("nice", "-n", "15")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", choices=("llama.cpp", "openvino"))
    arguments = parser.parse_args()
    if arguments.only != "openvino":
        print(llama_programs(arguments.directory, arguments.jobs))
    if arguments.only != "llama.cpp":
        print(openvino_python(arguments.directory))


def llama_programs(directory: Path, jobs: int) -> Path:
    """The directory of the programs."""
    build = directory / "llama.cpp-build"
    programs = build / "bin"
    if not all((programs / name).is_file() for name in PROGRAMS):
        source = llama_source(directory)
        options = [f"-D{option}" for option in OPTIONS]
        _run("cmake", "-S", str(source), "-B", str(build), *options)
        _run("cmake", "--build", str(build), f"-j{jobs}", "--target", *PROGRAMS)
    return programs


def llama_source(directory: Path) -> Path:
    """llama.cpp as llama-cpp-python's source distribution carries it, unpacked."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    source = directory / name / "vendor/llama.cpp"
    if not source.is_dir():
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation")
        _run(*pip, "--no-binary", ":all:", "-d", str(directory), wanted)
        with tarfile.open(directory / f"{name}.tar.gz") as archive:
            archive.extractall(directory, filter="data")
    return source


def openvino_python(directory: Path) -> Path:
    """A Python that has openvino-genai."""
    home = directory / "openvino"
    python = home / "bin/python"
    if not python.exists():
        venv.create(home, with_pip=True)
    _run(str(python), "-m", "pip", "install", "-q", "openvino-genai")
    return python


def _run(*command: str) -> None:
    """Raises CalledProcessError; what the command says is seen."""
    subprocess.run([*LOW, *command], check=True)


if __name__ == "__main__":
    main()
