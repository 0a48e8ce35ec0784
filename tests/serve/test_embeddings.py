"""Embeddings over HTTP, strictly read by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from openai.types import CreateEmbeddingResponse

from octavo.api import LLM
from support.serving import Served


def post(served: Served, path: str, body: object) -> Any:
    return asyncio.run(served.post(path, body))


def get(served: Served, path: str) -> Any:
    return asyncio.run(served.get(path))


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def test_every_kind_of_input_gives_the_same_vectors(served):
    ids = served.tokenizer.encode("hello")
    inputs = ["hello", ["hello"], ids, [ids]]
    found = []
    for given in inputs:
        answer = post(served, "/v1/embeddings", {"model": "tiny", "input": given})
        assert answer.status_code == 200
        CreateEmbeddingResponse.model_validate(answer.json(), strict=True)
        found.append(answer.json())
    assert found[1:] == found[:1] * 3
    assert found[0]["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    [entry] = found[0]["data"]
    assert np.linalg.norm(entry["embedding"]) == pytest.approx(1, abs=1e-6)


def test_base64_is_the_same_numbers(served):
    bodies = [{"input": ["a", "bc"], "encoding_format": kind} for kind in ("float", "base64")]
    plain, packed = [(post(served, "/v1/embeddings", b)).json()["data"] for b in bodies]
    assert [entry["index"] for entry in packed] == [0, 1]
    for a, b in zip(plain, packed, strict=True):
        values = np.frombuffer(base64.b64decode(b["embedding"]), "<f4")
        assert values.tolist() == a["embedding"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 7}, "input"),
        ({"input": "a" * 2000}, "input"),
        ({"input": "a", "dimensions": 1}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": "other"}, "model"),
        ({"input": [10**9]}, "prompt"),
        ({"input": "a", "priority": 2**40}, "priority"),
    ],
)
def test_what_cannot_be_embedded_is_named(served, body, field):
    answer = post(served, "/v1/embeddings", body)
    assert answer.status_code == (404 if field == "model" else 400)
    assert answer.json()["error"]["param"].split(".")[0] == field


def test_the_model_card_says_what_they_are(served):
    card = (get(served, "/v1/models/tiny")).json()["octavo"]["embeddings"]
    assert card["dimensions"] == 2
    assert card["pooling"].startswith("mean over all tokens of the hidden states")


def test_the_openai_client_reads_them(served):
    with served.listening() as url, OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        answer = client.embeddings.create(model="tiny", input=["hello", "world"])
    with LLM.from_parts(served.executor, served.tokenizer) as llm:
        expected = llm.embed(["hello", "world"])
    assert [e.index for e in answer.data] == [0, 1]
    np.testing.assert_array_equal(np.array([e.embedding for e in answer.data], "f4"), expected)
