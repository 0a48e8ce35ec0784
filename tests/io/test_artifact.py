"""Artifacts from others: a manifest or tensors that lie are named, never loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.compress.job import compress
from octavo.compress.pruning import pruned_recipe
from octavo.compress.recipe import from_flags
from octavo.core.errors import ModelFileError, UnsupportedError, UserError
from octavo.io.artifact import is_artifact, read_manifest, sha256_of
from octavo.io.checkpoint import open_model, read_header
from octavo.io.safetensors_file import open_safetensors, write_safetensors
from octavo.spec.decoder import Role
from support.small_models import material, small_model

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
Content = dict[str, Any]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = small_model("qwen2", tmp_path / "m")
    compress(path, from_flags("rtn", "int4_g32_asym"), tmp_path / "out", material(0))
    return tmp_path / "out"


def rewrite(artifact: Path, change: Callable[[Content], object]) -> None:
    """Change the manifest; checksums of the other files stay right."""
    path = artifact / "octavo.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def retensor(artifact: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors, and make the manifest's checksum right again."""
    path = artifact / "model.safetensors"
    file = open_safetensors(path)
    kinds = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}
    arrays = {
        name: np.array(t.rows()).reshape(-1).view(kinds[t.type]).reshape(t.shape)
        for name, t in file.tensors.items()
    }
    file.mapping.close()
    change(arrays)
    write_safetensors(path, arrays)
    size, digest = sha256_of(path)
    entry = {"bytes": size, "sha256": digest}
    rewrite(artifact, lambda content: content["files"].update({path.name: entry}))


def test_checksums_are_those_of_hashlib(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 20_000)  # longer than what is hashed at a time
    assert sha256_of(path) == (5_120_000, hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_header_alone_needs_no_weights(artifact: Path) -> None:
    (artifact / "model.safetensors").unlink()
    assert read_header(artifact).spec.family == "qwen2"
    assert is_artifact(read_header(artifact).metadata)
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        open_model(artifact)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=2), "artifact format 2"),
        (lambda c: c.pop("format"), "artifact format None"),
        (lambda c: c.pop("tensors"), "tensors"),
        (lambda c: c.update(files=[]), "files"),
        (lambda c: c["tensors"][DOWN].update(format="int9_g32"), "int9_g32"),
        (lambda c: c["tensors"][DOWN].update(format="int4_g32"), "down_proj"),
        (lambda c: c["tensors"][DOWN].update(format="fp32"), "down_proj"),
        (lambda c: c["tensors"][DOWN].update(shape=[64, 95]), "95"),
        (lambda c: c["tensors"][DOWN].update(shape=[32, 192]), "down_proj"),
        (lambda c: c["tensors"][DOWN].update(shape=[-1]), "no shape"),
        (lambda c: c["tensors"][DOWN].update(shape=[6144]), "down_proj"),
        (lambda c: c["tensors"][NORM].update(shape=[32]), "norm"),
        (lambda c: c["tensors"][NORM].update(format="bf16"), "norm"),
        (lambda c: c["tensors"].pop(DOWN), "down_proj"),
        (lambda c: c["tensors"].update(extra=c["tensors"][NORM]), "extra"),
        (lambda c: c["files"].update({"../m/config.json": {}}), "plain file name"),
        (lambda c: c["files"].update({"absent": {"bytes": 1, "sha256": ""}}), "absent"),
        (lambda c: c["files"]["config.json"].update(bytes="x"), "bytes and sha256"),
        (lambda c: c["files"]["model.safetensors"].update(bytes=3), r"model\.safetensors: differs"),
        (lambda c: c["files"]["config.json"].update(sha256="0" * 64), r"config\.json: differs"),
    ],
)
def test_a_manifest_that_lies_is_one_error(
    artifact: Path, change: Callable[[Content], object], words: str
) -> None:
    rewrite(artifact, change)
    with pytest.raises((ModelFileError, UnsupportedError), match=words), open_model(artifact) as m:
        m.source.tensor(Role("down", 0)).float32()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.update({f"{DOWN}.zeros": a[f"{DOWN}.zeros"] | 16}), "exceeds 4 bits"),
        (lambda a: a.pop(f"{DOWN}.scales"), "scales"),
        (lambda a: a.pop(f"{DOWN}.codes"), "no file holds it"),
        (lambda a: a.update({f"{DOWN}.codes": a[f"{DOWN}.codes"][:5]}), "codes"),
        (lambda a: a.update({f"{DOWN}.other": a[f"{DOWN}.codes"]}), "does not know it"),
        (lambda a: a.update({f"{DOWN}.codes": a[NORM]}), "down_proj"),
        (lambda a: a.update({f"{DOWN}.tensor_scale": a[NORM][:2]}), "tensor_scale"),
    ],
)
def test_tensors_that_lie_are_one_error(
    artifact: Path, change: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    retensor(artifact, change)
    with pytest.raises(UserError, match=words), open_model(artifact) as model:
        model.source.tensor(Role("down", 0)).float32()


def test_a_manifest_that_is_no_json_names_the_file(artifact: Path) -> None:
    (artifact / "octavo.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"octavo\.json"):
        read_manifest(artifact)


def test_unknown_tools_formats_stay_refused(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (artifact / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="hqq"):
        open_model(artifact)


@pytest.mark.parametrize("change", [0xFF, None])
def test_a_mask_that_lies_about_its_codes_is_named(tmp_path: Path, change: int | None) -> None:
    path = small_model("qwen2", tmp_path / "m")
    compress(path, pruned_recipe("wanda:0.5", None, "int8_g32"), tmp_path / "out", material())
    mask = f"{DOWN}.mask"

    def lie(arrays: dict[str, np.ndarray]) -> None:
        if change is None:
            del arrays[mask]
        else:
            arrays[mask][0] = change

    retensor(tmp_path / "out", lie)
    with (
        open_model(tmp_path / "out") as opened,
        pytest.raises(ModelFileError, match="down_proj"),
    ):
        opened.source.tensor(Role("down", 0)).float32()


@pytest.mark.parametrize("layout", ["4:2", "sparse", 7])
def test_a_layout_that_is_none_is_named(artifact: Path, layout: object) -> None:
    rewrite(artifact, lambda content: content["tensors"][DOWN].update(layout=layout))
    with pytest.raises(ModelFileError, match="down_proj"), open_model(artifact) as opened:
        opened.source.tensor(Role("down", 0)).float32()
