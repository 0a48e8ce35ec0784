"""GGUF files: ours read by the `gguf` package, theirs by us, and every refusal by its place."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import ConfigError, FormatError, ModelFileError, UnsupportedError
from octavo.io.gguf_blocks import encode
from octavo.io.gguf_reader import GgufFile, open_gguf
from octavo.io.gguf_values import GgufValue, ValueType, gguf_value
from octavo.io.gguf_writer import GgufTensor, write_gguf
from octavo.io.stored import BLOCK_TYPES

DEMO_MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
TOKENS = {"smollm2-135m": 49152, "gemma3-270m": 262144, "qwen2.5-coder-0.5b": 151936}


def tensor(name: str, kind: str, shape: tuple[int, ...], seed: int = 0) -> GgufTensor:
    block = BLOCK_TYPES[kind]
    size = int(np.prod(shape)) // block.elements * block.size
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return GgufTensor(name, kind, shape, [data[: size // 2], data[size // 2 :]])


def every_value() -> dict[str, GgufValue]:
    values = {
        f"x.{kind.name.lower()}": GgufValue(kind, value)
        for kind, value in {
            ValueType.UINT8: 255,
            ValueType.INT8: -128,
            ValueType.UINT16: 65535,
            ValueType.INT16: -32768,
            ValueType.UINT32: 2**32 - 1,
            ValueType.INT32: -(2**31),
            ValueType.FLOAT32: 0.5,
            ValueType.BOOL: True,
            ValueType.STRING: "grüße",
            ValueType.UINT64: 2**64 - 1,
            ValueType.INT64: -(2**63),
            ValueType.FLOAT64: 0.1,
        }.items()
    }
    values["x.strings"] = gguf_value(["a", "", "ccc"])
    values["x.numbers"] = gguf_value([1, -2, 3])
    values["x.floats"] = gguf_value([0.5, 2])
    values["x.bools"] = gguf_value([True, False])
    return values


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tensors = [
        tensor("a", "Q4_0", (3, 64)),
        tensor("b", "F32", (5,)),
        tensor("c", "Q6_K", (2, 2, 256)),
    ]
    write_gguf(path, {"general.architecture": gguf_value("llama"), **every_value()}, tensors)
    theirs = gguf.GGUFReader(path)
    for key, value in every_value().items():
        found = theirs.fields[key].contents()
        expected = value.value.tolist() if isinstance(value.value, np.ndarray) else value.value
        assert found == expected, key
    assert [t.name for t in theirs.tensors] == ["a", "b", "c"]
    for mine, other in zip(tensors, theirs.tensors, strict=True):
        assert other.tensor_type.name == mine.type
        assert tuple(reversed(other.shape.tolist())) == mine.shape
        assert other.data.tobytes() == np.concatenate(list(mine.chunks)).tobytes()


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    weight = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    writer.add_uint32("llama.block_count", 7)
    writer.add_array("x.names", ["a", "b"])
    writer.add_float64("x.wide", 0.1)
    writer.add_tensor("w", encode("Q5_1", weight), raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("v", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(path)
    assert file.version == 3
    assert file.metadata.string("general.architecture") == "llama"
    assert file.metadata.integer("llama.block_count") == 7
    assert file.metadata.strings("x.names") == ["a", "b"]
    assert file.metadata.number("x.wide") == 0.1
    assert file.tensors["w"].type == "Q5_1"
    np.testing.assert_array_equal(file.tensors["w"].rows(), encode("Q5_1", weight))
    np.testing.assert_array_equal(file.tensors["v"].rows().view(np.float32), weight)


def test_a_copy_is_the_same_file(tmp_path: Path) -> None:
    """Every value keeps its type and every block its bytes, also of types that we can't decode."""
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    tensors = [tensor(k, k, (2, b.elements)) for k, b in BLOCK_TYPES.items()]
    nested = GgufValue(ValueType.ARRAY, [gguf_value([1, 2]), gguf_value(["x"])], ValueType.ARRAY)
    alignment = {"general.alignment": gguf_value(128)}
    write_gguf(first, {**every_value(), **alignment, "x.nested": nested}, tensors)
    file = open_gguf(first)
    copies = [GgufTensor(t.name, t.type, t.shape, [t.rows()]) for t in file.tensors.values()]
    write_gguf(second, file.metadata.typed(), copies)
    assert file.alignment == 128
    assert first.read_bytes() == second.read_bytes()


@given(st.lists(st.text(max_size=20), min_size=1, max_size=30), st.integers(-(2**63), 2**64 - 1))
def test_strings_and_integers_survive(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], number: int
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(path, {"words": gguf_value(words), "number": gguf_value(number)}, [])
    file = open_gguf(path)
    assert file.metadata.strings("words") == words
    assert file.metadata.integer("number") == number


def test_typed_reads_name_the_key_and_the_type(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, every_value(), [])
    metadata = open_gguf(path).metadata
    reads: list[tuple[Callable[[str], object], str]] = [
        (metadata.integer, "x.string"),
        (metadata.integer, "x.bool"),
        (metadata.integer, "x.float32"),
        (metadata.number, "x.string"),
        (metadata.string, "x.uint8"),
        (metadata.boolean, "x.uint8"),
        (metadata.strings, "x.numbers"),
        (metadata.array, "x.strings"),
    ]
    for read, key in reads:
        with pytest.raises(ConfigError, match=f"a.gguf: {key} is .*expected a"):
            read(key)
        assert not read("absent")
    assert metadata.boolean("x.bool") is True
    assert metadata.number("x.uint8") == 255
    assert metadata.array("x.numbers").tolist() == [1, -2, 3]  # type: ignore[union-attr]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield np.zeros(4, np.uint8)
        raise RuntimeError("the source failed")

    path = tmp_path / "a.gguf"
    with pytest.raises(RuntimeError):
        write_gguf(path, {}, [GgufTensor("a", "F32", (2,), broken())])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_no_blocks_are_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="multiple of 32"):
        write_gguf(tmp_path / "a.gguf", {}, [GgufTensor("a", "Q4_0", (2, 33), [])])
    assert list(tmp_path.iterdir()) == []


