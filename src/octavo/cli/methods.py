"""`octavo methods`: what each compression method does to the output, needs, costs and gains."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.options import json_option
from octavo.cli.output import emit_json, fields
from octavo.core.errors import UnsupportedError, UserError

if TYPE_CHECKING:
    from octavo.backends.native.pattern_gains import Measured
    from octavo.compress.caches import CacheFormat
    from octavo.compress.catalogue import Described
    from octavo.evals.planned import Gain

_GAINS = "method-gains.json"


@click.command()
@click.argument("term", required=False)
@click.option("--measure", is_flag=True, help="Measure speed gained on this machine, and keep it.")
@json_option
def command(term: str | None, measure: bool, as_json: bool) -> None:
    """List compression methods, or those that TERM names (awq, clipping, "weight clustering").

    For each: whether it preserves the model's output, with the test that proves it, or approximates
    it, with the KL divergence it was measured to cost; what it needs, quantizes and chooses how;
    which kernel runs what it makes on this machine; and space saved against speed gained here.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("methods need torch: `pip install 'octavo[torch]'`")
    from octavo.compress.caches import cache_formats, find_cache_formats
    from octavo.compress.catalogue import described, find, measured

    chosen = find(term) if term else described()
    caches = find_cache_formats(term) if term else cache_formats()
    if not (chosen or caches):
        words = [(each.name, *each.synonyms) for each in described()]
        words += [(each.name, *each.synonyms) for each in cache_formats()]
        known = sorted({word for group in words for word in group})
        raise UserError(f"no method is known as {term!r}; known: {', '.join(known)}")
    gains = _gains([each.format for each in chosen if each.format], measure)
    record = measured()
    patterns = _patterns(measure and any(map(_prunes, chosen)))
    rows = [_row(each, record, gains, patterns) for each in chosen]
    if as_json:
        about = {key: value for key, value in record.items() if key != "methods"}
        kv = [asdict(each) for each in caches]
        emit_json({"methods": rows, "kv_formats": kv, "kl_measured": about})
        return
    paragraphs = [*(_paragraph(row, record) for row in rows), *map(_cache_paragraph, caches)]
    click.echo("\n\n".join(paragraphs))


def _prunes(method: Described) -> bool:
    return "pruning" in method.synonyms


def _row(
    method: Described, record: Mapping[str, Any], gains: Mapping[str, Gain], patterns: Measured
) -> dict[str, object]:
    from octavo.evals.planned import Planned, planned

    plan = planned(method.format) if method.format else Planned("", "", "", 0.0, "no format")
    gain = gains.get(method.format)
    return {
        **asdict(method),
        "kl": record.get("methods", {}).get(method.name),
        "kernel": plan.kernel,
        "kernel_note": plan.fallback or plan.reason,
        "bits": plan.bits,
        "smaller_than_bf16": 16 / plan.bits if plan.bits else None,
        "faster_than_bf16": gain.faster if gain else None,
        "zeros_left_out": asdict(patterns) if _prunes(method) else None,
    }


