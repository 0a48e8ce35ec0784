"""Checkpoints of a training run: fp32 tensors in safetensors, the rest in JSON; no pickle.

`state.json` names the tensor file and its hash. It is replaced last and atomically, so a run that
is killed at any moment leaves the last complete checkpoint, never half of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ResourceError, UserError
from octavo.io.mapping import replacing
from octavo.io.safetensors_file import open_safetensors, parse_json, write_safetensors
from octavo.io.stored import StoredTensor

F32 = npt.NDArray[np.float32]
Curve = tuple[tuple[int, float], ...]

VERSION = 1
_STATE = "state.json"
_KEYS = {"version", "recipe", "step", "file", "sha256", "train", "held_out"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run stands after `step` updates.

    tensors          float32, any names
    train, held_out  (step, loss) in nats per token
    """

    step: int
    tensors: Mapping[str, F32]
    train: Curve
    held_out: Curve


def save(directory: Path, checkpoint: Checkpoint, recipe: Mapping[str, object]) -> None:
    """Replace the directory's checkpoint. ResourceError when it can't be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{directory}: can't be made ({error.strerror}).") from error
    path = directory / f"step-{checkpoint.step:08d}.safetensors"
    write_safetensors(path, checkpoint.tensors)
    state = {
        "version": VERSION,
        "recipe": dict(recipe),
        "step": checkpoint.step,
        "file": path.name,
        "sha256": _sha256(path),
        "train": checkpoint.train,
        "held_out": checkpoint.held_out,
    }
    with replacing(directory / _STATE) as file:
        file.write(json.dumps(state, indent=1, allow_nan=False).encode())
    for older in directory.glob("step-*.safetensors"):
        if older != path:
            older.unlink()


def load(directory: Path, recipe: Mapping[str, object]) -> Checkpoint | None:
    """The directory's checkpoint, or None when there is none.

    Raises UserError when it was made by another recipe, and when it is damaged.
    """
    path = directory / _STATE
    if not path.exists():
        return None
    state = parse_json(path, path.read_bytes())
    if not isinstance(state, dict) or set(state) != _KEYS:
        raise UserError(f"{path}: not the state of a training run; choose another directory")
    if state["version"] != VERSION:
        raise UserError(
            f"{path}: version {state['version']!r}, this Octavo reads {VERSION}; "
            "continue with the Octavo that wrote it, or choose another directory"
        )
    _check_recipe(path, state["recipe"], json.loads(json.dumps(recipe)))
    file = directory / Path(str(state["file"])).name
    if not file.exists() or _sha256(file) != state["sha256"]:
        raise UserError(
            f"{file}: missing, or not the file that {_STATE} describes; "
            "restore it, or start anew in another directory"
        )
    return Checkpoint(
        int(state["step"]), _tensors(file), _curve(state["train"]), _curve(state["held_out"])
    )


def _check_recipe(path: Path, stored: Mapping[str, object], ours: Mapping[str, object]) -> None:
    for key in sorted({*stored, *ours}):
        if stored.get(key) != ours.get(key):
            raise UserError(
                f"{path}: the checkpoint is from another recipe: {key} is {stored.get(key)!r} "
                f"there and {ours.get(key)!r} here; choose another directory, or the same recipe"
            )


def _tensors(path: Path) -> dict[str, F32]:
    file = open_safetensors(path)
    arrays = {name: _array(stored) for name, stored in file.tensors.items()}
    file.mapping.close()
    return arrays


def _array(stored: StoredTensor) -> F32:
    if stored.type != "F32":
        raise UserError(f"{stored.mapping.path}: {stored.name} is {stored.type}, not F32")
    values: F32 = stored.rows().view(np.float32).reshape(stored.shape).copy()
    return values


def _curve(points: list[list[float]]) -> Curve:
    return tuple((int(step), float(loss)) for step, loss in points)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
