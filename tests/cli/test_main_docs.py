"""The documentation holds: commands it shows parse, links and paths it names lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from octavo.cli.main import COMMANDS, cli, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PLANS = frozenset({DOCS / "architecture.md"})  # the agreed shape, which later stages fill in
TREES = ("src", "native", "tests", "docs", "scripts", "benchmarks", "examples")


def pages(without: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, str]]:
    return ((page, page.read_text(encoding="utf-8")) for page in PAGES if page not in without)


def shown_commands() -> list[str]:
    found = {
        command.replace("\\|", "|")
        for _, text in pages(PLANS)
        for command in re.findall(r"`(octavo [a-z][^`]*)`|^\$ (octavo [^#\n]*)", text, re.MULTILINE)
        for command in command
        if command and "COMMAND" not in command and "[" not in command
    }
    return sorted(found)


def links() -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), link)
        for page, text in pages()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link
    ]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as a renderer makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("page", "link"), links())
def test_relative_links_lead_to_a_file_and_a_heading(page: str, link: str) -> None:
    name, _, heading = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists()
    assert not heading or heading in anchors(target.read_text(encoding="utf-8"))


def test_named_files_exist() -> None:
    named = {
        (str(page.relative_to(ROOT)), path)
        for page, text in pages(PLANS)
        for path in re.findall(rf"`((?:{'|'.join(TREES)})/[\w./-]*)`", text)
    }
    assert named
    assert [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("shown", shown_commands())
def test_shown_commands_parse(shown: str) -> None:
    _, name, *words = shlex.split(shown)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    if words == ["MODEL"] or all(word.startswith("-") for word in words):  # named, not in use
        return
    command.make_context(name, words)


def test_every_command_is_in_the_table() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `octavo ([\w-]+)", text, re.MULTILINE) == list(COMMANDS)


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
