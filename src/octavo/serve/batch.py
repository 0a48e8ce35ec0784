"""Batch jobs: a file of requests in OpenAI's batch format, each line answered or explained.

Requests run ordered by their prompts, so that those that begin alike follow each other and find
what they share in the prefix cache. Answers are written as they come, each as one line; a run that
was cut off goes on where it stopped, since every whole line of the output names what it answers.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from octavo.core.errors import OctavoError, UnavailableError, UserError
from octavo.serve.chat import Chat
from octavo.serve.completions import Completions
from octavo.serve.errors import ApiError, api_error
from octavo.serve.protocol import ChatRequest, CompletionRequest
from octavo.serve.served import ServedModel
from octavo.serve.wording import json_bytes, new_id

Call = Chat | Completions
_TRIES = 3  # of a request whose engine died under it


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input. `custom_id` is "" where the line has none; `fault` is what is wrong
    with it."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]
    fault: str = ""


def read_lines(path: Path) -> list[Line]:
    """All lines that hold something. Raises UserError when the file can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file of requests") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; convert it first") from error
    seen: set[str] = set()
    found = []
    for number, row in enumerate(text.splitlines(), 1):
        if row.strip():
            line = _parse(number, row)
            found.append(_once(line, seen))
    return found


def _parse(number: int, row: str) -> Line:
    try:
        value = json.loads(row)
    except (ValueError, RecursionError) as error:
        return Line(number, "", "", {}, f"line {number} is not JSON: {error}")
    if not isinstance(value, dict):
        return Line(number, "", "", {}, f"line {number} is no object")
    id_, url, body = value.get("custom_id"), value.get("url"), value.get("body")
    if not isinstance(id_, str) or not id_:
        return Line(number, "", "", {}, f"line {number} has no custom_id")
    if value.get("method", "POST") != "POST" or not isinstance(url, str) or url not in _CALLS:
        known = ", ".join(_CALLS)
        return Line(number, id_, "", {}, f"line {number} is not a POST to one of {known}")
    if not isinstance(body, dict):
        return Line(number, id_, url, {}, f"line {number} has no body")
    return Line(number, id_, url, body)


def _once(line: Line, seen: set[str]) -> Line:
    if line.custom_id and line.custom_id in seen:
        fault = f"line {line.number}: custom_id {line.custom_id!r} was given before"
        return Line(line.number, "", line.url, {}, fault)
    seen.add(line.custom_id)
    return line


def _chat(body: dict[str, Any], model: ServedModel) -> Call:
    return Chat(ChatRequest.model_validate(body), model)


def _completions(body: dict[str, Any], model: ServedModel) -> Call:
    return Completions(CompletionRequest.model_validate(body), model)


_CALLS: dict[str, Callable[[dict[str, Any], ServedModel], Call]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
}


def answered(path: Path) -> tuple[set[str], set[int]]:
    """Ids and line numbers that an earlier run has answered. A last line that was cut off is
    removed. Raises UserError for a file that isn't such an output."""
    ids: set[str] = set()
    faulty: set[int] = set()
    if not path.exists():
        return ids, faulty
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    for number, row in enumerate(whole.splitlines(), 1):
        try:
            value = json.loads(row)
            id_, line = value["custom_id"], value["line"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is no answer of a batch; give another -o"
            ) from error
        faulty.add(line) if id_ is None else ids.add(id_)
    if len(whole) != len(data):
        os.truncate(path, len(whole))
    return ids, faulty


@dataclass(slots=True)
class BatchReport:
    """How a run ended: lines answered, refused or failed now, and answered before; prompt tokens,
    and how many of them were found in the prefix cache."""

    answered: int = 0
    failed: int = 0
    before: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Batch:
    """A run over lines. `done` is called after each."""

    def __init__(self, model: ServedModel, out: IO[bytes], done: Callable[[], None]) -> None:
        self._model, self._out, self._done = model, out, done
        self.report = BatchReport()

    async def run(self, lines: Sequence[Line], parallel: int) -> BatchReport:
        """Answer the lines, `parallel` at a time."""
        ready: list[tuple[Line, Call]] = []
        for line in lines:
            made = self._make(line)
            if isinstance(made, ApiError):
                self._write(line, made.status, made.body())
            else:
                ready.append((line, made))
        ready.sort(key=lambda item: _prompt(item[1]))
        work = iter(ready)
        await asyncio.gather(*(self._worker(work) for _ in range(parallel)))
        return self.report

    def _make(self, line: Line) -> Call | ApiError:
        if line.fault:
            return ApiError(400, line.fault)
        try:
            return _CALLS[line.url]({**line.body, "stream": False}, self._model)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return ApiError(400, f"{where}: {first['msg']}", param=where or None)
        except (ApiError, OctavoError) as error:
            return api_error(error)

    async def _worker(self, work: Iterator[tuple[Line, Call]]) -> None:
        for line, call in work:
            status, body = await self._answer(line, call)
            self._write(line, status, body)

    async def _answer(self, line: Line, call: Call) -> tuple[int, dict[str, Any]]:
        for attempt in range(_TRIES):
            try:
                async with call.start() as answering:
                    return 200, await call.answer(answering)
            except UnavailableError as error:
                if attempt == _TRIES - 1:
                    told = api_error(error)
                    return told.status, told.body()
                await asyncio.to_thread(self._model.client.wait_ready)
                call = _CALLS[line.url]({**line.body, "stream": False}, self._model)
            except (ApiError, OctavoError) as error:
                told = api_error(error)
                return told.status, told.body()
        raise AssertionError("a request was tried without an end")

    def _write(self, line: Line, status: int, body: dict[str, Any]) -> None:
        good = status == 200
        self._count(body if good else None)
        response = {"status_code": status, "request_id": new_id("req"), "body": body}
        value = {
            "id": new_id("batch_req"),
            "custom_id": line.custom_id or None,
            "line": line.number,
            "response": response,
            "error": None if good else {"code": str(status), "message": body["error"]["message"]},
        }
        self._out.write(json_bytes(value) + b"\n")
        self._out.flush()
        self._done()

    def _count(self, body: dict[str, Any] | None) -> None:
        report = self.report
        if body is None:
            report.failed += 1
            return
        usage = body["usage"]
        report.answered += 1
        report.prompt_tokens += usage["prompt_tokens"]
        report.completion_tokens += usage["completion_tokens"]
        report.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]


def _prompt(call: Call) -> tuple[int, ...]:
    return call.request.prompt if isinstance(call, Chat) else call.prompts[0]


def pending(lines: Sequence[Line], out: Path) -> list[Line]:
    """The lines that the output doesn't answer yet."""
    ids, faulty = answered(out)
    return [
        line
        for line in lines
        if (line.custom_id not in ids if line.custom_id else line.number not in faulty)
    ]
