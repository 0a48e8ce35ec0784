"""Limits that linters don't know: sizes, parameters, and tests that mirror src."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE = 500
MAX_CPP_FILE = 600
MAX_FUNCTION = 80
MAX_PARAMETERS = 8
MAX_MEDIAN = 10
# Jinja calls macros and filters with keywords of the template's own: that signature is not ours.
FOREIGN_SIGNATURES = ("src/octavo/io/template_sandbox.py",)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    yield from (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")])


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Click passes one parameter an option: the limit is for functions that people call."""
    return any("command" in ast.unparse(d) for d in node.decorator_list)


def python_faults(path: Path) -> Iterator[str]:
    where = path.relative_to(ROOT)
    lines = path.read_text(encoding="utf8").count("\n")
    if lines > MAX_FILE:
        yield f"{where}: {lines} lines, the limit is {MAX_FILE}"
    for node in functions(path):
        if length(node) > MAX_FUNCTION:
            yield f"{where}:{node.lineno} {node.name}: {length(node)} lines, limit {MAX_FUNCTION}"
        if parameters(node) > MAX_PARAMETERS and not is_command(node):
            yield f"{where}:{node.lineno} {node.name}: {parameters(node)} parameters"
        if node.args.kwarg is not None and str(where) not in FOREIGN_SIGNATURES:
            yield f"{where}:{node.lineno} {node.name}: takes **{node.args.kwarg.arg}"


def cpp_faults() -> Iterator[str]:
    for path in sorted((ROOT / "native").rglob("*.*")):
        lines = path.read_text(encoding="utf8").count("\n")
        if path.suffix in (".cc", ".h", ".inl") and lines > MAX_CPP_FILE:
            yield f"{path.relative_to(ROOT)}: {lines} lines, the limit is {MAX_CPP_FILE}"


def mirror_faults() -> Iterator[str]:
    """A test directory must have its twin in src (or be one of the cross-cutting kinds)."""
    free = {"support", "e2e", "property", "conformance", "native", "benchmarks"}
    for directory in sorted(p for p in (ROOT / "tests").rglob("*") if p.is_dir()):
        relative = directory.relative_to(ROOT / "tests")
        if relative.parts[0] in free or directory.name == "__pycache__":
            continue
        if not (ROOT / "src/octavo" / relative).is_dir():
            yield f"tests/{relative}: no such package under src/octavo"


def median_fault(paths: list[Path]) -> Iterator[str]:
    median = statistics.median(length(node) for path in paths for node in functions(path))
    if median >= MAX_MEDIAN:
        yield f"median function length is {median}, it should stay under {MAX_MEDIAN}"


def main() -> int:
    sources = sorted((ROOT / "src").rglob("*.py"))
    faults = [fault for path in sources for fault in python_faults(path)]
    faults += [*cpp_faults(), *mirror_faults(), *median_fault(sources)]
    print("\n".join(faults) or "style: no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
