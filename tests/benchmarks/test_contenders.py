"""The pool of runners, and which settings a contender runs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contenders
import pytest
from contenders import Contender, Places, Pool, for_use, pool, rivals


class Fake:
    def __init__(self, name: str) -> None:
        self.name, self.closed = name, False
        self.facts: dict[str, Any] = {}
        self.command: list[str] = []

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    found: list[Fake] = []

    def start(name: str, setup: contenders.Setup) -> Fake:
        found.append(Fake(name))
        return found[-1]

    monkeypatch.setattr(contenders, "start", start)
    return found


def test_one_process_for_equal_setups(started: list[Fake]) -> None:
    runners = Pool()
    first = runners.get("a", {"threads": 1, "model": "m"})
    assert runners.get("a", {"model": "m", "threads": 1}) is first
    runners.get("a", {"threads": 2, "model": "m"})
    assert len(started) == 2


def test_what_a_section_does_not_need_is_ended(started: list[Fake]) -> None:
    runners = Pool()
    for threads in (1, 2, 3):
        runners.get("a", {"threads": threads})
    runners.keep([{"threads": 2}, {"threads": 9}])
    assert [fake.closed for fake in started] == [True, False, True]
    runners.get("a", {"threads": 1})
    assert len(started) == 4


def test_every_process_is_ended_when_the_block_is_left(started: list[Fake]) -> None:
    def interrupted() -> None:
        with pool() as runners:
            runners.get("a", {"threads": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert started[0].closed


def test_chosen_settings_count_by_use() -> None:
    contender = Contender("llama.cpp a", [{"threads": 2}, {"threads": 1}])
    contender.chosen["decode"] = {"threads": 1}
    assert contender.setup("decode") == {"threads": 1}
    assert contender.setup("prefill") == {"threads": 2}


def test_only_llama_cpp_needs_a_context_of_its_own_for_a_batch() -> None:
    assert for_use({"engine": "llama.cpp"}, "together") == {"engine": "llama.cpp", "sequences": 16}
    assert for_use({"engine": "llama.cpp"}, "decode") == {"engine": "llama.cpp"}
    assert for_use({"engine": "openvino"}, "together") == {"engine": "openvino"}


def test_quantized_keys_and_values_are_tried_with_flash_attention_only() -> None:
    lines = rivals(Places(Path("files")), "smollm2-135m", ("llama.cpp",))
    assert set(lines) == {"llama.cpp a", "llama.cpp b", "llama.cpp a kv8"}
    assert all(setup["flash_attention"] for setup in lines["llama.cpp a kv8"].settings)
    tried = [
        (s["flash_attention"], s["repack"], s["threads"]) for s in lines["llama.cpp a"].settings
    ]
    assert len(set(tried)) == len(tried) == 5
