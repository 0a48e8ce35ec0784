"""The HTTP surface, held against the types of OpenAI's own client."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from octavo.core.errors import OverloadedError
from octavo.engine.process import Health
from octavo.serve.app import ServeSettings
from support.serving import Served


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def run(work):
    return asyncio.run(work)


def chat(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4, **fields}


def events(text: str) -> list[dict[str, object]]:
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


COUNTED = "\x0b\x0c\r\x0e"  # what follows the newline at the end of the template


def test_a_chat_answer_is_what_openai_calls_one(served):
    response = run(served.post("/v1/chat/completions", chat(temperature=0)))
    assert response.status_code == 200
    answer = ChatCompletion.model_validate_json(response.text, strict=True)
    assert answer.choices[0].message.content == COUNTED
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "tiny"
    assert answer.usage.completion_tokens == 4
    prompt = served.executor.rows[0]
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    again = run(served.post("/v1/chat/completions", chat(temperature=0))).json()
    details = again["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": (prompt - 1) // 4 * 4, "cache_write_tokens": 0}


def test_a_streamed_chat_adds_up_to_the_same(served):
    body = chat(temperature=0, stream=True, stream_options={"include_usage": True})
    response = run(served.post("/v1/chat/completions", body))
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = [ChatCompletionChunk.model_validate(e) for e in events(response.text)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert len({chunk.id for chunk in chunks}) == 1
    texts = [c.delta.content or "" for chunk in chunks for c in chunk.choices]
    assert "".join(texts) == COUNTED
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_choices_interleave_by_index(served):
    body = chat(n=3, temperature=0, stream=True)
    chunks = events(run(served.post("/v1/chat/completions", body)).text)
    found = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found[choice["index"]] += choice["delta"].get("content") or ""
    assert found == dict.fromkeys(range(3), COUNTED)
    whole = run(served.post("/v1/chat/completions", chat(n=3, temperature=0))).json()
    assert [c["message"]["content"] for c in whole["choices"]] == [COUNTED] * 3


def test_logprobs_of_a_chat(served):
    body = chat(logprobs=True, top_logprobs=2, temperature=0)
    answer = ChatCompletion.model_validate_json(run(served.post("/v1/chat/completions", body)).text)
    entries = answer.choices[0].logprobs.content
    assert [e.token for e in entries] == list(COUNTED)
    assert all(len(e.top_logprobs) == 2 for e in entries)
    assert entries[0].top_logprobs[0].token == entries[0].token
    assert entries[0].bytes == list(COUNTED[0].encode())
    assert entries[0].logprob > -0.1


def test_a_stop_string_ends_and_is_left_out(served):
    body = {"prompt": "a", "max_tokens": 20, "stop": ["ef", "zz"], "temperature": 0}
    answer = run(served.post("/v1/completions", body)).json()
    assert answer["choices"][0]["text"] == "bcd"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == "ef"


@pytest.mark.parametrize("prompt", ["a", ["a"], [100], [[100]]])
def test_prompts_in_all_their_shapes(served, prompt):
    body = {"prompt": prompt, "max_tokens": 3, "temperature": 0}
    response = run(served.post("/v1/completions", body))
    answer = Completion.model_validate_json(response.text, strict=True)
    assert [c.text for c in answer.choices] == ["bcd"]


def test_prompts_of_a_call_keep_their_order(served):
    body = {"prompt": ["a", "k", "p"], "max_tokens": 2, "n": 2, "temperature": 0}
    answer = run(served.post("/v1/completions", body)).json()
    assert [c["text"] for c in answer["choices"]] == ["bc", "bc", "lm", "lm", "qr", "qr"]
    assert [c["index"] for c in answer["choices"]] == list(range(6))


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(served, stream):
    """What lm-eval asks for: the first token has no score, the others have theirs."""
    body = {"prompt": [100, 101, 103], "max_tokens": 1, "logprobs": 1, "echo": True,
            "temperature": 0, "stream": stream}  # fmt: skip
    response = run(served.post("/v1/completions", body))
    if stream:
        choices = [c for e in events(response.text) for c in e["choices"]]
        logprobs = {k: [x for c in choices for x in c["logprobs"][k]] for k in
                    choices[0]["logprobs"]}  # fmt: skip
        text = "".join(c["text"] for c in choices)
    else:
        [choice] = response.json()["choices"]
        logprobs, text = choice["logprobs"], choice["text"]
    assert text == "abde"
    assert logprobs["tokens"] == ["a", "b", "d", "e"]
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    scores = logprobs["token_logprobs"]
    assert scores[0] is None
    assert min(scores[1], scores[3]) > -0.1  # as counted
    assert scores[2] < -9  # not the next letter
    assert list(logprobs["top_logprobs"][2]) == ["c"]


def test_echo_of_nothing_new(served):
    body = {"prompt": "ab", "max_tokens": 0, "logprobs": 0, "echo": True}
    answer = run(served.post("/v1/completions", body)).json()
    assert answer["choices"][0]["text"] == "ab"
    assert answer["usage"]["completion_tokens"] == 0


WRONG = [
    ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {}, 400, "messages"),
    ("/v1/chat/completions", chat(temperature="hot"), 400, "temperature"),
    ("/v1/chat/completions", chat(temperature=-1), 400, "temperature"),
    ("/v1/chat/completions", chat(n=0), 400, "n"),
    ("/v1/chat/completions", chat(top_logprobs=2), 400, "top_logprobs"),
    ("/v1/chat/completions", chat(logit_bias={"x": 1}), 400, "logit_bias"),
    ("/v1/chat/completions", chat(model="other"), 404, "model"),
    ("/v1/chat/completions", chat(messages=[{"content": "x"}]), 400, "messages"),
    ("/v1/chat/completions", chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
     400, "messages"),
    ("/v1/chat/completions", chat(prompt_cache_options={"ttl": "soon"}), 400,
     "prompt_cache_options"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [[]]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [99999]}, 400, "prompt"),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ("/v1/completions", {"prompt": "a" * 300}, 400, "messages"),
    ("/tokenize", {}, 400, "prompt"),
    ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
    ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG)
def test_what_is_wrong_is_named(served, path, body, status, param):
    response = run(served.post(path, body))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_stream_that_fails_says_so_in_its_last_event(served):
    """The prompt's ids are refused by the engine, after the stream has begun: the server itself
    checks lengths only."""
    body = {"prompt": [99999], "stream": True}
    response = run(served.post("/v1/completions", body))
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["param"] == "prompt"


def test_bad_json_and_unknown_paths(served):
    async def send():
        async with served.http() as http:
            bad = await http.post("/v1/completions", content=b"{not json")
            return bad, await http.get("/nothing"), await http.get("/v1/completions")

    bad, nothing, wrong_method = run(send())
    assert (bad.status_code, nothing.status_code, wrong_method.status_code) == (400, 404, 405)
    for response in (bad, nothing, wrong_method):
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_full_queue_is_429_with_a_time(served):
    served.client.refuse = OverloadedError("too many wait", retry_after=3.0)
    response = run(served.post("/v1/chat/completions", chat()))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


def test_breakpoints_leave_what_stands_before_them(served):
    parts = [{"type": "text", "text": "rules" * 8,
              "prompt_cache_breakpoint": {"mode": "explicit"}}]  # fmt: skip
    body = chat(
        messages=[{"role": "system", "content": parts}, {"role": "user", "content": "q"}],
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
    )
    first = run(served.post("/v1/chat/completions", body)).json()["usage"]
    written = first["prompt_tokens_details"]["cache_write_tokens"]
    assert 40 <= written < first["prompt_tokens"] - 8
    assert served.client.stats.pins == 1
    body["messages"][1]["content"] = "another question"
    second = run(served.post("/v1/chat/completions", body)).json()["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] == written


def test_keys_open_the_api_and_nothing_else_does():
    served = Served(ServeSettings(keys=("secret", "other")))
    try:
        for headers, status in (
            ({}, 401), ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer secret"}, 200), ({"authorization": "bearer other"}, 200),
            ({"x-api-key": "secret"}, 200),
        ):  # fmt: skip
            assert run(served.get("/v1/models", **headers)).status_code == status
        assert run(served.get("/health")).status_code == 200
        refused = run(served.get("/v1/models"))
        assert refused.json()["error"]["code"] == "invalid_api_key"
    finally:
        served.close()


def test_a_body_beyond_the_limit_is_413():
    served = Served(ServeSettings(max_body=1024))
    try:
        response = run(served.post("/v1/completions", {"prompt": "a" * 2000}))
        assert response.status_code == 413
    finally:
        served.close()


def test_health_tells_the_truth(served):
    assert run(served.get("/health")).json()["status"] == "ok"
    served.client.state = Health("starting", 1, None, "the engine process ended with status -9")
    response = run(served.get("/health"))
    assert (response.status_code, response.json()["restarts"]) == (503, 1)
    assert "status -9" in response.json()["reason"]
    served.client.state = Health("ready", 1, 2)
    served.server.draining = True
    assert run(served.get("/health")).json()["status"] == "draining"
    assert run(served.post("/v1/chat/completions", chat())).status_code == 503


def test_models_and_versions(served):
    listed = run(served.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["tiny", "alias"]
    assert listed["data"][0]["max_model_len"] == 256
    assert run(served.get("/v1/models/alias")).json()["root"] == "tiny"
    assert run(served.get("/v1/models/nobody")).status_code == 404
    assert set(run(served.get("/version")).json()) == {"version"}


def test_tokens_in_both_dialects(served):
    vllm = run(served.post("/tokenize", {"prompt": "hello!", "return_token_strs": True})).json()
    assert vllm["token_strs"] == ["hello", "!"]
    assert vllm["count"] == 2
    llama = run(served.post("/tokenize", {"content": "hello!", "with_pieces": True})).json()
    assert [t["piece"] for t in llama["tokens"]] == ["hello", "!"]
    back = run(served.post("/detokenize", {"tokens": vllm["tokens"]})).json()
    assert back == {"prompt": "hello!", "content": "hello!"}
    messages = run(
        served.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]})
    ).json()
    assert messages["count"] > 3
    info = run(served.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<|im_end|>"


def test_metrics_count_what_happened(served):
    run(served.post("/v1/chat/completions", chat(temperature=0)))
    text = run(served.get("/metrics")).text
    labels = '{engine="0",model_name="tiny"}'
    assert f"octavo:generation_tokens_total{labels} 4.0" in text
    assert f"octavo:time_to_first_token_seconds_count{labels} 1.0" in text
    assert 'finished_reason="length"' in text
    assert "octavo:prefix_cache_queries_total" in text
    assert f"octavo:kv_cache_tokens{labels} {float(served.model.kv_tokens)}" in text
    assert "vllm:" not in text


def test_metrics_under_the_names_of_vllm():
    served = Served(ServeSettings(metrics_compat=True))
    try:
        text = run(served.get("/metrics")).text
        assert "vllm:num_requests_running" in text
        assert "octavo:num_requests_running" in text
    finally:
        served.close()


def test_a_miss_is_explained(served):
    def ask(text):
        body = {"prompt": text, "max_tokens": 1, "prompt_cache_key": "k"}
        return run(served.post("/v1/completions", body)).json()["prompt_cache_diagnostics"]

    assert ask("abcdefgh")[0]["type"] == "comparison_response_not_found"
    assert ask("abcdefghij")[0] == {"type": "cache_hit", "octavo_reason": "hit", "cached_tokens": 8}
    assert ask("abcdxxxxx")[0] == {
        "type": "cache_miss", "octavo_reason": "input_changed", "reason": "input_changed",
        "cached_tokens": 4, "cache_missed_tokens": 5, "comparison_reusable_tokens": 4,
        "first_diverging_token": 4,
    }  # fmt: skip
