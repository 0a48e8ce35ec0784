"""What is wrong with a path that was given as a model."""

from __future__ import annotations

from pathlib import Path

from octavo.core.errors import ModelFileError


def is_model_path(path: Path) -> bool:
    """Whether it is a directory with a config.json, or a .gguf file."""
    if path.is_dir():
        return (path / "config.json").is_file()
    return path.is_file() and path.suffix == ".gguf"


def not_a_model(path: Path) -> ModelFileError:
    """The error for a path that `is_model_path` refuses."""
    return ModelFileError(f"{path} {_problem(path)}")


def _problem(path: Path) -> str:
    if path.is_dir():
        return _no_config(path)
    if not path.exists():
        return "does not exist. Check the path."
    if path.suffix == ".safetensors":
        return "holds weights alone. Name the directory that holds them with their config.json."
    return (
        "is neither a directory nor a .gguf file. Name a directory with config.json and "
        "safetensors files, or a .gguf file."
    )


def _no_config(directory: Path) -> str:
    ggufs = sorted(path.name for path in directory.glob("*.gguf"))
    if ggufs:
        return f"holds GGUF files. Name one of them, such as {directory / ggufs[0]}."
    return (
        "has no config.json. Name the directory of a model, as transformers saves it, "
        "or a .gguf file."
    )
