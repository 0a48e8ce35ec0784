"""Artifacts that have lost their source: they run only when someone insists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.errors import UserError
from octavo.io.artifact import has_manifest, read_manifest
from octavo.io.checkpoint import OpenModel


def refuse_collapsed(model: OpenModel) -> None:
    """Raise UserError, with the figures, for an artifact whose manifest says `collapsed`."""
    if model.kind != "hf" or not has_manifest(model.path):
        return
    quality = read_manifest(model.path).content.get("quality")
    if not isinstance(quality, Mapping) or not quality.get("collapsed"):
        return
    texts = quality.get("texts")
    lines = [_figures(text) for text in texts] if isinstance(texts, list) else []
    raise UserError(
        f"{model.path}: collapsed: it agrees with its source on fewer than half of the top tokens "
        f"({'; '.join(filter(None, lines)) or 'no figures stored'}). Compress the model with more "
        "bits or another method, or insist with --allow-collapsed "
        "(RuntimeConfig.allow_collapsed)."
    )


def _figures(text: Any) -> str:
    try:
        top, kl = float(text["same_top"]["value"]), float(text["kl"]["mean"]["value"])
        return f"{text['text']}: same top token {top:.1%}, mean KL {kl:.2f}"
    except (KeyError, TypeError, ValueError):
        return ""
