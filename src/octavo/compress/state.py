"""A compression's working directory: finished stages and the hidden states between blocks.

A stage's file appears whole or not at all, and only after the hidden states behind it are complete,
so that a killed run resumes at the first stage without a file, on the very bytes it had.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.compress.report import StageReport
from octavo.core.errors import ConfigError, ResourceError
from octavo.formats.floats import float_dtype
from octavo.formats.number_format import FP32, NumberFormat
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import Entry, array_dtype, stored_array
from octavo.io.mapping import replacing
from octavo.io.safetensors_file import open_safetensors, write_safetensors

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]
_MASK = "mask of "
_SECONDS = "seconds.json"


@dataclass(slots=True)
class Stage:
    """What a stage adds to the artifact: arrays by their names in the file, and tensor entries.

    masks  bool [out, in] of pruned matrices; they stay in the working directory
    """

    report: StageReport
    arrays: Arrays
    entries: dict[str, Entry]
    masks: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)

    def add_matrix(self, name: str, tensor: QuantizedTensor) -> None:
        self.entries[name] = Entry(tensor.format, tensor.shape)
        if tensor.format.plain:
            self.arrays[name] = tensor.codes
        else:
            state = tensor.state(name)
            self.arrays.update({key: stored_array(part) for key, part in state.items()})

    def add_float32(self, name: str, values: F32) -> None:
        self.entries[name] = Entry(FP32, values.shape)
        self.arrays[name] = values

    def matrix(self, name: str) -> QuantizedTensor:
        """The matrix that was added under this name."""
        entry = self.entries[name]
        shape = (entry.shape[0], entry.shape[1])
        if entry.format.plain:
            state = {f"{name}.codes": self.arrays[name]}
        else:
            state = {f"{name}.{part}": self.arrays[f"{name}.{part}"] for part in self._parts(name)}
            if entry.format.scale == "e8m0":
                scales = state[f"{name}.scales"]
                state[f"{name}.scales"] = scales.view(float_dtype("e8m0"))
        return QuantizedTensor.from_state(state, name, entry.format, shape)

    def _parts(self, name: str) -> list[str]:
        return [key[len(name) + 1 :] for key in self.arrays if key.startswith(f"{name}.")]

    def _drop(self, name: str) -> None:
        for key in [name, *(f"{name}.{part}" for part in self._parts(name))]:
            self.arrays.pop(key, None)
        self.entries.pop(name, None)


def merged(stages: Sequence[Stage]) -> Stage:
    """All as one, without a report; where two hold the same tensor, the later one counts."""
    whole = Stage(StageReport("all"), {}, {})
    for stage in stages:
        for name in stage.entries:
            whole._drop(name)
        whole.arrays.update(stage.arrays)
        whole.entries.update(stage.entries)
        whole.masks.update(stage.masks)
    return whole


class WorkDirectory:
    """`identity` names everything that decides the bytes of the result: a directory of another
    identity is refused (ConfigError), never mixed in."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        self._begin(dict(identity))

    def _begin(self, identity: dict[str, str]) -> None:
        job = self.path / "job.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not job.exists():
                with replacing(job) as file:
                    file.write(json.dumps(identity, indent=1).encode())
            found = json.loads(job.read_text(encoding="utf-8"))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        except ValueError:
            found = {}
        for key in identity:
            if found.get(key) != identity[key]:
                raise ConfigError(
                    f"{self.path} holds an unfinished compression of another {key}: finish that "
                    "one, remove the directory, or choose another output"
                )

    def finished(self, stage: str) -> bool:
        return self._stage(stage).exists()

    def write(self, name: str, stage: Stage) -> None:
        """Make a stage finished. Raises ResourceError when it can't be written."""
        entries = {
            key: {"format": str(entry.format), "shape": list(entry.shape)}
            for key, entry in stage.entries.items()
        }
        metadata = {
            "report": json.dumps(stage.report.to_dict()),
            "entries": json.dumps(entries),
        }
        masks = {f"{_MASK}{key}": mask.view(np.uint8) for key, mask in stage.masks.items()}
        write_safetensors(self._stage(name), {**stage.arrays, **masks}, metadata)

    def read(self, name: str) -> Stage:
        """A finished stage; its arrays are the file's own memory."""
        file = open_safetensors(self._stage(name))
        report = StageReport.from_dict(json.loads(file.metadata["report"]))
        entries = {
            key: Entry(NumberFormat.parse(value["format"]), tuple(value["shape"]))
            for key, value in json.loads(file.metadata["entries"]).items()
        }
        arrays = {key: _array(t.type, t.rows(), t.shape) for key, t in file.tensors.items()}
        masks = {
            key.removeprefix(_MASK): arrays.pop(key).view(np.bool_)
            for key in list(arrays)
            if key.startswith(_MASK)
        }
        return Stage(report, arrays, entries, masks)

    def hidden(self, layer: int) -> Path:
        """Where the inputs of block `layer` are kept."""
        return self.path / f"hidden-{layer}.f32"

    def seconds(self) -> dict[str, float]:
        """What stages took, in whichever run made them; nothing of those that nobody noted."""
        try:
            found = json.loads((self.path / _SECONDS).read_text(encoding="utf-8"))
            return {str(name): float(taken) for name, taken in found.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def note_seconds(self, stage: str, taken: float) -> None:
        """For the forecast of a run that goes on from here. Raises ResourceError on a full disk."""
        try:
            with replacing(self.path / _SECONDS) as file:
                file.write(json.dumps({**self.seconds(), stage: taken}).encode())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _stage(self, name: str) -> Path:
        return self.path / f"stage-{name}.safetensors"


class HiddenStates:
    """Hidden states on disk, [sequences, length, hidden]: one sequence in memory.

    halves  they are stored as bf16 (products in bf16 read no more of them)
    """

    def __init__(self, path: Path, length: int, hidden: int, halves: bool = False) -> None:
        self._path = path
        self._halves = halves
        self._shape = (length, hidden)

    def read(self) -> Iterator[F32]:
        """Each sequence, [length, hidden], in order."""
        count = self._shape[0] * self._shape[1]
        with self._path.open("rb") as file:
            while len(values := np.fromfile(file, self._type(), count)) == count:
                yield values.astype(np.float32, copy=False).reshape(self._shape)

    def read_one(self, sequence: int) -> F32:
        """One sequence, [length, hidden]."""
        count = self._shape[0] * self._shape[1]
        offset = self._type().itemsize * count * sequence
        values = np.fromfile(self._path, self._type(), count, offset=offset)
        return values.astype(np.float32, copy=False).reshape(self._shape)

    def write(self, sequences: Iterator[F32]) -> None:
        """Replace the file by these, once all are there. Raises ResourceError on a full disk."""
        beside = self._path.with_suffix(".part")
        try:
            with beside.open("wb") as file:
                for values in sequences:
                    stored = np.ascontiguousarray(values, self._type())
                    file.write(stored.view(np.uint8).data)
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise _unwritable(self._path, error) from error

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _type(self) -> np.dtype[Any]:
        return float_dtype("bf16") if self._halves else np.dtype(np.float32)


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path}: can't be written ({error.strerror or error}): check the directory's permissions "
        "and its free space"
    )


def _array(type_name: str, rows: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Any:
    return rows.reshape(-1).view(array_dtype(type_name)).reshape(shape)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the directory, and keep other processes out of it until the block ends.

    Raises ConfigError while another one works there, ResourceError when it can't be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("wb")
    except OSError as error:
        raise _unwritable(directory, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another process is writing there: wait for it, or choose another "
                "output"
            ) from None
        yield
