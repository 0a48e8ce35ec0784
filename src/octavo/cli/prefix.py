"""`--prefix FILE`: a text before the prompt, whose keys and values are kept between runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo.core.errors import UserError

if TYPE_CHECKING:
    from octavo.api import LLM
    from octavo.engine.named import KeptPrefix

prefix_option = click.option(
    "--prefix",
    "prefix_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="A text before the prompt, computed once: its keys and values are kept in the cache"
    " directory.",
)


def read_prefix(path: Path) -> str:
    """The file's text. Raises UserError when it can't be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the prefix {path}: {error}") from error
    if not text.strip():
        raise UserError(f"the prefix {path} is empty")
    return text


def store_directory() -> Path:
    from octavo.io.cache import cache_directory

    return cache_directory("prefixes")


def keep_prefix(
    llm: LLM, path: Path, prompt_with: Callable[[str], Sequence[int]], way: str
) -> KeptPrefix | None:
    """Keep what all prompts share that `prompt_with` makes of a question; says what came from the
    store. A prefix of less than a block is not kept. `way` tells apart prompts of different
    forms around the same file."""
    from octavo.engine.reuse import common_prefix

    shared = common_prefix(tuple(prompt_with("a")), tuple(prompt_with("Why")))
    tokens = tuple(prompt_with("a"))[:shared]
    if len(tokens) < llm.executor.layout.block_size:
        return None
    kept = llm.prefix(f"{way} {path.resolve()}", tokens)
    click.echo(
        f"prefix {path.name}: {kept.restored} of {kept.tokens} tokens read from the store,"
        f" {kept.tokens - kept.read} computed, {kept.seconds:.2f} s",
        err=True,
    )
    return kept
