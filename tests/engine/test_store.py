"""Prefixes on disk: what comes back gives the same answers, and what is damaged never comes."""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

import pytest

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import ResourceError
from octavo.engine.engine import Engine
from octavo.engine.request import CachePolicy, CacheUse, Mark, Output, Request, SamplingParams
from octavo.engine.store import PrefixStore, identity
from support.fakes import fake_executor
from support.native_models import gemma_like, llama_like, load_native

CONFIG = RuntimeConfig(max_tokens=6, max_seqs=3, context=24, block_size=4)
PROMPT = (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)
KEPT = CachePolicy(marks=(Mark(8, 60.0, "rules"),))
MINE = "mine" * 8


def engine_of(
    directory: Path, windows: tuple[int | None, ...] = (None,), who: str = MINE, **fields: object
) -> Engine:
    executor = fake_executor(windows=windows, config=CONFIG)
    return Engine(executor, store=PrefixStore(directory, who, **fields))


def ask(engine: Engine, prompt: tuple[int, ...] = PROMPT, **fields: object) -> CacheUse:
    """Runs alone to its end; the answer is checked."""
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    request = engine.submit(Request("a", prompt, params, **fields))
    outputs: list[Output] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check()
        engine.prefixes.cache.check()
    tokens = [t for output in outputs for t in output.tokens]
    assert tokens == engine.executor.model.answer(request)
    return next(output.cache for output in outputs if output.cache is not None)


def one_file(directory: Path) -> Path:
    [path] = directory.glob("*.prefix")
    return path


@pytest.mark.parametrize("windows", [(None,), (None, 5), (3,)])
def test_a_pinned_prefix_outlives_its_engine(tmp_path, windows):
    assert ask(engine_of(tmp_path, windows), cache=KEPT).read == 0
    engine = engine_of(tmp_path, windows)
    rows = sum(engine.executor.rows)
    assert ask(engine).read == 8
    assert sum(engine.executor.rows) - rows == 2 + 2  # the prompt's last two, two decodes
    assert engine.stats().prefix_restored == 8
    assert engine.prefixes.cache.pins["rules"].restored


def test_what_was_not_pinned_is_not_kept(tmp_path):
    ask(engine_of(tmp_path))
    assert list(tmp_path.glob("*.prefix")) == []
    assert ask(engine_of(tmp_path)).read == 0


def test_only_prompts_that_begin_so_fetch_it(tmp_path):
    ask(engine_of(tmp_path), cache=KEPT)
    engine = engine_of(tmp_path)
    assert ask(engine, (2, *PROMPT[1:])).read == 0
    assert ask(engine, cache=CachePolicy(salt="other")).read == 0
    assert ask(engine, cache=CachePolicy(read=False)).read == 0
    assert engine.stats().prefix_restored == 0


def test_the_longest_is_fetched(tmp_path):
    engine = engine_of(tmp_path)
    ask(engine, cache=CachePolicy(marks=(Mark(4, 60.0, "short"), Mark(8, 60.0, "long"))))
    assert ask(engine_of(tmp_path)).read == 8
    assert len(list(tmp_path.glob("*.prefix"))) == 2


def test_a_name_holds_its_last_prefix_only(tmp_path):
    engine = engine_of(tmp_path)
    ask(engine, cache=KEPT)
    ask(engine, PROMPT[::-1], cache=KEPT)
    assert len(list(tmp_path.glob("*.prefix"))) == 1
    again = engine_of(tmp_path)
    assert ask(again).read == 0
    assert ask(again, PROMPT[::-1]).read == 8


def test_the_same_again_writes_nothing(tmp_path):
    engine = engine_of(tmp_path)
    ask(engine, cache=KEPT)
    before = one_file(tmp_path).stat().st_ino
    ask(engine, cache=KEPT)
    assert one_file(tmp_path).stat().st_ino == before


def test_a_dropped_prefix_is_gone(tmp_path):
    engine = engine_of(tmp_path)
    ask(engine, cache=KEPT)
    assert engine.prefixes.drop("rules")
    assert not engine.prefixes.drop("rules")
    assert ask(engine_of(tmp_path)).read == 0


def test_after_its_time_it_is_gone(tmp_path):
    ask(engine_of(tmp_path), cache=KEPT)
    os.utime(one_file(tmp_path), (0, 0))
    assert ask(engine_of(tmp_path)).read == 0
    assert list(tmp_path.glob("*.prefix")) == []


def test_all_names_are_listed(tmp_path):
    engine = engine_of(tmp_path)
    ask(engine, cache=KEPT)
    [held] = engine.prefixes.named()
    assert (held.name, held.tokens, held.held, held.stored) == ("rules", 8, True, True)
    [stored] = engine_of(tmp_path).prefixes.named()
    assert (stored.name, stored.tokens, stored.held, stored.stored) == ("rules", 8, False, True)


