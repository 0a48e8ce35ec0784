"""From what a person writes as a model to the path of its files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from octavo.core.errors import FetchError, ModelFileError, UserError
from octavo.io.catalogue import catalogue_names, fetch_demo_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
# Weights as safetensors only: pickled files run code when they are loaded.
_WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja")


def resolve_model(ref: str) -> Path:
    """A directory or a .gguf file, from a path, a demo model's name, or a hub id org/name[@rev].

    Raises ModelFileError for a path that does not exist or isn't a model, FetchError when a
    download fails, UserError for anything that is none of these.
    """
    if ref in catalogue_names():
        return fetch_demo_model(ref)
    path = Path(ref).expanduser()
    if path.is_dir() or path.is_file():
        return _checked(path)
    if _HUB_ID.fullmatch(ref) and path.suffix != ".gguf":
        return _from_hub(ref)
    raise _unknown(ref)


def _checked(path: Path) -> Path:
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelFileError(
            f"{path} has no config.json: a model directory is one that transformers can save or "
            "load; for a GGUF model give the .gguf file itself"
        )
    if path.is_file() and path.suffix != ".gguf":
        raise ModelFileError(f"{path} is neither a directory nor a .gguf file")
    return path


def _unknown(ref: str) -> UserError:
    if Path(ref).suffix == ".gguf" or ref.startswith(("/", ".", "~")):
        return ModelFileError(f"{ref} does not exist")
    near = difflib.get_close_matches(ref.lower(), catalogue_names(), n=1, cutoff=0.0)
    return UserError(
        f"{ref!r} is no model here: give a directory, a .gguf file, a hub id (org/name) or a demo "
        f"model ({', '.join(catalogue_names())}). The nearest name is {near[0]!r}."
    )


def _from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = ref.partition("@")
    try:
        path = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_WANTED)
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FetchError(
            f"the hub has no {ref}, or it asks for a login (hf auth login) or for accepting terms"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FetchError(
            f"{ref} is neither in the hub's local cache nor can the hub be reached; check the "
            "network and HF_HUB_OFFLINE"
        ) from error
    except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
        raise FetchError(f"{ref} can't be fetched from the hub: {error}") from error
    return _checked(Path(path))
