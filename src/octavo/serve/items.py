"""The output items of a response, while they grow: messages, reasoning and function calls, each
with the events that clients follow it by."""

from __future__ import annotations

from typing import Any

from octavo.serve.calls import CallBegin, CallText, Part, Thought
from octavo.serve.wording import new_id

Event = tuple[str, dict[str, Any]]


class Items:
    """Items in order, the last one open. Each call gives the events it causes."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._text = ""  # of the open item
        self._space = ""  # nothing but space, shown once a text follows
        self._open = False

    def add(self, part: Part) -> list[Event]:
        if isinstance(part, CallBegin):
            return [*self._close(), *self._begin(_call(part))]
        if isinstance(part, CallText):
            return self._grow("response.function_call_arguments.delta", part.text)
        if isinstance(part, Thought):
            begun = (
                [] if self._kind == "reasoning" else [*self._close(), *self._begin(_reasoning())]
            )
            return [*begun, *self._grow("response.reasoning_text.delta", part.text)]
        if self._kind != "message" and not part.text.strip():
            self._space += part.text
            return []
        return self._write(part.text)

    def end(self, cut: bool = False) -> list[Event]:
        """The answer is over; `cut` off by its length."""
        called = any(item["type"] == "function_call" for item in self._items)
        events: list[Event] = []
        if not called and (self._space or not self._items):
            events += self._write("")
        return [*events, *self._close("incomplete" if cut else "completed")]

    def finished(self) -> list[dict[str, Any]]:
        """All items, after `end`."""
        return self._items

    @property
    def _kind(self) -> str:
        return str(self._items[-1]["type"]) if self._open else ""

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _write(self, text: str) -> list[Event]:
        begun = [] if self._kind == "message" else [*self._close(), *self._begin(_message())]
        text, self._space = self._space + text, ""
        return [*begun, *self._grow("response.output_text.delta", text, {"logprobs": []})]

    def _begin(self, item: dict[str, Any]) -> list[Event]:
        self._items.append(item)
        self._open, self._text = True, ""
        index = len(self._items) - 1
        events = [("response.output_item.added", {"output_index": index, "item": dict(item)})]
        if item["type"] == "message":
            fields = {**self._place, "content_index": 0, "part": _part("")}
            events.append(("response.content_part.added", fields))
        return events

    def _grow(self, kind: str, text: str, more: dict[str, Any] | None = None) -> list[Event]:
        if not text:
            return []
        self._text += text
        return [(kind, {**self._indexed(), "delta": text, **(more or {})})]

    def _indexed(self) -> dict[str, Any]:
        called = self._kind == "function_call"
        return self._place if called else {**self._place, "content_index": 0}

    def _close(self, status: str = "completed") -> list[Event]:
        if not self._open:
            return []
        item, place, text = self._items[-1], self._indexed(), self._text
        if item["type"] == "function_call":
            item |= {"arguments": text, "status": status}
            done = {**place, "arguments": text, "name": item["name"]}
            events = [("response.function_call_arguments.done", done)]
        elif item["type"] == "reasoning":
            item |= {"content": [{"type": "reasoning_text", "text": text}], "status": status}
            events = [("response.reasoning_text.done", {**place, "text": text})]
        else:
            item |= {"content": [_part(text)], "status": status}
            events = [
                ("response.output_text.done", {**place, "text": text, "logprobs": []}),
                ("response.content_part.done", {**place, "part": _part(text)}),
            ]
        self._open = False
        index = len(self._items) - 1
        return [*events, ("response.output_item.done", {"output_index": index, "item": item})]


def _call(begin: CallBegin) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": _id("fc"),
        "call_id": begin.id,
        "name": begin.name,
        "arguments": "",
        "status": "in_progress",
    }


def _reasoning() -> dict[str, Any]:
    return {"type": "reasoning", "id": _id("rs"), "summary": [], "status": "in_progress"}


def _message() -> dict[str, Any]:
    return {
        "type": "message",
        "id": _id("msg"),
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _id(prefix: str) -> str:
    return new_id(prefix).replace("-", "_")
