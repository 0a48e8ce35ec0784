"""The model card says what the manifest says; and one process at a time writes an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.compress.card import model_card
from octavo.compress.job import compress, partial
from octavo.compress.recipe import from_flags
from octavo.compress.state import locked
from octavo.core.errors import ConfigError
from octavo.io.checkpoint import open_model
from support.small_models import material, small_model


def test_the_card_has_formats_source_and_quality(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    recipe = from_flags("rtn", "int4_g32", (("head", "int8_g32"),))
    result = compress(path, recipe, tmp_path / "a", material(0, measured=40))
    assert result.quality is not None
    text = (tmp_path / "a" / "README.md").read_text()
    content = json.loads((tmp_path / "a" / "octavo.json").read_text())
    assert text == model_card(content)
    assert "| 15 | `int4_g32` |\n| 1 | `int8_g32` |" in text
    assert content["source"]["files"]["model.safetensors"]["sha256"] in text
    assert f"| random | {result.quality.texts[0][1].tokens} | {result.quality.kl:.4f} (" in text
    assert content["files"]["README.md"]["bytes"] == len(text.encode())
    open_model(tmp_path / "a").close()


def test_without_a_text_it_says_so(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    compress(path, from_flags("rtn", "int4_g32"), tmp_path / "a", material(0))
    assert "Not measured." in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_collapse_stands_in_it(tmp_path: Path, collapsed: bool) -> None:
    path = small_model("llama", tmp_path / "m")
    compress(path, from_flags("rtn", "int4_g32"), tmp_path / "a", material(0, measured=40))
    content = json.loads((tmp_path / "a" / "octavo.json").read_text())
    content["quality"]["collapsed"] = collapsed
    assert ("**Collapsed**" in model_card(content)) == collapsed


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    recipe, out = from_flags("rtn", "int4_g32"), tmp_path / "a"
    with locked(partial(out)), pytest.raises(ConfigError, match="another process"):
        compress(path, recipe, out, material(0))
    compress(path, recipe, out, material(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "m"]
