"""What an answer must look like, in the serialized form that `Request.grammar` holds.

These functions only translate; the engine compiles the result against its vocabulary, and refuses
what doesn't compile. JSON schemas follow llguidance's reading of draft 2020-12: a keyword that it
can't enforce is an error and never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo.core.errors import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MOST_CHOICES = 10_000


def check_grammar(grammar: str, param: str) -> None:
    """Raises RequestError for what no vocabulary could use. The engine checks the rest."""
    import llguidance

    if fault := llguidance.LLMatcher.validate_grammar(grammar):
        short = " ".join(fault.split())[:300]
        raise RequestError(f"the grammar can't be used: {short}", param)


def json_grammar(
    schema: Mapping[str, Any] | str | bool, whitespace: str | None = None, compact: bool = False
) -> str:
    """JSON that is valid under a schema (a mapping, or its text), its properties in the schema's
    order.

    whitespace  a regular expression of what may stand between two tokens of JSON; None: any
    compact     one space behind commas and colons and nothing else, as models write calls
    Raises RequestError when the schema is no schema.
    """
    import llguidance

    options: JsonCompileOptions = {}
    if whitespace is not None:
        options["whitespace_pattern"] = whitespace
    if compact:
        options = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    text = json.dumps(_parsed(schema))
    try:
        return str(llguidance.LLMatcher.grammar_from_json_schema(text, overrides=options))
    except ValueError as error:
        raise RequestError(f"the JSON schema can't be read: {error}", "json_schema") from error


def _parsed(schema: Mapping[str, Any] | str | bool) -> dict[str, Any]:
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if value is True:
            return {}
        if isinstance(value, Mapping):
            json.dumps(value)
            return dict(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"the schema is not JSON: {error}", "json_schema") from error
    raise RequestError(f"a JSON schema is an object, got {value!r:.80}", "json_schema")


def object_grammar() -> str:
    """Any JSON object."""
    return json_grammar({"type": "object"})


def regex_grammar(pattern: str) -> str:
    """A text that a regular expression matches from end to end (Rust's syntax, no look-around)."""
    import llguidance

    if not pattern:
        raise RequestError("the regex is empty; give one that matches something", "regex")
    return str(llguidance.LLMatcher.grammar_from_regex(pattern))


def choice_grammar(choices: Sequence[str]) -> str:
    """One of some texts."""
    if not choices or len(choices) > _MOST_CHOICES or not all(
        isinstance(choice, str) and choice for choice in choices
    ):  # fmt: skip
        raise RequestError(f"choice needs 1 to {_MOST_CHOICES} non-empty texts", "choice")
    return lark_grammar("start: " + " | ".join(quoted(choice) for choice in choices))


def quoted(text: str) -> str:
    """A text as a literal of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def lark_grammar(text: str) -> str:
    """A grammar in llguidance's dialect of Lark, with a rule `start`."""
    import llguidance

    return str(llguidance.LLMatcher.grammar_from_lark(text))


def any_grammar(text: str) -> str:
    """A grammar that is Lark, or llama.cpp's GBNF (told by its `::=`). Raises RequestError for a
    GBNF that can't be translated."""
    if "::=" not in text:
        return lark_grammar(text)
    from llguidance import gbnf_to_lark

    try:
        return lark_grammar(str(gbnf_to_lark.gbnf_to_lark(text)))
    except Exception as error:
        raise RequestError(f"the GBNF grammar can't be read: {error}", "grammar") from error
