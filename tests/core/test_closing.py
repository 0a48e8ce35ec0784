from __future__ import annotations

import pytest

from octavo.core.closing import Closing


class Counted(Closing):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_closes_at_the_end_and_on_an_error() -> None:
    with Counted() as first:
        assert first.closed == 0
    assert first.closed == 1
    second = Counted()
    with pytest.raises(KeyError), second:
        raise KeyError
    assert second.closed == 1


def test_a_class_without_close_is_no_closing() -> None:
    class Forgot(Closing):
        pass

    with pytest.raises(TypeError, match="close"):
        Forgot()  # type: ignore[abstract]
