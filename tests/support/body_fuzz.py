"""Bodies that no client should send: valid ones of every POST route, mutated as JSON and bytes."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

from support.serving import Served

CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "rules",
         "prompt_cache_breakpoint": {"mode": "explicit"}}]},
        {"role": "user", "content": "hello", "name": "x"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
    ],
    "max_tokens": 2, "temperature": 0.5, "n": 2, "stop": ["z"], "seed": 1, "logprobs": True,
    "top_logprobs": 1, "logit_bias": {"7": 1}, "prompt_cache_options": {"ttl": "30m"},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "chat_template_kwargs": {"enable_thinking": False}, "tool_choice": "none", "user": "u",
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    "prompt": ["a", "b"], "max_tokens": 2, "temperature": 0, "logprobs": 1, "echo": True,
    "stream_options": {"include_usage": True}, "min_tokens": 1, "top_k": 3, "top_p": 0.5,
    "stop_token_ids": [5], "cache_salt": "s", "presence_penalty": 1, "best_of": 1,
}  # fmt: skip
MESSAGES: dict[str, Any] = {
    "model": "tiny", "max_tokens": 2, "stop_sequences": ["z"], "metadata": {"user_id": "u"},
    "system": [{"type": "text", "text": "rules", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": [
                {"type": "text", "text": "1"}]}]},
    ],
}  # fmt: skip
RESPONSES: dict[str, Any] = {
    "model": "tiny", "max_output_tokens": 2, "instructions": "Count.", "store": True,
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ],
    "metadata": {"a": "b"}, "prompt_cache_key": "k", "previous_response_id": None,
}  # fmt: skip
SEEDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ("/v1/completions", COMPLETION),
    ("/v1/completions", {"prompt": [[100, 101], [102]], "max_tokens": 1, "stream": True}),
    ("/v1/messages", MESSAGES),
    ("/v1/messages/count_tokens", MESSAGES),
    ("/v1/responses", RESPONSES),
    ("/v1/responses", {"input": "q", "max_output_tokens": 1, "stream": True}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/tokenize", {"messages": CHAT["messages"], "tools": CHAT["tools"]}),
    ("/tokenize", {"content": "hello", "with_pieces": True}),
    ("/detokenize", {"tokens": [100, 101]}),
]
REFUSALS = frozenset((400, 404, 413))
_DEEP = 3000


def _deep(opening: str, inner: str, closing: str) -> bytes:
    return (opening * _DEEP + inner + closing * _DEEP).encode()


def odd_values(rng: random.Random) -> list[Any]:
    """Of every JSON type, at the edges."""
    return [
        None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**70), 10**30, 0.5, -0.0, 1e308,
        float("nan"), float("inf"), -float("inf"), "", "a", "\0", "\ud800", "\u202e<|im_end|>",
        "{{ ''.__class__ }}", "{% for i in range(10**9) %}{% endfor %}", "x" * 5000, "é" * 300,
        [], {}, [[]], [None], [1, "a"], {"": None}, {"type": "text"}, {"type": "text", "text": 1},
        [{"role": "user", "content": "a"}], {"role": "user"}, {"a": [{"b": [{}]}]},
        [rng.randrange(-5, 300) for _ in range(5)], {str(rng.randrange(300)): rng.random()},
        ["z"] * 200, {str(i): i for i in range(300)},
    ]  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[Any, ...]] = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += _places(item, (*path, key))
    return found


def _mutate(body: dict[str, Any], rng: random.Random) -> None:
    places = _places(body)
    if not places:
        return
    *path, key = rng.choice(places)
    holder: Any = body
    for step in path:
        holder = holder[step]
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [holder[key]]
    elif kind == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = rng.choice(odd_values(rng))


def _mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(rng.randrange(256) for _ in range(4)) + data[at + 4 :]
    if kind == 2:
        return data + data
    if kind == 3:
        return b"\xef\xbb\xbf" + data
    if kind == 4:
        return _deep("[", "", "]")
    if kind == 5:
        return data[:-1] + b', "x": ' + _deep('{"a":', "1", "}") + b"}"
    if kind == 6:
        return data[:-1] + b', "messages": [' + _deep('{"role":"user","content":', "1", "}") + b"]}"
    return data.decode(errors="replace").encode("utf-16")


@dataclass(frozen=True)
class Case:
    """One request; `number` and the seed repeat it."""

    number: int
    path: str
    body: bytes


def case(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}:{number}")
    path, valid = rng.choice(SEEDS)
    body = copy.deepcopy(valid)
    if rng.random() < 0.3:
        body["stream"] = True
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        _mutate(body, rng)
    data = json.dumps(body).encode()
    return Case(number, path, _mutate_bytes(data, rng) if rng.random() < 0.15 else data)


async def send(served: Served, found: Case) -> tuple[int, str]:
    """The status, and what is wrong with the answer ("": nothing)."""
    headers = {"content-type": "application/json"}
    async with served.http(**headers) as http:
        response = await http.post(found.path, content=found.body)
    return response.status_code, _fault(response.status_code, response.text)


def _fault(status: int, text: str) -> str:
    if status in REFUSALS:
        error = json.loads(text)["error"]
        return "" if error["message"] and error["type"] != "server_error" else "no clear error"
    if status != 200:
        return f"status {status}"
    return "the stream failed by our fault" if '"server_error"' in text else ""


async def healthy(served: Served) -> bool:
    """Whether the engine still answers as it should, and holds nothing."""
    body = {"prompt": "a", "max_tokens": 3, "temperature": 0}
    answer = await served.post("/v1/completions", body)
    served.client.engine.check()
    right: bool = answer.status_code == 200 and answer.json()["choices"][0]["text"] == "bcd"
    return right and not served.client.engine.has_work()
