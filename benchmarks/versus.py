"""Octavo against the other engines, in interleaved rounds, with the bars that it is held to.

`python benchmarks/versus.py --files DIRECTORY` (files by `benchmarks/make_rivals.py`) measures
every rival that is installed or whose place is given, and names the others as not measured. In each
round every engine runs once, in turn; ratios are taken round by round. Each rival has its best
settings, found in a first short pass. With `--json FILE` every finished section is appended to the
file, and a section that the file has is not measured again; `--json` alone prints JSON. Run it
alone on the machine: a neighbour on the same cores shows up in every figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contenders
from contenders import Places
from ratios import MODELS, PAIRS, Verdict, verdicts
from report import rates_table, settings_lines, verdict_table
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sections import SECTIONS, Session, plan_of

from octavo.cli.output import emit_json
from octavo.core.hardware import probe

BRIEF = ["settings", "decode", "bytes", "prefill", "together"]  # of --quick
WIDE = 200  # columns of a table in a file


def main() -> None:
    arguments = _arguments()
    console = Console(stderr=True)
    places = Places(arguments.files, arguments.ik, arguments.openvino, arguments.threads)
    log = Log(None if arguments.json in (None, "-") else Path(arguments.json))
    try:
        for model in arguments.models:
            run_model(model, arguments, places, log, console)
    except KeyboardInterrupt:
        console.print("interrupted; finished sections are kept")
        if not log.path:
            sys.exit(130)
    result = summary(arguments, places, log)
    if arguments.json == "-":
        emit_json(result)
    else:
        print_report(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path, required=True, help="of make_rivals.py")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--rivals", nargs="+", default=[], choices=contenders.RIVALS)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--ik", type=Path, help="directory of ik_llama.cpp's programs")
    parser.add_argument("--openvino", type=Path, help="a Python with openvino-genai")
    parser.add_argument("--threads", type=int, default=probe().threads, help="of every engine")
    parser.add_argument("--quick", action="store_true", help="few rounds, llama.cpp alone")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    return parser.parse_args()


class Log:
    """Finished sections, one JSON line each; in memory only without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path and path.exists():
            text = path.read_text(encoding="utf-8")
            self.lines = [json.loads(line) for line in text.splitlines() if line.strip()]

    def find(self, model: str, section: str, key: object) -> dict[str, Any] | None:
        """The last record of this section, made in the same way."""
        for line in reversed(self.lines):
            if (line["model"], line["section"], line["made_by"]) == (model, section, key):
                return line
        return None

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def wanted_rivals(arguments: argparse.Namespace, model: str) -> tuple[str, ...]:
    """Those named; else all that a run of this model has time for."""
    if arguments.rivals:
        return tuple(arguments.rivals)
    if arguments.quick:
        return ("llama.cpp",)
    return plan_of(model, False).rivals


def run_model(
    model: str, arguments: argparse.Namespace, places: Places, log: Log, console: Console
) -> None:
    """Every section that the log doesn't have yet."""
    wanted = wanted_rivals(arguments, model)
    able = tuple(rival for rival in wanted if not contenders.absent(places, rival))
    plan = plan_of(model, arguments.quick)
    made_by = {"quick": arguments.quick, "rivals": list(able), "threads": places.threads}
    wanted_sections = arguments.sections or (BRIEF if arguments.quick else list(SECTIONS))
    todo = [name for name in wanted_sections if not log.find(model, name, made_by)]
    known = log.find(model, "settings", made_by)
    with contenders.pool() as runners, _progress(console) as bar:
        session = Session(model, plan, places, able, runners)
        if known:
            session.choose(known["chosen"])
        task = bar.add_task(model, total=len(todo), what="")
        for name in todo:
            bar.update(task, what=name)
            session.tell = lambda words, name=name: bar.update(task, what=f"{name}: {words}")
            begin = time.perf_counter()
            record = SECTIONS[name](session)
            seconds = round(time.perf_counter() - begin, 1)
            head = {"model": model, "section": name, "made_by": made_by, "seconds": seconds}
            log.add({**head, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record})
            bar.advance(task)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("{task.fields[what]}"), console=console)


def summary(arguments: argparse.Namespace, places: Places, log: Log) -> dict[str, Any]:
    """Everything that was measured, the verdicts, and what it took."""
    models = {model: _latest(log, model) for model in arguments.models}
    ran = {rival for line in log.lines for rival in line["made_by"]["rivals"]}
    missing = {
        rival: contenders.absent(places, rival) or "not part of this run, name it with --rivals"
        for rival in contenders.RIVALS
        if rival not in ran
    }
    judged = [
        dataclasses.asdict(verdict)
        for model, sections in models.items()
        for verdict in verdicts(model, sections)
    ]
    return {
        "command": shlex.join(["python", "benchmarks/versus.py", *sys.argv[1:]]),
        "machine": dataclasses.asdict(probe()) | {"flags": len(probe().flags)},
        "versions": contenders.versions(places),
        "pairs": dict(PAIRS),
        "not_measured": missing,
        "models": models,
        "bars": judged,
    }


def _latest(log: Log, model: str) -> dict[str, Any]:
    """The last record of each section."""
    return {line["section"]: line for line in log.lines if line["model"] == model}


def print_report(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(result["command"], soft_wrap=True, highlight=False)
    for model, sections in result["models"].items():
        if sections:
            console.print(rates_table(model, sections))
            for line in settings_lines(sections):
                console.print(line, soft_wrap=True, highlight=False, markup=False)
    found: Sequence[Verdict] = [Verdict(**fields) for fields in result["bars"]]
    console.print(verdict_table(found))
    for rival, why in result["not_measured"].items():
        console.print(f"{rival} not measured: {why}")


if __name__ == "__main__":
    main()
