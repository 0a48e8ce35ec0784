"""The HTTP surface: routes, streaming, errors. What a route does is in the module of its name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from octavo._version import __version__
from octavo.core.errors import OctavoError
from octavo.serve import anthropic, tokens
from octavo.serve.answering import Answering, Piece, Pieces
from octavo.serve.anthropic import CountTokensRequest, Messages, MessagesRequest
from octavo.serve.chat import Chat
from octavo.serve.completions import Completions
from octavo.serve.embeddings import Embeddings, EmbeddingsRequest
from octavo.serve.errors import ApiError, api_error
from octavo.serve.events import EventStream, gone
from octavo.serve.guard import Guard
from octavo.serve.metrics import Metrics, Stopwatch
from octavo.serve.openapi import document
from octavo.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampling,
    TokenizeRequest,
)
from octavo.serve.responses import Responses, ResponsesRequest, ResponseStore
from octavo.serve.served import ServedModel
from octavo.serve.wording import json_bytes

B = TypeVar("B", bound=BaseModel)
G = TypeVar("G", bound="Generation")
_log = logging.getLogger("octavo.serve")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """keys: none leaves the server open; max_body: bytes; origins: for browsers, none by default;
    keep_alive: seconds of silence after which a stream gets a comment; metrics_compat: vLLM's names
    beside ours."""

    keys: tuple[str, ...] = ()
    max_body: int = 32 << 20
    origins: tuple[str, ...] = ()
    keep_alive: float = 10.0
    metrics_compat: bool = False


Generation = Sampling | MessagesRequest | ResponsesRequest


class Call(Protocol):
    """One generation request, checked when it is made."""

    @property
    def prompt_sizes(self) -> Sequence[int]: ...

    def start(self) -> Answering: ...

    async def answer(self, answering: Pieces) -> dict[str, Any]: ...

    def stream(self, answering: Pieces) -> AsyncIterator[bytes]: ...

    def failure(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""


class Watched:
    """The pieces of an answering, timed on their way."""

    def __init__(self, answering: Answering, watch: Stopwatch) -> None:
        self._answering, self._watch = answering, watch

    def __aiter__(self) -> AsyncIterator[list[Piece]]:
        return self

    async def __anext__(self) -> list[Piece]:
        return list(self._watch.watch(await self._answering.__anext__()))


class Server:
    """The state behind the routes."""

    def __init__(self, model: ServedModel, settings: ServeSettings) -> None:
        self.model, self.settings = model, settings
        self.metrics = Metrics(model, settings.metrics_compat)
        self.responses = ResponseStore()
        self.draining = False

    async def generate(self, request: Request, call: Call, stream: bool) -> Response:
        """Run a call, streaming or whole; it ends when the client goes."""
        answering = call.start()
        watched = Watched(answering, Stopwatch(self.metrics, call.prompt_sizes))
        if stream:
            body = self._events(answering, call, call.stream(watched))
            return EventStream(body, self.settings.keep_alive)
        async with answering:
            return json_response(await _unless_gone(request, call.answer(watched)))

    async def _events(
        self, answering: Answering, call: Call, events: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Events as they come, and an error as the last one."""
        async with answering:
            try:
                async for data in events:
                    yield data
            except Exception as error:
                yield call.failure(_told(error))


async def _unless_gone(request: Request, work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The work's result; the work is cancelled when the client hangs up."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client hung up")
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pending


def _told(error: Exception) -> ApiError:
    if not isinstance(error, ApiError | OctavoError):
        _log.exception("a request failed", exc_info=error)
    return api_error(error)


def json_response(value: object, status: int = 200, headers: Any = None) -> Response:
    return Response(json_bytes(value), status, headers, "application/json")


async def parse(request: Request, kind: type[B]) -> B:
    """The body as a model. Raises ApiError 400 that names the field."""
    try:
        return kind.model_validate_json(await request.body() or b"null")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(400, f"{where or 'the body'}: {first['msg']}", param=where) from error


def create_app(model: ServedModel, settings: ServeSettings) -> tuple[FastAPI, Server]:
    """The app, its guard included, and the state behind it."""
    server = Server(model, settings)
    app = FastAPI(openapi_url=None)  # it would know no bodies: `openapi.document` does
    _add_errors(app)
    _add_generation(app, server)
    _add_information(app, server)
    if settings.origins:
        from fastapi.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"],
            allow_headers=["*"],
        )  # fmt: skip
    app.add_middleware(
        Guard,
        keys=settings.keys, max_body=settings.max_body, draining=lambda: server.draining,
    )  # fmt: skip
    return app, server


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        told = _told(error)
        return json_response(anthropic.body_for(request.url.path, told), told.status, told.headers)

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else "failed"
        headers = error.headers if isinstance(error, HTTPException) else None
        told = ApiError(status, f"{request.method} {request.url.path}: {detail}")
        return json_response(anthropic.body_for(request.url.path, told), status, headers)

    kinds: Iterable[type[Exception]] = (ApiError, OctavoError, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, http)


def _add_generation(app: FastAPI, server: Server) -> None:
    async def run(
        request: Request, kind: type[G], make: Callable[[G, ServedModel], Call]
    ) -> Response:
        body = await parse(request, kind)
        # Templates and long texts take their time; the loop serves others meanwhile.
        call = await asyncio.to_thread(make, body, server.model)
        return await server.generate(request, call, bool(body.stream))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await run(request, ChatRequest, Chat)

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        return await run(request, MessagesRequest, Messages)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        body = await parse(request, CountTokensRequest)
        return json_response(await asyncio.to_thread(anthropic.count_tokens, body, server.model))

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        def make(body: ResponsesRequest, model: ServedModel) -> Responses:
            return Responses(body, model, server.responses)

        return await run(request, ResponsesRequest, make)

    @app.get("/v1/responses/{id_}")
    async def response(id_: str) -> Response:
        return json_response(server.responses.response(id_))

    @app.delete("/v1/responses/{id_}")
    async def delete_response(id_: str) -> Response:
        return json_response(server.responses.delete(id_))

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await parse(request, EmbeddingsRequest)
        call = await asyncio.to_thread(Embeddings, body, server.model)
        return json_response(await _unless_gone(request, call.answer()))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await run(request, CompletionRequest, Completions)


def _add_information(app: FastAPI, server: Server) -> None:
    model = server.model

    @app.get("/v1/models")
    async def models() -> Response:
        cards = [tokens.model_card(model, name) for name in model.names]
        return json_response({"object": "list", "data": cards})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return json_response(tokens.model_card(model, model.check_name(name)))

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await parse(request, TokenizeRequest)
        return json_response(await asyncio.to_thread(tokens.tokenize, body, model))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await parse(request, DetokenizeRequest)
        return json_response(tokens.detokenize(body, model))

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        return json_response(tokens.tokenizer_info(model))

    @app.get("/health")
    async def health() -> Response:
        state = model.client.health()
        ready = state.state == "ready" and not server.draining
        text = "draining" if server.draining else state.state
        body = {"status": "ok" if ready else text, "restarts": state.restarts,
                "reason": state.reason or None}  # fmt: skip
        return json_response(body, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(document(model.names))

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__})
