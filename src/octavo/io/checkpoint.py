"""`open_model`: a Hugging Face directory or a GGUF file becomes a spec and a source of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.core.closing import Closing
from octavo.core.errors import UnsupportedError, UserError
from octavo.io import gguf_source, hf_source
from octavo.io.artifact import (
    ArtifactSource,
    check_shared,
    has_manifest,
    is_artifact,
    open_artifact,
)
from octavo.io.foreign.source import ForeignSource
from octavo.io.foreign.table import layout_of
from octavo.io.gguf_reader import GgufFile, open_gguf
from octavo.io.mapping import FileMapping
from octavo.io.model_path import not_a_model
from octavo.io.safetensors_file import open_directory
from octavo.io.source import FileSource
from octavo.io.stored import StoredTensor
from octavo.spec.config_reader import ConfigReader
from octavo.spec.decoder import DecoderSpec
from octavo.spec.family import Family
from octavo.spec.graph import roles
from octavo.spec.table import family_for_gguf, family_for_hf

ModelKind = Literal["hf", "gguf"]


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What a config or header says, without its weights.

    metadata     GGUF's key-value pairs, or the content of config.json
    unread_keys  keys of the config that the family did not understand
    eos_ids      tokens that end an answer, as the model's files name them
    generation   suggested sampling: temperature, top_k, top_p, min_p, repetition_penalty
    """

    path: Path
    kind: ModelKind
    spec: DecoderSpec
    metadata: Mapping[str, object]
    unread_keys: tuple[str, ...]
    eos_ids: tuple[int, ...]
    generation: Mapping[str, float]


class OpenModel(Closing):
    """A header together with the mapped weights. Close it, or use it in a `with` statement.

    source     weights by role;  tensors  the same by their names in the file
    file_size  bytes of all model files
    """

    def __init__(
        self,
        header: ModelHeader,
        source: FileSource | ArtifactSource | ForeignSource,
        tensors: Mapping[str, StoredTensor],
    ) -> None:
        self.header = header
        self.path, self.kind, self.spec = header.path, header.kind, header.spec
        self.metadata, self.unread_keys = header.metadata, header.unread_keys
        self.eos_ids, self.generation = header.eos_ids, header.generation
        self.source = source
        self.tensors = tensors
        self._mappings = _mappings(tensors)
        self.file_size = sum(mapping.size for mapping in self._mappings)

    def close(self) -> None:
        """Unmap the files; arrays that are still held keep their file mapped."""
        for mapping in self._mappings:
            mapping.close()


def open_model(path: Path) -> OpenModel:
    """Open a directory with config.json and safetensors, or a .gguf file.

    Every tensor that the spec calls for is checked for presence and shape. Raises ModelFileError,
    ConfigError, or UnsupportedError.
    """
    return _open_directory(path) if path.is_dir() else _open_gguf(path)


def read_header(path: Path) -> ModelHeader:
    """The header alone: of a directory (its weights may be absent), a config.json, or a .gguf."""
    if path.is_dir():
        return _hf_header(path)
    if path.name == "config.json":
        return _hf_header(path.parent)
    file = open_gguf(_gguf_path(path))
    try:
        return _gguf_header(path, file)
    finally:
        file.mapping.close()


def _open_directory(path: Path) -> OpenModel:
    header = _hf_header(path)
    if is_artifact(header.metadata):
        return _open_artifact(header)
    files = open_directory(path)
    tensors = {name: t for file in files for name, t in file.tensors.items()}
    family = _hf_family(header.metadata, path)
    layout = layout_of(header.metadata, path / "config.json")
    if layout is None:
        plain = FileSource(header.spec, tensors, family.hf_tensor, str(path))
        return _checked(header, plain, tensors)
    source = ForeignSource(header.spec, tensors, family.hf_tensor, str(path), layout)
    model = _checked(header, source, source.views())
    if has_manifest(path):
        with _closed_on_error(model):
            formats = {role: str(source.tensor(role).format) for role in roles(header.spec)}
            source.served = check_shared(path, header.spec, formats)
    return model


def _open_artifact(header: ModelHeader) -> OpenModel:
    source = open_artifact(header.path, header.spec)
    views = (source.tensor(role) for role in roles(header.spec))
    return _checked(header, source, {view.name: view.stored for view in views})


def _open_gguf(path: Path) -> OpenModel:
    file = open_gguf(_gguf_path(path))
    try:
        header = _gguf_header(path, file)
    except UserError:
        file.mapping.close()
        raise
    family = _gguf_family(file, path)
    source = FileSource(header.spec, file.tensors, family.gguf_tensor, str(path))
    return _checked(header, source, file.tensors)


def _checked(
    header: ModelHeader,
    source: FileSource | ArtifactSource | ForeignSource,
    tensors: Mapping[str, StoredTensor],
) -> OpenModel:
    model = OpenModel(header, source, tensors)
    with _closed_on_error(model):
        source.check()
    return model


@contextmanager
def _closed_on_error(model: OpenModel) -> Iterator[None]:
    try:
        yield
    except UserError:
        model.close()
        raise


def _hf_header(directory: Path) -> ModelHeader:
    path = directory / "config.json"
    if not path.exists():
        raise not_a_model(directory)
    config = hf_source.read_config(path)
    generation = hf_source.read_generation_config(directory)
    reader = ConfigReader(config, str(path))
    if "quantization_config" in config:
        reader.ignore("quantization_config")
    spec = _hf_family(config, path).from_hf(reader)
    return ModelHeader(
        path=directory,
        kind="hf",
        spec=spec,
        metadata=config,
        unread_keys=reader.unread(),
        eos_ids=hf_source.eos_ids(generation, config),
        generation=hf_source.sampling_defaults(generation),
    )


def _gguf_header(path: Path, file: GgufFile) -> ModelHeader:
    reader = gguf_source.gguf_config(file)
    spec = _gguf_family(file, path).from_gguf(reader)
    return ModelHeader(
        path=path,
        kind="gguf",
        spec=spec,
        metadata=file.metadata,
        unread_keys=reader.unread(),
        eos_ids=gguf_source.eos_ids(file.metadata),
        generation=gguf_source.sampling_defaults(file.metadata),
    )


def _hf_family(config: Mapping[str, object], path: Path) -> Family:
    with _naming(path):
        return family_for_hf(hf_source.architecture(config, path))


def _gguf_family(file: GgufFile, path: Path) -> Family:
    with _naming(path):
        return family_for_gguf(gguf_source.architecture(file))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Who looks an architecture up knows no files: its error gets the path here."""
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from error


def _gguf_path(path: Path) -> Path:
    if path.suffix == ".safetensors":
        raise not_a_model(path)
    return path


def _mappings(tensors: Mapping[str, StoredTensor]) -> tuple[FileMapping, ...]:
    return tuple({id(t.mapping): t.mapping for t in tensors.values()}.values())
