"""`octavo compress` on a small model with a tokenizer: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main
from octavo.io.checkpoint import open_model
from octavo.spec.graph import roles
from support.small_models import small_model, talking_model

WORDS = "An octavo is a sheet folded to an eighth of its size; hello, hello.\n"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(talking_model(tmp_path / "m"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 30)
    return str(path)


def compress(*words: str) -> int:
    return main(["compress", *words])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert compress(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("octavo: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def asked(model: str, text: str, out: Path, *words: str) -> tuple[str, ...]:
    short = ("--calibration", text, "--sequences", "4", "--length", "32", "--tokens", "200")
    return (model, "-o", str(out), *short, *words)


def test_flags_write_an_artifact_that_is_measured(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--method", "gptq", "--format", "int4_g32", "--keep", "head=int8_g32", "--text", text)
    assert compress(*asked(model, text, out, *flags, "--json")) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed["quality"] == json.loads((out / "quality.json").read_text())
    assert [found["text"] for found in printed["quality"]["texts"]] == ["text.txt", "text.txt"]
    assert printed["quality"]["texts"][0]["tokens"] <= 200
    with open_model(out) as opened:
        formats = {str(opened.source.tensor(role).format) for role in roles(opened.spec)}
    assert formats == {"int4_g32", "int8_g32", "fp32"}
    assert main(["run", str(out), "hello", "--max-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["formats"] == ["int4_g32", "int8_g32"]
    assert main(["inspect", str(out)]) == 0
    assert "int4_g32" in capsys.readouterr().out


def test_a_budget_gives_every_matrix_a_format(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compress(*asked(model, text, out, "--budget", "5.2bpw", "--json")) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    with open_model(out) as opened:
        stored = sum(tensor.nbytes for tensor in opened.tensors.values())
    assert 0.95 * 5.2 < printed["report"]["bits_per_weight"] <= 5.2
    assert stored == printed["report"]["bytes"]
    assert json.loads((out / "sensitivity.json").read_text())["formats"].keys() > {"embed"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out", "text.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "small"), "give it as 4.25bpw"),
        (("--budget", "5bpw", "--format", "int4_g32"), "leave --recipe, --format"),
        (("--budget", "5bpw", "--method", "hqq"), "take searched or gptq or rtn"),
        (("--budget", "1bpw"), "smallest formats take"),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    words: tuple[str, ...], message: str, model: str, text: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert message in refusal(capsys, *asked(model, text, tmp_path / "out", *words))


def test_the_text_output_says_size_formats_and_divergence(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress(*asked(model, text, tmp_path / "out", "--format", "int8_g32")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bits each" in lines[0]
    assert "15 matrices as int8_g32 by rtn: 8.50 bits" in lines[1]
    assert "peak memory: " in lines[2]
    assert "native" in lines[3]
    assert "text.txt: mean KL 0.0" in lines[4]


def test_learned_levels_leave_embedding_and_head_to_integers_and_say_so(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--method", "kmeans", "--format", "lut4_g32")
    assert compress(*asked(model, text, tmp_path / "out", *flags)) == 0
    said = capsys.readouterr().err
    assert "embed and head: int4_g32, since the levels of lut4_g32 are learned; --keep" in said
    with open_model(tmp_path / "out") as opened:
        formats = {str(opened.source.tensor(role).format) for role in roles(opened.spec)}
    assert formats == {"lut4_g32", "int4_g32", "fp32"}
    both = ("--keep", "embed=int8_g32", "--keep", "head=int8_g32")
    assert compress(*asked(model, text, tmp_path / "both", *flags, *both)) == 0
    assert "learned" not in capsys.readouterr().err
    refused = refusal(capsys, *asked(model, text, tmp_path / "r", "--format", "lut4_g32"))
    assert "encode it by kmeans or squeezellm" in refused


def test_a_recipe_file_says_the_steps(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps: [{method: rtn, format: int8_g32, select: ['layers.*.down']}]")
    words = asked(model, text, tmp_path / "out", "--recipe", str(recipe))
    assert compress(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)["report"]
    names = [m["name"] for stage in report["stages"] for m in stage["matrices"]]
    assert names == ["layers.0.down", "layers.1.down"]


def test_a_gate_that_fails_has_a_status_of_its_own(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = asked(model, text, tmp_path / "out", "--format", "int2_g32", "--max-kl", "0.000001")
    assert compress(*words) == 3
    assert "exceeds --max-kl" in capsys.readouterr().err
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "give --format"),
        (("--format", "int4_g33x"), "not a number format"),
        (("--format", "int4_g128"), "Groups that fit"),
        (("--format", "int4_g32", "--method", "gptk"), "did you mean gptq"),
        (("--format", "int4_g32", "--keep", "layers.9.q=bf16"), "matches no matrix"),
        (("--format", "int4_g32", "--recipe", "r.yaml"), "leave --method"),
        (("--recipe", "absent.yaml"), "absent.yaml"),
        (("--format", "int4_g32", "--calibration", "absent.txt"), "absent.txt"),
        (("--format", "int4_g32", "--text", "absent.txt"), "absent.txt"),
        (("--format", "int4_g32", "--method", "gptq", "--sequences", "999"), "--sequences "),
    ],
)
def test_what_is_refused_leaves_nothing(
    words: tuple[str, ...],
    expected: str,
    model: str,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert expected in refusal(capsys, *asked(model, text, tmp_path / "out", *words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "text.txt"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b"\xff\xfe", "not UTF-8"), (b"ab", "bad.txt: the text has 1 tokens")],
)
def test_texts_that_cannot_be_used_are_refused(
    content: bytes, expected: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    words = asked(model, str(path), tmp_path / "out", "--format", "int4_g32")
    assert expected in refusal(capsys, *words)


def test_an_output_that_exists_is_refused_before_anything_is_read(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    words = asked("no-such-model", text, tmp_path / "out", "--format", "int4_g32")
    assert "exists: remove it" in refusal(capsys, *words)


def test_a_model_without_a_tokenizer_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = str(small_model("llama", tmp_path / "silent"))
    words = asked(silent, text, tmp_path / "out", "--format", "int4_g32")
    assert "tokenizer.json" in refusal(capsys, *words)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("stepz: []", "unknown key 'stepz'; did you mean 'steps'"),
        ("steps: [{method: rtn, format: int4_g32, selct: q}]", "did you mean 'select'"),
        ("steps: [{method: rtn, format: int4_g32, select: dwon}]", "matches no matrix"),
        ("steps: [{method: rtn, format: int4_g33}]", "Groups that fit"),
        ("steps: [{method: rtn, format: int4_g32}]\nactivations: a9", "did you mean 'a8'"),
        ("steps: [{method: rtn, format: int4_g32}]\nkv: int9", "kv 'int9' is unknown"),
        ("steps: [{method: rtn, format: bf16}]\nactivations: a8", "a8 multiplies integers"),
    ],
)
def test_bad_recipes_are_refused_with_the_remedy(
    recipe: str,
    expected: str,
    model: str,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    assert expected in refusal(capsys, *asked(model, text, tmp_path / "out", "--recipe", str(path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "recipe.yaml", "text.txt"]


def test_weights_that_are_nan_leave_nothing(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    file = Path(model) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "layers.1.mlp.up" in name)
    weights[name] = weights[name].copy()
    weights[name][0, 0] = float("nan")
    save_file(weights, file)
    assert compress(*asked(model, text, tmp_path / "out", "--format", "int4_g32")) == 1
    said = capsys.readouterr().err
    assert "layer 1 up holds NaN or infinite weights" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "text.txt"]


def test_a_full_disk_publishes_nothing_and_the_command_goes_on_later(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of a file stands for the disk: the same error, without a disk to fill."""
    import resource

    words = asked(model, text, tmp_path / "out", "--format", "int4_g32")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        said = refusal(capsys, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "can't be written" in said
    assert not (tmp_path / "out").exists()
    assert compress(*words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out", "text.txt"]


def test_activations_and_kv_by_flags_are_what_the_artifact_runs_with(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ("--format", "int8_g32", "--activations", "a16", "--activations", "head=a8")
    assert compress(*asked(model, text, out, *flags, "--kv", "int8")) == 0
    capsys.readouterr()
    assert main(["run", str(out), "hello", "--max-tokens", "2", "--json"]) == 0
    ran = json.loads(capsys.readouterr().out)
    assert ran["kv"] == "int8"
    assert any("a16, head a8: as the artifact was compressed for" in note for note in ran["notes"])
    assert main(["run", str(out), "hi", "--max-tokens", "2", "--kv", "bf16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv"] == "bf16"
    twice = ("--format", "int8_g32", "--activations", "a8", "--activations", "a16")
    assert "give one for all" in refusal(capsys, *asked(model, text, tmp_path / "b", *twice))
