"""`octavo doctor`: what it prints, and its status when a kernel is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.doctor import _ranges, available_isas
from octavo.cli.main import main
from octavo.core.errors import UnsupportedError
from octavo.core.hardware import probe
from octavo.evals import kernel_check, limits
from octavo.evals.kernel_check import KernelCheck
from octavo.io.cache import cache_root


def fake_checks(monkeypatch: pytest.MonkeyPatch, *checks: KernelCheck) -> None:
    monkeypatch.setattr(kernel_check, "runnable_isas", lambda: ("generic",))
    monkeypatch.setattr(kernel_check, "check_kernels", lambda: checks)


def test_healthy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_checks(monkeypatch, KernelCheck("generic", "linear_a8_w4_generic", 0.25))
    monkeypatch.setenv("OCTAVO_ISA", "generic")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 right" in text
    assert "OCTAVO_ISA: generic" in text
    assert f"{probe().threads} (of" in text


def test_json_holds_the_machine_and_every_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_checks(monkeypatch, KernelCheck("generic", "k", 0.25))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["machine"]["threads"] == probe().threads
    assert report["kernels"] == [
        {"isa": "generic", "kernel": "k", "error_over_bound": 0.25, "ok": True}
    ]
    assert report["packages"]["click"]
    assert report["bandwidth"]["bytes_per_second"] > 0
    assert report["bandwidth"]["bytes"] >= 4 * max((c.size for c in probe().caches), default=0)
    assert report["model_cache"] == str(cache_root())


def test_wrong_kernel_is_named_and_the_status_is_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_checks(monkeypatch, KernelCheck("generic", "bad", float("inf")))
    assert main(["doctor"]) == 1
    assert "WRONG: generic bad" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_missing_native_core_is_reported_not_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> tuple[str, ...]:
        raise UnsupportedError("the native core can't be loaded: build it")

    monkeypatch.setattr(kernel_check, "runnable_isas", missing)
    assert main(["doctor"]) == 2
    assert "PROBLEM: the native core" in capsys.readouterr().out


def test_an_instruction_set_that_does_not_run_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_checks(monkeypatch, KernelCheck("generic", "k", 0.25))
    monkeypatch.setenv("OCTAVO_ISA", "foo")
    assert main(["doctor"]) == 2
    assert "PROBLEM: OCTAVO_ISA=foo does not run here: unset it" in capsys.readouterr().out


def test_limits_are_measured_printed_and_saved_where_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "PROBES", 1)
    monkeypatch.setattr(limits, "READ_SECONDS", 0.0)
    assert main(["doctor", "--limits", "--save", str(tmp_path / "l.json")]) == 0
    text = capsys.readouterr().out
    assert "read memory" in text
    assert "clock" in text
    saved = json.loads((tmp_path / "l.json").read_text())
    assert saved["threads"] == probe().threads
    assert main(["doctor", "--save", str(tmp_path / "m.json")]) == 2
    assert "--limits" in capsys.readouterr().err


def test_processor_list_is_written_in_ranges() -> None:
    assert _ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"
    assert _ranges(()) == ""


def test_isas_follow_from_processor_flags() -> None:
    from octavo._native import testing

    assert set(testing.isas()) == {"generic", *available_isas(probe())}
