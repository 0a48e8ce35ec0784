"""An artifact that lost its source runs only when someone insists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from octavo.api import LLM
from octavo.backends.base import RuntimeConfig
from octavo.cli.main import cli
from octavo.compress.job import compress
from octavo.compress.recipe import from_flags
from octavo.core.errors import UserError
from octavo.io.checkpoint import open_model
from octavo.io.collapse import refuse_collapsed
from support.small_models import material, talking_model

TEXT = {"text": "notes", "kl": {"mean": {"value": 7.25}}, "same_top": {"value": 0.125}}


def artifact(tmp_path: Path, quality: Any) -> Path:
    path = talking_model(tmp_path / "m")
    compress(path, from_flags("rtn", "int8_g32"), tmp_path / "a", material(0))
    manifest = tmp_path / "a" / "octavo.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "quality": quality}))
    return tmp_path / "a"


def test_it_is_refused_with_its_figures(tmp_path: Path) -> None:
    path = artifact(tmp_path, {"collapsed": True, "texts": [TEXT]})
    with pytest.raises(UserError, match=r"notes: same top token 12\.5%, mean KL 7\.25"):
        LLM(str(path))
    LLM(str(path), config=RuntimeConfig(context=64, allow_collapsed=True)).close()


@pytest.mark.parametrize("quality", [None, {"collapsed": False, "texts": [TEXT]}, [], "x"])
def test_others_run(tmp_path: Path, quality: Any) -> None:
    with open_model(artifact(tmp_path, quality)) as model:
        refuse_collapsed(model)


@pytest.mark.parametrize("texts", [None, [], [{}], [3], [{"same_top": {"value": "x"}}]])
def test_missing_figures_are_no_way_around(tmp_path: Path, texts: Any) -> None:
    path = artifact(tmp_path, {"collapsed": True, "texts": texts})
    with open_model(path) as model, pytest.raises(UserError, match="no figures stored"):
        refuse_collapsed(model)


def test_the_command_line_has_the_override(tmp_path: Path) -> None:
    path = artifact(tmp_path, {"collapsed": True, "texts": [TEXT]})
    words = ["run", str(path), "a", "--max-tokens", "1", "--context", "64"]
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, UserError)
    assert "--allow-collapsed" in str(refused.exception)
    assert CliRunner().invoke(cli, [*words, "--allow-collapsed"]).exit_code == 0