def test_every_damaged_byte_is_found(tmp_path, caplog):
    ask(engine_of(tmp_path), cache=KEPT)
    path = one_file(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        spoiled = bytearray(whole)
        spoiled[at] ^= 0x10
        path.write_bytes(bytes(spoiled))
        caplog.clear()
        engine = engine_of(tmp_path)
        assert ask(engine).read == 0, at
        assert engine.stats().prefix_restored == 0
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(lines) == 1, at
        assert str(path) in lines[0]


@pytest.mark.parametrize("size", [0, 5, 20, 100, -1])
def test_a_cut_off_file_is_found(tmp_path, size, caplog):
    ask(engine_of(tmp_path), cache=KEPT)
    path = one_file(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert ask(engine_of(tmp_path)).read == 0
    assert "is not used" in caplog.text


def test_an_older_version_is_named(tmp_path, caplog):
    ask(engine_of(tmp_path), cache=KEPT)
    path = one_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[8:12] = struct.pack("<I", 0)
    path.write_bytes(bytes(data))
    assert ask(engine_of(tmp_path)).read == 0
    assert "version 0" in caplog.text


def test_another_identity_leaves_it_alone(tmp_path, caplog):
    ask(engine_of(tmp_path), cache=KEPT)
    with caplog.at_level(logging.INFO):
        assert ask(engine_of(tmp_path, who="other" * 7)).read == 0
    assert "1 prefix files" in caplog.text
    assert ask(engine_of(tmp_path)).read == 8


def test_a_file_under_a_wrong_name_is_not_believed(tmp_path, caplog):
    ask(engine_of(tmp_path), cache=KEPT)
    path = one_file(tmp_path)
    path.rename(path.with_name("o" + path.name[1:]))
    assert ask(engine_of(tmp_path, who="oine" + MINE[4:])).read == 0
    assert "another model" in caplog.text


def test_the_one_used_longest_ago_goes_first(tmp_path):
    engine = engine_of(tmp_path, max_bytes=1000)
    kept, known = [], set()
    for age in range(6):
        prompt = (age, *PROMPT)
        ask(engine, prompt, cache=CachePolicy(marks=(Mark(8, 60.0, str(age)),)))
        kept.append(prompt)
        [path] = set(tmp_path.glob("*.prefix")) - known
        known.add(path)
        os.utime(path, (0, 4e9 + age))  # apart, whatever the clock's grain
    sizes = [path.stat().st_size for path in tmp_path.glob("*.prefix")]
    assert 1 < len(sizes) < 6
    assert sum(sizes) <= 1000 + max(sizes)  # sizes of headers are not foreseen
    again = engine_of(tmp_path, max_bytes=1000)
    found = [ask(again, prompt).read for prompt in kept]
    assert found == [0] * (6 - len(sizes)) + [8] * len(sizes)


def test_a_prefix_larger_than_the_store_is_not_kept(tmp_path, caplog):
    ask(engine_of(tmp_path, max_bytes=10), cache=KEPT)
    assert list(tmp_path.glob("*.prefix")) == []
    assert "more than its store" in caplog.text


def test_a_full_pool_computes_what_it_cannot_fetch(tmp_path):
    ask(engine_of(tmp_path), cache=KEPT)
    executor = fake_executor(kv_blocks=6, config=CONFIG)
    engine = Engine(executor, store=PrefixStore(tmp_path, MINE))
    long = SamplingParams(max_tokens=20, ignore_eos=True)
    engine.submit(Request("long", (6, 6, 6, 6), long))
    for _ in range(15):
        engine.step()
    request = engine.submit(Request("b", PROMPT, SamplingParams(max_tokens=3, ignore_eos=True)))
    engine._waits.sleep()  # until it is read: the pool is still full then
    outputs = []
    while engine.has_work():
        outputs += engine.step()
        engine.check()
    tokens = [t for o in outputs for t in o.tokens if o.request_id == "b"]
    assert tokens == executor.model.answer(request)
    assert engine.stats().prefix_restored == 0


def test_a_directory_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="prefix store"):
        PrefixStore(tmp_path / "file" / "store", MINE)


NATIVE = RuntimeConfig(max_tokens=64, max_seqs=4, context=256, kv_tokens=1024, threads=2)
SPECS = {"llama": llama_like(), "gemma": gemma_like()}


def native_answer(directory: Path | None, name: str, marks: tuple[Mark, ...]) -> list[object]:
    """Tokens with all bits of their log-probabilities, and what was cached."""
    executor = load_native(SPECS[name], NATIVE)
    model = Path(__file__)  # any file: the weights are random, of a fixed seed
    store = None if directory is None else PrefixStore(directory, identity(executor, model))
    engine = Engine(executor, store=store)
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=7, logprobs=2, ignore_eos=True)
    engine.submit(Request("a", tuple(range(3, 93)), params, cache=CachePolicy(marks=marks)))
    outputs: list[Output] = []
    while engine.has_work():
        outputs += engine.step()
    executor.close()
    read = next(output.cache.read for output in outputs if output.cache is not None)
    return [read, [(output.tokens, output.logprobs) for output in outputs]]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_restarted_from_the_store_is_solo_to_the_bit(tmp_path, name):
    solo = native_answer(None, name, ())
    assert native_answer(tmp_path, name, (Mark(80, 60.0, "rules"),)) == solo
    read, answers = native_answer(tmp_path, name, ())
    assert (read, answers) == (80, solo[1])


def test_identity_tells_models_formats_and_settings_apart(tmp_path):
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path in files:
        path.write_bytes(path.name.encode())
    configs = (NATIVE, RuntimeConfig(context=256, threads=1, kv_format="fp32"),
               RuntimeConfig(context=256, threads=1, activations="a32"))  # fmt: skip
    executors = [load_native(SPECS["llama"], config, "Q8_0") for config in configs]
    found = {identity(executor, path) for executor in executors for path in files}
    assert len(found) == 6
    longer = load_native(SPECS["llama"], RuntimeConfig(context=512, threads=1), "Q8_0")
    assert identity(longer, files[0]) == identity(executors[0], files[0])
