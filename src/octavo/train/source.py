"""A trained model as a `WeightSource`: any backend runs it without a file in between."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.errors import ModelFileError
from octavo.io.memory_views import CodedView, FloatView
from octavo.io.weights import TensorView
from octavo.spec.decoder import Role
from octavo.train.qat import QatModel


class TrainedSource:
    """What a model converts to now; later training doesn't change it."""

    def __init__(self, model: QatModel) -> None:
        self._views: Mapping[Role, TensorView] = {
            **{role: CodedView(tensor) for role, tensor in model.convert().items()},
            **{role: FloatView(values) for role, values in model.kept().items()},
        }

    def tensor(self, role: Role) -> TensorView:
        if role not in self._views:
            raise ModelFileError(f"{self.describe()}: no tensor for {role}")
        return self._views[role]

    def has(self, role: Role) -> bool:
        return role in self._views

    def describe(self) -> str:
        return "a trained model in memory"
