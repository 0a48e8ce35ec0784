"""safetensors: round trips with the package in both directions, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from octavo.core.errors import FormatError, ModelFileError
from octavo.io.safetensors_file import (
    INDEX_NAME,
    open_directory,
    open_safetensors,
    write_safetensors,
)

NUMPY = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    found = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in NUMPY}
    return {**found, "vector": rng.standard_normal(7).astype(np.float32), "none": np.zeros((0, 4))}


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, arrays(), {"format": "pt", "made by": "a test"})
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, arrays()[name])
        assert array.dtype == arrays()[name].dtype
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "made by": "a test"}


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(arrays(), path, {"k": "v"})
    file = open_safetensors(path)
    assert file.metadata == {"k": "v"}
    assert set(file.tensors) == set(arrays())
    for name, array in arrays().items():
        stored = file.tensors[name]
        assert stored.shape == array.shape
        assert stored.rows().tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_floats_survive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    array = np.arange(16).reshape(2, 8).astype(getattr(ml_dtypes, kind))
    write_safetensors(path, {"a": array})
    stored = open_safetensors(path).tensors["a"]
    np.testing.assert_array_equal(stored.rows().view(array.dtype), array)
    with safe_open(path, "np") as file:
        assert file.get_slice("a").get_dtype() == stored.type


def test_the_data_starts_at_a_multiple_of_64(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for size in range(1, 70):
        write_safetensors(path, {"n" * size: np.zeros(3, np.float32)})
        (only,) = open_safetensors(path).tensors.values()
        assert only.offset % 64 == 0


def test_misaligned_data_is_copied_into_alignment(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (-(len(header) + 8) % 4 + 1)
    data = np.array([1, 2], np.float32)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
    stored = open_safetensors(path).tensors["a"]
    assert stored.offset % 4 == 1
    np.testing.assert_array_equal(stored.rows().view(np.float32)[0], data)


def test_a_type_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="complex64"):
        write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(1, np.complex64)})
    assert list(tmp_path.iterdir()) == []


def broken(tmp_path: Path, header: object, data: bytes = bytes(16)) -> str:
    """The message that a file with this header gets."""
    path = tmp_path / "a.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    with pytest.raises(ModelFileError) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def entry(start: int = 0, stop: int = 16, **changes: object) -> dict[str, object]:
    shape = [(stop - start) // 4]
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "offset 8: the header isn't a JSON object"),
        (b"{nonsense}", "JSON: not valid"),
        (b'{"a":' + b"[" * 100_000, "JSON: nested too deeply"),
        (b'{"a":1,"a":2}', "the key 'a' occurs twice"),
        ({"a": 1}, "tensor 'a': needs exactly dtype, shape and data_offsets"),
        ({"a": entry(extra=1)}, "needs exactly"),
        ({"a": entry(dtype="F31")}, "unknown dtype 'F31'"),
        ({"a": entry(shape=[-4])}, "shape holds something that is no size"),
        ({"a": entry(shape=[True])}, "shape holds something that is no size"),
        ({"a": entry(shape=[1] * 9)}, "at most 8 integers"),
        ({"a": entry(shape=[5])}, "takes 20 bytes but data_offsets span 16"),
        ({"a": entry(data_offsets=[16, 0])}, "are no range"),
        ({"a": entry(data_offsets=[0])}, "are no range"),
        ({"a": entry(0, 32)}, "needs 32 bytes but the file has"),
        ({"a": entry(0, 8)}, "8 bytes follow the last tensor"),
        ({"a": entry(4, 16)}, "leaves a hole"),
        ({"a": entry(0, 12), "b": entry(8, 16)}, "tensor 'b', offset .* overlaps"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "must map strings to strings"),
        ({"\ud800": entry(dtype="x")}, r"'\ud800'"),
    ],
)
def test_lies_are_refused_at_their_place(tmp_path: Path, header: object, message: str) -> None:
    said = broken(tmp_path, header)
    for part in message.split(" .* "):
        assert part in said


@pytest.mark.parametrize("length", [0, 3, 8, 30, 2**40, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.zeros(4, np.float32)})
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelFileError, match=r"a\.safetensors"):
        open_safetensors(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.zeros(4, np.float32)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"a\.safetensors"):
            open_safetensors(path)


def sharded(tmp_path: Path, weight_map: dict[str, object] | None = None) -> Path:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "1.safetensors")
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "2.safetensors")
    names = weight_map or {"a": "1.safetensors", "b": "2.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_shards_are_one_model(tmp_path: Path) -> None:
    files = open_directory(sharded(tmp_path))
    assert [sorted(file.tensors) for file in files] == [["a"], ["b"]]
    assert files[1].tensors["b"].rows().view(np.float32).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "1.safetensors", "b": "3.safetensors"}, "3.safetensors: shard named by"),
        ({"a": "1.safetensors", "c": "2.safetensors"}, "tensor 'c': listed by"),
        ({"a": "2.safetensors", "b": "2.safetensors"}, "tensor 'a': listed by"),
        ({"a": "../1.safetensors"}, "is not a plain file name"),
        ({"a": "/etc/passwd"}, "is not a plain file name"),
        ({"a": 1}, "is not a plain file name"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, weight_map: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_directory(sharded(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file({"a": np.zeros(2), "b": np.ones(2)}, tmp_path / "2.safetensors")
    with pytest.raises(ModelFileError, match=r"tensor 'a': also in 1\.safetensors"):
        open_directory(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(ModelFileError, match="weight_map: missing, empty"):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("x.safetensors", "Rename the file"),
        ("pytorch_model.bin", "pickled weights"),
        ("consolidated.pth", "pickled weights"),
        ("notes.txt", "no model.safetensors"),
    ],
)
def test_a_directory_without_weights_says_what_it_holds(
    tmp_path: Path, file: str, message: str
) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ModelFileError, match=message):
        open_directory(tmp_path)
