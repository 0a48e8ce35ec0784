"""The OpenAPI document: every route with its bodies and every status that it can answer with.

`scripts/check_openapi.py` sends what the document allows, and what it doesn't, to a real server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from octavo._version import __version__
from octavo.serve import shapes
from octavo.serve.anthropic import CountTokensRequest, MessagesRequest
from octavo.serve.embeddings import EmbeddingsRequest
from octavo.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo.serve.responses import ResponsesRequest

_REFERENCE = "#/components/schemas/{model}"
_TEXT = {"type": "string"}
# Of each server-sent event. `data` is JSON, and "[DONE]" behind the last of OpenAI's older streams.
_EVENT = {
    "type": "object",
    "properties": {"event": _TEXT, "data": {**_TEXT, "contentMediaType": "application/json"}},
    "required": ["data"],
}

REASONS = {
    400: "The body can't be read, a field is wrong, or the prompt leaves no room in the context.",
    401: "The API key is missing or wrong.",
    404: "There is no such model, or no such response.",
    413: "The body is larger than the server takes.",
    429: "Too many requests wait; come again after Retry-After seconds.",
    431: "The headers are larger than the server takes.",
    500: "The server failed; its log says how.",
    503: "The engine starts or is started again, or the server shuts down.",
}
_READ = (401, 431)  # what any route may answer
_POST = (400, 404, 413, 500, 503, *_READ)
_RUN = (429, *_POST)


@dataclass(frozen=True, slots=True)
class Operation:
    """`answers`: what a 200 may hold, none for plain text; `example`: a body; `events`: whether its
    `stream` asks for server-sent events; `refusals`: the other statuses; `open`: no key is asked
    for."""

    summary: str
    answers: tuple[type[BaseModel], ...]
    refusals: tuple[int, ...] = _READ
    body: type[BaseModel] | None = None
    example: Mapping[str, Any] | None = None
    events: bool = False
    error: type[BaseModel] = shapes.Error
    open: bool = False


_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
_PROMPT = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): Operation(
        "Answer a conversation", (shapes.ChatCompletion,), _RUN, ChatRequest, _CHAT, events=True
    ),
    ("post", "/v1/completions"): Operation(
        "Continue texts or token ids", (shapes.Completion,), _RUN, CompletionRequest, _PROMPT,
        events=True,
    ),
    ("post", "/v1/responses"): Operation(
        "Answer an input", (shapes.Response,), _RUN, ResponsesRequest,
        {"input": "Hello", "max_output_tokens": 8}, events=True,
    ),
    ("get", "/v1/responses/{id_}"): Operation(
        "A stored response", (shapes.Response,), (404, *_READ)
    ),
    ("delete", "/v1/responses/{id_}"): Operation(
        "Forget a stored response", (shapes.DeletedResponse,), (404, *_READ)
    ),
    ("post", "/v1/messages"): Operation(
        "Answer a conversation, as Anthropic's clients ask", (shapes.Message,), _RUN,
        MessagesRequest, _CHAT, events=True, error=shapes.MessagesError,
    ),
    ("post", "/v1/messages/count_tokens"): Operation(
        "Tokens of a conversation", (shapes.CountedTokens,), _POST, CountTokensRequest,
        {"messages": _CHAT["messages"]}, error=shapes.MessagesError,
    ),
    ("post", "/v1/embeddings"): Operation(
        "Pooled hidden states of texts or token ids", (shapes.EmbeddingList,), _RUN,
        EmbeddingsRequest, {"input": "Hello"},
    ),
    ("get", "/v1/models"): Operation("What is served", (shapes.ModelList,)),
    ("get", "/v1/models/{name}"): Operation(
        "What runs under a name", (shapes.ModelCard,), (404, *_READ)
    ),
    ("post", "/tokenize"): Operation(
        "Token ids of a text or conversation", (shapes.Tokenized, shapes.TokenizedContent), _POST,
        TokenizeRequest, {"prompt": "Hello"},
    ),
    ("post", "/detokenize"): Operation(
        "The text of token ids", (shapes.Detokenized,), _POST, DetokenizeRequest,
        {"tokens": [1, 2]},
    ),
    ("get", "/tokenizer_info"): Operation(
        "What a client's own tokenizer must know", (shapes.TokenizerInfo,)
    ),
    ("get", "/health"): Operation(
        "Whether requests are answered now", (shapes.HealthState,), (431, 503),
        error=shapes.HealthState, open=True,
    ),
    ("get", "/metrics"): Operation("Prometheus metrics", (), (431,), open=True),
    ("get", "/version"): Operation("The server's version", (shapes.ServerVersion,), (431,),
                                   open=True),
}  # fmt: skip


_STORED = {"id_": "$response.body#/id"}
_LINKS = {
    "read": {"operationId": "get_v1_responses_id_", "parameters": _STORED},
    "forget": {"operationId": "delete_v1_responses_id_", "parameters": _STORED},
}


def document(names: Sequence[str]) -> dict[str, Any]:
    """OpenAPI 3.1 of all that a server of a model with these names answers to."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(method, path, operation, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Octavo", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _schemas(names),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],  # a server may have been started without keys
    }


def _operation(
    method: str, path: str, operation: Operation, names: Sequence[str]
) -> dict[str, Any]:
    name = "_".join([method, *path.replace("{", "").replace("}", "").strip("/").split("/")])
    found: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "responses": {
            "200": _answer(operation),
            **{str(status): _refusal(status, operation) for status in sorted(operation.refusals)},
        },
    }
    if "{" in path:
        parameter = path[path.index("{") + 1 : path.index("}")]
        schema = (
            {**_TEXT, "enum": list(names)} if parameter == "name" else {**_TEXT, "minLength": 1}
        )
        found["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": schema}
        ]
    if operation.body is not None:
        content = {"schema": _reference(operation.body), "example": operation.example}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    if operation.body is ResponsesRequest:
        found["responses"]["200"]["links"] = _LINKS
    if operation.open:
        found["security"] = []
    return found


def _answer(operation: Operation) -> dict[str, Any]:
    kinds = [_reference(answer) for answer in operation.answers]
    content: dict[str, Any] = {}
    if kinds:
        content["application/json"] = {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}
    else:
        content["text/plain"] = {"schema": _TEXT}
    if operation.events:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": "Done.", "content": content}


def _refusal(status: int, operation: Operation) -> dict[str, Any]:
    error = operation.error
    if error is shapes.HealthState and status != 503:
        error = shapes.Error
    found: dict[str, Any] = {
        "description": REASONS[status],
        "content": {"application/json": {"schema": _reference(error)}},
    }
    if status in (429, 503) and error is not shapes.HealthState:
        found["headers"] = {"Retry-After": {"schema": {"type": "string"}}}
    return found


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _schemas(names: Sequence[str]) -> dict[str, Any]:
    models = {model: None for operation in OPERATIONS.values() for model in _models(operation)}
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    schemas: dict[str, Any] = found["$defs"]
    for operation in OPERATIONS.values():
        if operation.body is not None:
            field = schemas[operation.body.__name__]["properties"]["model"]
            field["anyOf"] = [{**_TEXT, "enum": list(names)}, {"type": "null"}]
    return schemas


def _models(operation: Operation) -> tuple[type[BaseModel], ...]:
    body = () if operation.body is None else (operation.body,)
    return (*body, *operation.answers, operation.error, shapes.Error)
