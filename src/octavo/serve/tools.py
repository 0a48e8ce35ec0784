"""How models write tool calls, and which tools a request offers.

One table, `SYNTAXES`: the first whose mark the model's own chat template writes is the model's.
A forced call is a grammar over that syntax; a free one is found in the text (`calls`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from octavo.core.errors import RequestError
from octavo.engine.grammar import check_grammar, lark_grammar, quoted
from octavo.io.chat_template import template_literals
from octavo.io.tokenizer import Tokenizer
from octavo.serve.protocol import ChatRequest

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_MOST_TOOLS = 256
Choice = Literal["none", "auto", "required"]
_CHOICES: tuple[Choice, ...] = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Text around calls, each {"name": ..., ARGUMENTS: {...}}.

    mark       what the template of such a model writes
    begin,end  around a call, or around all of them when `listed`; begin "": the answer is the call
    """

    name: str
    mark: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False


SYNTAXES = (
    CallSyntax("hermes", "<tool_call>", "<tool_call>\n", "\n</tool_call>"),
    CallSyntax("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", "", listed=True),
    CallSyntax("llama3", '"parameters": ', "", "", "parameters"),
    CallSyntax("json", "", "", ""),
)


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Mapping[str, Any]
    strict: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request. names: those that may be called now."""

    syntax: CallSyntax
    tools: tuple[Tool, ...]
    choice: Choice
    parallel: bool

    @property
    def names(self) -> frozenset[str]:
        return frozenset() if self.choice == "none" else frozenset(t.name for t in self.tools)


def syntax_of(tokenizer: Tokenizer) -> CallSyntax:
    literals = template_literals(tokenizer)
    return next(syntax for syntax in SYNTAXES if syntax.mark in literals)


def offer_of(body: ChatRequest, tokenizer: Tokenizer) -> Offer:
    """Raises RequestError for a tool or a choice that can't be read."""
    tools = tuple(_tool(tool, i) for i, tool in enumerate(body.tools or ()))
    if len({tool.name for tool in tools}) < len(tools) or len(tools) > _MOST_TOOLS:
        raise RequestError(f"tools need distinct names, and at most {_MOST_TOOLS} fit", "tools")
    choice, name = _choice(body.tool_choice, bool(tools))
    if name is not None:
        tools = tuple(tool for tool in tools if tool.name == name)
    if choice == "required" and not tools:
        missing = "there are no tools" if name is None else f"no tool is called {name!r}"
        raise RequestError(f"tool_choice asks for a call, but {missing}", "tool_choice")
    parallel = body.parallel_tool_calls is not False and name is None
    return Offer(syntax_of(tokenizer), tools, choice, parallel)


def _tool(tool: Mapping[str, Any], index: int) -> Tool:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"tool {index} is no function with a name of letters, digits, _ and -", "tools"
        )
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise RequestError(f"the parameters of tool {name!r} are no JSON schema", "tools")
    return Tool(name, parameters, function.get("strict") is True)


def _choice(wanted: str | Mapping[str, Any] | None, any_tools: bool) -> tuple[Choice, str | None]:
    if wanted is None:
        return ("auto" if any_tools else "none"), None
    for known in _CHOICES:
        if wanted == known:
            return known, None
    function = wanted.get("function") if isinstance(wanted, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        return "required", function["name"]
    raise RequestError(
        f"tool_choice is {wanted!r:.80}; give auto, none, required, or a function by its name",
        "tool_choice",
    )


def forced_grammar(offer: Offer, tokenizer: Tokenizer) -> str:
    """The grammar of a required call, "" when none is required. Raises RequestError when a tool's
    schema can't be followed."""
    if offer.choice != "required":
        return ""
    syntax = offer.syntax
    begin, end = (_literal(text, tokenizer) for text in (syntax.begin, syntax.end))
    lines = ["one: " + " | ".join(f"call_{i}" for i in range(len(offer.tools)))]
    for i, tool in enumerate(offer.tools):
        head = f'{{"name": {json.dumps(tool.name)}, "{syntax.arguments}": '
        lines.append(f'call_{i}: {quoted(head)} args_{i} "}}"')
        lines.append(f"args_{i}: %json {json.dumps(_spaced(tool))}")
    if syntax.listed:
        more = ' (", " one)*' if offer.parallel else ""
        start = f'start: {begin} "[" one{more} "]" {end}'
    else:
        lines.append(f"whole: {begin} one {end}")
        more = ' ("\\n" whole)*' if offer.parallel and syntax.begin else ""
        start = f"start: whole{more}"
    grammar = lark_grammar("\n".join([start, *lines]))
    check_grammar(grammar, "tools")
    return grammar


def _spaced(tool: Tool) -> dict[str, Any]:
    """The schema, written as models write calls; lenient unless the tool is strict."""
    spaces = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    return {**tool.parameters, "x-guidance": {**spaces, "lenient": not tool.strict}}


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Text of a grammar: control tokens by their ids, the rest quoted."""
    special = [t for t, i in tokenizer.added_tokens.items() if i in tokenizer.special_ids and t]
    pattern = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    pieces = re.split(f"({pattern})", text) if pattern else [text]
    return " ".join(
        f"<[{tokenizer.added_tokens[piece]}]>" if piece in special else quoted(piece)
        for piece in pieces
        if piece
    )


def special_marks(offer: Offer, tokenizer: Tokenizer, marks: Sequence[str]) -> bool:
    """Whether what `calls` looks for has control tokens, which are left out of texts otherwise."""
    special = {t for t, i in tokenizer.added_tokens.items() if i in tokenizer.special_ids}
    looked_for = [*marks, *((offer.syntax.begin, offer.syntax.end) if offer.names else ())]
    return any(text and text in mark for mark in looked_for for text in special)
