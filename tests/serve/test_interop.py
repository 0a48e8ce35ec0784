"""Clients of other projects, as they come: OpenAI's for Node, LangChain, `llm`, schemathesis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import BaseModel

import support
from support import node
from support.fakes import ScriptedModel
from support.serving import Served
from support.tokenizers import CHATML, byte_level_tokenizer

pytestmark = pytest.mark.interop

SUPPORT = Path(support.__path__[0])
SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNTED = "\x0b\x0c\r\x0e"  # what the counting model says behind the template
TEMPLATE = CHATML + "{% if tools %}{{ '<tool_call>' }}{% endif %}"
CALLS = (
    'Hm.<tool_call>\n{"name": "f", "arguments": {"x": 12}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {"x": 3}}\n</tool_call>'
)
FOUND = [["f", {"x": 12}], ["g", {"x": 3}]]


@contextmanager
def counting():
    server = Served()
    with server.listening() as url:
        yield url
    server.close()


@contextmanager
def saying(script: str):
    """A server whose model says this, whatever it is asked."""
    tokenizer = byte_level_tokenizer(**{"tokenizer.chat_template": TEMPLATE})
    said = tuple(tokenizer.encode(script, add_special=False))
    model = ScriptedModel(tokenizer.vocab_size, (None,), said, tokenizer.eos_ids[0])
    server = Served(tokenizer=tokenizer, model=model, context=600)  # type: ignore[arg-type]
    with server.listening() as url:
        yield url
    server.close()


@pytest.fixture(scope="module")
def modules() -> Path:
    return node.packages("openai")


def with_node(url: str, modules: Path, part: str):
    return node.run(SUPPORT / "node_openai.cjs", modules, url, part)


def test_node_chats_and_streams(modules):
    with counting() as url:
        found = with_node(url, modules, "text")
    assert found == {"whole": COUNTED, "streamed": COUNTED, "tokens": 4, "plain": "bcd"}


def test_node_gets_tool_calls(modules):
    with saying(CALLS) as url:
        found = with_node(url, modules, "calls")
    assert found == [{"finish": "tool_calls", "calls": FOUND}] * 2


def test_node_gets_responses(modules):
    with counting() as url:
        found = with_node(url, modules, "responses")
    assert found == {"whole": COUNTED, "again": COUNTED, "streamed": COUNTED,
                     "last": "response.incomplete"}  # fmt: skip


def test_node_lists_models_embeds_and_knows_errors(modules):
    with counting() as url:
        found = with_node(url, modules, "others")
    assert found == {"models": ["tiny", "alias"], "dimensions": [2, 2], "status": 404}


def langchain(url: str, **fields):
    module = pytest.importorskip("langchain_openai")
    return module.ChatOpenAI(
        base_url=f"{url}/v1", api_key="k", model="tiny", temperature=0, max_retries=0, **fields
    )


@pytest.mark.parametrize("responses", [False, True])
def test_langchain_chats_and_streams(responses):
    with counting() as url:
        chat = langchain(url, max_tokens=4, use_responses_api=responses)
        whole = chat.invoke("abc")
        streamed = list(chat.stream("abc"))
        batch = chat.batch(["abc", "abc"])
    assert whole.text == COUNTED
    assert whole.usage_metadata["output_tokens"] == 4
    assert "".join(chunk.text for chunk in streamed) == COUNTED
    assert [answer.text for answer in batch] == [COUNTED] * 2


class Point(BaseModel):
    """A point with a name."""

    x: int
    name: str


def f(x: int) -> int:
    """A function that is offered."""
    return x


def g(x: int) -> int:
    """Another one."""
    return x


def test_langchain_calls_tools():
    with saying(CALLS) as url:
        chat = langchain(url, max_tokens=200).bind_tools([f, g])
        whole = chat.invoke("abc")
        summed = None
        for chunk in chat.stream("abc"):
            summed = chunk if summed is None else summed + chunk
    for answer in (whole, summed):
        assert [[call["name"], call["args"]] for call in answer.tool_calls] == FOUND


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_reads_models_of_its_own(method):
    script = '{"x": 7, "name": "abc"}'
    if method == "function_calling":
        script = f'<tool_call>\n{{"name": "Point", "arguments": {script}}}\n</tool_call>'
    with saying(script) as url:
        chat = langchain(url, max_tokens=200).with_structured_output(Point, method=method)
        assert chat.invoke("abc") == Point(x=7, name="abc")


def test_langchain_embeds():
    module = pytest.importorskip("langchain_openai")
    with counting() as url:
        embeddings = module.OpenAIEmbeddings(
            base_url=f"{url}/v1", api_key="k", model="tiny", check_embedding_ctx_length=False
        )
        assert [len(vector) for vector in embeddings.embed_documents(["ab", "c"])] == [2, 2]


def with_llm(url: str, home: Path, *arguments: str) -> str:
    """What `llm` prints, with the server among its own list of models."""
    pytest.importorskip("llm")
    home.mkdir(exist_ok=True)
    models = [{"model_id": "ours", "model_name": "tiny", "api_base": f"{url}/v1",
               "supports_tools": True, "supports_schema": True}]  # fmt: skip
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))  # YAML, too
    command = [sys.executable, "-m", "llm", "-m", "ours", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "k"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("options", [(), ("--no-stream",)])
def test_llm_prompts(tmp_path, options):
    with counting() as url:
        said = with_llm(url, tmp_path / "llm", "a\nb", "-o", "temperature", "0", "-o", "max_tokens",
                        "4", *options)  # fmt: skip
    assert said.rstrip("\n") == COUNTED.replace("\r", "\n")  # as text from a pipe is read


def test_llm_asks_for_a_schema(tmp_path):
    with saying('{"x": 7, "name": "abc"}') as url:
        said = with_llm(url, tmp_path / "llm", "abc", "--schema", "x int, name")
    assert json.loads(said) == {"x": 7, "name": "abc"}


@pytest.mark.slow
def test_schemathesis_finds_nothing():
    pytest.importorskip("schemathesis")
    command = [sys.executable, str(SCRIPTS / "check_openapi.py"), "--examples", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
