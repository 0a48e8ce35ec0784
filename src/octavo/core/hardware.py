"""What this process may use of the machine: processors, memory, caches.

The platform's files are read here and nowhere else. Parsers are pure functions of text; `probe`
takes the root directory, so that a test can hand it a made-up machine. A container's limits
(control groups, versions 1 and 2, the tightest of the whole path) and the affinity mask count, not
what the board carries.
"""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from octavo.core.errors import UnsupportedError

MACHINES = ("x86_64", "aarch64")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache as a processor sees it. `shared_by`: how many processors share it."""

    level: int
    kind: str  # "Data", "Instruction", "Unified"
    size: int  # bytes
    shared_by: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `limit` is the tightest control group's, None when there is none.

    `available` is what can still be taken without swapping, limits included: those of control
    groups and of this process's address space (`ulimit -v`).
    """

    total: int
    available: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes of one process: proportional set size, anonymous pages, resident set size, and the
    largest resident set so far (0 where the kernel doesn't say)."""

    proportional: int
    anonymous: int
    resident: int
    peak: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it.

    cpus      processors online.  affinity  those this process may run on.
    quota     processors' worth of time that control groups grant, or None (no limit).
    threads   how many threads can really run at once: min(affinity, quota rounded down), >= 1.
    """

    cpu: str
    architecture: str
    flags: frozenset[str]
    cpus: int
    affinity: tuple[int, ...]
    quota: float | None
    threads: int
    memory: Memory
    page_size: int
    caches: tuple[Cache, ...]
    kernel: str


def check_platform(system: str | None = None, machine: str | None = None) -> None:
    """Raise UnsupportedError unless this is Linux on x86-64 or aarch64."""
    system = system or platform.system()
    machine = machine or platform.machine()
    if system != "Linux" or machine not in MACHINES:
        raise UnsupportedError(
            f"Octavo runs on Linux on x86-64 and aarch64; this is {system} on {machine}: "
            "use a Linux machine, container or virtual machine"
        )


def probe(root: Path = Path("/")) -> Machine:
    """Look at the machine under `root` now. Missing files count as "no limit" or "unknown"."""
    cpu, flags = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    affinity = tuple(sorted(os.sched_getaffinity(0)))
    groups = _control_groups(root)
    quota = _tightest([_quota(d) for d in groups])
    online = parse_cpu_list(_read(root / "sys/devices/system/cpu/online"))
    return Machine(
        cpu=cpu or "unknown processor",
        architecture=platform.machine(),
        flags=flags,
        cpus=len(online) or len(affinity),
        affinity=affinity,
        quota=quota,
        threads=usable_threads(len(affinity), quota),
        memory=_memory(root, groups),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        caches=_caches(root / "sys/devices/system/cpu" / f"cpu{affinity[0]}" / "cache"),
        kernel=platform.release(),
    )


def usable_threads(affinity: int, quota: float | None) -> int:
    """Threads that can run at once; a quota of 1.5 processors gives 1, never 0."""
    return max(1, affinity if quota is None else min(affinity, math.floor(quota + 1e-9)))


def process_memory(pid: int | None = None, root: Path = Path("/")) -> ProcessMemory:
    """Memory of a process (this one by default) from /proc/PID/smaps_rollup.

    Raises UnsupportedError when the kernel or the permissions don't give it.
    """
    path = root / "proc" / str(pid or os.getpid()) / "smaps_rollup"
    sizes = parse_kilobytes(_read(path))
    if "Pss" not in sizes:
        raise UnsupportedError(f"{path} can't be read: memory of that process is not visible here")
    status = parse_kilobytes(_read(path.with_name("status")))
    resident = sizes.get("Rss", 0)
    return ProcessMemory(sizes["Pss"], sizes.get("Anonymous", 0), resident, status.get("VmHWM", 0))


def forget_peak(root: Path = Path("/")) -> bool:
    """Begin this process's peak of memory anew, at what is resident now (Linux: 5 written to
    clear_refs). False where the kernel or the permissions don't let it."""
    try:
        (root / "proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def parse_kilobytes(text: str) -> dict[str, int]:
    """`Name:   123 kB` lines (meminfo, smaps_rollup, status) -> bytes by name."""
    found = re.findall(r"^(\S+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) << 10 for name, value in found}


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and feature flags of the first processor (x86 "flags", arm "Features")."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    name = fields.get("model name") or fields.get("CPU part", "")
    return name.strip(), frozenset((fields.get("flags") or fields.get("Features", "")).split())


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """`0-3,8` -> (0, 1, 2, 3, 8); blank -> ()."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def parse_size(text: str) -> int:
    """`48K`, `32M`, `512` -> bytes; anything else -> 0."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * _UNITS[match[2]] if match else 0


def parse_limit(text: str, total: int) -> int | None:
    """A control group's memory limit; `max`, blank, or at least the machine's total: None."""
    value = text.strip()
    return int(value) if value.isdigit() and int(value) < total else None


def parse_cpu_max(text: str) -> float | None:
    """cgroup v2 `cpu.max`: `150000 100000` -> 1.5; `max 100000` -> None."""
    quota, _, period = text.strip().partition(" ")
    return _ratio(quota, period)


def parse_cgroup_paths(text: str) -> dict[str, str]:
    """/proc/self/cgroup -> path by controller; the unified hierarchy stands under ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _ratio(quota: str, period: str) -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _quota(group: Path) -> float | None:
    version2 = parse_cpu_max(_read(group / "cpu.max"))
    quota, period = (_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return version2 if version2 is not None else _ratio(quota.strip(), period.strip())


def _control_groups(root: Path) -> list[Path]:
    """Every directory whose limits bind this process: the group and all its ancestors.

    Inside a container the listed path may lie outside of the mounted tree: what isn't there is
    skipped, and the mount's own root stands for it.
    """
    mount = root / "sys/fs/cgroup"
    paths = parse_cgroup_paths(_read(root / "proc/self/cgroup"))
    bases = {
        "": (mount, mount / "unified"),
        "memory": (mount / "memory",),
        "cpu": _cpu_bases(mount),
    }
    found: list[Path] = []
    for controller, roots in bases.items():
        relative = Path(paths.get(controller, "/").lstrip("/"))
        for base in roots:
            found += [base / part for part in (relative, *relative.parents)]
    return [group for group in dict.fromkeys(found) if group.is_dir()]


def _cpu_bases(mount: Path) -> tuple[Path, ...]:
    return mount / "cpu", mount / "cpu,cpuacct"


def _memory(root: Path, groups: list[Path]) -> Memory:
    sizes = parse_kilobytes(_read(root / "proc/meminfo"))
    total = sizes.get("MemTotal", 0)
    limits = [(_memory_limit(group, total), group) for group in groups]
    bound = [(limit, group) for limit, group in limits if limit is not None]
    free = [max(0, limit - _memory_used(group)) for limit, group in bound]
    free += _address_space(root)
    available = min([sizes.get("MemAvailable", total), *free])
    return Memory(total, available, min((limit for limit, _ in bound), default=None))


def _address_space(root: Path) -> list[int]:
    """[bytes that this process may still map], or nothing where that is not limited."""
    limits = _read(root / "proc/self/limits")
    found = re.search(r"^Max address space +(\d+) ", limits, re.MULTILINE)
    if found is None:
        return []
    used = parse_kilobytes(_read(root / "proc/self/status")).get("VmSize", 0)
    return [max(0, int(found[1]) - used)]


def _memory_limit(group: Path, total: int) -> int | None:
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [parse_limit(_read(group / name), total) for name in names]
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_used(group: Path) -> int:
    """Bytes charged to a group, less its file cache, which is given back when needed."""
    current = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
    found = re.findall(r"^(?:total_)?inactive_file (\d+)$", _read(group / "memory.stat"), re.M)
    cache = max(map(int, found), default=0)
    return max(0, int(current.strip() or 0) - cache)


def _caches(directory: Path) -> tuple[Cache, ...]:
    caches = [
        Cache(
            level=int(_read(index / "level") or 0),
            kind=_read(index / "type").strip(),
            size=parse_size(_read(index / "size")),
            shared_by=len(parse_cpu_list(_read(index / "shared_cpu_list"))),
        )
        for index in sorted(directory.glob("index*"))
    ]
    return tuple(cache for cache in caches if cache.size)


def _tightest(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _read(path: Path) -> str:
    """A small system file's text; "" when the kernel doesn't have it or doesn't show it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
