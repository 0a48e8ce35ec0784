"""The self-test finds kernels right here, and finds a wrong one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.core.errors import UnsupportedError
from octavo.evals import kernel_check

native = pytest.importorskip("octavo._native", reason="the native core isn't built")


def test_every_kernel_of_every_isa_here_is_right() -> None:
    checks = kernel_check.check_kernels()
    assert {check.isa for check in checks} == set(kernel_check.runnable_isas())
    assert [check for check in checks if not check.ok] == []
    acts = {check.kernel.split("_")[1] for check in checks if check.kernel.startswith("linear")}
    assert acts == {"a8", "a16", "abf16", "a32"}


class Skewed:
    """The native hooks with every linear result off by one part in a thousand."""

    def __getattr__(self, name: str) -> Any:
        return getattr(native.testing, name)

    def linear(self, *arguments: Any) -> Any:
        return np.asarray(native.testing.linear(*arguments)) * np.float32(1.001)


def test_a_kernel_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "native_testing", Skewed)
    checks = kernel_check.check_kernels(("generic",))
    wrong = {check.kernel for check in checks if not check.ok}
    assert wrong == {check.kernel for check in checks if check.kernel.startswith("linear")}


def test_missing_extension_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "octavo._native", None)
    with pytest.raises(UnsupportedError, match="make native"):
        kernel_check.native_testing()
