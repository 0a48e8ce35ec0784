"""GGUF files that we write: we read the same weights back, and llama.cpp computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from octavo.backends.reference.decoder import ReferenceDecoder
from octavo.backends.reference.options import ReferenceOptions
from octavo.compress.export_gguf import export_gguf
from octavo.compress.job import compress
from octavo.compress.recipe import from_flags
from octavo.core.errors import TokenizerError, UnsupportedError, UserError
from octavo.io.checkpoint import open_model
from octavo.io.tokenizer import load_tokenizer
from octavo.spec.graph import roles
from support import model_files
from support.model_files import HIDDEN, MODELS
from support.models import demo_model
from support.small_models import material, small_model, small_weights
from support.tokenizers import CHATML, byte_level_tokenizer, save_directory

F32 = npt.NDArray[np.float32]
TOKENS = [5, 40, 7, 99, 200, 3, 3, 81, 12, 63, 250, 9]
_gelu = torch.nn.functional.gelu
PADDED = 8  # rows of the embedding beyond the vocabulary


def speaking(directory: Path, family: str, changes: dict[str, object] | None = None) -> Path:
    """A Hugging Face directory of any family with a byte-level tokenizer."""
    tokenizer = byte_level_tokenizer()
    weights, rng = small_weights(family), np.random.default_rng(3)
    size = tokenizer.vocab_size + PADDED
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = rng.standard_normal((size, HIDDEN)).astype(np.float32) / 8
    given = {"vocab_size": size, **(changes or {})}
    model_files.write_hf(directory, MODELS[family], weights, **given)
    save_directory(
        directory, tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>",
        add_bos_token=True, chat_template=CHATML,
    )  # fmt: skip
    return directory


def values(path: Path) -> dict[str, F32]:
    with open_model(path) as model:
        return {str(role): model.source.tensor(role).float32() for role in roles(model.spec)}


def same_weights(one: Path, other: Path) -> None:
    ours, back = values(one), values(other)
    assert ours.keys() == back.keys()
    for role, expected in ours.items():
        np.testing.assert_array_equal(back[role], expected, err_msg=role)


def reference_logits(path: Path, tokens: list[int], dtype: str = "fp32") -> F32:
    """Of the dequantized weights, from the source that was exported."""
    with open_model(path) as model:
        options = ReferenceOptions(dtype=dtype)  # type: ignore[arg-type]
        decoder = ReferenceDecoder.load(model.source, model.spec, options)
        return np.array(decoder.logits(tokens))


def llama_logits(path: Path, tokens: list[int]) -> F32:
    rivals = pytest.importorskip("octavo.evals.rivals")
    pytest.importorskip("llama_cpp")
    settings = rivals.LlamaSettings(threads=1, kv="f32", flash_attention=False, repack=False)
    llama = rivals.LlamaCpp(path, len(tokens), settings)
    try:
        return np.concatenate([part.copy() for part in llama.logits(tokens, 0, len(tokens))])
    finally:
        llama.close()


def table_gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """As ggml_vec_gelu_f32 has it: argument and value rounded to fp16."""
    return _gelu(x.half().to(x.dtype), approximate=approximate).half().to(x.dtype)


@pytest.mark.parametrize("family", list(MODELS))
def test_every_family_comes_back_and_llama_cpp_computes_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = speaking(tmp_path / "m", family)
    assert export_gguf(source, tmp_path / "m.gguf") == ()
    same_weights(source, tmp_path / "m.gguf")
    if family == "gemma3":  # ggml's gelu is a table of halves
        monkeypatch.setattr(torch.nn.functional, "gelu", table_gelu)
    exact, ours = (reference_logits(source, TOKENS, dtype) for dtype in ("fp64", "fp32"))
    theirs = llama_logits(tmp_path / "m.gguf", TOKENS)
    # Both round in fp32, in orders of their own; llama.cpp's exp and angles are an ulp or two off.
    tolerance = 64 * np.abs(ours - exact).max()
    assert tolerance < 1e-3 * np.abs(exact).max()
    assert np.abs(theirs - exact).max() < tolerance


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_text_and_its_ends_are_the_same(family: str, tmp_path: Path) -> None:
    source = speaking(tmp_path / "m", family)
    export_gguf(source, tmp_path / "m.gguf")
    ours, back = load_tokenizer(source), load_tokenizer(tmp_path / "m.gguf")
    text = "hello <tool>, 12 <|im_end|> là\n"
    for special in (False, True):
        assert ours.encode(text, parse_special=special) == back.encode(text, parse_special=special)
    assert (ours.bos_id, ours.chat_template) == (back.bos_id, back.chat_template)
    assert back.eos_ids[0] == ours.eos_ids[0]


def test_a_header_that_cannot_be_said_is_refused(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    source = speaking(tmp_path / "m", "qwen2", window)
    with pytest.raises(UnsupportedError, match=r"window=8.*window=None.*hf instead"):
        export_gguf(source, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_vocabulary_that_cannot_be_said_is_refused(tmp_path: Path) -> None:
    source = speaking(tmp_path / "m", "qwen2")
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace(r"\\p{N}", r"\\p{N}{1,7}"))
    with pytest.raises(TokenizerError, match=r"no GGUF pre-tokenizer has.*1,7"):
        export_gguf(source, tmp_path / "m.gguf")


EXACT = {
    "int4_g32": "Q4_0", "int4_g32_asym": "Q5_0", "int8_g32": "Q8_0", "int5_g32_offset": "Q5_1",
    "iq4nl_g32": "IQ4_NL", "ternary_channel": "Q4_0", "bf16": "BF16", "int3_channel": "Q4_0",
}  # fmt: skip


def coded(tmp_path: Path, name: str, family: str = "qwen2") -> Path:
    source = speaking(tmp_path / "m", family)
    compress(source, from_flags("rtn", name), tmp_path / "a", material(0))
    return tmp_path / "a"


@pytest.mark.parametrize("name", list(EXACT))
def test_codes_go_over_as_they_are(name: str, tmp_path: Path) -> None:
    source = coded(tmp_path, name)
    assert export_gguf(source, tmp_path / "m.gguf") == ()
    same_weights(source, tmp_path / "m.gguf")
    with open_model(tmp_path / "m.gguf") as model:
        types = {tensor.type for tensor in model.tensors.values() if len(tensor.shape) > 1}
    assert types == {EXACT[name]}


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_codes_change_places_with_their_rows(family: str, tmp_path: Path) -> None:
    source = coded(tmp_path, "int4_g32", family)
    export_gguf(source, tmp_path / "m.gguf")
    same_weights(source, tmp_path / "m.gguf")


def test_parts_of_a_fused_tensor_share_the_type_that_holds_both(tmp_path: Path) -> None:
    source = speaking(tmp_path / "m", "phi3")
    recipe = from_flags("rtn", "int4_g32", (("v", "int5_g32"), ("up", "int8_g32")))
    compress(source, recipe, tmp_path / "a", material(0))
    assert export_gguf(tmp_path / "a", tmp_path / "m.gguf") == ()
    same_weights(tmp_path / "a", tmp_path / "m.gguf")
    with open_model(tmp_path / "m.gguf") as model:
        assert model.tensors["blk.0.attn_qkv.weight"].type == "Q5_0"
        assert model.tensors["blk.0.ffn_up.weight"].type == "Q8_0"


def test_what_no_type_holds_is_refused_with_the_nearest(tmp_path: Path) -> None:
    source = coded(tmp_path, "nf4_g32")
    words = r"token_embd\.weight is nf4_g32.*nearest are Q5_0|token_embd\.weight is nf4_g32.*IQ4_NL"
    with pytest.raises(UnsupportedError, match=words):
        export_gguf(source, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_requantized_tensors_state_their_error(tmp_path: Path) -> None:
    source = coded(tmp_path, "nf4_g32", "llama")
    rounded = {item.name: item for item in export_gguf(source, tmp_path / "m.gguf", True)}
    ours, back = values(source), values(tmp_path / "m.gguf")
    assert len(rounded) == 2 + 7 * model_files.LAYERS  # embedding, head, matrices
    for name, role in (("blk.1.attn_q.weight", "layer 1 q"), ("token_embd.weight", "embed")):
        found, w, q = rounded[name], ours[role], back[role]
        expected = np.vdot(w - q, w - q) / np.vdot(w, w)
        assert found.type == "IQ4_NL"
        assert found.error == pytest.approx(expected, rel=1e-4)
        assert 0 < expected < 0.01


def test_a_gguf_file_goes_through_bit_for_bit(tmp_path: Path) -> None:
    source = coded(tmp_path, "int4_g32", "llama")
    export_gguf(source, tmp_path / "one.gguf")
    export_gguf(tmp_path / "one.gguf", tmp_path / "two.gguf")
    with open_model(tmp_path / "one.gguf") as one, open_model(tmp_path / "two.gguf") as two:
        assert list(one.metadata) == list(two.metadata)
        assert one.tensors.keys() == two.tensors.keys()
        for name, tensor in one.tensors.items():
            assert tensor.type == two.tensors[name].type
            np.testing.assert_array_equal(tensor.rows(), two.tensors[name].rows())


@pytest.mark.parametrize("name", ["m.gguf", "m.bin"])
def test_an_output_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    source = speaking(tmp_path / "m", "qwen2")
    (tmp_path / "m.gguf").write_bytes(b"old")
    with pytest.raises(UserError, match=r"-o OUT\.gguf"):
        export_gguf(source, tmp_path / name)
    assert (tmp_path / "m.gguf").read_bytes() == b"old"


def test_without_a_tokenizer_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        export_gguf(small_model("llama", tmp_path / "m"), tmp_path / "m.gguf")


def test_the_command_says_what_it_rounded(tmp_path: Path) -> None:
    from octavo.cli.export import command

    source = coded(tmp_path, "fp8_e4m3_channel")
    words = [str(source), "--to", "gguf", "-o", str(tmp_path / "m.gguf")]
    assert CliRunner().invoke(command, words, standalone_mode=True).exit_code != 0
    result = CliRunner().invoke(command, [*words, "--requantize"])
    assert "layer" not in result.output
    assert "blk.0.attn_q.weight: fp8_e4m3_channel to Q8_0" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"])
def test_a_real_artifact_comes_back_and_llama_cpp_runs_it(name: str, tmp_path: Path) -> None:
    source = demo_model(name)
    compress(source, from_flags("rtn", "int8_g32"), tmp_path / "a", material(0))
    export_gguf(tmp_path / "a", tmp_path / "m.gguf")
    same_weights(tmp_path / "a", tmp_path / "m.gguf")
    ours, back = load_tokenizer(source), load_tokenizer(tmp_path / "m.gguf")
    text = "The café sells 12 croissants.\n\tdef f(x):\n<|im_end|> hello"
    tokens = ours.encode(text, parse_special=True)
    assert back.encode(text, parse_special=True) == tokens
    ours_logits = reference_logits(tmp_path / "a", tokens)
    theirs = llama_logits(tmp_path / "m.gguf", tokens)
    # llama.cpp rounds activations to 8 bits per 32: the distributions stay a percent of a nat near
    assert mean_kl(ours_logits, theirs) < 0.01


def mean_kl(base: F32, other: F32) -> float:
    p, q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (base, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())
