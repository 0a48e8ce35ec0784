"""Commands that the documentation shows are commands that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from octavo.cli.main import COMMANDS, cli, main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("glossary.md", "cli.md", "measuring.md")


def shown_commands() -> list[str]:
    found = {
        command.replace("\\|", "|")
        for page in PAGES
        for command in re.findall(
            r"`(octavo [a-z][^`]*)`", (DOCS / page).read_text(encoding="utf-8")
        )
        if "COMMAND" not in command and "[" not in command
    }
    return sorted(found)


@pytest.mark.parametrize("shown", shown_commands())
def test_shown_commands_parse(shown: str) -> None:
    _, name, *words = shlex.split(shown)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    if words == ["MODEL"] or not words:  # a command named, not shown in use
        return
    command.make_context(name, words)


def test_every_command_is_in_the_table() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `octavo (\w+)", text, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("shown", [c for c in shown_commands() if c.startswith("octavo formats ")])
def test_shown_formats_exist(shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*shlex.split(shown)[1:], "--json"]) == 0
    assert capsys.readouterr().out.startswith("{")


def test_glossary_is_sorted_and_names_a_command_for_every_term() -> None:
    lines = (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ") and line.count(" | ") == 2]
    terms = [row[0].removeprefix("| ").lower() for row in rows[1:]]
    keys = [re.sub(r"[^a-z0-9 ]", "", term.replace("δ", "delta")) for term in terms]
    assert keys == sorted(keys)
    assert all(row[2].startswith("`") for row in rows[1:])
