"""Weights of the reference: every role dequantized, or requantized when that is asked for."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.backends.reference.options import ActivationRule, ReferenceOptions, activation_rule
from octavo.backends.served import largest_input
from octavo.core.errors import ModelFileError
from octavo.formats.number_format import NumberFormat
from octavo.formats.rtn import fake_quantize
from octavo.io.weights import WeightSource
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import head_role, linear_roles, role_shape, roles

Weights = dict[Role, torch.Tensor]
Formats = dict[Role, NumberFormat]


def load_weights(
    source: WeightSource, spec: DecoderSpec, options: ReferenceOptions
) -> tuple[Weights, Formats]:
    """Tensors of the options' dtype and device, and the number format of each."""
    weights: Weights = {}
    formats: Formats = {}
    coded = {Role("embed"), *linear_roles(spec)}  # what a format means; norms stay fp32
    for role in roles(spec):
        wanted = wanted_format(role, head_role(spec), options) if role in coded else "source"
        tensor, formats[role] = _load(source, spec, role, wanted, options.device)
        weights[role] = tensor.to(options.torch_dtype)
    return weights, formats


def activation_rules(
    spec: DecoderSpec, formats: Formats, options: ReferenceOptions
) -> dict[Role, ActivationRule]:
    """The rounding before each linear role. Routers, which decide discretely, get none."""
    return {role: _rule(spec, role, formats[role], options) for role in linear_roles(spec)}


def _rule(
    spec: DecoderSpec, role: Role, format: NumberFormat, options: ReferenceOptions
) -> ActivationRule:
    names = _names(role, head_role(spec))
    kept = [asked for name, asked in options.keep_activations if name in names]
    asked = kept[-1] if kept else options.activations
    rule = activation_rule(format, role_shape(spec, role)[-1], asked, options.wide_ratio)
    if rule.kind != "a8_static":
        return rule
    return replace(rule, peak=largest_input(role, options.maxima))


def _load(
    source: WeightSource, spec: DecoderSpec, role: Role, wanted: str, device: str
) -> tuple[torch.Tensor, NumberFormat]:
    view, expected = source.tensor(role), role_shape(spec, role)
    if tuple(view.shape) != expected:
        raise ModelFileError(
            f"{source.describe()}: {role} has shape {list(view.shape)}, "
            f"the config implies {list(expected)}"
        )
    tensor = torch.tensor(view.float32(), device=device)
    view.drop()
    if wanted == "source":
        return tensor, view.format
    target = NumberFormat.parse(wanted)
    return fake_quantize(tensor, target, torch), target


def wanted_format(role: Role, head: Role, options: ReferenceOptions) -> str:
    """Format asked for a role: the most particular name in `keep` wins. A tied head is the
    embedding: it answers to "head" too."""
    kept = dict(options.keep)
    return next((kept[name] for name in _names(role, head) if name in kept), options.format)


def _names(role: Role, head: Role) -> list[str]:
    names = [] if role.layer is None else [f"layers.{role.layer}.{role.part}"]
    return [*names, role.part, "head"] if role == head else [*names, role.part]
