"""What a client says an answer must look like, in all the fields that clients use for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.core.errors import RequestError
from octavo.engine.grammar import (
    any_grammar,
    check_grammar,
    choice_grammar,
    json_grammar,
    object_grammar,
    regex_grammar,
)
from octavo.serve.protocol import Sampling

_KINDS = ("json", "regex", "choice", "grammar", "json_object")


def grammar_of(body: Sampling) -> str:
    """The grammar that the body's fields ask for, "" for none. Raises RequestError naming the field
    when it can't be read, or when two fields ask."""
    found = {
        field: grammar
        for field, grammar in (
            ("response_format", _response_format(body.response_format)),
            ("structured_outputs", _structured(body.structured_outputs)),
            ("guided_json", _one("json", body.guided_json)),
            ("guided_regex", _one("regex", body.guided_regex)),
            ("guided_choice", _one("choice", body.guided_choice)),
            ("guided_grammar", _one("grammar", body.guided_grammar)),
            ("grammar", _one("grammar", body.grammar)),
            ("json_schema", _one("json", body.json_schema)),
        )
        if grammar
    }
    if len(found) > 1:
        raise RequestError(
            f"{' and '.join(found)} all say what the answer must look like; give one of them",
            list(found)[1],
        )
    for field, grammar in found.items():
        check_grammar(grammar, field)
        return grammar
    return ""


def _response_format(wanted: Mapping[str, Any] | None) -> str:
    kind = None if wanted is None else wanted.get("type")
    if wanted is None or kind == "text":
        return ""
    if kind == "json_object":
        schema = wanted.get("schema")  # llama.cpp's users put one here
        return object_grammar() if schema is None else _one("json", schema)
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise RequestError("response_format has no json_schema.schema", "response_format")
        return _one("json", schema)
    raise RequestError(
        f"response_format is of type {kind!r}; give text, json_object or json_schema",
        "response_format",
    )


def _structured(wanted: Mapping[str, Any] | None) -> str:
    """vLLM's object: one of its kinds, with or without a whitespace_pattern."""
    if wanted is None:
        return ""
    if wanted.get("structural_tag") is not None:
        raise RequestError(
            "structural_tag is not supported: for calls give tools, for anything else a grammar",
            "structured_outputs",
        )
    given = {kind: wanted[kind] for kind in _KINDS if wanted.get(kind) not in (None, False)}
    if len(given) != 1:
        raise RequestError(
            f"structured_outputs needs exactly one of {', '.join(_KINDS)}", "structured_outputs"
        )
    [(kind, value)] = given.items()
    whitespace = wanted.get("whitespace_pattern")
    if whitespace is not None and not isinstance(whitespace, str):
        raise RequestError("whitespace_pattern must be a regular expression", "structured_outputs")
    return _one(kind, value, whitespace)


def _one(kind: str, value: object, whitespace: str | None = None) -> str:
    if value is None:
        return ""
    if kind == "json_object":
        return object_grammar()
    if kind == "json" and isinstance(value, str | Mapping | bool):
        return json_grammar(value, whitespace)
    if kind == "choice" and isinstance(value, list):
        return choice_grammar(value)
    if kind == "regex" and isinstance(value, str):
        return regex_grammar(value)
    if kind == "grammar" and isinstance(value, str):
        return any_grammar(value)
    raise RequestError(f"{kind} can't be {type(value).__name__}", "structured_outputs")
