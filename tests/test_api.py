from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

import octavo
from octavo.api import LLM, _with_format
from octavo.backends.base import RuntimeConfig
from octavo.core.errors import (
    ConfigError,
    InternalError,
    ModelFileError,
    OctavoError,
    RequestError,
    ResourceError,
    TokenizerError,
    UserError,
)
from octavo.engine.answers import Completion, Delta
from octavo.engine.request import Request, SamplingParams
from octavo.engine.store import PrefixStore
from support.fakes import ByteTokenizer, CountingModel, FakeExecutor, FakeModel
from support.tokenizers import byte_level_tokenizer

CONFIG = RuntimeConfig(max_tokens=16, max_seqs=4, context=64, block_size=4)


def llm_of(model: FakeModel | None = None, tokenizer: object = None) -> LLM:
    """By default, a model that continues "abc" with "def"."""
    executor = FakeExecutor(model or CountingModel(258), CONFIG, (64,))
    return LLM.from_parts(executor, tokenizer or ByteTokenizer(), eos=ByteTokenizer.eos_ids)


@pytest.fixture
def llm():
    with llm_of() as model:
        yield model


def test_generate_answers_in_the_order_of_the_prompts(llm):
    answers = llm.generate(["a", "klm", "x" * 40], SamplingParams(max_tokens=3))
    assert [answer.text for answer in answers] == ["bcd", "nop", "yz{"]
    assert [answer.prompt_tokens for answer in answers] == [2, 4, 41]  # one begins the text
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_one_prompt_and_ids(llm):
    params = SamplingParams(max_tokens=2)
    assert llm.generate("a", params)[0].text == "bc"
    [answer] = llm.generate([[97]], params)
    assert (answer.text, answer.tokens, answer.prompt_tokens) == ("bc", (98, 99), 1)
    assert llm.generate([], params) == []


def test_the_default_is_greedy_and_repeats(llm):
    first, second = llm.generate(["a", "a"])
    assert first.tokens == second.tokens
    assert first.seed is None


def test_eos_ends_and_is_no_text(llm):
    [answer] = llm.generate([[253]], SamplingParams(max_tokens=9))
    assert answer.tokens == (254, 255, 256)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", 256)
    assert answer.text == "\ufffd\ufffd"  # two bytes that are no UTF-8


def test_a_stop_token_that_is_text_is_left_out(llm):
    [answer] = llm.generate("a", SamplingParams(stop_token_ids=(ord("d"),)))
    assert (answer.text, answer.tokens[-1], answer.stop_reason) == ("bc", ord("d"), ord("d"))


@pytest.mark.parametrize("n", [1, 3])
def test_stop_strings_end_every_choice_and_free_its_blocks(llm, n):
    params = SamplingParams(max_tokens=40, stop=("hi", "fg"), n=n)
    answers = llm.generate(["a", "c"], params)
    assert [answer.text for answer in answers] == ["bcde"] * n + ["de"] * n
    assert {(a.finish_reason, a.stop_reason) for a in answers} == {("stop", "fg")}
    assert bytes(answers[0].tokens) == b"bcdefg"  # no token of a step that came too late
    llm.generate("z", SamplingParams(max_tokens=1))  # after the aborts have been handled
    assert llm._engine.scheduler.pool.groups[0].free == 64
    llm._engine.check()


def test_a_partial_stop_string_at_the_end_is_text(llm):
    [answer] = llm.generate("a", SamplingParams(max_tokens=3, stop=("dX",)))
    assert answer.text == "bcd"


def test_choices_have_draws_of_their_own_and_a_seed_repeats_them():
    with llm_of(FakeModel(258)) as llm:
        params = SamplingParams(temperature=1.0, n=3, max_tokens=8)
        answers = llm.generate("a", params)
        assert [answer.choice for answer in answers] == [0, 1, 2]
        assert len({answer.tokens for answer in answers}) == 3
        assert answers[0].seed is not None
        again = llm.generate("a", dataclasses.replace(params, seed=answers[0].seed))
        assert [a.tokens for a in again] == [a.tokens for a in answers]


def test_logprobs_are_passed_on(llm):
    params = SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=True)
    [answer] = llm.generate("ab", params)
    assert [entry.token for entry in answer.logprobs] == list(answer.tokens)
    assert [entry.top[0][0] for entry in answer.logprobs] == list(answer.tokens)
    assert [entry.token for entry in answer.prompt_logprobs] == [97, 98]


def test_times_are_positive(llm):
    [answer] = llm.generate("a", SamplingParams(max_tokens=5))
    assert answer.time_to_first_token > 0
    assert answer.prefill_tokens_per_second > 0
    assert answer.decode_tokens_per_second > 0
    [answer] = llm.generate("a", SamplingParams(max_tokens=1))
    assert answer.decode_tokens_per_second == 0


