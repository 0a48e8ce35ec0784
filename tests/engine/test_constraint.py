"""Grammars in the engine: every answer matches, and nobody else notices."""

from __future__ import annotations

import json
import re
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import RequestError
from octavo.engine.constraint import Grammars, Vocabulary, vocabulary_of
from octavo.engine.engine import Engine
from octavo.engine.grammar import (
    any_grammar,
    choice_grammar,
    json_grammar,
    lark_grammar,
    object_grammar,
    regex_grammar,
)
from octavo.engine.request import Output, Request, SamplingParams
from support.fakes import FakeExecutor, FakeModel
from support.tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.eos_ids
SIZE = TOKENIZER.vocab_size + 13  # padded, and no multiple of 32
CONFIG = RuntimeConfig(max_tokens=16, max_seqs=4, context=160, block_size=4)
PROMPT = tuple(TOKENIZER.encode("ask", add_special=False))


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return vocabulary_of(TOKENIZER, EOS)


def engine_of(blocks: int = 200, config: RuntimeConfig = CONFIG, seed_model: int = 0) -> Engine:
    model = FakeModel(SIZE, (None, 12) if seed_model else (None,))
    executor = FakeExecutor(model, config, (blocks,) * len(model.windows))
    return Engine(executor, vocabulary=vocabulary)


def request(grammar: str, id_: str = "a", prompt: tuple[int, ...] = PROMPT, **params) -> Request:
    params = {"max_tokens": 120, "temperature": 1.0, "seed": 3, **params}
    return Request(id_, prompt, SamplingParams(**params), EOS, grammar=grammar)


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[Output]]:
    for wanted in requests:
        engine.submit(wanted)
    found: dict[tuple[str, int], list[Output]] = {}
    while engine.has_work():
        for output in engine.step():
            found.setdefault((output.request_id, output.choice), []).append(output)
        engine.check()
    return found


def text_of(outputs: list[Output]) -> str:
    return TOKENIZER.decode([token for output in outputs for token in output.tokens])


NUMBERS = regex_grammar(r"[0-9]{3,5}-[a-c]+;")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_regex_is_matched_from_end_to_end(seed, temperature):
    prompt = (*PROMPT, 5 + seed)
    [outputs] = run(
        engine_of(), request(NUMBERS, prompt=prompt, seed=seed, temperature=temperature)
    ).values()
    last = outputs[-1]
    if last.finish == "stop":
        assert re.fullmatch(r"[0-9]{3,5}-[a-c]+;", text_of(outputs))
        assert last.stop_reason is None
    else:
        assert re.fullmatch(r"[0-9]{3,5}-[a-c]+", text_of(outputs))


def schemas() -> st.SearchStrategy[dict]:
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.integers(0, 40).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 30}),
        st.lists(st.text("abc\"\\é", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)
        .map(lambda texts: {"enum": texts}),
        st.integers(0, 3).map(lambda n: {"type": "string", "maxLength": n, "pattern": "^[a-z]*$"}),
    )  # fmt: skip

    def nested(inner):
        arrays = inner.map(lambda s: {"type": "array", "items": s, "minItems": 1, "maxItems": 2})
        names = st.lists(st.sampled_from("pqrs"), min_size=1, max_size=3, unique=True)
        objects = names.flatmap(
            lambda found: st.tuples(*[inner] * len(found)).map(
                lambda parts: {
                    "type": "object",
                    "properties": dict(zip(found, parts, strict=True)),
                    "required": found,
                    "additionalProperties": False,
                }
            )
        )
        return st.one_of(arrays, objects)

    return st.recursive(leaves, nested, max_leaves=4)


