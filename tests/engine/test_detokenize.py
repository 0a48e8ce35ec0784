from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.detokenize import Detokenizer
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from support.models import demo_model
from support.tokenizers import ByteVocabulary, byte_level_tokenizer, sentencepiece_tokenizer


def chunks(ids: list[int], sizes: list[int]) -> list[list[int]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(ids[start : start + size])
        start += size
    return [*parts, ids[start:]]


def streamed(detokenizer: Detokenizer, parts: list[list[int]]) -> str:
    return "".join(map(detokenizer.push, parts)) + detokenizer.finish()


def cut_at_first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The definition, letter by letter: the first moment at which the text ends in a stop."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


BYTES = st.lists(st.integers(0, 256), max_size=40)
SIZES = st.lists(st.integers(0, 5), max_size=12)


@given(ids=BYTES, sizes=SIZES, skip=st.booleans())
def test_bytes_stream_to_the_decoding_of_the_whole(
    ids: list[int], sizes: list[int], skip: bool
) -> None:
    data = b"".join(b"<eos>" if i == 256 else bytes([i]) for i in ids if not (skip and i == 256))
    detokenizer = Detokenizer(ByteVocabulary(), skip_special=skip)
    assert streamed(detokenizer, chunks(ids, sizes)) == data.decode("utf-8", "replace")


@given(text=st.text(max_size=30), sizes=SIZES)
def test_never_half_a_character(text: str, sizes: list[int]) -> None:
    detokenizer = Detokenizer(ByteVocabulary())
    shown = ""
    for part in chunks(list(text.encode()), sizes):
        shown += detokenizer.push(part)
        assert text.startswith(shown)
    assert shown + detokenizer.finish() == text


@given(
    text=st.text("abé", max_size=24),
    stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    sizes=SIZES,
)
@settings(max_examples=300)
def test_a_stop_string_cuts_wherever_tokens_do(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    detokenizer = Detokenizer(ByteVocabulary(), stop=tuple(stops))
    want = cut_at_first_stop(text, tuple(stops))
    shown = ""
    for part in chunks(list(text.encode()), sizes):
        shown += detokenizer.push(part)
        assert want.startswith(shown)  # what is shown is never taken back
    shown += detokenizer.finish()
    assert shown == want
    assert (detokenizer.stopped is not None) == (want != text)


def test_a_partial_stop_is_held_back_and_released() -> None:
    detokenizer = Detokenizer(ByteVocabulary(), stop=("END",))
    assert detokenizer.push(b"x EN") == "x "
    assert detokenizer.push(b"T") == "ENT"
    assert detokenizer.push(b" E") == " "
    assert detokenizer.finish() == "E"
    assert detokenizer.stopped is None


def test_nothing_follows_a_stop() -> None:
    detokenizer = Detokenizer(ByteVocabulary(), stop=("END",))
    assert detokenizer.push(b"a END b") == "a "
    assert detokenizer.stopped == "END"
    assert detokenizer.push(b"more") == ""
    assert detokenizer.finish() == ""


def test_the_first_space_belongs_to_the_encoding_unless_the_text_continues() -> None:
    tokenizer = sentencepiece_tokenizer()
    hello = tokenizer.encode("hello hello", add_special=False)
    assert streamed(Detokenizer(tokenizer), [[i] for i in hello]) == "hello hello"
    continued = Detokenizer(tokenizer, continues=True)
    assert streamed(continued, [[i] for i in hello]) == " hello hello"


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
@given(data=st.data(), sizes=SIZES)
def test_small_vocabularies_stream_to_their_decoding(make, data, sizes: list[int]) -> None:
    check_stream(make(), data, sizes)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
@pytest.mark.network
def test_real_vocabularies_stream_to_their_decoding(name: str) -> None:
    tokenizer = load_tokenizer(demo_model(name))

    @given(data=st.data(), sizes=SIZES)
    def check(data, sizes: list[int]) -> None:
        check_stream(tokenizer, data, sizes)

    check()


def check_stream(tokenizer: Tokenizer, data: st.DataObject, sizes: list[int]) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    skip = data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special=skip)
    assert streamed(detokenizer, chunks(ids, sizes)) == tokenizer.decode(ids, skip_special=skip)
