"""`Plan`: a recipe resolved against a model's spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from octavo.backends.base import ActivationFormat
from octavo.backends.reference.options import activation_rule
from octavo.backends.served import kv_reasons
from octavo.compress.base import (
    BlockEncoder,
    Encoder,
    Needs,
    Preparation,
    Pruner,
    Trainer,
    Transform,
)
from octavo.compress.recipe import Recipe, Step, assign, last_of_kind, matrix_names, selected
from octavo.compress.table import (
    METHODS,
    build_block_encoder,
    build_encoder,
    build_preparation,
    build_pruner,
    build_trainer,
    build_transform,
    nearest,
)
from octavo.core.errors import ConfigError, UnsupportedError
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import linear_roles, role_shape

FIRST, LAST = "first", "last"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to which matrix. `steps` are those that encode; `together` has those roles that
    an encoder of whole blocks takes, and `encoders` the others.

    spec          of what is compressed: the source's, or what the preparations make of it.
    preparations  each with the spec that it is given.
    """

    spec: DecoderSpec
    recipe: Recipe
    steps: Mapping[Role, Step]
    encoders: Mapping[Role, Encoder]
    transforms: tuple[tuple[Step, Transform, frozenset[Role]], ...]
    pruners: Mapping[Role, tuple[Step, Pruner]] = field(default_factory=dict)
    trainers: tuple[tuple[Step, Trainer, frozenset[Role]], ...] = ()
    together: Mapping[Role, tuple[Step, BlockEncoder]] = field(default_factory=dict)
    preparations: tuple[tuple[Preparation, DecoderSpec], ...] = ()

    def prepared(self, source: WeightSource) -> WeightSource:
        """The weights that `spec` describes."""
        for preparation, spec in self.preparations:
            source = preparation.prepare(source, spec)
        return source

    def needs(self, role: Role) -> Needs:
        """Statistics wanted of a role's input."""
        return self.encoder_needs(role) | self.transform_needs(role)

    def encoder_needs(self, role: Role) -> Needs:
        """Those of its encoder and pruner, and the largest where static activations ask for it.
        Gradients are no statistics of the input: `fisher` has the roles that want them."""
        static = Needs.ABSMAX if self.static(role) else Needs.NOTHING
        return self._methods_need(role) & ~Needs.FISHER | static

    @property
    def fisher(self) -> tuple[Role, ...]:
        """Matrices whose encoders want squared gradients."""
        return tuple(r for r in self.encoders if Needs.FISHER in self._methods_need(r))

    def _methods_need(self, role: Role) -> Needs:
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

    def static(self, role: Role) -> bool:
        """Whether the inputs of a linear role get a fixed scale."""
        kept, names = dict(self.recipe.keep_activations), matrix_names(self.spec, role)
        asked = next((kept[name] for name in names if name in kept), self.recipe.activations)
        return asked == "a8_static" and role in linear_roles(self.spec)

    @property
    def gathers(self) -> bool:
        """Whether calibration tokens run through the blocks."""
        wanted = any(self.needs(role) for role in self.steps)
        return wanted or bool(self.transforms) or bool(self.together)

    @property
    def needs_data(self) -> bool:
        """Whether there have to be calibration tokens."""
        trains = any(trainer.needs_tokens for _, trainer, _ in self.trainers)
        return self.gathers or bool(self.fisher) or trains

    def stages(self) -> tuple[str, ...]:
        """Names of all stages, in the order in which they are made."""
        trained = (f"train-{i}" for i in range(len(self.trainers)))
        return (FIRST, *map(str, range(len(self.spec.layers))), LAST, *trained)

    def encoded_first(self) -> bool:
        """Whether the embedding is encoded before the blocks: it is their input."""
        return not self._methods_need(Role("embed")) & ~Needs.FISHER


