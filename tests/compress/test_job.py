"""Whole compressions: what an artifact gives back, and what an interruption leaves."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from octavo.backends.base import RuntimeConfig
from octavo.backends.native.backend import load
from octavo.compress import job
from octavo.compress.job import compress, partial
from octavo.compress.recipe import Recipe, Step, assign, from_flags, role_name
from octavo.compress.state import HiddenStates, Stage, WorkDirectory
from octavo.core.errors import ConfigError, FormatError, ModelFileError, ResourceError, UserError
from octavo.evals.scorer import ExecutorScorer
from octavo.formats import rtn
from octavo.formats.granularity import PerGroup
from octavo.formats.number_format import COMMON_NAMES, NumberFormat
from octavo.io.artifact import artifact_name
from octavo.io.checkpoint import open_model
from octavo.io.tokenizer import load_tokenizer
from octavo.spec.graph import role_shape, roles
from support import model_files
from support.model_files import MODELS, VOCAB
from support.small_models import material, small_model, small_weights, tokens
from support.tokenizers import byte_level_metadata, sentencepiece_metadata

GPTQ = from_flags("gptq", "int4_g32", (("down", "int8_g32"),))
EXTRA_FORMATS = ("int4_g32_se8m0", "int4_g32_se4m3", "int4_g32_sbf16", "int3_g16_si6x64")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def logits(path: Path, text: list[int], format: str = "source") -> np.ndarray:
    with open_model(path) as model:
        config = RuntimeConfig(context=64, max_seqs=1, threads=1, format=format)
        with closing(ExecutorScorer(load(model.spec, model.source, config), "x")) as scorer:
            return np.concatenate([block.copy() for block in scorer.logits(text, 0, 64)])


@pytest.mark.parametrize("name", MODELS)
def test_an_artifact_gives_back_formats_and_values_bit_for_bit(name: str, tmp_path: Path) -> None:
    path = small_model(name, tmp_path / "m")
    recipe = from_flags("rtn", "int4_g32", (("o", "nf4_g32"), ("head", "int8_channel")))
    compress(path, recipe, tmp_path / "out", material(0))
    with open_model(path) as source, open_model(tmp_path / "out") as model:
        assert model.spec == source.spec
        assert model.eos_ids == source.eos_ids
        assert model.unread_keys == source.unread_keys
        steps = assign(recipe, model.spec)
        for role in roles(model.spec):
            view, weight = model.source.tensor(role), source.source.tensor(role).float32()
            assert view.shape == role_shape(model.spec, role)
            if role not in steps:
                assert np.array_equal(view.float32(), weight)
                continue
            expected = rtn.encode(weight, steps[role].target)
            assert view.format == steps[role].target
            assert np.array_equal(view.float32(), expected.dequantize())
            assert np.array_equal(view.float32(3, 9), expected.rows(3, 9).dequantize())
            assert np.array_equal(view.quantized(3, 9).codes, expected.rows(3, 9).codes)


def fits(format: NumberFormat) -> bool:
    """Whether rounding to nearest can put 64 inputs into it."""
    width = format.super_scale.group if format.super_scale else 64
    if isinstance(format.granularity, PerGroup):
        width = max(width, format.granularity.size)
    return width == 64 and format.variant != "learned"


@pytest.mark.parametrize(
    "format", [f for f in (*COMMON_NAMES, *EXTRA_FORMATS) if fits(NumberFormat.parse(f))]
)
def test_every_format_survives_the_files(format: str, tmp_path: Path) -> None:
    path, target = small_model("qwen2", tmp_path / "m"), NumberFormat.parse(format)
    with open_model(path) as source:
        role = next(r for r in roles(source.spec) if r.part == "gate")
        weight = source.source.tensor(role).float32()
    expected = rtn.encode(weight, target).dequantize()
    recipe = Recipe((Step("rtn", format, ("layers.0.gate",)),))
    compress(path, recipe, tmp_path / "out", material(0))
    with open_model(tmp_path / "out") as model:
        view = model.source.tensor(role)
        assert view.format == target
        assert np.array_equal(view.float32(), expected)


@pytest.mark.parametrize("format", ["ternary_channel", "ternary_g32", "int4_g32", "bf16"])
def test_the_reported_bits_are_those_of_the_files(format: str, tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    report = compress(path, from_flags("rtn", format), tmp_path / "out", material(0)).report
    with open_model(tmp_path / "out") as model:
        for matrix in report.matrices():
            role = next(r for r in roles(model.spec) if role_name(r) == matrix.name)
            name = artifact_name(model.spec, role)
            held = sum(t.nbytes for key, t in model.tensors.items() if key.startswith(f"{name}."))
            held += model.tensors[name].nbytes if name in model.tensors else 0
            bits = matrix.bits * math.prod(role_shape(model.spec, role))
            assert bits == pytest.approx(8 * held, rel=1e-12), matrix.name


@pytest.mark.parametrize("format", ["int4_g32", "int8_channel", "int4_g32_asym", "nf4_g32", "bf16"])
def test_native_runs_an_artifact_as_it_runs_the_requantized_source(
    format: str, tmp_path: Path
) -> None:
    path, text = small_model("gemma3", tmp_path / "m"), tokens(1, 30)[0].tolist()
    compress(path, from_flags("rtn", format), tmp_path / "out", material(0))
    assert np.array_equal(logits(tmp_path / "out", text), logits(path, text, format))


def test_native_requantizes_an_artifact_from_its_values(tmp_path: Path) -> None:
    path, text = small_model("qwen2", tmp_path / "m"), tokens(1, 20)[0].tolist()
    compress(path, from_flags("rtn", "nf4_g32"), tmp_path / "out", material(0))
    with open_model(tmp_path / "out") as model:
        values = {role: model.source.tensor(role).float32() for role in roles(model.spec)}
        names = {role: model.source.tensor(role).name for role in values}
    plain = {names[role]: array for role, array in values.items()}
    written = model_files.write_hf(tmp_path / "plain", MODELS["qwen2"], plain)
    assert np.array_equal(
        logits(tmp_path / "out", text, "int8_g32"), logits(written, text, "int8_g32")
    )


@pytest.mark.parametrize("metadata", [byte_level_metadata, sentencepiece_metadata])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "phi3", "qwen3_moe"])
def test_a_gguf_model_keeps_spec_tokenizer_and_values(
    name: str, metadata: object, tmp_path: Path
) -> None:
    assert callable(metadata)
    path = model_files.write_gguf(
        tmp_path / "m.gguf", MODELS[name], small_weights(name), metadata=metadata()
    )
    compress(path, from_flags("rtn", "int8_g32"), tmp_path / "out", material(0))
    with open_model(path) as source, open_model(tmp_path / "out") as model:
        assert model.spec == source.spec
        for role in roles(model.spec):
            ours, theirs = (m.source.tensor(role).float32() for m in (model, source))
            if ours.ndim == 1:
                assert np.array_equal(ours, theirs)
    ours, theirs = load_tokenizer(tmp_path / "out"), load_tokenizer(path)
    text = "hello <|im_end|> hell\n  é hello"
    for special in (True, False):
        assert ours.encode(text, add_special=special) == theirs.encode(text, add_special=special)
        parsed = [t.encode(text, special, True) for t in (ours, theirs)]
        assert parsed[0] == parsed[1]
    assert ours.eos_ids == theirs.eos_ids
    assert (ours.bos_id, ours.chat_template) == (theirs.bos_id, theirs.chat_template)
    assert ours.named_tokens == theirs.named_tokens


def test_quality_and_provenance_travel_with_the_artifact(tmp_path: Path) -> None:
    path = small_model("qwen2", tmp_path / "m")
    result = compress(path, GPTQ, tmp_path / "out", material(4, 24, 200))
    assert result.quality is not None
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    manifest = json.loads((tmp_path / "out" / "octavo.json").read_text())
    [text] = quality["texts"]
    assert text["kl"]["mean"]["low"] <= text["kl"]["mean"]["value"] <= text["kl"]["mean"]["high"]
    assert text["kl"]["mean"]["value"] == result.quality.kl > 0
    assert manifest["quality"] == quality
    assert quality["executor"].startswith("native")
    assert manifest["recipe_sha256"] == GPTQ.digest()
    assert Recipe.from_dict(manifest["recipe"]).steps == GPTQ.steps
    assert set(manifest["source"]["files"]) == {"config.json", "model.safetensors"}
    assert manifest["calibration"]["sequences"] == 4
    assert str(tmp_path) not in (tmp_path / "out" / "octavo.json").read_text()
    assert manifest["report"]["bytes"] == result.report.bytes
    listed = {name for name in contents(tmp_path / "out") if name != "octavo.json"}
    assert set(manifest["files"]) == listed


def test_models_that_are_not_planned_natively_are_measured_by_the_reference(tmp_path: Path) -> None:
    path = small_model("mixtral", tmp_path / "m")
    recipe = from_flags("rtn", "int4_g32")
    result = compress(path, recipe, tmp_path / "out", material(0, measured=60))
    assert result.quality is not None
    assert result.quality.executor == "reference"
    assert result.quality.kl > 0


def test_equal_inputs_give_equal_bytes_and_leave_nothing_beside(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    for name in ("a", "b"):
        compress(path, GPTQ, tmp_path / name, material(measured=50))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "m"]


class Stopped(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("where", ["before", "after", "hidden"])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    at: int, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("llama", tmp_path / "m")
    compress(path, GPTQ, tmp_path / "whole", material())
    seen: list[int] = []
    write, write_hidden = WorkDirectory.write, HiddenStates.write

    def stopping(self: WorkDirectory, name: str, stage: Stage) -> None:
        seen.append(at)
        if len(seen) == at + 1 and where == "before":
            raise Stopped
        write(self, name, stage)
        if len(seen) == at + 1 and where == "after":
            raise Stopped

    def stopping_hidden(self: HiddenStates, sequences: object) -> None:
        if len(seen) == at and where == "hidden":
            raise Stopped
        write_hidden(self, sequences)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(WorkDirectory, "write", stopping)
        patch.setattr(HiddenStates, "write", stopping_hidden)
        try:
            compress(path, GPTQ, tmp_path / "out", material())
            assert (where, at) == ("hidden", 3)  # the last stage gives no hidden states
            return
        except Stopped:
            assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="unfinished compression of another recipe"):
        compress(path, from_flags("rtn", "int8_g32"), tmp_path / "out", material())
    compress(path, GPTQ, tmp_path / "out", material())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not partial(tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from octavo.compress.job import compress
from support.small_models import material
from test_job_recipe import GPTQ

def kill(stage, done, total):
    if stage == "0":
        os.kill(os.getpid(), signal.SIGKILL)

compress(Path(sys.argv[1]), GPTQ, Path(sys.argv[2]), material(), kill)
"""


