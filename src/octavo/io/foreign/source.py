"""`ForeignSource`: the WeightSource of a checkpoint that another tool quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from octavo.core.errors import ModelFileError, UnsupportedError
from octavo.io.foreign.module import Layout, Module, ModuleView
from octavo.io.served import Served
from octavo.io.source import HARMLESS, FileSource, Locate, RowsView
from octavo.io.stored import StoredTensor
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.family import TensorRef
from octavo.spec.graph import role_shape, roles

_FLOATS = ("F32", "F16", "BF16")


class ForeignSource:
    """Layers of a tool's layout by role; tensors that the tool left alone as they are.

    served  what an artifact of ours was compressed for, that is stored in this layout
    """

    def __init__(
        self,
        spec: DecoderSpec,
        tensors: Mapping[str, StoredTensor],
        locate: Locate,
        origin: str,
        layout: Layout,
    ) -> None:
        self._spec, self._tensors, self._locate = spec, tensors, locate
        self._origin, self._layout = origin, layout
        self._plain = FileSource(spec, tensors, locate, origin)
        self._parts = _modules(tensors, layout)
        self.served = Served()

    def tensor(self, role: Role) -> ModuleView | RowsView:
        ref = self._locate(self._spec, role)
        if ref.name.removesuffix(".weight") not in self._parts:
            return self._plain_tensor(role, ref)
        module = self._module(role, ref)
        first, stop = ref.rows or (0, module.shape[0])
        return ModuleView(module, self._layout.decode(module), first, stop - first)

    def has(self, role: Role) -> bool:
        name = self._locate(self._spec, role).name
        return name in self._tensors or name.removesuffix(".weight") in self._parts

    def describe(self) -> str:
        views = self.views().values()
        sizes: Counter[str] = Counter()
        for view in views:
            sizes[view.type] += view.nbytes
        total = max(1, sizes.total())
        shares = [f"{name} {size / total:.0%}" for name, size in sizes.most_common(3)]
        notes = "".join(f"; {count} layers as fp32: {why}" for why, count in self.notes().items())
        return (
            f"{self._origin} ({self._layout.tool}: {', '.join(shares)} of {total / 1e6:.1f} MB"
            f"{notes})"
        )

    def notes(self) -> Counter[str]:
        """Why layers are expanded to fp32, and how many are."""
        views = (self.tensor(role) for role in roles(self._spec))
        found = (view.decoded.note for view in views if isinstance(view, ModuleView))
        return Counter(note for note in found if note)

    def views(self) -> dict[str, StoredTensor]:
        """Every role's tensor by name, its parts as one."""
        found = (self.tensor(role).stored for role in roles(self._spec))
        return {stored.name: stored for stored in found}

    def check(self) -> None:
        """Every role's tensor is there in the spec's shape and can be read, and none is left over.

        Tools write a zero bias for layers that have none; a bias that isn't zero is an error.
        """
        used: set[str] = set()
        for role in roles(self._spec):
            view = self.tensor(role)
            if isinstance(view, ModuleView):
                used |= {part.name for part in view.module.parts.values()}
            else:
                used.add(view.stored.name)
        for name, tensor in self._tensors.items():
            if name in used or HARMLESS.fullmatch(name) or self._ignored(name):
                continue
            if name.endswith(".bias") and _is_zero(tensor):
                continue
            raise ModelFileError(
                f"{self._origin}: tensor {name!r} is not part of a {self._spec.family} model "
                f"quantized by {self._layout.tool} as its config describes it. Check that config "
                "and weights belong together."
            )

    def _ignored(self, name: str) -> bool:
        return name.rpartition(".")[2] in self._layout.ignored

    def _plain_tensor(self, role: Role, ref: TensorRef) -> RowsView:
        view = self._plain.tensor(role)
        if view.stored.type not in _FLOATS:
            raise ModelFileError(
                f"{self._origin}: tensor {ref.name!r} ({role}) is {view.stored.type} and has no "
                f"scales of {self._layout.tool}. Fetch the model again."
            )
        return view

    def _module(self, role: Role, ref: TensorRef) -> Module:
        name = ref.name.removesuffix(".weight")
        parts, shape = self._parts[name], role_shape(self._spec, role)
        if len(shape) != 2 or ref.index is not None:
            raise UnsupportedError(
                f"{self._origin}: {name!r} ({role}) is quantized by {self._layout.tool}, which is "
                "read for matrices alone. Use the original checkpoint."
            )
        rows = shape[0] if ref.rows is None else _stored_rows(self._spec, self._locate, ref.name)
        return Module(name, (rows, shape[1]), parts)


def _stored_rows(spec: DecoderSpec, locate: Locate, name: str) -> int:
    """Rows of a fused tensor: where the last of its parts ends."""
    refs = (locate(spec, role) for role in roles(spec))
    return max(ref.rows[1] for ref in refs if ref.name == name and ref.rows)


def _modules(
    tensors: Mapping[str, StoredTensor], layout: Layout
) -> dict[str, dict[str, StoredTensor]]:
    """Quantized layers by name, with their parts."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        for key in layout.keys:
            if name.endswith(f".{key}"):
                found.setdefault(name.removesuffix(f".{key}"), {})[key] = tensor
    return {
        name: parts
        for name, parts in found.items()
        if any(marker in parts for marker in layout.markers)
    }


def _is_zero(tensor: StoredTensor) -> bool:
    return tensor.type in _FLOATS and not np.any(tensor.rows() & np.uint8(0x7F))