def plan(recipe: Recipe, spec: DecoderSpec) -> Plan:
    """Resolve and check. Raises ConfigError, FormatError."""
    if spec.embed_rank or spec.head_rank:
        raise UnsupportedError(
            "the vocabulary of this model is factored already: compress its source first, and "
            "factor the result"
        )
    preparations = tuple(_preparations(recipe, spec))
    for preparation, before in preparations:
        spec = preparation.respec(before)
    steps = assign(recipe, spec)
    together = {role: step for role, step in steps.items() if METHODS.get(step.method).blocks}
    _check_blocks(together)
    single = {role: step for role, step in steps.items() if role not in together}
    built = {id(step): build_encoder(step.method, step.options) for step in single.values()}
    encoders = {role: built[id(step)] for role, step in single.items()}
    blocks = {id(s): build_block_encoder(s.method, s.options) for s in together.values()}
    pruning = last_of_kind(recipe, spec, "prune")
    made = {id(step): build_pruner(step.method, step.options) for step in pruning.values()}
    pruners = {role: (step, made[id(step)]) for role, step in pruning.items()}
    for role, encoder in encoders.items():
        _check_needs(spec, role, steps[role], encoder.needs)
    for role, (step, pruner) in pruners.items():
        _check_needs(spec, role, step, pruner.needs)
    _check_activations(recipe, spec, steps)
    transforms, trainers = _transforms(recipe, spec), _trainers(recipe, spec)
    made_of = Plan(
        spec,
        recipe,
        steps,
        encoders,
        tuple(transforms),
        pruners,
        tuple(trainers),
        {role: (step, blocks[id(step)]) for role, step in together.items()},
        preparations,
    )
    _check_gradients(made_of)
    return made_of


def _preparations(recipe: Recipe, spec: DecoderSpec) -> Iterator[tuple[Preparation, DecoderSpec]]:
    for step in recipe.steps:
        if METHODS.get(step.method).kind == "prepare":
            preparation = build_preparation(step.method, step.options)
            yield preparation, spec
            spec = preparation.respec(spec)


def _check_blocks(together: Mapping[Role, Step]) -> None:
    for role, step in together.items():
        if role.layer is None:
            raise ConfigError(
                f"{step.method} encodes blocks, and {role.part} is in none; select layers.* and "
                f"encode {role.part} with rtn"
            )


def _check_needs(spec: DecoderSpec, role: Role, step: Step, needs: Needs) -> None:
    if role.part == "embed" and needs & ~Needs.FISHER and not spec.tied_head:
        raise ConfigError(
            f"embed has no inputs to gather statistics of, and {step.method} needs them;"
            " select embed with rtn in a later step"
        )


def _check_gradients(plan: Plan) -> None:
    if plan.fisher and plan.transforms:
        before, after = plan.transforms[0][0].method, plan.steps[plan.fisher[0]].method
        raise ConfigError(
            f"{after} takes gradients of the source's weights, and {before} changes those: leave "
            f"one of them out"
        )


def _check_activations(recipe: Recipe, spec: DecoderSpec, steps: Mapping[Role, Step]) -> None:
    """Names must be known, and what is encoded must take the activations asked for."""
    known = {name for role in linear_roles(spec) for name in matrix_names(spec, role)}
    for reason in kv_reasons(spec, recipe.kv):
        raise ConfigError(reason)
    kept = dict(recipe.keep_activations)
    for part in kept:
        if part not in known:
            raise ConfigError(
                f"activations: {part!r} names no linear layer; {nearest(part, sorted(known))}"
            )
    for role in linear_roles(spec):
        names = matrix_names(spec, role)
        asked = next((kept[name] for name in names if name in kept), recipe.activations)
        if role in steps:
            width = role_shape(spec, role)[1]
            try:
                activation_rule(steps[role].target, width, cast(ActivationFormat, asked))
            except UnsupportedError as error:
                raise ConfigError(f"{names[0]}: {error}") from error
        elif asked == "a8_static":
            raise ConfigError(f"activations a8_static: no step encodes {names[0]}; encode it too")


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