def sound(tmp_path: Path) -> Path:
    path = tmp_path / "a.gguf"
    write_gguf(path, {"k": gguf_value(1)}, [tensor("a", "F32", (8,)), tensor("b", "F32", (8,))])
    return path


def patched(tmp_path: Path, offset: int, data: bytes) -> Path:
    path = sound(tmp_path)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


# The header of `sound`: 24 fixed bytes, one value of 17, two tensor infos of 33.
VALUE, INFO_A, INFO_B = 24, 41, 74


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"GGML", "offset 0: starts with b'GGML'"),
        (8, struct.pack("<Q", 2**63), "offset 8: the number of tensors is 9223372036854775808"),
        (16, struct.pack("<Q", 1000), "offset 16: the number of metadata values is 1000"),
        (VALUE, struct.pack("<Q", 2**60), "offset 24: a string of 'a metadata key' runs past"),
        (VALUE + 9, struct.pack("<I", 13), "offset 33: 'k' has unknown value type 13"),
        (VALUE + 8, b"\xff", "offset 24: a string of 'a metadata key' isn't UTF-8"),
        (INFO_A + 9, struct.pack("<I", 5), "tensor 'a' has 5 dimensions, expected 1 to 4"),
        (INFO_A + 13, struct.pack("<Q", 2**62), "tensor 'a' needs 18446744073709551616 bytes"),
        (INFO_A + 13, struct.pack("<Q", 0), "rows of 0 elements"),
        (INFO_A + 21, struct.pack("<I", 2), "of Q4_0 has rows of 8 elements"),
        (INFO_A + 21, struct.pack("<I", 99), "unknown type 99"),
        (INFO_B + 25, struct.pack("<Q", 0), "tensor 'b' overlaps the one before it"),
        (INFO_B + 25, struct.pack("<Q", 64), "tensor 'b' leaves a hole"),
        (INFO_B + 8, b"a", "tensor 'a' occurs twice"),
    ],
)
def test_lies_are_refused_at_their_place(
    tmp_path: Path, offset: int, data: bytes, message: str
) -> None:
    path = patched(tmp_path, offset, data)
    with pytest.raises(ModelFileError) as caught:
        open_gguf(path)
    text = str(caught.value)
    assert str(path) in text
    assert message in text
    assert "fetch or write it again" in text


@pytest.mark.parametrize(
    ("version", "message"),
    [(1, "GGUF version 1"), (4, "GGUF version 4"), (3 << 24, "big-endian")],
)
def test_other_versions_are_refused(tmp_path: Path, version: int, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        open_gguf(patched(tmp_path, 4, struct.pack("<I", version)))


def test_version_2_is_read(tmp_path: Path) -> None:
    assert open_gguf(patched(tmp_path, 4, struct.pack("<I", 2))).version == 2


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = sound(tmp_path)
    content = path.read_bytes()
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"a\.gguf"):
            open_gguf(path)


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    path = sound(tmp_path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelFileError, match="1 bytes follow the last tensor"):
        open_gguf(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for name, message in (
        ("none.gguf", "no such file"),
        ("empty.gguf", "is empty"),
        ("", "a directory"),
    ):
        with pytest.raises(ModelFileError, match=message):
            open_gguf(tmp_path / name)


def test_a_double_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {"k": gguf_value(1), "l": gguf_value(2)}, [])
    path.write_bytes(path.read_bytes().replace(b"l", b"k"))
    with pytest.raises(ModelFileError, match="the key 'k' occurs twice"):
        open_gguf(path)


def test_a_boolean_is_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {"k": GgufValue(ValueType.BOOL, True)}, [])
    content = bytearray(path.read_bytes())
    content[24 + 9 + 4] = 2
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="neither 0 nor 1"):
        open_gguf(path)


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_models_parse(name: str) -> None:
    file = open_gguf(demo_model(name))
    assert len(tokens(file)) == TOKENS[name]
    assert file.tensors["token_embd.weight"].shape[0] == TOKENS[name]


@pytest.mark.slow  # the package takes up to a minute for a vocabulary
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_models_parse_as_the_package_parses_them(name: str) -> None:
    file = open_gguf(demo_model(name))
    theirs = gguf.GGUFReader(file.mapping.path)
    assert {t.name: (t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors} == {
        t.name: (t.type, t.offset, t.nbytes) for t in file.tensors.values()
    }
    for key in ("general.architecture", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.model"):
        assert theirs.fields[key].contents() == file.metadata[key]
    assert len(theirs.fields["tokenizer.ggml.tokens"].data) == len(tokens(file))
    last = theirs.fields["tokenizer.ggml.tokens"].contents(-1)
    assert last == tokens(file)[-1]


def tokens(file: GgufFile) -> list[str]:
    return file.metadata.strings("tokenizer.ggml.tokens")


def demo_model(name: str) -> Path:
    path = Path(os.environ.get("OCTAVO_TEST_MODELS", "")) / f"{name}.gguf"
    if not path.is_file():
        pytest.skip(f"no {name}.gguf in OCTAVO_TEST_MODELS")
    return path
