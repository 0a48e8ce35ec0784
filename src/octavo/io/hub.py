"""From what a person writes as a model to the path of its files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from octavo.core.errors import FetchError, UserError
from octavo.io.catalogue import catalogue_names, fetch_demo_model
from octavo.io.model_path import is_model_path, not_a_model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
# Weights as safetensors only: pickled files run code when they are loaded.
_MODEL = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja")
_CONFIG = ("config.json",)


def resolve_model(ref: str) -> Path:
    """A directory or a .gguf file, from a path, a demo model's name, or a hub id org/name[@rev].

    Raises ModelFileError for a path that does not exist or isn't a model, FetchError when a
    download fails, UserError for anything that is none of these.
    """
    return _resolve(ref, _MODEL)


def resolve_config(ref: str) -> Path:
    """What `read_header` needs of a model: as `resolve_model`, but of a hub id only the config is
    fetched, and a path may be that of a config.json."""
    path = Path(ref).expanduser()
    return path if path.name == "config.json" else _resolve(ref, _CONFIG)


def _resolve(ref: str, wanted: tuple[str, ...]) -> Path:
    if ref in catalogue_names():
        return fetch_demo_model(ref)
    path = Path(ref).expanduser()
    if ref and path.exists():
        return _checked(path)
    if _HUB_ID.fullmatch(ref) and path.suffix != ".gguf":
        return _checked(_from_hub(ref, wanted))
    raise _unknown(ref)


def _checked(path: Path) -> Path:
    if not is_model_path(path):
        raise not_a_model(path)
    return path


def _unknown(ref: str) -> UserError:
    if Path(ref).suffix == ".gguf" or ref.startswith(("/", ".", "~")) or ref.endswith("/"):
        return not_a_model(Path(ref).expanduser())
    near = difflib.get_close_matches(ref.lower(), catalogue_names(), n=1, cutoff=0.5)
    hint = f" The nearest name is {near[0]!r}." if near else ""
    return UserError(
        f"{ref!r} is no model here: give a directory, a .gguf file, a hub id (org/name) or a demo "
        f"model ({', '.join(catalogue_names())}).{hint}"
    )


def _from_hub(ref: str, wanted: tuple[str, ...]) -> Path:
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
        path = snapshot_download(repository, revision=revision or None, allow_patterns=list(wanted))
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
    return Path(path)
