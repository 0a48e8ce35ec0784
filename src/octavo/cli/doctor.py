"""`octavo doctor`: what this process may use of the machine, and whether the kernels are right."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octavo._version import __version__
from octavo.cli.options import json_option
from octavo.cli.output import emit_json, fields, human_binary
from octavo.core.errors import UserError
from octavo.core.hardware import Machine, check_platform, probe
from octavo.io.cache import cache_root

if TYPE_CHECKING:
    from octavo.evals.bandwidth import Bandwidth
    from octavo.evals.kernel_check import KernelCheck

ISA_FLAGS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avxvnni": ("avx2", "fma", "f16c", "avx_vnni"),
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
    "avx512bf16": ("avx512_bf16",),
    "neon": ("asimd",),
    "neon_dotprod": ("asimddp",),
    "neon_i8mm": ("asimddp", "i8mm"),
}
PACKAGES = ("numpy", "tokenizers", "click", "rich", "torch", "transformers", "llama-cpp-python")


@click.command()
@click.option("--limits", is_flag=True, help="Measure reading, arithmetic, barriers and clock.")
@click.option("--save", type=Path, metavar="FILE", help="Write the limits there too, as JSON.")
@json_option
def command(limits: bool, save: Path | None, as_json: bool) -> int:
    """Check processor, limits, memory and kernels.

    With --limits, measure what bounds every speed instead: reads from L2, L3 and memory, int8, bf16
    and fp32 arithmetic, barriers, the clock; several short probes each, with their spread.

    Exit status 1 when a kernel is wrong, 2 when none can be run as asked (OCTAVO_ISA).
    """
    check_platform()
    if save and not limits:
        raise UserError("--save writes the limits: give --limits too")
    machine = probe()
    if limits:
        from octavo.cli.limits import show_limits

        show_limits(machine, as_json, save)
        return 0
    isas, checks, problem = _native()
    bandwidth = memory_speed(machine)
    wrong = [check for check in checks if not check.ok]
    if as_json:
        emit_json(
            {
                "version": __version__,
                "machine": machine,
                "processor_isas": available_isas(machine),
                "isas": isas,
                "bandwidth": bandwidth,
                "model_cache": str(cache_root()),
                "forced_isa": os.environ.get("OCTAVO_ISA"),
                "packages": versions(),
                "kernels": [{**_plain(check), "ok": check.ok} for check in checks],
                "ok": not wrong and not problem,
                "problem": problem,
            }
        )
    else:
        lines = {
            **_machine_lines(machine),
            "memory read": f"{bandwidth.bytes_per_second / 1e9:.1f} GB/s by {bandwidth.threads} "
            f"threads ({bandwidth.probe} probe, buffer of {human_binary(bandwidth.bytes)})",
            "model cache": str(cache_root()),
            **_kernel_lines(machine, isas, checks),
        }
        click.echo(fields(lines))
        for check in wrong:
            click.echo(f"WRONG: {check.isa} {check.kernel}: {check.error_over_bound:.3g} x bound")
        if problem:
            click.echo(f"PROBLEM: {problem}")
    return 1 if wrong else 2 if problem else 0


def _native() -> tuple[tuple[str, ...], tuple[KernelCheck, ...], str]:
    """Runnable instruction sets, kernel checks, and why there are none."""
    from octavo.evals.kernel_check import check_kernels, runnable_isas

    try:
        isas = runnable_isas()
        return isas, check_kernels(), _forced_problem(isas)
    except UserError as error:
        return (), (), str(error)


def _forced_problem(isas: Sequence[str]) -> str:
    forced = os.environ.get("OCTAVO_ISA")
    if not forced or forced in isas:
        return ""
    return f"OCTAVO_ISA={forced} does not run here: unset it, or take one of {', '.join(isas)}"


def memory_speed(machine: Machine) -> Bandwidth:
    """Read speed from beyond the largest cache, by all threads."""
    from octavo.evals.bandwidth import read_bandwidth

    largest = max((cache.size for cache in machine.caches), default=0)
    return read_bandwidth(max(64 << 20, 4 * largest), machine.threads)


def available_isas(machine: Machine) -> tuple[str, ...]:
    """Instruction sets of the processor that kernels can exist for, whatever this build has."""
    has = machine.flags.issuperset
    return tuple(name for name, flags in ISA_FLAGS.items() if has(flags))


def versions() -> dict[str, str | None]:
    """Versions of the packages that matter; None: not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _plain(check: KernelCheck) -> dict[str, object]:
    error = check.error_over_bound
    return {"isa": check.isa, "kernel": check.kernel, "error_over_bound": min(error, 1e300)}


def _machine_lines(machine: Machine) -> Mapping[str, str]:
    memory = machine.memory
    limit = human_binary(memory.limit) if memory.limit is not None else "none"
    quota = f"{machine.quota:.2f} processors" if machine.quota is not None else "none"
    packages = ", ".join(f"{name} {found}" for name, found in versions().items() if found)
    return {
        "octavo": f"{__version__} ({packages})",
        "processor": f"{machine.cpu}, {machine.architecture}, Linux {machine.kernel}",
        "threads": f"{machine.threads} (of {machine.cpus} processors; affinity "
        f"{_ranges(machine.affinity)}; control-group quota {quota})",
        "memory": f"{human_binary(memory.available)} available of {human_binary(memory.total)}, "
        f"control-group limit {limit}, pages of {human_binary(machine.page_size)}",
        "caches": ", ".join(
            f"L{c.level} {c.kind.lower()} {human_binary(c.size)} (shared by {c.shared_by})"
            for c in machine.caches
        ),
    }


def _kernel_lines(
    machine: Machine, isas: Sequence[str], checks: Sequence[KernelCheck]
) -> Mapping[str, str]:
    forced = os.environ.get("OCTAVO_ISA")
    return {
        "instruction sets": f"processor: {', '.join(available_isas(machine)) or 'baseline'}; "
        f"this build runs: {', '.join(isas) or 'none'}; OCTAVO_ISA: {forced or 'not set'}",
        "kernel self-test": f"{sum(c.ok for c in checks)} of {len(checks)} right",
    }


def _ranges(cpus: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2,5"."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