def test_a_killed_process_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    (tmp_path / "test_job_recipe.py").write_text(
        "from octavo.compress.recipe import from_flags\n"
        'GPTQ = from_flags("gptq", "int4_g32", (("down", "int8_g32"),))\n'
    )
    (tmp_path / "killed.py").write_text(KILLED)
    support = str(Path(__file__).resolve().parents[1])
    arguments = [str(tmp_path / "killed.py"), str(path), str(tmp_path / "out"), support]
    done = subprocess.run([sys.executable, *arguments], timeout=120)
    assert done.returncode == -signal.SIGKILL
    left = partial(tmp_path / "out")
    assert (left / "stage-0.safetensors").exists()
    assert not (left / "stage-1.safetensors").exists()
    compress(path, GPTQ, tmp_path / "out", material())
    compress(path, GPTQ, tmp_path / "whole", material())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_output_that_exists_is_refused_and_untouched(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists: remove it"):
        compress(path, GPTQ, tmp_path / "out", material())
    assert not list((tmp_path / "out").iterdir())


def test_an_error_of_the_input_leaves_nothing_behind(tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    with pytest.raises(FormatError, match=r"layers\.0\.q: hqq"):
        compress(path, from_flags("hqq", "int4_g32"), tmp_path / "out", material())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_full_disk_is_one_error_and_the_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model("llama", tmp_path / "m")

    def full(self: HiddenStates, sequences: object) -> None:
        raise ResourceError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(HiddenStates, "write", full)
        with pytest.raises(ResourceError, match="no space"):
            compress(path, GPTQ, tmp_path / "out", material())
    assert not (tmp_path / "out").exists()
    compress(path, GPTQ, tmp_path / "out", material())
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "quality.json"])
def test_a_file_that_differs_from_its_checksum_is_refused(name: str, tmp_path: Path) -> None:
    path = small_model("llama", tmp_path / "m")
    compress(path, from_flags("rtn", "int4_g32"), tmp_path / "out", material(0, measured=50))
    file = tmp_path / "out" / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1 if name == "model.safetensors" else 0x2A
    file.write_bytes(bytes(content))
    with pytest.raises((ModelFileError, ConfigError), match=name):
        open_model(tmp_path / "out")


def test_an_artifact_can_be_compressed_again(tmp_path: Path) -> None:
    path = small_model("gemma3", tmp_path / "m")
    compress(path, from_flags("rtn", "int8_g32"), tmp_path / "first", material(0))
    compress(tmp_path / "first", GPTQ, tmp_path / "second", material())
    shutil.rmtree(path)
    with open_model(tmp_path / "second") as model:
        assert {str(model.source.tensor(r).format) for r in roles(model.spec)} == {
            "fp32", "int4_g32", "int8_g32",
        }  # fmt: skip


def test_vocabularies_of_the_helpers_agree() -> None:
    assert int(tokens(3, 50).max()) < VOCAB
    assert job.EVALUATED > 0
