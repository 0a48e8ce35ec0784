"""The machine probe: pure parsers on sample texts, and whole made-up machines on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.core import hardware
from octavo.core.errors import UnsupportedError

GIB = 1 << 30


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n"
}


def test_kilobyte_lines_become_bytes_and_others_are_skipped() -> None:
    sizes = hardware.parse_kilobytes("Rss:   2 kB\nPss:  1 kB\nHugePages_Total:       0\n")
    assert sizes == {"Rss": 2048, "Pss": 1024}


def test_cpuinfo_of_x86_and_of_arm() -> None:
    x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: sse avx2\n\nprocessor\t: 1\n"
    arm = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n"
    assert hardware.parse_cpuinfo(x86) == ("Some CPU @ 2GHz", frozenset({"sse", "avx2"}))
    assert hardware.parse_cpuinfo(arm) == ("0xd0c", frozenset({"fp", "asimd", "asimddp"}))
    assert hardware.parse_cpuinfo("") == ("", frozenset())


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8\n", (0, 1, 2, 3, 8)), ("5", (5,)), ("", ()), ("\n", ())]
)
def test_processor_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert hardware.parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "size"), [("48K\n", 49152), ("2M", 2 << 20), ("7", 7), ("", 0), ("x", 0)]
)
def test_cache_sizes(text: str, size: int) -> None:
    assert hardware.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "quota"),
    [("150000 100000\n", 1.5), ("max 100000", None), ("", None), ("5 0", None)],
)
def test_quota_of_version_2(text: str, quota: float | None) -> None:
    assert hardware.parse_cpu_max(text) == quota


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("", None), ("1024\n", 1024), ("9223372036854771712", None)],
)
def test_memory_limit_counts_only_below_the_machines_total(text: str, limit: int | None) -> None:
    assert hardware.parse_limit(text, GIB) == limit


def test_cgroup_paths_of_both_versions() -> None:
    text = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/u:x\n"
    assert hardware.parse_cgroup_paths(text) == {
        "memory": "/a/b",
        "cpu": "/c",
        "cpuacct": "/c",
        "": "/u:x",
    }


@pytest.mark.parametrize(
    ("affinity", "quota", "threads"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 1), (8, 0.3, 1), (2, 16.0, 2)],
)
def test_threads_that_can_run_at_once(affinity: int, quota: float | None, threads: int) -> None:
    assert hardware.usable_threads(affinity, quota) == threads


def test_version_2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/pod/box"
    root = lay(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/pod/box\n",
            f"{group}/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
            f"{group}/memory.max": f"{4 * GIB}\n",
            f"{group}/memory.current": f"{3 * GIB}\n",
            f"{group}/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
        },
    )
    machine = hardware.probe(root)
    assert machine.quota == 2.5
    assert machine.memory == hardware.Memory(16 * GIB, 2 * GIB, 4 * GIB)


def test_version_1_reads_its_own_files(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "3:memory:/box\n2:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 1024\n",
        },
    )
    machine = hardware.probe(root)
    assert (machine.quota, machine.threads) == (0.5, 1)
    assert machine.memory.limit == 2 * GIB
    assert machine.memory.available == GIB + 1024


def test_a_limit_of_the_address_space_counts_what_is_mapped_already(tmp_path: Path) -> None:
    line = "Max address space         {}           unlimited            bytes     \n"
    files = {
        **MEMINFO,
        "proc/self/limits": f"Limit  Soft Limit\n{line.format(3 * GIB)}",
        "proc/self/status": f"VmPeak: 9 kB\nVmSize:   {GIB >> 10} kB\n",
    }
    assert hardware.probe(lay(tmp_path / "a", files)).memory.available == 2 * GIB
    files["proc/self/limits"] = line.format("unlimited")
    assert hardware.probe(lay(tmp_path / "b", files)).memory.available == 8 * GIB
    files["proc/self/limits"] = line.format(5)
    assert hardware.probe(lay(tmp_path / "c", files)).memory.available == 0


def test_version_1_without_a_quota_says_minus_one(tmp_path: Path) -> None:
    files = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}
    root = lay(tmp_path, {f"sys/fs/cgroup/cpu/{name}": text for name, text in files.items()})
    assert hardware.probe(root).quota is None


def test_path_outside_of_the_mounted_tree_falls_back_to_its_root(tmp_path: Path) -> None:
    root = lay(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/not/mounted/here\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
        },
    )
    assert hardware.probe(root).memory.limit == GIB


def test_bare_machine_without_any_file_still_answers(tmp_path: Path) -> None:
    machine = hardware.probe(tmp_path)
    assert machine.threads == len(machine.affinity) == machine.cpus
    assert machine.memory == hardware.Memory(0, 0, None)
    assert machine.caches == ()


def test_caches_list_level_kind_size_and_sharing(tmp_path: Path) -> None:
    first = min(os.sched_getaffinity(0))
    index = f"sys/devices/system/cpu/cpu{first}/cache/index0"
    texts = {"level": "3\n", "type": "Unified\n", "size": "32768K\n", "shared_cpu_list": "0-7\n"}
    root = lay(tmp_path, {f"{index}/{name}": text for name, text in texts.items()})
    assert hardware.probe(root).caches == (hardware.Cache(3, "Unified", 32 << 20, 8),)


def test_this_machine_is_consistent() -> None:
    machine = hardware.probe()
    assert 1 <= machine.threads <= len(machine.affinity) <= machine.cpus
    assert 0 < machine.memory.available <= machine.memory.total
    assert machine.page_size % 4096 == 0


def test_memory_of_this_process_grows_with_what_it_holds() -> None:
    before = hardware.process_memory()
    held = bytearray(os.urandom(1)) * (64 << 20)
    grown = hardware.process_memory().anonymous - before.anonymous
    assert grown >= len(held) * 9 // 10
    assert before.proportional <= before.resident


def test_a_peak_that_is_forgotten_begins_anew() -> None:
    held = bytearray(os.urandom(1)) * (64 << 20)
    before = hardware.process_memory().peak
    del held
    assert hardware.forget_peak()
    assert before - hardware.process_memory().peak >= 48 << 20


def test_a_peak_that_stays_is_said(tmp_path: Path) -> None:
    assert not hardware.forget_peak(tmp_path)


def test_memory_of_an_invisible_process_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="smaps_rollup"):
        hardware.process_memory(1, tmp_path)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64")])
def test_other_platforms_get_a_clear_error(system: str, machine: str) -> None:
    with pytest.raises(UnsupportedError, match="Linux on x86-64 and aarch64"):
        hardware.check_platform(system, machine)


def test_supported_platforms_pass() -> None:
    hardware.check_platform("Linux", "x86_64")
    hardware.check_platform("Linux", "aarch64")