def test_stream_gives_the_same_text_piece_by_piece(llm):
    deltas = list(llm.stream("a", SamplingParams(max_tokens=5, stop=("f",))))
    assert "".join(delta.text for delta in deltas) == "bcde"
    assert [delta.finish_reason for delta in deltas] == [None] * 4 + ["stop"]
    assert isinstance(deltas[-1].completion, Completion)
    assert deltas[-1].completion.text == "bcde"
    assert all(delta.completion is None for delta in deltas[:-1])


def test_a_stream_that_is_closed_frees_its_blocks(llm):
    stream = llm.stream([97], SamplingParams(max_tokens=60))
    assert next(stream) == Delta("b", (98,), 0)
    stream.close()
    assert list(stream) == []
    llm.generate("z", SamplingParams(max_tokens=1))
    assert llm._engine.scheduler.pool.groups[0].free == 64


def test_whole_characters_only(llm):
    """The two bytes of one character come with the second."""
    with llm_of() as llm:
        [answer] = llm.generate([[0xC2, 0xA7]], SamplingParams(max_tokens=1))
        assert answer.text == "\ufffd"  # 0xA8 alone


def test_a_prompt_beyond_the_context_names_both_numbers(llm):
    with pytest.raises(RequestError, match=r"65 tokens and the context holds 64"):
        llm.generate("x" * 64)
    with pytest.raises(RequestError, match=r"prompt 1 \(counted from 0\): .* 81 tokens") as caught:
        llm.generate(["a", "x" * 80])
    assert caught.value.code == "context_length_exceeded"
    assert llm.executor.rows == []  # nothing ran


def test_the_kind_of_what_is_no_prompt_is_named(llm):
    with pytest.raises(RequestError, match=r"got list of float and int .*tolist"):
        llm.generate([[1, 2.5]])


@pytest.mark.parametrize("prompts", [[1, 2], [["a"]], [[1.5]], [None], [[True]]])
def test_what_is_no_prompt_is_refused(llm, prompts):
    with pytest.raises(RequestError) as caught:
        llm.generate(prompts)
    assert caught.value.param == "prompt"


def test_an_error_of_the_executor_is_raised(llm):
    llm.executor.fail_with = ResourceError("no memory for the step")
    with pytest.raises(ResourceError, match="no memory for the step") as caught:
        llm.generate("a")
    assert caught.value is not llm.executor.fail_with  # several callers may get it
    llm.executor.fail_with = RequestError("too long", param="prompt", code="length")
    with pytest.raises(RequestError) as refused:
        llm.generate("a")
    assert (refused.value.param, refused.value.code) == ("prompt", "length")
    llm.executor.fail_with = None
    assert llm.generate("a", SamplingParams(max_tokens=1))[0].text == "b"


def test_chat_goes_through_the_template():
    tokenizer = byte_level_tokenizer()
    messages = [{"role": "user", "content": "hello"}]
    with llm_of(FakeModel(tokenizer.vocab_size), tokenizer) as llm:
        params = SamplingParams(max_tokens=4)
        answer = llm.chat(messages, params)
        prompt = tuple(tokenizer.encode(
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
            add_special=False, parse_special=True,
        ))  # fmt: skip
        expected = llm.executor.model.answer(Request("x", prompt, params, llm._eos))
        assert list(answer.tokens) == expected
        assert answer.prompt_tokens == len(prompt)
        deltas = list(llm.chat(messages, params, stream=True))
        assert deltas[-1].completion.tokens == answer.tokens
        with pytest.raises(RequestError, match="n must be 1"):
            llm.chat(messages, SamplingParams(n=2))


def test_chat_without_a_template_is_refused(llm):
    with pytest.raises(TokenizerError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}])


def test_default_params_are_the_models_and_never_silent():
    generation = {"temperature": 0.6, "top_k": 20.0, "top_p": 0.95}
    executor = FakeExecutor(FakeModel(258), CONFIG, (64,))
    with LLM.from_parts(executor, ByteTokenizer(), generation=generation) as llm:
        assert llm.default_params() == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
        assert llm.generate("a", SamplingParams(max_tokens=1))[0].seed is None
    executor = FakeExecutor(FakeModel(258), CONFIG, (64,))
    with LLM.from_parts(executor, ByteTokenizer(), generation={"top_p": 0.9}) as llm:
        assert llm.default_params() == SamplingParams(temperature=1.0, top_p=0.9)
    with llm_of() as llm:
        assert llm.default_params() == SamplingParams()


