"""What `fuzz.py` feeds to the readers: small valid files, written by hand, and lies about them.

The files are built here and not by Octavo's writers, so that each integer's place is known and a
mistake of a writer can't hide the same mistake of a reader.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

Files = dict[str, bytes]

INTERESTING = (
    0, 1, 2, 3, 7, 8, 9, 12, 31, 32, 33, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, 1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
ARRAY, STRING = 9, 8


@dataclass(slots=True)
class Layout:
    """Bytes under construction, with the places of their integers and entries."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int]] = field(default_factory=list)  # (offset, width)
    entries: list[tuple[int, int]] = field(default_factory=list)  # [start, stop)
    marked: list[tuple[int, int]] = field(default_factory=list)  # rare fields, to be hit often

    def number(self, value: int, width: int) -> None:
        self.fields.append((len(self.data), width))
        self.data += value.to_bytes(width, "little")

    def text(self, text: str) -> None:
        self.number(len(text.encode()), 8)
        self.data += text.encode()

    def value(self, key: str, kind: int, payload: bytes | str | list[str]) -> None:
        start = len(self.data)
        self.text(key)
        if isinstance(payload, list):
            self.number(ARRAY, 4)
            self.number(STRING, 4)
            self.number(len(payload), 8)
            for item in payload:
                self.text(item)
        else:
            self.number(kind, 4)
            if isinstance(payload, str):
                self.text(payload)
            else:
                self.number(int.from_bytes(payload, "little"), len(payload))
        self.entries.append((start, len(self.data)))

    def array(self, key: str, item: int, count: int, payload: bytes) -> None:
        start = len(self.data)
        self.text(key)
        self.number(ARRAY, 4)
        self.number(item, 4)
        self.number(count, 8)
        self.data += payload
        self.entries.append((start, len(self.data)))

    def tensor(self, name: str, dims: tuple[int, ...], kind: int, offset: int) -> None:
        start = len(self.data)
        self.text(name)
        self.number(len(dims), 4)
        for dim in dims:
            self.number(dim, 8)
        self.number(kind, 4)
        self.number(offset, 8)
        self.entries.append((start, len(self.data)))


# (name, dims in GGUF's order, type id, bytes)
Tensor = tuple[str, tuple[int, ...], int, int]


def _finish(layout: Layout, tensors: list[Tensor], alignment: int) -> Layout:
    offset = 0
    for name, dims, kind, nbytes in tensors:
        layout.tensor(name, dims, kind, offset)
        offset += -(-nbytes // alignment) * alignment
    layout.data += bytes(-len(layout.data) % alignment)
    layout.data += bytes(i * 37 & 255 for i in range(offset))
    return layout


def _start(version: int, tensors: int, values: int) -> Layout:
    layout = Layout(bytearray(b"GGUF"))
    layout.number(version, 4)
    layout.number(tensors, 8)
    layout.number(values, 8)
    return layout


def odd_gguf() -> Layout:
    """Every kind of value, nested arrays, and tensors of many types."""
    tensors: list[Tensor] = [
        ("f32", (8, 2), 0, 64), ("f16", (8,), 1, 16), ("bf16", (4, 2, 2), 30, 32),
        ("q4_0", (32, 2), 2, 36), ("q8_0", (32,), 8, 34), ("q6_k", (256,), 14, 210),
        ("iq4_xs", (256,), 23, 136), ("i8", (3,), 24, 3), ("iq1_s", (256,), 19, 50),
    ]  # fmt: skip
    scalars = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 5: "<i", 10: "<Q", 11: "<q"}
    layout = _start(2, len(tensors), len(scalars) + 10)
    layout.value("general.alignment", 4, struct.pack("<I", 16))
    layout.marked = layout.fields[-2:]
    for kind, code in scalars.items():
        layout.value(f"n{kind}", kind, struct.pack(code, 5))
    layout.value("f4", 6, struct.pack("<f", 0.5))
    layout.value("f8", 12, struct.pack("<d", 0.5))
    layout.value("b", 7, b"\1")
    layout.value("s", STRING, "text é")
    layout.value("strings", ARRAY, ["a", "", "ccc"])
    layout.array("ints", 5, 3, struct.pack("<3i", 1, 2, 3))
    layout.array("bools", 7, 3, b"\0\1\1")
    inner = struct.pack("<IQ2B", 0, 2, 1, 2)
    layout.array("nested", ARRAY, 2, inner * 2)
    deep = b"".join(struct.pack("<IQ", ARRAY, 1) for _ in range(2)) + struct.pack("<IQB", 0, 1, 1)
    layout.array("deep", ARRAY, 1, deep)
    layout.marked.append((len(layout.data) - 13, 4))  # the type in the innermost array
    return _finish(layout, tensors, 16)


