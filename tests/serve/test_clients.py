"""The clients that people really use, with their own validation of what comes back."""

from __future__ import annotations

import anthropic
import openai
import pytest
from openai.types.responses import Response

from support.clients import with_anthropic, with_openai
from support.serving import Served

CHAT = [{"role": "user", "content": "abc"}]
GREEDY = {"temperature": 0}
COUNTED = "\x0b\x0c\r\x0e"


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


@pytest.fixture
def url(served):
    with served.listening() as address:
        yield address


def test_openai_chat_streamed_and_whole(served, url):
    async def work(client):
        whole = await client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4,
                                                     temperature=0)  # fmt: skip
        text = ""
        stream = await client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4,
                                                      temperature=0, stream=True)  # fmt: skip
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return whole.choices[0].message.content, text

    assert with_openai(url, work) == (COUNTED, COUNTED)


def test_openai_errors_have_their_types(served, url):
    async def work(client):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=CHAT)
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model="tiny", prompt="a" * 500)
        return missing.value.code, bad.value.code

    assert with_openai(url, work) == ("model_not_found", "context_length_exceeded")


def test_openai_models_and_legacy_completions(served, url):
    async def work(client):
        names = [model.id async for model in client.models.list()]
        answer = await client.completions.create(
            model="alias", prompt="a", max_tokens=3, temperature=0
        )
        return names, answer.choices[0].text

    assert with_openai(url, work) == (["tiny", "alias"], "bcd")


def test_openai_responses_whole_stored_and_continued(served, url):
    async def work(client):
        first = await client.responses.create(model="tiny", input="abc", max_output_tokens=4,
                                              instructions="Count.", temperature=0)  # fmt: skip
        again = await client.responses.retrieve(first.id)
        second = await client.responses.create(
            model="tiny", input="more", previous_response_id=first.id, max_output_tokens=16,
            instructions="Count.", temperature=0)  # fmt: skip
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        return first, again, second

    first, again, second = with_openai(url, work)
    assert first.output_text == again.output_text == COUNTED
    assert (first.status, first.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert second.usage.input_tokens > first.usage.input_tokens + 4
    # the second conversation begins with the first, question and answer
    assert second.usage.input_tokens_details.cached_tokens > 16


def test_openai_responses_streamed_in_order(served, url):
    async def work(client):
        stream = await client.responses.create(model="tiny", input="abc", max_output_tokens=4,
                                               stream=True, temperature=0)  # fmt: skip
        return [event async for event in stream]

    events = with_openai(url, work)
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * deltas, "output_text.done", "content_part.done",
        "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == COUNTED
    final = Response.model_validate(events[-1].response.model_dump(), strict=False)
    assert final.output_text == COUNTED


def test_anthropic_messages_whole_and_counted(served, url):
    system = [{"type": "text", "text": "rules" * 8, "cache_control": {"type": "ephemeral"}}]

    async def work(client):
        def ask(text):
            return client.messages.create(
                model="tiny", max_tokens=4, system=system, extra_body=GREEDY,
                messages=[{"role": "user", "content": text}])  # fmt: skip

        first, second = await ask("abc"), await ask("another")
        counted = await client.messages.count_tokens(
            model="tiny", system=system, messages=[{"role": "user", "content": "abc"}]
        )
        return first, second, counted

    first, second, counted = with_anthropic(url, work)
    assert first.content[0].text == COUNTED
    assert first.stop_reason == "max_tokens"
    usage = first.usage
    whole = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    assert whole == counted.input_tokens
    assert second.usage.cache_read_input_tokens >= 40
    assert served.client.stats.pins == 1


def test_anthropic_stop_sequences_and_streams(served, url):
    async def work(client):
        text = ""
        async with client.messages.stream(
            model="tiny", max_tokens=9, extra_body=GREEDY, messages=CHAT, stop_sequences=["\x0e"]
        ) as stream:
            async for piece in stream.text_stream:
                text += piece
            return text, await stream.get_final_message()

    text, final = with_anthropic(url, work)
    assert text == final.content[0].text == COUNTED[:3]
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "\x0e")
    assert final.usage.output_tokens >= 3


def test_anthropic_errors_have_their_types(served, url):
    async def work(client):
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nobody", max_tokens=1, messages=CHAT)
        image = [{"type": "image", "source": {}}]
        with pytest.raises(anthropic.BadRequestError) as bad:
            await client.messages.create(
                model="tiny", max_tokens=1, messages=[{"role": "user", "content": image}]
            )
        return bad.value.body["error"]["type"]

    assert with_anthropic(url, work) == "invalid_request_error"


def test_tool_turns_reach_the_template(served, url):
    """Calls and results of earlier turns are part of the conversation."""

    async def work(client):
        calls = [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]
        result = [{"type": "tool_result", "tool_use_id": "t1", "content": "found 42"}]
        return await client.messages.count_tokens(model="tiny", messages=[
            {"role": "user", "content": "q"}, {"role": "assistant", "content": calls},
            {"role": "user", "content": result}])  # fmt: skip

    plain = served.model.tokenizer.encode("found 42", add_special=False)
    assert with_anthropic(url, work).input_tokens > len(plain) + 12
