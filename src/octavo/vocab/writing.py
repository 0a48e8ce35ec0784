"""Writes a model with another vocabulary as an artifact; all that isn't replaced stays as it was.

Every other tensor keeps its codes. What a directory costs is measured like any compression's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo._version import __version__
from octavo.compress.artifact import (
    WEIGHTS,
    model_files,
    write_config,
    write_manifest,
    write_tokenizer,
)
from octavo.compress.report import StageReport
from octavo.compress.state import Stage
from octavo.formats.quantized import QuantizedTensor
from octavo.io.artifact import MANIFEST_FORMAT, QUANT_METHOD, artifact_name
from octavo.io.checkpoint import OpenModel
from octavo.io.safetensors_file import write_safetensors
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import role_shape, roles


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What replaces a model's vocabulary.

    spec     of the new model
    tables   matrices by role that are new; every other role keeps what the source holds
    config   keys of config.json that change
    recipe   what was done, for the manifest: {"method": name, ...}
    rewrite  changes the tokenizer's files in the new directory; None: they stay as they are
    """

    spec: DecoderSpec
    tables: Mapping[Role, QuantizedTensor]
    config: Mapping[str, object]
    recipe: Mapping[str, object]
    rewrite: Callable[[Path], None] | None = None


def write_model(directory: Path, model: OpenModel, new: Vocabulary) -> None:
    """Fill an empty directory. Raises UnsupportedError when a GGUF header has no config.json."""
    quantization = {"quant_method": QUANT_METHOD, "version": MANIFEST_FORMAT}
    write_config(directory, model, {**new.config, "quantization_config": quantization})
    write_tokenizer(directory, model)
    if new.rewrite is not None:
        new.rewrite(directory)
    stage = _tensors(model, new)
    write_safetensors(directory / WEIGHTS, stage.arrays, {"format": "octavo"})
    write_manifest(directory, _content(model, new, stage))


def _tensors(model: OpenModel, new: Vocabulary) -> Stage:
    stage = Stage(StageReport("vocabulary"), {}, {})
    for role in roles(new.spec):
        name, shape = artifact_name(new.spec, role), role_shape(new.spec, role)
        if role in new.tables:
            stage.add_matrix(name, new.tables[role])
            continue
        view = model.source.tensor(role)
        if len(shape) == 2:
            stage.add_matrix(name, view.quantized(0, shape[0]))
        else:
            stage.add_float32(name, np.ascontiguousarray(view.float32(), np.float32))
    return stage


def _content(model: OpenModel, new: Vocabulary, stage: Stage) -> dict[str, object]:
    """The manifest: as a compression's, with one step."""
    size = sum(array.nbytes for array in stage.arrays.values())
    parameters = sum(int(np.prod(role_shape(new.spec, role))) for role in roles(new.spec))
    recipe = {"steps": [dict(new.recipe)]}
    report = {
        "stages": [],
        "bytes": size,
        "source_bytes": sum(tensor.nbytes for tensor in model.tensors.values()),
        "bits_per_weight": 8 * size / parameters,
    }
    tensors = {
        name: {"format": str(entry.format), "shape": list(entry.shape)}
        for name, entry in sorted(stage.entries.items())
    }
    source = {"name": model.path.name, "kind": model.kind, "files": model_files(model)}
    return {
        "format": MANIFEST_FORMAT,
        "octavo": __version__,
        "source": source,
        "recipe": recipe,
        "recipe_sha256": _digest(recipe),
        "calibration": None,
        "report": report,
        "tensors": tensors,
    }


def _digest(recipe: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
