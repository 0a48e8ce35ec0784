"""From messages to prompt tokens, and to the places in them that a client marked for the cache."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from octavo.core.errors import RequestError
from octavo.engine.reuse import common_prefix
from octavo.io.chat_template import render_chat
from octavo.io.tokenizer import Tokenizer
from octavo.serve.protocol import ChatRequest

_MOST_MARKS = 4
_BREAKPOINTS = ("prompt_cache_breakpoint", "cache_control")
_TEXT_PARTS = ("text", "input_text", "output_text")


class Breakpoint(NamedTuple):
    """A place in a prompt that a client wants kept: tokens before it, and for how long ("5m"), or
    None where the request's own time counts."""

    tokens: int
    ttl: str | None


def chat_prompt(
    tokenizer: Tokenizer, body: ChatRequest
) -> tuple[tuple[int, ...], list[Breakpoint]]:
    """Prompt tokens, and the breakpoints in them.

    Raises RequestError for a message that can't be read, TokenizerError from the template.
    """
    if not body.messages:
        raise RequestError("messages is empty; give at least one", "messages")
    messages = [plain_message(message, i) for i, message in enumerate(body.messages)]
    tokens = _render(tokenizer, body, messages)
    marks = [
        Breakpoint(common_prefix(tokens, _render(tokenizer, body, cut, open_end=False)), ttl)
        for cut, ttl in _cut_at_breakpoints(body.messages)
    ]
    return tokens, marks


def _render(
    tokenizer: Tokenizer, body: ChatRequest, messages: list[dict[str, Any]], open_end: bool = True
) -> tuple[int, ...]:
    continued = body.continue_final_message and open_end
    text = str(messages[-1].get("content") or "") if continued else ""
    if continued and (not text or body.add_generation_prompt):
        raise RequestError(
            "continue_final_message needs a last message with text and no add_generation_prompt",
            "continue_final_message",
        )
    shown = messages[:-1] if continued else messages
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    tools = None if body.tool_choice == "none" else body.tools
    generation = open_end and (continued or body.add_generation_prompt)
    tokens = render_chat(tokenizer, shown, tools or None, None, generation, variables)
    return (*tokens, *(tokenizer.encode_continuation(text) if continued else ()))


def plain_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """A message as templates know it: role, text content, tool calls with parsed arguments."""
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"message {index} has no role; give one, such as user", "messages")
    found = {key: value for key, value in message.items() if key not in _BREAKPOINTS}
    found["role"] = "system" if role == "developer" else role
    found["content"] = content_text(message.get("content"), index)
    if isinstance(calls := message.get("tool_calls"), list):
        found["tool_calls"] = [_plain_call(call, index) for call in calls]
    return found


def _plain_call(call: object, index: int) -> dict[str, Any]:
    """An earlier call, its arguments parsed: templates write them as JSON themselves."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise RequestError(f"message {index} has a tool call without a function", "messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def content_text(content: object, index: int) -> str:
    """The text of a content field: a string, or text parts joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part_text(part, index) for part in content)
    raise RequestError(f"the content of message {index} is neither text nor parts", "messages")


def _part_text(part: object, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RequestError(
        f"message {index} has a part of type {kind!r}; this model reads text only", "messages"
    )


def _cut_at_breakpoints(
    messages: Sequence[Mapping[str, Any]],
) -> list[tuple[list[dict[str, Any]], str | None]]:
    """The conversation up to each breakpoint, in order, and the breakpoint's own time."""
    cuts: list[tuple[list[dict[str, Any]], str | None]] = []
    for i, message in enumerate(messages):
        before = [plain_message(earlier, j) for j, earlier in enumerate(messages[:i])]
        content = message.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if _marked(part):
                cut = {**message, "content": list(content or ())[: j + 1]}
                cuts.append(([*before, plain_message(cut, i)], _ttl(part)))
        if _marked(message):
            cuts.append(([*before, plain_message(message, i)], _ttl(message)))
    if len(cuts) > _MOST_MARKS:
        raise RequestError(
            f"{len(cuts)} cache breakpoints; a request may have {_MOST_MARKS}", "messages"
        )
    return cuts


def _marked(thing: object) -> bool:
    return isinstance(thing, Mapping) and any(thing.get(name) for name in _BREAKPOINTS)


def _ttl(thing: Mapping[str, Any]) -> str | None:
    """The time that a breakpoint names; Anthropic's are five minutes unless they name one."""
    control = thing.get("cache_control")
    if isinstance(control, Mapping):
        return str(control.get("ttl", "5m"))
    return None
