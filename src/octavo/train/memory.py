"""What a pass needs in memory, measured on one and two windows, and what would fit instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.core.errors import ResourceError
from octavo.core.hardware import probe


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes: `fixed` whatever the batch (rounded weights, gradients, AdamW), and of each window."""

    fixed: int
    window: int

    def of(self, windows: int) -> int:
        """Bytes of a pass over so many windows."""
        return self.fixed + windows * self.window

    def fitting(self, free: int) -> int:
        """How many windows fit into `free` bytes."""
        return max(0, free - self.fixed) // max(1, self.window)


def measure(forward: Callable[[int], Tensor], weights: Iterable[Tensor], fixed: int) -> Need:
    """From what autograd keeps of `forward` over one and over two windows, besides the weights."""
    known = tuple(weights)
    one, two = (_kept(forward, windows, known) for windows in (1, 2))
    window = max(0, two - one)
    return Need(fixed + max(0, one - window), window)


def free_memory(device: str) -> int:
    """Bytes that may still be taken on a device."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return probe().memory.available


def check_fits(need: Need, batch: int, free: int, recomputed: Callable[[], Need] | None) -> None:
    """ResourceError that says what would fit, unless `batch` windows do."""
    if need.of(batch) > free:
        raise ResourceError(
            f"a pass of {batch} windows needs {_gb(need.of(batch))} ({_gb(need.fixed)} for "
            f"weights, gradients and AdamW, {_gb(need.window)} a window), and {_gb(free)} are "
            "free; " + advice(need, batch, free, recomputed)
        )


def advice(need: Need, batch: int, free: int, recomputed: Callable[[], Need] | None) -> str:
    """What would fit into `free` bytes; `recomputed` is the need with recompute, if it isn't on."""
    windows = min(need.fitting(free), max(1, batch - 1))
    if windows:
        return f"batch {windows} fits: take it, and more passes an update (accumulate)"
    if recomputed is not None and (windows := min(recomputed().fitting(free), batch)):
        return f"with recompute, batch {windows} fits: take it, and more passes (accumulate)"
    if need.fixed > free:
        return "no batch fits: train a smaller model, or on a device with more memory"
    return "not even one window fits: cut a shorter context, or take a device with more memory"


@contextmanager
def explained(batch: int, told: Callable[[], str]) -> Iterator[None]:
    """An allocator's failure becomes a ResourceError that ends with what `told` says."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        raise ResourceError(f"out of memory in a pass of {batch} windows; {told()}") from error


def _kept(forward: Callable[[int], Tensor], windows: int, known: tuple[Tensor, ...]) -> int:
    """Bytes of all storages that autograd keeps."""
    besides = {tensor.untyped_storage().data_ptr() for tensor in known}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in besides:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward(windows)  # held while adding: no storage is freed and counted twice
    total = sum(seen.values())
    del result
    return total


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "DefaultCPUAllocator" in str(error)  # torch's CPU allocator has no type of its own


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
