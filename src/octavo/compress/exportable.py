"""What no other engine reads is refused before anything is written."""

from __future__ import annotations

from octavo.core.errors import UnsupportedError
from octavo.io.checkpoint import OpenModel
from octavo.io.phrases import read_phrases


def check_exportable(model: OpenModel) -> None:
    """Raises UnsupportedError for a vocabulary that is factored, or has phrases."""
    if model.spec.embed_rank or model.spec.head_rank:
        raise UnsupportedError(
            f"{model.path}: its vocabulary is factored, which only Octavo runs: export the model "
            "that it was made of"
        )
    phrases = read_phrases(model.path) if model.path.is_dir() else None
    if phrases is not None:
        raise UnsupportedError(
            f"{model.path}: has {len(phrases)} phrases, which no other engine's tokenizer knows: "
            "export the model that it was made of"
        )