def _paragraph(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    kernel = row["kernel"] or "no native kernel"
    note = f" ({row['kernel_note']})" if row["kernel_note"] else ""
    lines = {
        "output": f"{row['output']}, {_evidence(row, record)}",
        "calibration data": row["data"],
        "static or dynamic": row["moment"],
        "quantizes": row["quantizes"],
        "numbers are": row["choice"],
        "kernel here": f"{kernel}{note}, {row['format']}",
        "space and speed": _gain(row),
        **_zeros(row),
        "also known as": ", ".join(row["synonyms"]) or "-",
        "source": row["source"],
    }
    return f"{row['name']} ({row['kind']})\n{fields(lines)}"


def _cache_paragraph(cache: CacheFormat) -> str:
    slow = "no native kernel: the reference decoder runs it, slowly; --strict refuses it"
    lines = {
        "output": "approximated; `octavo compress --kv` measures the KL with the artifact",
        "calibration data": "none",
        "static or dynamic": "dynamic: as keys and values are written or grow old",
        "quantizes": f"keys and values, {cache.bits:g} bits each (heads of 64, scales counted)",
        "one scale for": cache.shares,
        "kernel here": "native" if cache.backend == "native" else slow,
        "source": cache.source,
    }
    return f"{cache.name} (format of keys and values: --kv {cache.name})\n{fields(lines)}"


def _evidence(row: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    kl, proof = row["kl"], f"held by {row['proof']}" if row["proof"] else ""
    if kl is None:
        return proof or "KL not measured yet (benchmarks/methods.py)"
    others = [step for step in kl["steps"] if step not in (row["name"], "rtn")]
    behind = f" with {', '.join(others)}" if others else ""
    cost = (
        f"KL {kl['kl']:.4f} ({kl['low']:.4f} to {kl['high']:.4f}){behind} as {kl['format']}, "
        f"{kl['bits']:.2f} bits a weight ({record['model']}, {record['date']})"
    )
    return f"{proof}; then {cost}" if proof else cost


def _gain(row: Mapping[str, Any]) -> str:
    if not row["bits"]:
        return "-"
    size = f"{row['smaller_than_bf16']:.2f} times smaller than bf16"
    faster = row["faster_than_bf16"]
    return f"{size}, " + (
        f"decodes {faster:.2f} times as fast here" if faster else "speed: see --measure"
    )


def _zeros(row: Mapping[str, Any]) -> dict[str, str]:
    """Of a pruner: each pattern that kernels know, and what the others gain."""
    from octavo.backends.native.pattern_gains import PatternGain, sentence

    found = row["zeros_left_out"]
    if found is None:
        return {}
    by_weight: dict[str, list[PatternGain]] = {}
    for gain in (PatternGain(**each) for each in found["gains"]):
        name = f"{gain.pattern}, {gain.bits} bits, {gain.zeros:.0%} zeros"
        by_weight.setdefault(name, []).append(gain)
    lines = {
        name: f"{mine[0].smaller:.2f} times smaller than dense, {sentence(mine)}"
        for name, mine in by_weight.items()
    }
    where = f"{found['machine']}, {found['date']}, weights from memory"
    others = "smaller in the file alone: dense bytes and time when they run"
    return {**lines, "measured on": where, "other patterns": others}


def _patterns(measure: bool) -> Measured:
    """What leaving out zeros gained on this machine, measured now or before, else elsewhere."""
    from octavo.backends.native.backend import resolve_isa
    from octavo.backends.native.pattern_gains import keep, machine_name, recorded
    from octavo.core.hardware import probe

    if measure:
        from octavo.evals.patterns import gains

        keep(gains(progress=lambda name: click.echo(f"measuring {name}", err=True)))
    return recorded(machine_name(probe(), resolve_isa("")))


def _gains(formats: Sequence[str], measure: bool) -> dict[str, Gain]:
    """What was measured on this machine before, and now."""
    from octavo.evals.planned import Gain, gains
    from octavo.io.cache import cache_directory, cache_root
    from octavo.io.mapping import replacing

    path = cache_root() / "measured" / _GAINS
    machine = _machine()
    kept = _read(path).get(machine, {})
    found = {name: Gain(**gain) for name, gain in kept.items()}
    if not measure:
        return found
    wanted = list(dict.fromkeys(formats))
    new = gains(wanted, lambda name: click.echo(f"measuring {name}", err=True))
    found |= {gain.format: gain for gain in new}
    content = {**_read(path), machine: {name: asdict(gain) for name, gain in found.items()}}
    with replacing(cache_directory("measured") / _GAINS) as file:
        file.write(json.dumps(content, indent=1).encode())
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _machine() -> str:
    from octavo.backends.native.backend import resolve_isa
    from octavo.core.hardware import probe

    machine = probe()
    return f"{machine.cpu}, {machine.threads} threads, {resolve_isa('')}"