def test_calls_from_many_threads_share_the_steps(llm):
    params = SamplingParams(max_tokens=20)
    texts: dict[str, str] = {}

    def ask(letter: str) -> None:
        texts[letter] = llm.generate(letter, params)[0].text

    threads = [threading.Thread(target=ask, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for letter, text in texts.items():
        assert text == "".join(chr(ord(letter) + i) for i in range(1, 21))


def test_a_model_that_can_not_be_set_up_is_closed(monkeypatch, tmp_path):
    """Its executor has weights and, maybe, threads."""
    executor = FakeExecutor(FakeModel(258), dataclasses.replace(CONFIG, context=1), (64,))
    opened = OpenedModel(None, None, "hf", {}, (), {}, tmp_path)
    monkeypatch.setattr("octavo.io.hub.resolve_model", lambda ref: tmp_path)
    monkeypatch.setattr("octavo.io.checkpoint.open_model", lambda path: nullcontext(opened))
    monkeypatch.setattr("octavo.io.tokenizer.load_tokenizer", lambda *_: ByteTokenizer())
    monkeypatch.setattr("octavo.backends.native.backend.load", lambda *_: executor)
    with pytest.raises(InternalError, match="two tokens"):
        LLM("x")
    assert executor.closed
    assert "octavo-engine" not in {thread.name for thread in threading.enumerate()}


class OpenedModel(NamedTuple):
    """What LLM reads of an opened model."""

    spec: object
    source: object
    kind: str
    metadata: dict[str, object]
    eos_ids: tuple[int, ...]
    generation: dict[str, float]
    path: Path
    unread_keys: tuple[str, ...] = ()


def test_close_is_final_and_idempotent(llm):
    llm.generate("a", SamplingParams(max_tokens=1))
    llm.close()
    llm.close()
    assert llm.executor.closed
    with pytest.raises(OctavoError, match="closed"):
        llm.generate("a")


def test_what_was_loaded_is_visible(llm):
    assert llm.receipt().backend == "fake"
    assert llm.context == 64
    assert llm.step_rows == 16
    assert llm.spec is llm.executor.spec
    assert llm.tokenizer.bos_id == 257


def test_format_and_config_must_not_contradict():
    assert _with_format(CONFIG, "source") is CONFIG
    assert _with_format(CONFIG, "int4_g32").format == "int4_g32"
    same = dataclasses.replace(CONFIG, format="int4_g32")
    assert _with_format(same, "int4_g32") is same
    with pytest.raises(ConfigError, match=r"int8.*int4_g32"):
        _with_format(same, "int8")


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(UserError):
        LLM(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelFileError, match=r"config\.json"):
        LLM(str(tmp_path))


def test_the_package_exports_four_names_lazily():
    assert octavo.LLM is LLM
    assert octavo.SamplingParams is SamplingParams
    assert octavo.RuntimeConfig is RuntimeConfig
    assert sorted(dir(octavo)) == ["LLM", "RuntimeConfig", "SamplingParams", "__version__"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = octavo.nothing
    code = "import octavo, sys; print(any(m in sys.modules for m in ('numpy', 'octavo.api')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_a_named_prefix_is_found_by_prompts_and_after_a_restart(tmp_path):
    def load() -> LLM:
        config = RuntimeConfig(max_tokens=16, max_seqs=2, context=128, block_size=4)
        executor = FakeExecutor(FakeModel(258), config, (64,))
        store = PrefixStore(tmp_path, "fake" * 8)
        return LLM.from_parts(executor, ByteTokenizer(), eos=(256,), store=store)

    rules, short = "A long text of rules. ", SamplingParams(max_tokens=3, ignore_eos=True)
    with load() as llm:
        first = llm.prefix("rules", rules)
        assert (first.tokens, first.kept, first.read, first.restored) == (23, 20, 0, 0)
        [answer] = llm.generate(rules + "Why?", short)
        assert answer.cache is not None
        assert answer.cache.read == 20
        assert [(p.name, p.tokens, p.held) for p in llm.prefixes()] == [("rules", 20, True)]
    with load() as llm:
        assert [(p.name, p.tokens, p.held) for p in llm.prefixes()] == [("rules", 20, False)]
        again = llm.prefix("rules", rules)
        assert (again.kept, again.read, again.restored) == (20, 20, 20)
        [same] = llm.generate(rules + "Why?", short)
        assert same.tokens == answer.tokens
        assert llm.drop_prefix("rules")
        assert not llm.drop_prefix("rules")
        assert llm.prefixes() == []
        with pytest.raises(RequestError, match="at least 4 tokens"):
            llm.prefix("short", "A")


def test_a_prefix_of_messages_is_what_chats_begin_with():
    config = RuntimeConfig(max_tokens=16, max_seqs=2, context=128, block_size=4)
    tokenizer = byte_level_tokenizer()
    executor = FakeExecutor(FakeModel(tokenizer.vocab_size), config, (64,))
    system = {"role": "system", "content": "A long text of rules."}
    with LLM.from_parts(executor, tokenizer) as llm:
        kept = llm.prefix("rules", [system])
        answer = llm.chat([system, {"role": "user", "content": "Why?"}])
        assert answer.cache is not None
        assert answer.cache.read == kept.kept == kept.tokens // 4 * 4
