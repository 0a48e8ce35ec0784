"""The OpenAPI document says what the server does: routes, bodies, statuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.routing import APIRoute

from octavo.core.errors import OverloadedError
from octavo.engine.process import Health
from octavo.serve import shapes
from octavo.serve.app import ServeSettings
from octavo.serve.openapi import OPERATIONS, document
from support.serving import Served

CHAT = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4, "temperature": 0}
LOGPROBS = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "n": 2}
SCORED = {"prompt": ["ab", "c"], "max_tokens": 2, "logprobs": 2, "echo": True, "temperature": 0}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, **LOGPROBS}),
    ("/v1/completions", SCORED),
    ("/v1/completions", {"prompt": [1, 2], "max_tokens": 1, "return_token_ids": True}),
    ("/v1/responses", {"input": "abc", "max_output_tokens": 3, "metadata": {"a": "b"}}),
    ("/v1/messages", CHAT),
    ("/v1/messages/count_tokens", CHAT),
    ("/v1/embeddings", {"input": ["abc", "d"]}),
    ("/v1/embeddings", {"input": [1, 2], "encoding_format": "base64"}),
    ("/tokenize", {"prompt": "abc", "return_token_strs": True}),
    ("/tokenize", {"content": "abc"}),
    ("/tokenize", {"content": "abc", "with_pieces": True}),
    ("/detokenize", {"tokens": [100, 101]}),
]
READ = ["/v1/models", "/v1/models/tiny", "/tokenizer_info", "/health", "/version"]


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def operation_of(method: str, path: str):
    """The declared operation behind a concrete path."""
    known = OPERATIONS.get((method, path))
    if known is not None:
        return known
    [found] = [
        operation
        for (verb, pattern), operation in OPERATIONS.items()
        if verb == method and "{" in pattern and path.startswith(pattern[: pattern.index("{")])
    ]
    return found


def fits(body: bytes, kinds: tuple[Any, ...]) -> bool:
    """Whether a body is exactly one of these shapes."""
    matches = 0
    for kind in kinds:
        try:
            kind.model_validate_json(body)
            matches += 1
        except ValueError as error:
            failure = error
    if not matches:
        raise failure
    return matches == 1


def test_every_route_is_declared_and_nothing_else(served):
    routes = {
        (method.lower(), route.path_format)
        for route in served.app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert routes - {("get", "/openapi.json")} == set(OPERATIONS)


def test_the_document_is_served_and_refers_to_what_it_has(served):
    answer = asyncio.run(served.get("/openapi.json"))
    assert answer.json() == document(("tiny", "alias"))
    schemas = answer.json()["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(references, value))
        if not isinstance(value, dict):
            return set()
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))

    names = {reference.rpartition("/")[2] for reference in references(answer.json())}
    assert names == set(schemas)


def test_every_operation_has_an_id_of_its_own():
    operations = [o for path in document(("m",))["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) == len(OPERATIONS)
    links = [o["responses"]["200"].get("links", {}) for o in operations]
    assert {link["operationId"] for found in links for link in found.values()} <= set(ids)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_answers_have_their_declared_shape(served, path, body):
    answer = asyncio.run(served.post(path, body))
    assert answer.status_code == 200
    assert fits(answer.content, operation_of("post", path).answers)


@pytest.mark.parametrize("path", READ)
def test_what_is_read_has_its_declared_shape(served, path):
    answer = asyncio.run(served.get(path))
    assert answer.status_code == 200
    assert fits(answer.content, operation_of("get", path).answers)


def test_examples_are_answered(served):
    for (method, path), operation in OPERATIONS.items():
        if operation.body is not None:
            assert method == "post"
            answer = asyncio.run(served.post(path, operation.example))
            assert answer.status_code == 200, path


def test_stored_responses_have_their_declared_shape(served):
    async def work() -> None:
        made = await served.post("/v1/responses", {"input": "abc", "max_output_tokens": 2})
        path = f"/v1/responses/{made.json()['id']}"
        read = await served.get(path)
        assert fits(read.content, operation_of("get", path).answers)
        async with served.http() as http:
            gone = await http.delete(path)
        assert fits(gone.content, operation_of("delete", path).answers)
        missing = await served.get(path)
        assert missing.status_code in operation_of("get", path).refusals
        assert fits(missing.content, (shapes.Error,))

    asyncio.run(work())


GENERATING = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


def body_for(path: str) -> dict[str, Any]:
    return next(body for known, body in BODIES if known == path)


@pytest.mark.parametrize("path", sorted({path for path, _ in BODIES}))
@pytest.mark.parametrize("spoil", ["type", "model", "large", "key", "headers", "method"])
def test_refusals_are_declared_and_have_their_shape(path, spoil):
    keys = ("secret",) if spoil == "key" else ()
    served = Served(ServeSettings(keys=keys, max_body=20_000))
    body = {**body_for(path), "model": 1 if spoil == "type" else "nobody"}
    if spoil == "large":
        body["x"] = "y" * 30_000
    headers = {"x-large": "z" * 70_000} if spoil == "headers" else {}
    try:
        if spoil == "method":
            answer = asyncio.run(served.get(path))
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            return
        answer = asyncio.run(served.post(path, body, **headers))
    finally:
        served.close()
    wanted = {"type": 400, "model": 404, "large": 413, "key": 401, "headers": 431}
    operation = operation_of("post", path)
    assert answer.status_code == wanted[spoil]
    assert answer.status_code in operation.refusals
    assert fits(answer.content, (operation.error,))


@pytest.mark.parametrize("path", [*GENERATING, "/v1/embeddings"])
def test_a_full_queue_and_a_drain_are_declared(served, path):
    served.client.refuse = OverloadedError("full", 3.0)
    full = asyncio.run(served.post(path, body_for(path)))
    served.server.draining = True
    drained = asyncio.run(served.post(path, body_for(path)))
    operation = operation_of("post", path)
    for answer, status in ((full, 429), (drained, 503)):
        assert answer.status_code == status
        assert status in operation.refusals
        assert answer.headers["retry-after"]
        assert fits(answer.content, (operation.error,))


def test_an_unwell_engine_has_the_declared_shape(served):
    served.client.state = Health("starting", 1, None, "killed")
    answer = asyncio.run(served.get("/health"))
    operation = OPERATIONS["get", "/health"]
    assert answer.status_code == 503
    assert 503 in operation.refusals
    assert fits(answer.content, (operation.error,))
