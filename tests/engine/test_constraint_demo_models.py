"""Grammars over a real vocabulary and the native executor."""

from __future__ import annotations

import json

import pytest

from octavo.api import LLM
from octavo.backends.base import RuntimeConfig
from octavo.engine.grammar import json_grammar
from octavo.engine.request import SamplingParams
from support.models import demo_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_parse(temperature: float) -> None:
    path = demo_model("smollm2-135m")
    ask = [{"role": "user", "content": "Describe Bob as JSON."}]
    params = SamplingParams(max_tokens=80, temperature=temperature, seed=1)
    with LLM(str(path), config=RuntimeConfig(context=256)) as llm:
        answer = llm.chat(ask, params, grammar=json_grammar(SCHEMA, whitespace=""))
    value = json.loads(answer.text)
    assert list(value) == ["name", "age"]
    assert 0 <= value["age"] <= 120
    assert answer.finish_reason == "stop"
