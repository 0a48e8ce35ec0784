"""Reading an answer while it comes: thoughts, text, and tool calls.

A call begins where the model's own syntax says so and the name is one of the tools'. Its arguments
are passed on as they come. What only looks like a call stays text, to the letter.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from octavo.serve.tools import CallSyntax

THINK, THOUGHT = "<think>", "</think>"
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_PYTHON_TAG = "<|python_tag|>"


class Text(NamedTuple):
    text: str


class Thought(NamedTuple):
    text: str


class CallBegin(NamedTuple):
    number: int
    id: str
    name: str


class CallText(NamedTuple):
    """A piece of the arguments, JSON."""

    number: int
    text: str


Part = Text | Thought | CallBegin | CallText


class _Balance:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    def end(self, text: str) -> int:
        """Index behind the closing brace, or -1 when the text doesn't hold it."""
        for i, letter in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1
        return -1


def _held(text: str, mark: str) -> int:
    """How many letters at the end of the text may be the beginning of the mark."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


class AnswerReader:
    """One answer. `names`: tools that may be called. `thinks`: whether the answer may begin with a
    thought; `thinking`: the prompt has opened one. `parallel`: False drops all but one call."""

    def __init__(
        self,
        syntax: CallSyntax,
        names: frozenset[str] = frozenset(),
        parallel: bool = True,
        thinks: bool = False,
        thinking: bool = False,
    ) -> None:
        self._thoughts = _Thoughts(thinking) if thinks else None
        self._calls = _Calls(syntax, names, parallel) if names else None

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._calls is not None and self._calls.count > 0

    def push(self, text: str, last: bool = False) -> list[Part]:
        """What the next piece of text brings; `last`: no other comes."""
        parts: list[Part] = [Text(text)]
        if self._thoughts is not None:
            parts = list(self._thoughts.push(text, last))
        if self._calls is None:
            return [part for part in parts if not isinstance(part, Text) or part.text]
        found = [part for part in parts if not isinstance(part, Text)]
        rest = "".join(part.text for part in parts if isinstance(part, Text))
        return [*found, *self._calls.push(rest, last)]


class _Thoughts:
    """<think> at the beginning, up to </think>."""

    def __init__(self, thinking: bool) -> None:
        self._state = "thinking" if thinking else "begin"
        self._held = ""

    def push(self, text: str, last: bool) -> Iterator[Part]:
        text, self._held = self._held + text, ""
        if self._state == "begin":
            start = text.lstrip()
            if start.startswith(THINK):
                self._state, text = "thinking", start[len(THINK) :]
            elif THINK.startswith(start) and not last:
                self._held = text
                return
            else:
                self._state = "done"
        if self._state == "thinking":
            thought, mark, text = text.partition(THOUGHT)
            if mark:
                self._state, text = "after", text.lstrip("\n")
            elif not last:
                size = _held(thought, THOUGHT)
                thought, self._held = thought[: len(thought) - size], thought[len(thought) - size :]
            if thought:
                yield Thought(thought)
        elif self._state == "after":
            text = text.lstrip("\n")
        if self._state == "after" and text:
            self._state = "done"
        if text:
            yield Text(text)


class _Calls:
    """The call syntax, as a machine: outside, between calls, in a call's head, in its arguments."""

    def __init__(self, syntax: CallSyntax, names: frozenset[str], parallel: bool) -> None:
        self._syntax, self._names, self._parallel = syntax, names, parallel
        self._begin, self._end = syntax.begin.strip(), syntax.end.strip()
        self._state = "outside" if self._begin else "start"
        self._text = ""  # not decided yet
        self._opened = ""  # what stands before an undecided call, text if it is none
        self._said = False  # text other than space, since the last call
        self._balance = _Balance()
        self.count = 0

    def push(self, text: str, last: bool) -> list[Part]:
        self._text += text
        found: list[Part] = []
        while True:
            before = self._state, len(self._text)
            found += getattr(self, f"_{self._state}")(last)
            if not self._text or before == (self._state, len(self._text)):
                break
        if last and self._state in ("between", "head") and (self._opened + self._text).strip():
            found.append(Text(self._opened + self._take(len(self._text))))
        return [part for part in found if not isinstance(part, Text) or part.text]

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def _plain(self, last: bool) -> list[Part]:
        return [Text(self._take(len(self._text)))]

    def _dropped(self, last: bool) -> list[Part]:
        self._text = ""
        return []

    def _start(self, last: bool) -> list[Part]:
        """An answer that is itself a call, or isn't."""
        begun = self._text.lstrip()
        if begun.startswith("{"):
            self._state = "head"
        elif begun.startswith(_PYTHON_TAG):
            size = len(self._text) - len(begun) + len(_PYTHON_TAG)
            self._opened, self._state = self._take(size), "head"
        elif not _PYTHON_TAG.startswith(begun) or last:
            self._state = "plain"
        return []

    def _outside(self, last: bool) -> list[Part]:
        at = self._text.find(self._begin)
        if at >= 0:
            text, said = self._take(at), self._said
            self._opened, self._state = self._take(len(self._begin)), "between"
            self._said = False
            return [Text(text)] if said or text.strip() else []
        if last:
            rest = self._take(len(self._text))
            return [Text(rest)] if rest.strip() or self._said or not self.count else []
        free = self._text[: len(self._text) - _held(self._text, self._begin)]
        if not self._said and not free.strip():
            return []  # space that a call may follow
        self._said = True
        return [Text(self._take(len(free)))]

    def _between(self, last: bool) -> list[Part]:
        """Behind the begin mark, or between the calls of a list."""
        skipped = len(self._text) - len(self._text.lstrip(" \n\t\r[," if self._syntax.listed
                                                          else " \n\t\r"))  # fmt: skip
        if skipped == len(self._text):
            return []
        if self._text[skipped] == "{":
            self._opened += self._take(skipped)
            self._state = "head"
            return []
        if self._opened:
            return self._give_up()
        self._take(skipped)
        if self._text.startswith("]"):
            self._take(1)
            self._state = "outside"
            return []
        return self._give_up()

    def _head(self, last: bool) -> list[Part]:
        found = _HEAD.match(self._text)
        if found is not None:
            name = _loaded(found[1])
            if name in self._names:
                self._take(found.end())
                self._balance, self._state = _Balance(), "arguments"
                return self._called(str(name))
            return self._give_up()
        end = _Balance().end(self._text)
        return self._whole(end) if end > 0 else []

    def _whole(self, end: int) -> list[Part]:
        """A call whose parts come in another order, or something else."""
        value = _loaded(self._text[:end])
        if isinstance(value, dict) and value.get("name") in self._names:
            given = value.get("arguments", value.get("parameters", {}))
            arguments = given if isinstance(given, str) else json.dumps(given)
            if isinstance(_loaded(arguments), dict):
                self._take(end)
                self._state = "tail" if self._end else "next"
                begun = self._called(str(value["name"]))
                return [*begun, CallText(self.count - 1, arguments)] if begun else []
        return self._give_up()

    def _called(self, name: str) -> list[Part]:
        self._opened = ""
        self.count += 1
        return [CallBegin(self.count - 1, f"call_{uuid.uuid4().hex}", name)]

    def _arguments(self, last: bool) -> list[Part]:
        end = self._balance.end(self._text)
        if end < 0:
            return [CallText(self.count - 1, self._take(len(self._text)))] if self._text else []
        self._state = "close"
        return [CallText(self.count - 1, self._take(end))]

    def _close(self, last: bool) -> list[Part]:
        """The brace behind the arguments."""
        self._text = self._text.lstrip()
        if not self._text:
            return []
        if self._text.startswith("}"):
            self._take(1)
        self._state = "tail" if self._end else "next"
        return []

    def _tail(self, last: bool) -> list[Part]:
        self._text = self._text.lstrip()
        if self._text.startswith(self._end):
            self._take(len(self._end))
            self._state = "next"
        elif self._text and not self._end.startswith(self._text):
            self._state = "next"
        return []

    def _next(self, last: bool) -> list[Part]:
        if not self._parallel:
            self._state = "dropped"
        elif self._syntax.listed:
            self._state = "between"
        else:
            self._state = "outside" if self._begin else "dropped"
        return []

    def _give_up(self) -> list[Part]:
        """It was text all along."""
        text, self._opened = self._opened, ""
        self._state, self._said = ("outside" if self._begin else "plain"), True
        # Past its beginning, so that the same place isn't looked at twice.
        return [Text(text + self._take(1))]


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
