"""`Plan`: a recipe resolved against a model's spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from octavo.compress.base import Encoder, Needs, Pruner, Trainer, Transform
from octavo.compress.recipe import Recipe, Step, assign, last_of_kind, selected
from octavo.compress.table import (
    METHODS,
    build_encoder,
    build_pruner,
    build_trainer,
    build_transform,
)
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.spec.decoder import DecoderSpec, Role

FIRST, LAST = "first", "last"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to which matrix. `steps` are those that encode."""

    spec: DecoderSpec
    recipe: Recipe
    steps: Mapping[Role, Step]
    encoders: Mapping[Role, Encoder]
    transforms: tuple[tuple[Step, Transform, frozenset[Role]], ...]
    pruners: Mapping[Role, tuple[Step, Pruner]] = field(default_factory=dict)
    trainers: tuple[tuple[Step, Trainer, frozenset[Role]], ...] = ()

    def needs(self, role: Role) -> Needs:
        """Statistics wanted of a role's input."""
        return self.encoder_needs(role) | self.transform_needs(role)

    def encoder_needs(self, role: Role) -> Needs:
        """Those of its encoder and pruner."""
        needs = self.encoders[role].needs if role in self.encoders else Needs.NOTHING
        return needs | self.pruners[role][1].needs if role in self.pruners else needs

    def transform_needs(self, role: Role) -> Needs:
        needs = Needs.NOTHING
        for _, transform, chosen in self.transforms:
            if role in chosen:
                needs |= transform.needs
        return needs

    def sequential(self, layer: int) -> bool:
        """Whether an encoder wants each group's statistics after earlier ones are encoded."""
        return any(
            role.layer == layer and getattr(encoder, "sequential", False)
            for role, encoder in self.encoders.items()
        )

    @property
    def gathers(self) -> bool:
        """Whether calibration tokens run through the blocks."""
        return any(self.needs(role) for role in self.steps) or bool(self.transforms)

    @property
    def needs_data(self) -> bool:
        """Whether there have to be calibration tokens."""
        return self.gathers or any(trainer.needs_tokens for _, trainer, _ in self.trainers)

    def stages(self) -> tuple[str, ...]:
        """Names of all stages, in the order in which they are made."""
        trained = (f"train-{i}" for i in range(len(self.trainers)))
        return (FIRST, *map(str, range(len(self.spec.layers))), LAST, *trained)

    def encoded_first(self) -> bool:
        """Whether the embedding is encoded before the blocks: it is their input."""
        return not self.needs(Role("embed"))


def plan(recipe: Recipe, spec: DecoderSpec) -> Plan:
    """Resolve and check. Raises ConfigError, FormatError."""
    if spec.embed_rank or spec.head_rank:
        raise UnsupportedError(
            "the vocabulary of this model is factored already: compress its source first, and "
            "factor the result"
        )
    steps = assign(recipe, spec)
    built = {id(step): build_encoder(step.method, step.options) for step in steps.values()}
    encoders = {role: built[id(step)] for role, step in steps.items()}
    pruning = last_of_kind(recipe, spec, "prune")
    made = {id(step): build_pruner(step.method, step.options) for step in pruning.values()}
    pruners = {role: (step, made[id(step)]) for role, step in pruning.items()}
    for role, encoder in encoders.items():
        _check_needs(spec, role, steps[role], encoder.needs)
    for role, (step, pruner) in pruners.items():
        _check_needs(spec, role, step, pruner.needs)
    transforms, trainers = _transforms(recipe, spec), _trainers(recipe, spec)
    return Plan(spec, recipe, steps, encoders, tuple(transforms), pruners, tuple(trainers))


def _check_needs(spec: DecoderSpec, role: Role, step: Step, needs: Needs) -> None:
    if Needs.FISHER in needs:
        raise ConfigError(
            f"{step.method} needs gradients of the loss, which compress doesn't gather"
        )
    if role.part == "embed" and needs and not spec.tied_head:
        raise ConfigError(
            f"embed has no inputs to gather statistics of, and {step.method} needs them;"
            " select embed with rtn in a later step"
        )


def _transforms(
    recipe: Recipe, spec: DecoderSpec
) -> Iterator[tuple[Step, Transform, frozenset[Role]]]:
    for step in recipe.steps:
        if METHODS.get(step.method).kind == "transform":
            chosen = frozenset(selected(spec, step))
            yield step, build_transform(step.method, step.options), chosen


def _trainers(recipe: Recipe, spec: DecoderSpec) -> Iterator[tuple[Step, Trainer, frozenset[Role]]]:
    for step in recipe.steps:
        if METHODS.get(step.method).kind == "train":
            chosen = frozenset(selected(spec, step))
            yield step, build_trainer(step.method, step.options), chosen
