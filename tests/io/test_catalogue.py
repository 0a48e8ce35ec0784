from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from octavo.core.errors import FetchError, ResourceError, UserError
from octavo.io import catalogue, fetch
from octavo.io.catalogue import cached_path, catalogue_names, fetch_demo_model
from octavo.io.catalogue_data import DEMO_MODELS
from octavo.io.fetch import Assembly, Wheel

PARTS = [b"GGUF" + bytes(range(256)) * 9000, b"second", b"third"]
WHOLE = b"".join(PARTS)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def metadata(i: int) -> dict[str, str]:
    tags = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return {"METADATA": f"Metadata-Version: 2.1\nName: parts{i}\nVersion: 1.0\n", "WHEEL": tags}


def make_wheels(directory: Path) -> tuple[Wheel, ...]:
    wheels = []
    for i, part in enumerate(PARTS, 1):
        path = directory / f"parts{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data/part.bin", part)
            for name, text in metadata(i).items():
                archive.writestr(f"parts{i}-1.0.dist-info/{name}", text)
        wheels.append(Wheel(f"parts{i}==1.0", sha(path.read_bytes()), "data/part.bin"))
    return tuple(wheels)


@pytest.fixture
def assembly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assembly:
    """Three real wheels, taken by the real pip from a directory in place of the index."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return Assembly("m.gguf", len(WHOLE), sha(WHOLE), make_wheels(directory))


def leftovers(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "models").iterdir()}


def test_parts_are_put_together_and_wheels_go(assembly: Assembly, tmp_path: Path) -> None:
    counts: list[int] = []
    path = fetch.fetch(assembly, "models", counts.append)
    assert path.read_bytes() == WHOLE
    assert sum(counts) == len(WHOLE)
    assert leftovers(tmp_path) == {"m.gguf", ".m.gguf.lock"}


def test_a_file_that_is_there_is_not_fetched_again(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "cache" / "models" / "m.gguf"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"kept")
    monkeypatch.setattr(subprocess, "run", None)  # calling it would fail
    assert fetch.fetch(assembly, "models").read_bytes() == b"kept"


@pytest.mark.parametrize("broken", ["wheel hash", "whole hash", "member", "no such package"])
def test_what_differs_is_refused_and_leaves_nothing(
    broken: str, assembly: Assembly, tmp_path: Path
) -> None:
    first, second, third = assembly.wheels
    zeros = "0" * 64
    changed = {
        "wheel hash": Wheel(second.requirement, zeros, second.member),
        "whole hash": second,
        "member": Wheel(second.requirement, second.sha256, "data/other.bin"),
        "no such package": Wheel("absent==1.0", zeros, second.member),
    }[broken]
    digest = zeros if broken == "whole hash" else assembly.sha256
    bad = Assembly(assembly.name, assembly.size, digest, (first, changed, third))
    name = "m.gguf" if broken == "whole hash" else changed.requirement
    with pytest.raises(FetchError, match=re.escape(name)):
        fetch.fetch(bad, "models")
    assert leftovers(tmp_path) == {".m.gguf.lock"}


def test_without_pip_it_says_what_to_do(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="ensurepip"):
        fetch.fetch(assembly, "models")


def test_too_little_disk_is_said_before_anything_is_fetched(assembly: Assembly) -> None:
    huge = Assembly(assembly.name, 1 << 60, assembly.sha256, assembly.wheels)
    with pytest.raises(ResourceError, match=r"needs \d+ MB in .*OCTAVO_CACHE"):
        fetch.fetch(huge, "models")


def test_a_cache_that_can_not_be_made_is_named(
    assembly: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match="set OCTAVO_CACHE"):
        fetch.fetch(assembly, "models")


def _fetch_in_child(assembly: Assembly, path: str) -> None:
    Path(path).write_bytes(fetch.fetch(assembly, "models").read_bytes())


def test_two_processes_take_turns(assembly: Assembly, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = [tmp_path / "one", tmp_path / "two"]
    children = [
        context.Process(target=_fetch_in_child, args=(assembly, str(path))) for path in results
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [path.read_bytes() for path in results] == [WHOLE, WHOLE]


def test_origin_and_licence_are_printed(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(catalogue, "_assembly", lambda model: assembly)
    assert fetch_demo_model("gemma3-270m").read_bytes() == WHOLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "https://huggingface.co/google/gemma-3-270m" in captured.err
    assert "Gemma Terms of Use" in captured.err
    assert "parts1==1.0 and 2 more" in captured.err


def test_the_cache_is_looked_at_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    assert cached_path("smollm2-135m") is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m.gguf").touch()
    assert fetch_demo_model("smollm2-135m") == tmp_path / "models" / "smollm2-135m.gguf"


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"smollm2-135m, gemma3-270m"):
        fetch_demo_model("gpt-5")


def test_the_entries_are_well_formed() -> None:
    names = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
    assert catalogue_names() == names
    digests = [digest for model in DEMO_MODELS for digest in (model.sha256, *model.wheels)]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == len(digests)
    for model in DEMO_MODELS:
        wheels = catalogue._assembly(model).wheels
        assert len({(wheel.requirement, wheel.member) for wheel in wheels}) == len(model.wheels)
        for wheel in wheels:  # the member lies in the distribution's own package
            package = wheel.requirement.partition("==")[0].replace("-", "_")
            assert wheel.member.startswith(f"{package}/")
