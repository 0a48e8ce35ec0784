"""`octavo eval` with made-up scorers: which are opened, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.cli import eval as command
from octavo.cli.main import main
from octavo.cli.scorers import open_reference, open_scorer
from support.fakes import ByteTokenizer
from support.scorers import FunctionScorer, bigram_scorer

VOCAB = 258


class Opened:
    """Remembers which scorers were opened, with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, RuntimeConfig]] = []
        self.scorers: list[FunctionScorer] = []

    def _open(self, kind: str, name: str, config: RuntimeConfig) -> FunctionScorer:
        self.calls.append((kind, name, config))
        seed = 0 if config.format == "source" else 1
        noise = np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32)
        self.scorers.append(bigram_scorer(noise, f"{name} {config.format}"))
        return self.scorers[-1]

    def scorer(self, name: str, config: RuntimeConfig) -> FunctionScorer:
        return self._open("native", name, config)

    def reference(self, name: str, config: RuntimeConfig) -> FunctionScorer:
        return self._open("reference", name, config)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    fake = Opened()
    monkeypatch.setattr(command, "open_scorer", fake.scorer)
    monkeypatch.setattr(command, "open_reference", fake.reference)
    monkeypatch.setattr(command, "load_tokenizer_of", lambda name: ByteTokenizer())
    return fake


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("An octavo is a sheet folded to an eighth of its size. " * 5)
    return str(path)


def test_lossy_format_is_compared_with_the_source(
    opened: Opened, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "tiny", "--text", text, "--format", "int4_g32", "--context", "32", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [config.format for _, _, config in opened.calls] == ["int4_g32", "source"]
    assert (result["model"], result["base"]) == ("tiny int4_g32", "tiny source")
    assert result["report"]["kl_mean"]["value"] > 0
    assert result["report"]["tokens"] == 270  # every byte: windows begin with BOS
    assert all(scorer.closed for scorer in opened.scorers)


def test_equal_models_have_no_divergence(
    opened: Opened, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "a", "--against", "b", "--text", text, "--context", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a source against b source: 270 tokens scored in 5 windows of 64")
    named = dict(line.split("  ", 1) for line in lines[1:])
    assert named["Mean KLD"].strip().startswith("0.000000 ± 0.000000")
    assert named["Same top p"].strip().startswith("100.000")
    assert [name for _, name, _ in opened.calls] == ["a", "b"]


def test_alone_only_the_perplexity_is_measured(
    opened: Opened, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "tiny", "--text", text, "--tokens", "50"]) == 0
    out = capsys.readouterr().out
    assert "PPL" in out
    assert "KLD" not in out
    assert "50 tokens scored in 1 windows of 512" in out
    assert len(opened.calls) == 1


def test_reference_is_the_base(opened: Opened, text: str) -> None:
    words = ["eval", "tiny", "--text", text, "--reference", "--activations", "a8"]
    assert main(words) == 0
    assert [kind for kind, _, _ in opened.calls] == ["native", "reference"]
    assert [config.activations for _, _, config in opened.calls] == ["a8", "auto"]


def test_llama_cpp_protocol_and_stride(
    opened: Opened, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["eval", "tiny", "--text", text, "--context", "32"]
    assert main([*base, "--protocol", "llama.cpp", "--json"]) == 0
    # 271 tokens with BOS make 8 whole windows; positions 16 .. 30 of each count
    assert json.loads(capsys.readouterr().out)["report"]["tokens"] == 8 * 15
    assert main([*base, "--stride", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["tokens"] == 270
    assert main([*base, "--stride", "8", "--protocol", "llama.cpp"]) == 2
    assert "--stride" in capsys.readouterr().err


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("content", "named"), [(None, "No such file"), (b"ok \xff", "byte 3"), (b"", "is empty")]
)
def test_bad_texts_are_one_clear_error(
    content: bytes | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["eval", "tiny", "--text", str(path)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("opener", [open_scorer, open_reference])
def test_missing_model_is_a_user_error(opener: object) -> None:
    from octavo.core.errors import UserError

    with pytest.raises(UserError, match=r"missing\.gguf"):
        opener("missing.gguf", RuntimeConfig(context=16))  # type: ignore[operator]


def test_missing_rival_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from octavo.core.errors import UnsupportedError
    from octavo.evals.rivals import llama_cpp

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UnsupportedError, match=r"octavo\[bench\]"):
        llama_cpp()
