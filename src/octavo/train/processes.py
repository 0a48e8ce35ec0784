"""The processes of a torchrun job: each takes its part of an update, all hold the same weights."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from octavo.core.errors import ConfigError

T = TypeVar("T")


def start(device: str) -> None:
    """Join the job that torchrun started this process in. ConfigError when none did."""
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend)
    except ValueError as error:
        raise ConfigError(
            f"this process is not part of a torchrun job ({error}): start it with torchrun"
        ) from error


def count() -> int:
    """1 where no job was joined."""
    return int(dist.get_world_size()) if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(dist.get_rank()) if _joined() else 0


def add_up(tensors: list[Tensor]) -> None:
    """Replace every tensor by its sum over all processes."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their numbers."""
    if count() == 1:
        return [value]
    found: list[T] = [value] * count()
    dist.all_gather_object(found, value)
    return found


def check_equal(value: object, what: str) -> None:
    """ConfigError unless every process holds the same value."""
    if any(other != value for other in gather(value)):
        raise ConfigError(
            f"the processes of this job differ in {what}: give all of them the same model, data "
            "and settings"
        )


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