def valid(value: object, schema: dict) -> bool:
    """The few keywords that `schemas` uses, read independently of llguidance."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        return isinstance(value, str) and bool(
            re.fullmatch("[a-z]*", value) and len(value) <= schema["maxLength"]
        )
    if kind == "array":
        return isinstance(value, list) and 1 <= len(value) <= 2 and all(
            valid(item, schema["items"]) for item in value
        )  # fmt: skip
    if kind == "object":
        parts = schema["properties"]
        return isinstance(value, dict) and list(value) == list(parts) and all(
            valid(value[name], part) for name, part in parts.items()
        )  # fmt: skip
    return value is None if kind == "null" else type(value) is bool


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas(), st.integers(0, 2**32))
def test_every_answer_is_valid_under_its_schema(schema, seed):
    grammar = json_grammar(schema, whitespace="")
    [outputs] = run(engine_of(), request(grammar, seed=seed, max_tokens=150)).values()
    if outputs[-1].finish == "stop":
        assert valid(json.loads(text_of(outputs)), schema)
    else:
        assert outputs[-1].finish == "length"
        assert sum(len(output.tokens) for output in outputs) == 150


def test_others_in_the_batch_do_not_notice():
    """Rows without a grammar are bit for bit what they are alone."""
    free = [request("", f"f{i}", (7, 8, 9 + i), max_tokens=30, logprobs=3) for i in range(2)]
    alone = {key: value for wanted in free for key, value in run(engine_of(), wanted).items()}
    mixed = run(
        engine_of(), free[0], request(NUMBERS, "c"), free[1], request(object_grammar(), "d")
    )
    for key, outputs in alone.items():
        assert [o.tokens for o in mixed[key]] == [o.tokens for o in outputs]
        assert [o.logprobs for o in mixed[key]] == [o.logprobs for o in outputs]


def test_the_grammar_changes_the_draw_and_not_the_log_probabilities():
    """The raw distribution is reported, as without a grammar."""
    wanted = request(choice_grammar(["yes", "no"]), logprobs=2, temperature=0.0)
    [outputs] = run(engine_of(), wanted).values()
    tokens = list(PROMPT)
    for output in outputs:
        best = FakeModel(SIZE).logits([tokens]).astype(np.float64)
        logs = best - best.max() - np.log(np.exp(best - best.max()).sum())
        assert output.logprobs[0].logprob == pytest.approx(logs[output.tokens[0]], abs=1e-6)
        assert output.logprobs[0].top[0][0] == int(best.argmax())
        tokens += output.tokens
    assert text_of(outputs) in ("yes", "no")


@pytest.mark.parametrize("blocks", [14, 200])
@pytest.mark.parametrize("chunk", [4, 16])
def test_preempted_forked_cached_and_chunked_answers_are_the_same(blocks, chunk):
    """n > 1, a small pool (which preempts) and small steps change nothing."""
    grammar = regex_grammar("[a-f]{6}(x|y)[0-9]{8}!")
    config = RuntimeConfig(max_tokens=chunk, max_seqs=4, context=48, block_size=4)
    wanted = [request(grammar, str(i), (*PROMPT, 9, 9, 9), n=3, seed=i, max_tokens=20)
              for i in range(2)]  # fmt: skip
    alone = {k: v for one in wanted for k, v in run(engine_of(), one).items()}
    engine = engine_of(blocks, config)
    together = run(engine, *wanted)
    assert (engine.scheduler.preemptions > 0) == (blocks == 14)
    again = run(engine, *wanted)  # from the prefix cache
    for key, outputs in alone.items():
        text = text_of(outputs)
        assert re.fullmatch("[a-f]{6}(x|y)[0-9]{8}!", text)
        assert text_of(together[key]) == text_of(again[key]) == text


def test_an_end_token_ends_it_where_the_grammar_may_end():
    found = set()
    for seed in range(40):
        [outputs] = run(
            engine_of(), request(regex_grammar("a+"), seed=seed, max_tokens=12)
        ).values()
        assert set(text_of(outputs)) == {"a"}
        found.add((outputs[-1].finish, outputs[-1].stop_reason))
    assert found >= {("stop", EOS[0])}


def test_penalties_bias_and_cuts_stay_within_the_grammar():
    more = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "top_k": 3, "top_p": 0.6,
            "logit_bias": ((TOKENIZER.encode("z", add_special=False)[0], 100.0),)}  # fmt: skip
    for seed in range(8):
        wanted = request(regex_grammar("[abc]{9}"), seed=seed, **more)
        [outputs] = run(engine_of(), wanted).values()
        assert re.fullmatch("[abc]{9}", text_of(outputs))


def test_max_tokens_cuts_off():
    [outputs] = run(engine_of(), request(regex_grammar("[ab]{50}"), max_tokens=7)).values()
    assert outputs[-1].finish == "length"
    assert re.fullmatch("[ab]{7}", text_of(outputs))


NOT_GRAMMARS = [
    ("unclosed", regex_grammar("[")),
    ("look-ahead", regex_grammar("(?=a)b")),
    ("deep regex", regex_grammar("(" * 3000 + "a" + ")" * 3000)),
    ("a long forced text", regex_grammar("a{100000}")),
    ("nothing", "hello"),
    ("no start", lark_grammar("other: /a/")),
    ("unknown keyword", json_grammar({"type": "array", "uniqueItems": True})),
    ("no schema", json_grammar({"type": "colour"})),
    ("impossible", json_grammar({"type": "integer", "minimum": 3, "maximum": 2})),
    ("dangling reference", json_grammar({"$ref": "#/$defs/nobody"})),
    ("too long", lark_grammar("start: " + "| ".join(['"abcdefgh"'] * 200_000))),
]


@pytest.mark.parametrize(("what", "grammar"), NOT_GRAMMARS, ids=[what for what, _ in NOT_GRAMMARS])
def test_what_does_not_compile_is_refused(what, grammar):
    engine = engine_of()
    with pytest.raises(RequestError, match="grammar") as refused:
        engine.validate(request(grammar))
    assert refused.value.param == "grammar"
    assert len(str(refused.value)) < 400
    assert run(engine, request(NUMBERS))  # the engine is unharmed


def nest(depth: int) -> dict:
    schema: dict = {"type": "integer", "minimum": 0, "maximum": 9}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"],
                  "additionalProperties": False}  # fmt: skip
    return schema


def test_nested_schemas_are_bounded():
    [outputs] = run(engine_of(), request(json_grammar(nest(15), ""))).values()
    assert json.loads(text_of(outputs)) is not None
    with pytest.raises(RequestError, match="recursion"):
        engine_of().validate(request(json_grammar(nest(400))))
    with pytest.raises(RequestError, match="JSON"):
        json_grammar("[" * 100_000)


@pytest.mark.parametrize(
    "pattern", [r"(x+x+)+y", r"(a|b)*a(a|b){20}", r"(.*a){25}", r"a{9000}", r"(a?){5000}a{5000}"]
)
def test_exponential_regexes_end(pattern):
    """A wait that is bounded, then an answer or an error; never a stuck engine."""
    [outputs] = run(engine_of(), request(regex_grammar(pattern), max_tokens=40)).values()
    assert outputs[-1].finish in ("length", "stop", "error")


def test_a_budget_that_runs_out_ends_that_request_alone():
    bad = request(regex_grammar(r"(.*a|b[^c]*d|e.*[fg]){3,25}"), "bad", max_tokens=60)
    good = request("", "good", max_tokens=10)
    engine = engine_of()
    engine.scheduler._constrain = Grammars(vocabulary, SIZE, step_fuel=60).constraint
    found = run(engine, bad, good)
    assert found["bad", 0][-1].finish == "error"
    assert isinstance(found["bad", 0][-1].error, RequestError)
    assert [o.tokens for o in found["good", 0]] == [
        o.tokens for o in run(engine_of(), good)["good", 0]
    ]


def test_a_cancelled_step_leaves_the_grammar_where_it_was():
    wanted = request(regex_grammar("[a-f]{6}(x|y)[0-9]{8}!"))
    [alone] = run(engine_of(), wanted).values()
    engine, outputs = engine_of(), []
    engine.submit(wanted)
    for turn in range(200):
        if not engine.has_work():
            break
        engine.executor.cancel_after = 0 if turn % 2 else None
        outputs += engine.step()
    assert text_of(outputs) == text_of(alone)


def test_min_tokens_and_a_grammar_exclude_each_other():
    with pytest.raises(RequestError, match="min_tokens"):
        request(NUMBERS, min_tokens=3)


def test_an_engine_without_a_tokenizer_says_so():
    model = FakeModel(SIZE)
    engine = Engine(FakeExecutor(model, CONFIG, (64,)))
    with pytest.raises(RequestError, match="tokenizer"):
        engine.validate(request(NUMBERS))


def test_compiled_grammars_are_kept_and_bounded():
    grammars = Grammars(vocabulary, SIZE)
    for i in range(40):
        assert grammars.constraint(regex_grammar(f"a{{{i + 1}}}")) is not None
    assert len(grammars._compiled) == 32
    assert grammars.constraint("") is None


def test_gbnf_is_translated_or_refused():
    gbnf = 'root ::= word ("," word)*\nword ::= [a-c] [0-9]?'
    [outputs] = run(engine_of(), request(any_grammar(gbnf), max_tokens=20)).values()
    assert re.fullmatch(r"[a-c][0-9]?(,[a-c][0-9]?)*,?", text_of(outputs))
    with pytest.raises(RequestError, match="GBNF"):
        any_grammar("root ::= [unclosed")


@pytest.mark.parametrize("choices", [[], [""], ["a", 3], ["x"] * 20_000])
def test_choices_that_are_none(choices):
    with pytest.raises(RequestError, match="choice"):
        choice_grammar(choices)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 99))
def test_choices_of_any_letters(choices, seed):
    [outputs] = run(engine_of(), request(choice_grammar(choices), seed=seed)).values()
    assert text_of(outputs) in choices
