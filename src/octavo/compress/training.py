"""The driver's last part: train steps, which improve what the encoders made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from octavo.compress.base import Encoded, TrainTask
from octavo.compress.plan import Plan
from octavo.compress.recipe import role_name
from octavo.compress.report import MatrixReport, StageReport
from octavo.compress.state import Stage, WorkDirectory, merged
from octavo.core.errors import FormatError, InternalError
from octavo.formats.layouts import stored_bits
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import artifact_name
from octavo.spec.decoder import Role
from octavo.spec.graph import role_shape, roles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from octavo.io.weights import WeightSource


def train_stage(
    name: str,
    plan: Plan,
    source: WeightSource,
    tokens: npt.NDArray[np.int64] | None,
    work: WorkDirectory,
) -> Stage:
    """Run the train step of this stage on what all stages before it made."""
    stages = plan.stages()
    number = [stage for stage in stages if stage.startswith("train-")].index(name)
    step, trainer, chosen = plan.trainers[number]
    before = merged([work.read(stage) for stage in stages[: stages.index(name)]])
    directory = work.path / name
    directory.mkdir(exist_ok=True)
    task = TrainTask(
        source=source,
        spec=plan.spec,
        encoded={role: _encoded(plan, before, role) for role in sorted(chosen, key=role_name)},
        vectors=dict(_vectors(plan, before)),
        tokens=tokens if trainer.needs_tokens else None,
        directory=directory,
        seed=plan.recipe.seed,
    )
    stage = Stage(StageReport(name), {}, {})
    reports = _store(stage, task, trainer.train(task), step.method)
    stage.report = StageReport(f"trained by {step.method}", tuple(reports))
    return stage


def check_zeros(name: str, tensor: QuantizedTensor, mask: Tensor | None) -> None:
    """Raise FormatError unless every weight that `mask` prunes is an exact 0."""
    if mask is not None and tensor.dequantize()[~mask.numpy()].any():
        raise FormatError(
            f"{name}: {tensor.format} can't store exact zeros, and a pruner asks for them; "
            "use a format that has a 0, such as int4_g64 or int4_g64_asym"
        )


def _encoded(plan: Plan, before: Stage, role: Role) -> Encoded:
    name = artifact_name(plan.spec, role)
    mask = before.masks.get(name)
    load = partial(before.matrix, name)
    return Encoded(load, None if mask is None else torch.from_numpy(mask.copy()))


def _vectors(plan: Plan, before: Stage) -> Iterator[tuple[Role, partial[Tensor]]]:
    for role in roles(plan.spec):
        if len(role_shape(plan.spec, role)) == 1:
            yield role, partial(_vector, before, artifact_name(plan.spec, role))


def _vector(before: Stage, name: str) -> Tensor:
    return torch.from_numpy(before.arrays[name].astype("float32"))


def _store(
    stage: Stage,
    task: TrainTask,
    trained: Mapping[Role, QuantizedTensor | Tensor],
    method: str,
) -> Iterator[MatrixReport]:
    """Check what came back, add it to the stage, and report its matrices."""
    for role, tensor in trained.items():
        name = artifact_name(task.spec, role)
        if role not in (task.encoded if isinstance(tensor, QuantizedTensor) else task.vectors):
            raise InternalError(f"{method} returned {role}, which it was not given to train")
        if tuple(tensor.shape) != role_shape(task.spec, role):
            raise InternalError(f"{method} returned {role} as {list(tensor.shape)}")
        if not isinstance(tensor, QuantizedTensor):
            stage.add_float32(name, tensor.detach().float().numpy())
            continue
        check_zeros(role_name(role), tensor, task.encoded[role].mask)
        stage.add_matrix(name, tensor)
        yield _report(task, role, tensor, method)


def _report(task: TrainTask, role: Role, tensor: QuantizedTensor, method: str) -> MatrixReport:
    before = task.encoded[role].load().dequantize()
    moved, mask = float(((before - tensor.dequantize()) ** 2).sum()), task.encoded[role].mask
    return MatrixReport(
        name=role_name(role),
        method=method,
        format=str(tensor.format),
        bits=stored_bits(tensor.format, tensor.shape),
        weight_error=moved / max(float((before**2).sum()), 1e-30),
        zeros=None if mask is None else float((~mask).float().mean(dtype=torch.float64)),
    )
