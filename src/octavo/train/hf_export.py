"""Trained masters as a Hugging Face checkpoint: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ResourceError, UnsupportedError
from octavo.io.mapping import replacing
from octavo.io.safetensors_file import write_safetensors
from octavo.spec.decoder import DecoderSpec, Role
from octavo.spec.graph import roles
from octavo.spec.table import family_for_hf
from octavo.train.qat import QatModel

F32 = npt.NDArray[np.float32]


def save_masters(model: QatModel, config: Mapping[str, object], directory: Path) -> None:
    """Write the fp32 masters in the layout of config.json's architecture, and `config` itself.

    config  the model's config.json; its torch dtype is set to float32. Norms are written as the
            family stores them. Raises UnsupportedError for a family whose files fuse or stack
            tensors, ResourceError when the directory can't be made.
    """
    architectures = config.get("architectures")
    assert isinstance(architectures, list)
    family = family_for_hf(str(architectures[0]))
    tensors: dict[str, F32] = {}
    for role in roles(model.spec):
        name, add = _placed(family.name, model.spec, role, str(architectures[0]))
        tensors[name] = model.masters[role].detach().cpu().numpy() - np.float32(add)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{directory}: can't be made ({error.strerror}).") from error
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    written = {**config, "dtype": "float32", "torch_dtype": "float32"}
    with replacing(directory / "config.json") as file:
        file.write(json.dumps(written, indent=2).encode())


def _placed(family: str, spec: DecoderSpec, role: Role, architecture: str) -> tuple[str, float]:
    place = family_for_hf(architecture).hf_tensor(spec, role)
    if place.rows is not None or place.index is not None or place.unpermute:
        raise UnsupportedError(
            f"{family} checkpoints keep {role} inside {place.name}, together with others: export "
            "the trained model as an artifact instead"
        )
    return place.name, place.add
