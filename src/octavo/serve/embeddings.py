"""POST /v1/embeddings: pooled hidden states of texts or token ids."""

from __future__ import annotations

import base64
from typing import Any, Literal

from octavo.backends.base import F32
from octavo.core.errors import RequestError
from octavo.engine.pool import pooled_request, unit
from octavo.engine.request import Request
from octavo.serve.answering import AsyncInbox
from octavo.serve.protocol import Body, Count, Text
from octavo.serve.served import ServedModel
from octavo.serve.wording import new_id

_MOST_INPUTS = 2048  # OpenAI's


class EmbeddingsRequest(Body):
    """`dimensions` other than the model's own are refused: its states can't be cut short."""

    model: str | None = None
    input: Text | list[Text] | list[Count] | list[list[Count]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    priority: int | None = None


class Embeddings:
    """One call. Making it checks everything that can be wrong with the request."""

    def __init__(self, body: EmbeddingsRequest, model: ServedModel) -> None:
        self.body, self.model = body, model
        self.name = model.check_name(body.model)
        width = model.ready.hidden
        if body.dimensions not in (None, width):
            raise RequestError(
                f"this model's embeddings have {width} dimensions and can't be cut; leave"
                " dimensions out",
                "dimensions",
            )
        prompts = _prompts(body, model)
        self.tokens = sum(map(len, prompts))
        id_ = new_id("embd")
        self.requests = [self._request(f"{id_}-{i}", p) for i, p in enumerate(prompts)]

    def _request(self, id_: str, prompt: tuple[int, ...]) -> Request:
        if not prompt:
            raise RequestError("input is empty; give a text or token ids", "input")
        if len(prompt) >= self.model.context:
            raise RequestError(
                f"an input has {len(prompt)} tokens, and the context holds {self.model.context};"
                " shorten it",
                "input",
                "context_length_exceeded",
            )
        pooled = pooled_request(id_, prompt)
        return pooled.belonging_to(self.body.user or "", self.body.priority or 0)

    async def answer(self) -> dict[str, Any]:
        """The whole answer as JSON."""
        inbox, client, found = AsyncInbox(), self.model.client, dict[str, F32]()
        open_ = {request.id for request in client.send(self.requests, inbox)}
        try:
            while open_:
                for output in await inbox.get():
                    open_.discard(output.request_id)
                    if output.error is not None:
                        raise output.error.with_traceback(None)
                    found[output.request_id] = unit(output.pooled)
        finally:
            for id_ in open_:
                client.abort(id_)
        vectors = [found[request.id] for request in self.requests]
        return {
            "object": "list",
            "data": [self._entry(i, vector) for i, vector in enumerate(vectors)],
            "model": self.name,
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
        }

    def _entry(self, index: int, vector: F32) -> dict[str, Any]:
        packed = self.body.encoding_format == "base64"
        shown = base64.b64encode(vector.astype("<f4").tobytes()).decode() if packed else None
        return {"object": "embedding", "index": index, "embedding": shown or vector.tolist()}


def _prompts(body: EmbeddingsRequest, model: ServedModel) -> list[tuple[int, ...]]:
    given = body.input
    if isinstance(given, str):
        return [_encoded(given, model)]
    if not given:
        raise RequestError("input is empty; give a text or token ids", "input")
    if isinstance(given[0], int):
        return [tuple(token for token in given if isinstance(token, int))]
    if len(given) > _MOST_INPUTS:
        raise RequestError(f"{len(given)} inputs; at most {_MOST_INPUTS} in a call", "input")
    items = [item for item in given if not isinstance(item, int)]
    return [_encoded(item, model) if isinstance(item, str) else tuple(item) for item in items]


def _encoded(text: str, model: ServedModel) -> tuple[int, ...]:
    if not text:
        raise RequestError("input is empty; give a text or token ids", "input")
    return tuple(model.tokenizer.encode(text))