def llama_gguf() -> Layout:
    """A whole one-layer model, so that the config's checks run as well."""
    tensors: list[Tensor] = [
        ("token_embd.weight", (32, 4), 8, 136), ("output_norm.weight", (32,), 0, 128),
        ("blk.0.attn_norm.weight", (32,), 0, 128), ("blk.0.ffn_norm.weight", (32,), 0, 128),
        ("rope_freqs.weight", (8,), 0, 32),
    ]  # fmt: skip
    tensors += [(f"blk.0.attn_{n}.weight", (32, 32), 2, 576) for n in ("q", "k", "v", "output")]
    tensors += [(f"blk.0.ffn_{n}.weight", (32, 32), 2, 576) for n in ("gate", "up", "down")]
    numbers = {
        "block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 32,
        "attention.head_count": 2, "attention.head_count_kv": 2, "rope.dimension_count": 16,
        "vocab_size": 4,
    }  # fmt: skip
    layout = _start(3, len(tensors), len(numbers) + 6)
    layout.value("general.architecture", STRING, "llama")
    for key, value in numbers.items():
        layout.value(f"llama.{key}", 4, struct.pack("<I", value))
    layout.value("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))
    layout.value("llama.rope.freq_base", 6, struct.pack("<f", 1e4))
    layout.value("tokenizer.ggml.tokens", ARRAY, ["<s>", "a", "b", "</s>"])
    layout.value("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 3))
    layout.value("general.sampling.temp", 6, struct.pack("<f", 0.7))
    return _finish(layout, tensors, 32)


def mutate(layout: Layout, rng: random.Random) -> bytes:
    """One to three lies about a file, one of them at least in its structure."""
    data = bytearray(layout.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_MUTATIONS)(data, layout, rng)
    return bytes(data)


def _flip(data: bytearray, layout: Layout, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _lie(data: bytearray, layout: Layout, rng: random.Random) -> None:
    """An integer field takes an interesting value, or one near the truth or the file's size."""
    offset, width = rng.choice(layout.fields)
    truth = int.from_bytes(data[offset : offset + width], "little")
    near = (truth + 1, truth - 1, truth * 2, truth + 8, truth - 8, len(data), len(data) - offset)
    value = rng.choice((*INTERESTING, *near, *near)) % (1 << 8 * width)
    data[offset : offset + width] = value.to_bytes(width, "little")


def _retype(data: bytearray, layout: Layout, rng: random.Random) -> None:
    offset, width = rng.choice([f for f in layout.fields if f[1] == 4])
    data[offset : offset + width] = rng.randrange(45).to_bytes(width, "little")


def _lie_where_it_is_rare(data: bytearray, layout: Layout, rng: random.Random) -> None:
    offset, width = rng.choice(layout.marked or layout.fields)
    value = rng.choice((0, 5, 5, 6, 9, 9, 48, 1 << 21))
    data[offset : offset + width] = value.to_bytes(width, "little")


def _truncate(data: bytearray, layout: Layout, rng: random.Random) -> None:
    at_field = [offset + rng.randrange(9) for offset, _ in layout.fields]
    del data[rng.choice((rng.randrange(len(data) + 1), rng.choice(at_field))) :]


def _extend(data: bytearray, layout: Layout, rng: random.Random) -> None:
    data += rng.randbytes(rng.choice((1, 8, 31, 32, 64, 5000)))


def _repeat(data: bytearray, layout: Layout, rng: random.Random) -> None:
    """An entry occurs twice: in place of another, or besides with the counts left alone."""
    start, stop = rng.choice(layout.entries)
    entry = data[start:stop]
    at, end = rng.choice(layout.entries)
    data[at : rng.choice((at, end))] = entry


def _repeat_counted(data: bytearray, layout: Layout, rng: random.Random) -> None:
    """An entry occurs twice and the counts say so: only the name is wrong."""
    start, stop = rng.choice(layout.entries)
    if len(data) < 24:  # an earlier mutation cut the counts off
        return
    is_value = layout.entries.index((start, stop)) < len(layout.entries) - data[8]
    where = 16 if is_value else 8
    data[start:start] = data[start:stop]
    data[where] = (data[where] + 1) & 255


def _remove(data: bytearray, layout: Layout, rng: random.Random) -> None:
    start, stop = rng.choice(layout.entries)
    del data[start:stop]


def _start_wrong(data: bytearray, layout: Layout, rng: random.Random) -> None:
    """Another magic, an old version, the other byte order."""
    start = rng.choice((b"GGML", b"GGUF\1\0\0\0", b"GGUF\0\0\0\3", b"GGUF\4\0\0\0", b"FUGG"))
    data[: len(start)] = start


def _noise(data: bytearray, layout: Layout, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start : start + 16] = rng.randbytes(min(16, len(data) - start))


_MUTATIONS: tuple[Callable[[bytearray, Layout, random.Random], None], ...] = (
    _flip, _lie, _lie, _lie, _lie, _retype, _retype, _truncate, _extend, _repeat, _repeat_counted,
    _remove, _noise, _start_wrong, _lie_where_it_is_rare,
    _lie_where_it_is_rare,
)  # fmt: skip

_DATA = bytes(range(48))


def safetensors_header() -> dict[str, object]:
    return {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [16, 32]},
        "c": {"dtype": "U8", "shape": [16], "data_offsets": [32, 48]},
        "empty": {"dtype": "F16", "shape": [0, 4], "data_offsets": [48, 48]},
    }


def _wrong(rng: random.Random) -> object:
    deep: object = 0
    for _ in range(rng.choice((3, 3, 200, 3000))):
        deep = [deep]
    return rng.choice(
        (
            None, True, False, -1, 0, 1, 3, 4, 8, 15, 16, 17, 32, 48, 49, 1 << 31, 1 << 63, 1 << 64,
            1.5, "", "F32", "F64", "I64", "BOOL", "F8_E4M3", "F4", "..", "a/b", "two.safetensors",
            "\ud800", "\x1b[2J", [], [0], [1, 2], [48, 16], [0, 16], [1, 1, 2, 2], [0] * 9,
            [1 << 40] * 8, {}, {"x": 1}, deep,
        )
    )  # fmt: skip


def mutate_json(value: object, rng: random.Random) -> object:
    """One node of a JSON tree is replaced, removed or added."""
    if rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return _wrong(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    copy: dict[object, object] = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    action = rng.random()
    if action < 0.1:
        del copy[key]
    elif action < 0.2:
        copy[rng.choice(("d", "b", "dtype", "__metadata__"))] = copy[key]
    else:
        copy[key] = mutate_json(copy[key], rng)
    return copy if isinstance(value, dict) else list(copy.values())


def _json_text(value: object, rng: random.Random) -> bytes:
    """Text of a value, often mutated, sometimes with a name twice or not quite JSON."""
    if rng.random() < 0.8:
        value = mutate_json(value, rng)
    text = _dump(value)
    if rng.random() < 0.1:
        text = text.replace('"b"', '"a"').replace('"dtype"', '"shape"', rng.randrange(2))
    data = bytearray(text.encode())
    if data and rng.random() < 0.15:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return b" " * rng.choice((0, 0, 0, 0, 1)) + bytes(data)


def _dump(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:  # deeper than the writer can go: write the brackets by hand
        return '{"deep": ' + "[" * 3000 + "]" * 3000 + "}"


def safetensors_bytes(rng: random.Random, header: dict[str, object], data: bytes) -> bytes:
    text = _json_text(header, rng)
    length = len(text)
    if rng.random() < 0.15:
        length = rng.choice((*INTERESTING, length - 1, length + 1, length + len(data)))
    file = bytearray((length % (1 << 64)).to_bytes(8, "little") + text + data)
    action = rng.random()
    if action < 0.05:
        del file[rng.randrange(len(file) + 1) :]
    elif action < 0.1:
        file += rng.randbytes(rng.randint(1, 64))
    elif action < 0.2:
        file[rng.randrange(len(file))] ^= 1 << rng.randrange(8)
    return bytes(file)


def make_gguf(rng: random.Random) -> Files:
    return {"a.gguf": mutate(odd_gguf(), rng)}


def make_model(rng: random.Random) -> Files:
    return {"a.gguf": mutate(llama_gguf(), rng)}


def make_safetensors(rng: random.Random) -> Files:
    return {"model.safetensors": safetensors_bytes(rng, safetensors_header(), _DATA)}


def make_shards(rng: random.Random) -> Files:
    """Two shards and their index; most often only the index lies."""
    one = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    two = {"b": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    index = {"metadata": {"total_size": 48}, "weight_map": names}
    files = {"model.safetensors.index.json": _json_text(index, rng)}
    for name, header, size in (("one", one, 16), ("two", two, 32)):
        text = json.dumps(header).encode()
        sound = len(text).to_bytes(8, "little") + text + _DATA[:size]
        broken = rng.random() < 0.2
        files[f"{name}.safetensors"] = (
            safetensors_bytes(rng, dict(header), _DATA[:size]) if broken else sound
        )
    if rng.random() < 0.1:
        del files[rng.choice(tuple(files))]
    if rng.random() < 0.02:
        files = {rng.choice(("pytorch_model.bin", "notes.txt")): b"?"}
    if rng.random() < 0.05:
        files["model.safetensors"] = safetensors_bytes(rng, safetensors_header(), _DATA)
    return files


TARGETS: dict[str, Callable[[random.Random], Files]] = {
    "gguf": make_gguf,
    "model": make_model,
    "safetensors": make_safetensors,
    "shards": make_shards,
}
