"""Writes an artifact from finished stages: what `octavo.io.artifact` reads.

config.json and the tokenizer come from the source: copied from a directory, derived from a GGUF
header. Nothing in an artifact depends on time, place or machine: equal inputs give equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo._version import __version__
from octavo.compress.card import CARD, model_card
from octavo.compress.state import Stage
from octavo.compress.storage import storage_of
from octavo.core.errors import ResourceError
from octavo.formats.layouts import DENSE
from octavo.io.artifact import MANIFEST, MANIFEST_FORMAT, sha256_of
from octavo.io.checkpoint import OpenModel
from octavo.io.mapping import replacing
from octavo.io.safetensors_file import write_safetensors
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from octavo.spec.decoder import DecoderSpec
from octavo.spec.hf_config import hf_config

WEIGHTS = "model.safetensors"
QUALITY = "quality.json"
_COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def write_artifact(
    directory: Path,
    model: OpenModel,
    spec: DecoderSpec,
    whole: Stage,
    content: Mapping[str, object],
) -> str:
    """Fill a new directory with the merged stages. `spec`: of what was encoded, whose head may be
    untied from the model's embedding; `content`: what the manifest says beyond tensors and files.
    Returns how the tensors are stored (`Storage.name`).

    Raises UnsupportedError when a GGUF header has no config.json, ResourceError on a full disk.
    """
    storage = storage_of(spec, whole)
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        untied = model.spec.tied_head and not spec.tied_head
        changes = {"tie_word_embeddings": False} if untied else {}
        write_config(directory, model, {**changes, "quantization_config": storage.quantization})
        write_tokenizer(directory, model)
    except OSError as error:
        raise ResourceError(
            f"{directory}: can't be written ({error.strerror or error}): check the directory's "
            "permissions and its free space"
        ) from error
    write_safetensors(directory / WEIGHTS, storage.arrays, storage.metadata)
    tensors = {
        name: {
            "format": str(entry.format),
            "shape": list(entry.shape),
            **({} if entry.layout == DENSE else {"layout": entry.layout}),
        }
        for name, entry in sorted(whole.entries.items())
    }
    head = {"format": MANIFEST_FORMAT, "octavo": __version__, "storage": storage.name}
    write_manifest(directory, {**head, **content, "tensors": tensors})
    return storage.name


def write_manifest(directory: Path, content: Mapping[str, object]) -> None:
    """The model card, and octavo.json with size and checksum of every other file of the
    directory."""
    with replacing(directory / CARD) as file:
        file.write(model_card(content).encode())
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST)
    files = {name: sha256_of(directory / name) for name in names}
    listed = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    write_json(directory / MANIFEST, {**content, "files": listed})


def add_quality(directory: Path, quality: Mapping[str, object]) -> None:
    """Write quality.json, and put its summary into the manifest."""
    write_json(directory / QUALITY, quality)
    content: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    write_manifest(directory, {**content, "quality": quality})


def add_file(directory: Path, name: str, content: Mapping[str, object]) -> None:
    """Put a JSON file into a finished artifact, and its checksum into the manifest."""
    write_json(directory / name, content)
    manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    write_manifest(directory, manifest)


def publish(directory: Path, out: Path) -> None:
    """Give a finished directory its name. Raises ResourceError when that is taken meanwhile."""
    try:
        directory.rename(out)
    except OSError as error:
        raise ResourceError(
            f"{out}: can't be written ({error.strerror or error}): the finished artifact is at "
            f"{directory}; move it yourself"
        ) from error


def model_files(model: OpenModel) -> dict[str, dict[str, object]]:
    """Provenance: size and SHA-256 of the source's weights and config, by file name."""
    if model.kind == "gguf":
        paths = [model.path]
    else:
        paths = [model.path / "config.json", *sorted(model.path.glob("*.safetensors"))]
    found = {path.name: sha256_of(path) for path in paths}
    return {name: {"bytes": size, "sha256": digest} for name, (size, digest) in found.items()}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode("utf-8") + b"\n")


def write_config(directory: Path, model: OpenModel, changes: Mapping[str, object]) -> None:
    """config.json: the source's, less what said how its weights were quantized, and `changes`.

    Raises UnsupportedError when a GGUF header has no config.json.
    """
    config = hf_config(model.spec) if model.kind == "gguf" else dict(model.metadata)
    config.pop("quantization_config", None)
    write_json(directory / "config.json", {**config, **changes})


def write_tokenizer(directory: Path, model: OpenModel) -> None:
    """Tokenizer files and generation_config.json, copied or made from a GGUF header."""
    if model.kind == "gguf":
        tokenizer = load_tokenizer(model.path, model.metadata)
        _write_gguf_tokenizer(directory, tokenizer, model.generation)
        return
    for name in _COPIED:
        if (model.path / name).is_file():
            shutil.copyfile(model.path / name, directory / name)


def _write_gguf_tokenizer(
    directory: Path, tokenizer: Tokenizer, generation: Mapping[str, float]
) -> None:
    backend: dict[str, Any] = json.loads(tokenizer.to_json())
    backend["post_processor"] = _post_processor(tokenizer)
    write_json(directory / "tokenizer.json", backend)
    config: dict[str, object] = dict(tokenizer.named_tokens)
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    write_json(directory / "tokenizer_config.json", config)
    ends = {"eos_token_id": list(tokenizer.eos_ids)} if tokenizer.eos_ids else {}
    begin = {} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}
    write_json(directory / "generation_config.json", {**begin, **ends, **generation})


def _post_processor(tokenizer: Tokenizer) -> dict[str, object] | None:
    """What puts the begin and end tokens around a text, in tokenizer.json's words."""
    plain = tokenizer.encode("a", add_special=False)
    full = tokenizer.encode("a")
    at = next(i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    before, behind = full[:at], full[at + len(plain) :]
    texts = {i: text for text, i in tokenizer.added_tokens.items()}
    if not before and not behind:
        return None

    def special(token: int) -> dict[str, object]:
        return {"SpecialToken": {"id": texts[token], "type_id": 0}}

    first = [*map(special, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(special, behind)]
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    ids = {texts[i]: {"id": texts[i], "ids": [i], "tokens": [texts[i]]} for i in (*before, *behind)}
    return {
        "type": "TemplateProcessing", "single": first, "pair": [*first, *second],
        "special_tokens": ids,
    }  # fmt: skip
